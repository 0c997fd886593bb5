#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs the system packages that are missing if root on Debian, else names them:
# packages.sh [fuzz|image], with what `make fuzz` or `make image` needs.
set -eu

# command package
needed="
ip iproute2
iptables iptables
nft nftables
curl curl
cc gcc
nsenter util-linux
nghttp nghttp2-client
"

PATH=$PATH:/usr/sbin:/sbin
missing=$(echo "$needed" | while read -r command package; do
    [ -z "$command" ] || command -v "$command" >/dev/null 2>&1 || echo "$package"
done)
python=${PYTHON:-python3}
command -v "$python" >/dev/null 2>&1 || missing="$missing python3"
"$python" -c 'import ensurepip' >/dev/null 2>&1 || missing="$missing python3-venv"
"$python" -c 'import os, sysconfig
os.stat(os.path.join(sysconfig.get_path("include"), "Python.h"))' >/dev/null 2>&1 ||
    missing="$missing python3-dev"
has_header() {
    echo "#include <$1>" | cc -E - >/dev/null 2>&1
}
has_header openssl/ssl.h || missing="$missing libssl-dev"
has_header nghttp2/nghttp2.h || missing="$missing libnghttp2-dev"
if [ "${1-}" = fuzz ]; then
    clang=$(for each in clang clang-19 clang-14; do command -v "$each" && break; done) || true
    echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' |
        "${clang:-clang}" -fsanitize=fuzzer,address -x c - -o /dev/null 2>/dev/null ||
        # Debian 12 has clang 14, 13 has 19.
        missing="$missing clang libclang-rt-$(grep -q bookworm /etc/os-release && echo 14 || echo 19)-dev"
fi
if [ "${1-}" = image ]; then
    command -v buildah >/dev/null 2>&1 || missing="$missing buildah"
    command -v mmdebstrap >/dev/null 2>&1 || missing="$missing mmdebstrap"
fi
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
