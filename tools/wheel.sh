#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds a wheel from a copy of the source: nothing that an earlier build left gets into it, and two
# runs do not collide. Usage: tools/wheel.sh BIN-DIRECTORY OUTPUT-DIRECTORY
set -eu
cd "$(dirname "$0")/.."

bin=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -a LICENSE README.md pyproject.toml setup.py ztunnel_py "$copy"
[ ! -d build/core ] || { mkdir "$copy/build" && cp -a build/core "$copy/build"; }  # compiled already
rm -f "$out"/ztunnel_py-*.whl
cd "$copy"
ZTUNNEL_BUILD=release "$bin/pip" wheel --quiet --disable-pip-version-check --no-deps \
    --no-build-isolation --wheel-dir "$out" .
ls "$out"/ztunnel_py-*.whl
