#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Pins every dependency with its hashes. Usage: tools/lock.sh BIN-DIRECTORY
set -eu

bin=$1
compile() {
    out=$1
    shift
    "$bin/pip-compile" --quiet --generate-hashes --allow-unsafe --strip-extras --no-header \
        --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-annotate \
        --output-file "requirements/$out" "$@" pyproject.toml
}
compile runtime.txt
compile image.txt --extra otel
compile dev.txt --extra dev --extra otel
compile build.txt --build-deps-for wheel --only-build-deps
