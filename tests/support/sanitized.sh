#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs conformance and foreign programs on the core in build/asan: sanitized.sh PYTHON [pytest options]
# A finding ends the process that it is in, so its tests fail; what was found is shown at the end.
set -eu

python=$1
shift
report=$PWD/build/asan/report
rm -f "$report".*
status=0
# Python's own leaks are not ours to find; the suite asserts that the core leaves nothing behind.
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
    ASAN_OPTIONS="detect_leaks=0:log_path=$report" \
    UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1:log_path=$report" \
    "$python" -m pytest -p tests.support.sanitized -k native "$@" \
    tests/conformance tests/foreign || status=$?
for found in "$report".*; do
    if [ -e "$found" ]; then
        status=1
        cat "$found" >&2
    fi
done
exit $status
