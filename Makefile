# SPDX-License-Identifier: Apache-2.0
# The same targets for people and for CI. ARGS is passed on: make demo ARGS=--stay

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
ARGS ?=
# Workers of the test run; two runs on one machine do not collide.
WORKERS ?= 2

.PHONY: setup demo test spec lint fmt bench cover lock clean help

help:            ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(READY)  ## virtual environment in .venv, system packages if root

demo: $(READY)   ## a two-node mesh in namespaces; ARGS=--stay keeps it up
	@$(BIN)/ztunnel-py demo $(ARGS)

test: $(READY)   ## all tests; ARGS='-k name' picks
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --record-spec build/spec.json $(ARGS)

spec: $(READY)   ## which checklist statements the last test run proved
	@test -f build/spec.json || $(MAKE) --no-print-directory test
	@$(BIN)/python -m tests.support.spec build/spec.json

lint: $(READY)   ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: $(READY)    ## format, and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/ready-bench  ## compare side by side; ARGS='--quick --json FILE'
	$(BIN)/python -m bench.compare $(ARGS)

cover: $(READY)  ## tests with line coverage
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage report --include 'ztunnel_py/*' --skip-covered

lock: $(READY)   ## renew requirements/*.txt from pyproject.toml
	tools/lock.sh $(BIN)

$(READY): pyproject.toml requirements/dev.txt tools/packages.sh
	@tools/packages.sh
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . \
		2>.venv/install.log || { cat .venv/install.log >&2; exit 1; }
	@touch $@

.venv/ready-bench: $(READY) requirements/bench.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bench.txt
	@touch $@

clean:           ## remove what the targets made
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
