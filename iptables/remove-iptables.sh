#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Takes away the rules that send the traffic of a pod through the proxy.
# Written by ztunnel-py; run it as root in the pod's network namespace.
set -eu

while iptables -t mangle -D OUTPUT -j ISTIO_OUTPUT 2>/dev/null; do :; done
while iptables -t mangle -D PREROUTING -j ISTIO_PRERT 2>/dev/null; do :; done
iptables -t mangle -F ISTIO_PRERT 2>/dev/null && iptables -t mangle -X ISTIO_PRERT
iptables -t mangle -F ISTIO_OUTPUT 2>/dev/null && iptables -t mangle -X ISTIO_OUTPUT
while iptables -t nat -D OUTPUT -j ISTIO_OUTPUT 2>/dev/null; do :; done
while iptables -t nat -D PREROUTING -j ISTIO_PRERT 2>/dev/null; do :; done
iptables -t nat -F ISTIO_OUTPUT 2>/dev/null && iptables -t nat -X ISTIO_OUTPUT
iptables -t nat -F ISTIO_PRERT 2>/dev/null && iptables -t nat -X ISTIO_PRERT
while iptables -t raw -D OUTPUT -j ISTIO_OUTPUT 2>/dev/null; do :; done
while iptables -t raw -D PREROUTING -j ISTIO_PRERT 2>/dev/null; do :; done
iptables -t raw -F ISTIO_PRERT 2>/dev/null && iptables -t raw -X ISTIO_PRERT
iptables -t raw -F ISTIO_OUTPUT 2>/dev/null && iptables -t raw -X ISTIO_OUTPUT

while ip6tables -t mangle -D OUTPUT -j ISTIO_OUTPUT 2>/dev/null; do :; done
while ip6tables -t mangle -D PREROUTING -j ISTIO_PRERT 2>/dev/null; do :; done
ip6tables -t mangle -F ISTIO_PRERT 2>/dev/null && ip6tables -t mangle -X ISTIO_PRERT
ip6tables -t mangle -F ISTIO_OUTPUT 2>/dev/null && ip6tables -t mangle -X ISTIO_OUTPUT
while ip6tables -t nat -D OUTPUT -j ISTIO_OUTPUT 2>/dev/null; do :; done
while ip6tables -t nat -D PREROUTING -j ISTIO_PRERT 2>/dev/null; do :; done
ip6tables -t nat -F ISTIO_OUTPUT 2>/dev/null && ip6tables -t nat -X ISTIO_OUTPUT
ip6tables -t nat -F ISTIO_PRERT 2>/dev/null && ip6tables -t nat -X ISTIO_PRERT
while ip6tables -t raw -D OUTPUT -j ISTIO_OUTPUT 2>/dev/null; do :; done
while ip6tables -t raw -D PREROUTING -j ISTIO_PRERT 2>/dev/null; do :; done
ip6tables -t raw -F ISTIO_PRERT 2>/dev/null && ip6tables -t raw -X ISTIO_PRERT
ip6tables -t raw -F ISTIO_OUTPUT 2>/dev/null && ip6tables -t raw -X ISTIO_OUTPUT

[ -z "$(ip -4 route show table 100 2>/dev/null)" ] || ip -4 route del local 0.0.0.0/0 dev lo scope host table 100
[ -z "$(ip -4 rule show pref 32764 2>/dev/null)" ] || ip -4 rule del fwmark 0x111/0xfff pref 32764 lookup 100
[ -z "$(ip -6 route show table 100 2>/dev/null)" ] || ip -6 route del local ::/0 dev lo scope host table 100
[ -z "$(ip -6 rule show pref 32764 2>/dev/null)" ] || ip -6 rule del fwmark 0x111/0xfff pref 32764 lookup 100
