# Two commands do everything on a Debian 12 machine with root: `make demo` and `make test`.
# Both install what is missing first; a second run is quick.

SHELL := /bin/bash
PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin
export PATH
# Compiled modules are kept also where the environment says otherwise: the tests start a thousand processes, each of which
# takes a fifth longer without them.
export PYTHONDONTWRITEBYTECODE :=

PYTEST = .venv/bin/python -m pytest $(PYTEST_ARGS)

.DEFAULT_GOAL := help
.PHONY: demo setup setup-test test test-unit test-cluster test-oidc test-endurance test-reproducible lint check clean help

help:
	@echo "make demo            install, start the service, build an example image and run it"
	@echo "make test            install, then all tests but the long ones (PYTEST_ARGS are handed on)"
	@echo "make test-unit       the library's and the settings' tests alone, without the slow ones"
	@echo "make check           what CI runs: the lint, then the tests"
	@echo "make test-cluster    several hosts in network namespaces; the service on PostgreSQL, and all kinds of storage"
	@echo "make test-oidc       the log-in with a real OpenID provider, which it installs from npm"
	@echo "make test-endurance  the long ones: endurance and kill tests"
	@echo "make test-reproducible  two whole builds on two daemons, compared by diffoscope, which it installs"
	@echo "make setup           only install what the service needs; setup-test: what tests need too"
	@echo "make lint            ruff, its formatter, mypy and shellcheck"
	@echo "make clean           stop the demo; remove what it and the tests made here (not installed packages)"

demo:
	@scripts/demo

setup:
	@scripts/setup

setup-test:
	@scripts/setup --tests

# Three processes on two cores: much is waiting.
test: setup-test
	@$(PYTEST) -n 3 --dist loadgroup -m "not endurance and not cluster and not oidc"

test-unit: setup-test
	@$(PYTEST) -n 3 -m "not endurance and not slow" tests/unit

check: lint test

test-cluster: setup-test
	@$(PYTEST) -m cluster tests/cluster
	@CIC_TEST_DATABASE=postgresql $(PYTEST) tests/service tests/unit/store tests/system/test_oras.py

test-oidc: setup-test
	@scripts/openid_provider
	@$(PYTEST) -m oidc tests/oidc

test-endurance: setup-test
	@$(PYTEST) -m endurance

test-reproducible: setup-test
	@command -v diffoscope >/dev/null || apt-get install -y --no-install-recommends diffoscope-minimal
	@$(PYTEST) tests/system/test_reproducible.py

lint: setup-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	shellcheck $$(grep -lE '^#!.*(bash|sh)$$' scripts/*) scripts/lib.sh .ci/run cic_cli

clean:
	@scripts/demo --stop
	rm -rf .demo .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis tests/support/openid/node_modules
