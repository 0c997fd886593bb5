# SPDX-License-Identifier: Apache-2.0
# The same targets for people and for CI. ARGS is passed on: make demo ARGS=--stay

PYTHON ?= python3
BIN := .venv/bin
PACKAGES := .venv/packages
READY := .venv/ready
FUZZ_PACKAGES := .venv/fuzz-packages
# How the C core is built: release, debug, asan or tsan.
export ZTUNNEL_BUILD ?= release
CORE := setup.py ztunnel_py/errors.py ztunnel_py/core/reasons.py \
	$(wildcard ztunnel_py/core/*.[ch] ztunnel_py/core/*.def ztunnel_py/proto/*.proto)
CLANG_FORMAT ?= $(firstword $(shell command -v clang-format clang-format-19 clang-format-14))
C_FILES = $(wildcard ztunnel_py/core/*.[ch] tests/core/*.[ch] tests/core/fuzz/*.c)
ARGS ?=
# Workers of the test run; two runs on one machine do not collide.
WORKERS ?= 2

.PHONY: setup demo test spec core-test san fuzz lint fmt bench mutants cover lock wheel image \
	image-test clean help always

help:            ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

setup: $(READY)  ## virtual environment in .venv, system packages if root

demo: $(READY)   ## a two-node mesh in namespaces; ARGS=--stay keeps it up
	@$(BIN)/ztunnel-py demo $(ARGS)

test: $(READY)   ## all tests; ARGS='-k name' picks
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --record-spec build/spec.json $(ARGS)

spec: $(READY)   ## which checklist statements the last test run proved
	@test -f build/spec.json || $(MAKE) --no-print-directory test
	@$(BIN)/python -m tests.support.spec build/spec.json

core-test: $(PACKAGES)  ## C tests of the core, without Python; CORE_TEST=flow picks

san: $(READY)    ## the core under sanitizers: C tests, conformance, foreign programs
	$(MAKE) -j2 ZTUNNEL_BUILD=asan core-test
	$(MAKE) -j2 ZTUNNEL_BUILD=tsan core-test
	ZTUNNEL_BUILD=asan $(BIN)/python setup.py --quiet build_ext --build-lib build/asan
	tests/support/sanitized.sh $(BIN)/python -n $(WORKERS) --dist loadgroup $(ARGS)

fuzz: $(FUZZ_PACKAGES)  ## fuzzers of what strangers and the decider send, FUZZ_SECONDS=30 each

lint: $(READY)   ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: $(READY)    ## format, and fix what can be fixed
	@$(if $(CLANG_FORMAT),$(CLANG_FORMAT) -i $(C_FILES),echo "no clang-format: C is left as it is")
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## compare side by side; ARGS='--quick --json FILE'
	$(BIN)/python -m bench.compare $(ARGS)

mutants: $(READY)  ## break the code line by line: do the tests notice? about ten minutes
	$(BIN)/python tools/mutants.py $(ARGS)

cover: $(READY)  ## tests with line coverage
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage report --include 'ztunnel_py/*' --skip-covered

lock: $(READY)   ## renew requirements/*.txt from pyproject.toml
	tools/lock.sh $(BIN)

wheel: $(READY)  ## a wheel in dist/, for pip install
	@tools/wheel.sh $(BIN) dist

image: $(READY)  ## a container image in dist/, built without a Docker daemon and tried out, as root
	@tools/image.sh image
	@ZTUNNEL_IMAGE_ROOT=build/image/root $(BIN)/python -m pytest -q tests/netns/test_container.py

image-test:      ## inside the image's Debian 13: the tests that need OpenSSL 3.5, or ARGS
	@ARGS='$(ARGS)' tools/image.sh test

$(READY): $(PACKAGES) $(CORE) build/core/flavour
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

$(FUZZ_PACKAGES): $(PACKAGES)
	@tools/packages.sh fuzz
	@touch $@

$(PACKAGES): pyproject.toml requirements/dev.txt tools/packages.sh
	@tools/packages.sh
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . \
		2>.venv/install.log || { cat .venv/install.log >&2; exit 1; }
	@touch $@

# Changes when another flavour is asked for.
build/core/flavour: always
	@mkdir -p $(@D)
	@echo $(ZTUNNEL_BUILD) | cmp --silent - $@ || echo $(ZTUNNEL_BUILD) >$@

always:

include tests/core/Makefile

clean:           ## remove what the targets made
	rm -rf .venv build dist ztunnel_py/core/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
