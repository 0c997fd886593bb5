#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Sends the traffic of a pod through the proxy that listens in it.
# Written by ztunnel-py; run it as root in the pod's network namespace.
set -eu

ip -4 route replace local 0.0.0.0/0 dev lo scope host table 100
[ -n "$(ip -4 rule show pref 32764)" ] || ip -4 rule add fwmark 0x111/0xfff pref 32764 lookup 100
ip -6 route replace local ::/0 dev lo scope host table 100
[ -n "$(ip -6 rule show pref 32764)" ] || ip -6 rule add fwmark 0x111/0xfff pref 32764 lookup 100

nft -f - <<'RULES'
add table inet istio-ambient-mangle
delete table inet istio-ambient-mangle
add table inet istio-ambient-nat
delete table inet istio-ambient-nat
add table inet istio-ambient-raw
delete table inet istio-ambient-raw
add table inet istio-ambient-mangle
add chain inet istio-ambient-mangle prerouting { type filter hook prerouting priority -150; }
add chain inet istio-ambient-mangle istio-prerouting
add chain inet istio-ambient-mangle output { type route hook output priority -150; }
add chain inet istio-ambient-mangle istio-output
add rule inet istio-ambient-mangle prerouting jump istio-prerouting
add rule inet istio-ambient-mangle istio-prerouting meta mark & 0xfff == 0x539 counter ct mark set ct mark & 0xfffff000 | 0x111
add rule inet istio-ambient-mangle output jump istio-output
add rule inet istio-ambient-mangle istio-output ct mark & 0xfff == 0x111 counter meta mark set ct mark
add table inet istio-ambient-nat
add chain inet istio-ambient-nat output { type nat hook output priority -100; }
add chain inet istio-ambient-nat istio-output
add chain inet istio-ambient-nat prerouting { type nat hook prerouting priority -100; }
add chain inet istio-ambient-nat istio-prerouting
add rule inet istio-ambient-nat output jump istio-output
add rule inet istio-ambient-nat istio-output ip daddr 169.254.7.127 meta l4proto tcp counter accept
add rule inet istio-ambient-nat istio-output ip6 daddr fd16:9254:7127:1337:ffff:ffff:ffff:ffff meta l4proto tcp counter accept
add rule inet istio-ambient-nat istio-output oifname != "lo" meta mark & 0xfff != 0x539 udp dport 53 counter redirect to :15053
add rule inet istio-ambient-nat istio-output ip daddr != 127.0.0.1 tcp dport 53 meta mark & 0xfff != 0x539 counter redirect to :15053
add rule inet istio-ambient-nat istio-output ip6 daddr != ::1 tcp dport 53 meta mark & 0xfff != 0x539 counter redirect to :15053
add rule inet istio-ambient-nat istio-output meta l4proto tcp meta mark & 0xfff == 0x111 counter accept
add rule inet istio-ambient-nat istio-output ip daddr != 127.0.0.1 oifname "lo" counter accept
add rule inet istio-ambient-nat istio-output ip6 daddr != ::1 oifname "lo" counter accept
add rule inet istio-ambient-nat istio-output ip daddr != 127.0.0.1 meta l4proto tcp meta mark & 0xfff != 0x539 counter redirect to :15001
add rule inet istio-ambient-nat istio-output ip6 daddr != ::1 meta l4proto tcp meta mark & 0xfff != 0x539 counter redirect to :15001
add rule inet istio-ambient-nat prerouting jump istio-prerouting
add rule inet istio-ambient-nat istio-prerouting ip saddr 169.254.7.127 meta l4proto tcp counter accept
add rule inet istio-ambient-nat istio-prerouting ip6 saddr fd16:9254:7127:1337:ffff:ffff:ffff:ffff meta l4proto tcp counter accept
add rule inet istio-ambient-nat istio-prerouting ip daddr != 127.0.0.1 tcp dport != 15008 meta mark & 0xfff != 0x539 counter redirect to :15006
add rule inet istio-ambient-nat istio-prerouting ip6 daddr != ::1 tcp dport != 15008 meta mark & 0xfff != 0x539 counter redirect to :15006
add table inet istio-ambient-raw
add chain inet istio-ambient-raw prerouting { type filter hook prerouting priority -300; }
add chain inet istio-ambient-raw istio-prerouting
add chain inet istio-ambient-raw output { type filter hook output priority -300; }
add chain inet istio-ambient-raw istio-output
add rule inet istio-ambient-raw prerouting jump istio-prerouting
add rule inet istio-ambient-raw istio-prerouting meta mark & 0xfff != 0x539 udp sport 53 counter ct zone set 1
add rule inet istio-ambient-raw output jump istio-output
add rule inet istio-ambient-raw istio-output meta mark & 0xfff == 0x539 udp dport 53 counter ct zone set 1
RULES
