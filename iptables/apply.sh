#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Sends the traffic of the current network namespace (a pod) through the proxy that listens in it.
#
#   apply.sh [--dns] [--ipv4-only]
#
# Repeatable: a second run leaves one copy of each rule. Each table changes at once or not at all.
# Settings: FORCE_IPTABLES_BINARY=nft|legacy, HOST_PROBE_SNAT_IP, HOST_PROBE_SNAT_IPV6.
set -eu

DNS=
IPV6=yes
for option in "$@"; do
    case "$option" in
        --dns) DNS=yes ;;
        --ipv4-only) IPV6= ;;
        *) echo "usage: apply.sh [--dns] [--ipv4-only]" >&2; exit 2 ;;
    esac
done
if [ ! -d /proc/sys/net/ipv6 ]; then IPV6=; fi
. "$(dirname "$0")/backend.sh"
choose_backend

PROXY=0x539/0xfff  # packets of the proxy itself carry this mark (1337)
OUTBOUND=15001
INBOUND=15006
HBONE=15008
DNS_PORT=15053

# Replies of an application to the proxy's connections are addressed to the original client. Their
# mark (0x111) leads them to table 100, where every address is local, and so back to the proxy.
add_routes() {  # FAMILY EVERYWHERE
    if [ "$1" = -6 ] && [ "$(cat /proc/sys/net/ipv6/conf/lo/disable_ipv6)" = 1 ]; then
        echo "apply.sh: IPv6 is disabled on lo, its route is left out" >&2
    else
        ip "$1" route replace local "$2" dev lo scope host table $ROUTE_TABLE ||
            die "cannot set the route of table $ROUTE_TABLE; is lo up, and is this root in the pod's namespace?"
    fi
    has_rule "$1" || ip "$1" rule add fwmark $REPLY_MARK pref $RULE_PRIORITY lookup $ROUTE_TABLE ||
        die "cannot add policy rule $RULE_PRIORITY; is this root in the pod's namespace?"
}

jump() {  # PROGRAM TABLE BUILTIN CHAIN: the line that adds a jump, unless it is there
    has_jump "$@" || echo "-A $3 -j $4"
}

# The rules in the order the kernel reads them. Declaring a chain empties it, so that it is refilled
# in the same step; other chains stay as they are (--noflush).
rules() {  # PROGRAM LOOPBACK PROBE
    echo "*mangle"
    echo ":$CHAIN_IN - [0:0]"
    echo ":$CHAIN_OUT - [0:0]"
    jump "$1" mangle PREROUTING $CHAIN_IN
    jump "$1" mangle OUTPUT $CHAIN_OUT
    # Remember in conntrack what the proxy sent to its own pod; give the replies that mark.
    echo "-A $CHAIN_IN -m mark --mark $PROXY -j CONNMARK --set-xmark $REPLY_MARK"
    echo "-A $CHAIN_OUT -m connmark --mark $REPLY_MARK -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff"
    echo "COMMIT"
    echo "*nat"
    echo ":$CHAIN_IN - [0:0]"
    echo ":$CHAIN_OUT - [0:0]"
    jump "$1" nat OUTPUT $CHAIN_OUT
    jump "$1" nat PREROUTING $CHAIN_IN
    # In: probes of the node pass, everything else but HBONE goes to the plaintext port.
    echo "-A $CHAIN_IN -s $3 -p tcp -j ACCEPT"
    echo "-A $CHAIN_IN ! -d $2 -p tcp ! --dport $HBONE -m mark ! --mark $PROXY -j REDIRECT --to-ports $INBOUND"
    # Out: answers to probes, DNS, the proxy's connections to its pod, the pod's to itself, the rest.
    echo "-A $CHAIN_OUT -d $3 -p tcp -j ACCEPT"
    if [ -n "$DNS" ]; then
        echo "-A $CHAIN_OUT ! -o lo -p udp -m mark ! --mark $PROXY -m udp --dport 53 -j REDIRECT --to-ports $DNS_PORT"
        echo "-A $CHAIN_OUT ! -d $2 -p tcp --dport 53 -m mark ! --mark $PROXY -j REDIRECT --to-ports $DNS_PORT"
    fi
    echo "-A $CHAIN_OUT -p tcp -m mark --mark $REPLY_MARK -j ACCEPT"
    echo "-A $CHAIN_OUT ! -d $2 -o lo -j ACCEPT"
    echo "-A $CHAIN_OUT ! -d $2 -p tcp -m mark ! --mark $PROXY -j REDIRECT --to-ports $OUTBOUND"
    echo "COMMIT"
    if [ -n "$DNS" ]; then
        echo "*raw"
        echo ":$CHAIN_IN - [0:0]"
        echo ":$CHAIN_OUT - [0:0]"
        jump "$1" raw PREROUTING $CHAIN_IN
        jump "$1" raw OUTPUT $CHAIN_OUT
        # The proxy's own queries in a conntrack zone of their own: same port, no collision.
        echo "-A $CHAIN_OUT -p udp -m mark --mark $PROXY -m udp --dport 53 -j CT --zone 1"
        echo "-A $CHAIN_IN -p udp -m mark ! --mark $PROXY -m udp --sport 53 -j CT --zone 1"
        echo "COMMIT"
    fi
}

install() {  # PROGRAM LOOPBACK PROBE
    text=$(rules "$@") # complete before the restore starts: the legacy programs share one lock
    echo "$text" | "$1-restore" $WAIT --noflush || return 1
    if [ -z "$DNS" ]; then drop_table "$1" raw; fi
}

add_routes -4 0.0.0.0/0
if [ -n "$IPV6" ]; then add_routes -6 ::/0; fi
failed=
install "$IPT4" 127.0.0.1/32 "${HOST_PROBE_SNAT_IP:-169.254.7.127}" || failed="$IPT4"
if [ -n "$IPV6" ]; then
    install "$IPT6" ::1/128 "${HOST_PROBE_SNAT_IPV6:-fd16:9254:7127:1337:ffff:ffff:ffff:ffff}" ||
        failed="$failed $IPT6"
fi
[ -z "$failed" ] || die "rules refused by: $failed"
