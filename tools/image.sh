#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Builds deploy/Dockerfile without a Docker daemon. Usage: tools/image.sh image|test, as root.
#   image  dist/ztunnel-py-image.tar (an OCI archive) and build/image/root, its file system;
#          fails where it is larger than it may be
#   test   runs in the build's own Debian the tests that need OpenSSL 3.5
# BASE names a base image to pull; without it, Debian 13 is made from this machine's apt sources.
# ISTIO_VERSION is what the proxy says it is part of.
set -euo pipefail
cd "$(dirname "$0")/.."

MOST_COMPRESSED_MB=120
MOST_UNPACKED_MB=260
OUT=build/image
IMAGE=localhost/ztunnel:$(sed -n 's/^__version__ = "\(.*\)"/\1/p' ztunnel_py/__init__.py)
TESTS="tests/test_openssl.py tests/native/test_identity.py"

fail() {
    echo "error: $*" >&2
    exit 1
}

builder() {
    command buildah --root "$PWD/$OUT/store" --runroot "$PWD/$OUT/run" --storage-driver overlay "$@"
}

# Debian 13 by the mirrors of this machine, whatever release it runs itself.
make_base() {
    local sources
    sources=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' \
        'Created-By: Packages' 'Origin: Debian' |
        sed -E 's/^(\S+) [a-z]+(\S*) /deb \1 trixie\2 /')
    [ -n "$sources" ] || fail "apt knows no mirror of Debian here (apt-get update?); BASE=IMAGE names a base image"
    mmdebstrap --quiet --mode=root --variant=apt --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        trixie "$OUT/base.tar" - <<<"$sources" ||
        fail "Debian 13 cannot be had from: $sources"
    local container
    container=$(builder from scratch)
    builder add --quiet "$container" "$OUT/base.tar" / >/dev/null
    builder commit --quiet --rm "$container" debian-base >/dev/null
    rm "$OUT/base.tar"
}

# Builds a stage. Its pip trusts whom this machine trusts: downloads may pass a proxy that signs.
build() { # STAGE TAG
    mkdir -p "$OUT/pip"
    cp /etc/ssl/certs/ca-certificates.crt "$OUT/pip"
    printf '[global]\ncert = /etc/xdg/pip/ca-certificates.crt\n' >"$OUT/pip/pip.conf"
    builder build --quiet --isolation chroot --volume "$PWD/$OUT/pip:/etc/xdg/pip:ro" \
        --build-arg "BASE=${BASE:-localhost/debian-base}" \
        --build-arg "istio_version=${ISTIO_VERSION:-unknown}" \
        --ignorefile deploy/Dockerfile.dockerignore --target "$1" --tag "$2" \
        -f deploy/Dockerfile . >"$OUT/$1.log" 2>&1 || {
        tail -n 40 "$OUT/$1.log" >&2
        fail "the image cannot be built (all of it: $OUT/$1.log)"
    }
    builder rmi --prune --force >/dev/null  # its predecessor
}

[ "$(id -u)" -eq 0 ] || fail "images are built as root (chroot, mount)"
tools/packages.sh image
mkdir -p "$OUT" dist

case ${1-} in
image)
    [ -n "${BASE-}" ] || make_base  # with today's security updates
    build runtime "$IMAGE"
    rm -rf "$OUT/root" dist/ztunnel-py-image.tar
    builder push --quiet "$IMAGE" "oci-archive:dist/ztunnel-py-image.tar:$IMAGE"
    container=$(builder from "$IMAGE")
    cp -a "$(builder mount "$container")" "$OUT/root"
    builder rm "$container" >/dev/null
    compressed=$(du -m --apparent-size dist/ztunnel-py-image.tar | cut -f 1)
    unpacked=$(du -sm --apparent-size "$OUT/root" | cut -f 1)
    echo "dist/ztunnel-py-image.tar: $compressed MB compressed (at most $MOST_COMPRESSED_MB)," \
        "$unpacked MB unpacked (at most $MOST_UNPACKED_MB)"
    [ "$compressed" -le "$MOST_COMPRESSED_MB" ] && [ "$unpacked" -le "$MOST_UNPACKED_MB" ] ||
        fail "the image is too large"
    ;;
test)
    [ -n "${BASE-}" ] || builder inspect localhost/debian-base >/dev/null 2>&1 || make_base
    build test localhost/ztunnel-test
    container=$(builder from --ulimit "nofile=$(ulimit -Hn)" localhost/ztunnel-test)
    trap 'builder rm "$container" >/dev/null' EXIT
    # shellcheck disable=SC2086 # a word each
    builder run --isolation chroot "$container" /tools/bin/python -m pytest -q -p no:cacheprovider \
        ${ARGS:-$TESTS}
    ;;
*)
    fail "usage: tools/image.sh image|test"
    ;;
esac
