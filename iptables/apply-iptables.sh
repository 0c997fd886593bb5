#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Sends the traffic of a pod through the proxy that listens in it.
# Written by ztunnel-py; run it as root in the pod's network namespace.
set -eu

ip -4 route replace local 0.0.0.0/0 dev lo scope host table 100
[ -n "$(ip -4 rule show pref 32764)" ] || ip -4 rule add fwmark 0x111/0xfff pref 32764 lookup 100
ip -6 route replace local ::/0 dev lo scope host table 100
[ -n "$(ip -6 rule show pref 32764)" ] || ip -6 rule add fwmark 0x111/0xfff pref 32764 lookup 100

iptables-restore --noflush <<'RULES'
*mangle
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
# what the proxy sent to its own pod
-A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
# replies to the proxy, which table 100 keeps in the pod
-A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
COMMIT
*nat
:ISTIO_OUTPUT - [0:0]
:ISTIO_PRERT - [0:0]
# answers to probes
-A ISTIO_OUTPUT -d 169.254.7.127/32 -p tcp -j ACCEPT
# DNS over UDP
-A ISTIO_OUTPUT ! -o lo -p udp -m mark ! --mark 0x539/0xfff -m udp --dport 53 -j REDIRECT --to-ports 15053
# DNS over TCP
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -p tcp -m tcp --dport 53 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053
# replies to the proxy
-A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
# the pod to itself
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -j ACCEPT
# all else, but for the proxy's own
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001
# probes of the node
-A ISTIO_PRERT -s 169.254.7.127/32 -p tcp -j ACCEPT
# from elsewhere, but for HBONE
-A ISTIO_PRERT ! -d 127.0.0.1/32 -p tcp -m tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006
COMMIT
*raw
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
# answers to them
-A ISTIO_PRERT -p udp -m mark ! --mark 0x539/0xfff -m udp --sport 53 -j CT --zone 1
# queries of the proxy
-A ISTIO_OUTPUT -p udp -m mark --mark 0x539/0xfff -m udp --dport 53 -j CT --zone 1
COMMIT
RULES
iptables -t mangle -C OUTPUT -j ISTIO_OUTPUT 2>/dev/null || iptables -t mangle -A OUTPUT -j ISTIO_OUTPUT
iptables -t mangle -C PREROUTING -j ISTIO_PRERT 2>/dev/null || iptables -t mangle -A PREROUTING -j ISTIO_PRERT
iptables -t nat -C OUTPUT -j ISTIO_OUTPUT 2>/dev/null || iptables -t nat -A OUTPUT -j ISTIO_OUTPUT
iptables -t nat -C PREROUTING -j ISTIO_PRERT 2>/dev/null || iptables -t nat -A PREROUTING -j ISTIO_PRERT
iptables -t raw -C OUTPUT -j ISTIO_OUTPUT 2>/dev/null || iptables -t raw -A OUTPUT -j ISTIO_OUTPUT
iptables -t raw -C PREROUTING -j ISTIO_PRERT 2>/dev/null || iptables -t raw -A PREROUTING -j ISTIO_PRERT

ip6tables-restore --noflush <<'RULES'
*mangle
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
# what the proxy sent to its own pod
-A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
# replies to the proxy, which table 100 keeps in the pod
-A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
COMMIT
*nat
:ISTIO_OUTPUT - [0:0]
:ISTIO_PRERT - [0:0]
# answers to probes
-A ISTIO_OUTPUT -d fd16:9254:7127:1337:ffff:ffff:ffff:ffff/128 -p tcp -j ACCEPT
# DNS over UDP
-A ISTIO_OUTPUT ! -o lo -p udp -m mark ! --mark 0x539/0xfff -m udp --dport 53 -j REDIRECT --to-ports 15053
# DNS over TCP
-A ISTIO_OUTPUT ! -d ::1/128 -p tcp -m tcp --dport 53 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053
# replies to the proxy
-A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
# the pod to itself
-A ISTIO_OUTPUT ! -d ::1/128 -o lo -j ACCEPT
# all else, but for the proxy's own
-A ISTIO_OUTPUT ! -d ::1/128 -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001
# probes of the node
-A ISTIO_PRERT -s fd16:9254:7127:1337:ffff:ffff:ffff:ffff/128 -p tcp -j ACCEPT
# from elsewhere, but for HBONE
-A ISTIO_PRERT ! -d ::1/128 -p tcp -m tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006
COMMIT
*raw
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
# answers to them
-A ISTIO_PRERT -p udp -m mark ! --mark 0x539/0xfff -m udp --sport 53 -j CT --zone 1
# queries of the proxy
-A ISTIO_OUTPUT -p udp -m mark --mark 0x539/0xfff -m udp --dport 53 -j CT --zone 1
COMMIT
RULES
ip6tables -t mangle -C OUTPUT -j ISTIO_OUTPUT 2>/dev/null || ip6tables -t mangle -A OUTPUT -j ISTIO_OUTPUT
ip6tables -t mangle -C PREROUTING -j ISTIO_PRERT 2>/dev/null || ip6tables -t mangle -A PREROUTING -j ISTIO_PRERT
ip6tables -t nat -C OUTPUT -j ISTIO_OUTPUT 2>/dev/null || ip6tables -t nat -A OUTPUT -j ISTIO_OUTPUT
ip6tables -t nat -C PREROUTING -j ISTIO_PRERT 2>/dev/null || ip6tables -t nat -A PREROUTING -j ISTIO_PRERT
ip6tables -t raw -C OUTPUT -j ISTIO_OUTPUT 2>/dev/null || ip6tables -t raw -A OUTPUT -j ISTIO_OUTPUT
ip6tables -t raw -C PREROUTING -j ISTIO_PRERT 2>/dev/null || ip6tables -t raw -A PREROUTING -j ISTIO_PRERT
