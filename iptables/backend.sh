# SPDX-License-Identifier: Apache-2.0
# What apply.sh and remove.sh share: messages, the choice of the iptables programs, the removal of
# a table's rules. This file is read with `.`; it starts nothing by itself.

CHAIN_IN=ISTIO_PRERT
CHAIN_OUT=ISTIO_OUTPUT
ROUTE_TABLE=100
RULE_PRIORITY=32764
REPLY_MARK=0x111/0xfff  # conntrack mark of connections the proxy opened to its own pod

die() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

need() {
    command -v "$1" >/dev/null 2>&1 || die "the program '$1' is missing; install the package $2"
}

# Rules of the legacy backend in this namespace. The kernel lists the tables in use in a file;
# asking the program instead would create them, and with that a different answer the next time.
has_legacy_rules() {
    grep -q . /proc/net/ip_tables_names 2>/dev/null &&
        command -v iptables-legacy-save >/dev/null 2>&1 &&
        iptables-legacy-save 2>/dev/null | grep -q '^-A'
}

# Sets IPT4 and IPT6, the names of the programs, and WAIT, the option that waits for the legacy lock.
choose_backend() {
    case "${FORCE_IPTABLES_BINARY:-}" in
        nft | legacy) IPT4=iptables-$FORCE_IPTABLES_BINARY ;;
        '')
            if has_legacy_rules; then
                IPT4=iptables-legacy
            elif command -v iptables-nft >/dev/null 2>&1; then
                IPT4=iptables-nft
            else
                IPT4=iptables
            fi
            ;;
        *) die "FORCE_IPTABLES_BINARY is '$FORCE_IPTABLES_BINARY'; expected nft or legacy" ;;
    esac
    IPT6=ip6tables${IPT4#iptables}
    need ip iproute2
    need "$IPT4" iptables
    need "$IPT4-restore" iptables
    WAIT=
    if [ "$IPT4" = iptables-legacy ]; then WAIT='-w 30'; fi
    if [ -n "$IPV6" ]; then need "$IPT6-restore" iptables; fi
}

# has_jump PROGRAM TABLE BUILTIN CHAIN
has_jump() {
    "$1" $WAIT -t "$2" -C "$3" -j "$4" 2>/dev/null
}

# drop_table PROGRAM TABLE: deletes our jumps and chains, every copy; a clean table is success.
# A table that is not in use is left alone, because merely asking for it would create it.
drop_table() {
    "$1-save" 2>/dev/null | grep -qx "\*$2" || return 0
    while has_jump "$1" "$2" PREROUTING $CHAIN_IN; do
        "$1" $WAIT -t "$2" -D PREROUTING -j $CHAIN_IN
    done
    while has_jump "$1" "$2" OUTPUT $CHAIN_OUT; do
        "$1" $WAIT -t "$2" -D OUTPUT -j $CHAIN_OUT
    done
    for chain in $CHAIN_IN $CHAIN_OUT; do
        "$1" $WAIT -t "$2" -F $chain 2>/dev/null && "$1" $WAIT -t "$2" -X $chain
    done
    return 0
}

# has_rule FAMILY (-4 or -6)
has_rule() {
    [ -n "$(ip "$1" rule show pref $RULE_PRIORITY fwmark $REPLY_MARK table $ROUTE_TABLE 2>/dev/null)" ]
}
