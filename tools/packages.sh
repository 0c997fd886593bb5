#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs the system packages that are missing if root on Debian, else names them.
set -eu

# command package
needed="
ip iproute2
iptables iptables
curl curl
cc gcc
nsenter util-linux
"

PATH=$PATH:/usr/sbin:/sbin
missing=$(echo "$needed" | while read -r command package; do
    [ -z "$command" ] || command -v "$command" >/dev/null 2>&1 || echo "$package"
done)
python=${PYTHON:-python3}
command -v "$python" >/dev/null 2>&1 || missing="$missing python3"
"$python" -c 'import ensurepip' >/dev/null 2>&1 || missing="$missing python3-venv"
missing=$(echo $missing)
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "missing system packages: $missing" >&2
    echo "install them, for example: sudo apt-get install $missing" >&2
    exit 1
fi
echo "installing system packages: $missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# shellcheck disable=SC2086 # one word each
if ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
    --no-install-recommends $missing; } >"$log" 2>&1; then
    cat "$log" >&2
    exit 1
fi
