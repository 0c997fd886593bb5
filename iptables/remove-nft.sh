#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Takes away the rules that send the traffic of a pod through the proxy.
# Written by ztunnel-py; run it as root in the pod's network namespace.
set -eu

nft -f - <<'RULES'
add table inet istio-ambient-mangle
delete table inet istio-ambient-mangle
add table inet istio-ambient-nat
delete table inet istio-ambient-nat
add table inet istio-ambient-raw
delete table inet istio-ambient-raw
RULES

[ -z "$(ip -4 route show table 100 2>/dev/null)" ] || ip -4 route del local 0.0.0.0/0 dev lo scope host table 100
[ -z "$(ip -4 rule show pref 32764 2>/dev/null)" ] || ip -4 rule del fwmark 0x111/0xfff pref 32764 lookup 100
[ -z "$(ip -6 route show table 100 2>/dev/null)" ] || ip -6 route del local ::/0 dev lo scope host table 100
[ -z "$(ip -6 rule show pref 32764 2>/dev/null)" ] || ip -6 rule del fwmark 0x111/0xfff pref 32764 lookup 100
