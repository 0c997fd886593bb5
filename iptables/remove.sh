#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Takes away everything that apply.sh added to the current network namespace; a clean one is success.
#
#   remove.sh
#
# Connections that were being redirected end with it. Setting: FORCE_IPTABLES_BINARY=nft|legacy.
set -eu

[ $# -eq 0 ] || { echo "usage: remove.sh" >&2; exit 2; }
IPV6=yes
if [ ! -d /proc/sys/net/ipv6 ]; then IPV6=; fi
. "$(dirname "$0")/backend.sh"
choose_backend

clean_family() {  # FAMILY PROGRAM EVERYWHERE
    for table in mangle nat raw; do
        drop_table "$2" $table
    done
    while has_rule "$1"; do
        ip "$1" rule del fwmark $REPLY_MARK pref $RULE_PRIORITY lookup $ROUTE_TABLE ||
            die "cannot delete policy rule $RULE_PRIORITY; is this root in the pod's namespace?"
    done
    if [ -n "$(ip "$1" route show table $ROUTE_TABLE type local "$3" 2>/dev/null)" ]; then
        ip "$1" route del local "$3" dev lo table $ROUTE_TABLE ||
            die "cannot delete the route of table $ROUTE_TABLE"
    fi
}

clean_family -4 "$IPT4" 0.0.0.0/0
if [ -n "$IPV6" ]; then clean_family -6 "$IPT6" ::/0; fi
