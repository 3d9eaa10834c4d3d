# `make demo` and `make test` do all their own set-up; the other targets are for people who work on the code.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
# Debian's interpreter: the daemons' users cannot read one that lies below somebody's home.
PYTHON ?= /usr/bin/python3
APT := build-essential iproute2 libcap-dev nftables python3-dev python3-venv

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(VENV)/.linked ## the virtual environment with everything locked

apt: ## what comes from Debian; installs when root, else says what is missing
	@missing=$$(for p in $(APT); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ]; then \
	    echo "installing" $$missing; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	  else echo "Missing Debian packages. Run: sudo apt-get install" $$missing; exit 1; fi; \
	fi

$(VENV)/.ready: requirements-dev.txt | apt
	@echo "building the virtual environment in $(VENV) (a minute the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements-dev.txt 2>&1 | grep -v -e DEPRECATION -e WARNING || true
	@$(BIN)/python -c 'import msgpack, prctl, pyroute2, requests, flask, gunicorn'
	@touch $@

# A strict editable install links file by file (mypy sees it), so a new file asks for new links.
$(VENV)/.linked: $(VENV)/.ready pyproject.toml netagent fetcher fetcher/providers api api/cnctl
	@rm -rf build
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation --config-settings editable_mode=strict -e . 2>&1 | grep -v -e WARNING || true
	@$(BIN)/python -c 'import cloud_network.netagent, cloud_network.fetcher, cloud_network.api'
	@touch $@

lock: ## pin the newest versions, with hashes
	uv pip compile -q --upgrade --python $(PYTHON) --generate-hashes --no-header --no-emit-index-url -o requirements.txt requirements.in
	uv pip compile -q --upgrade --python $(PYTHON) --generate-hashes --no-header --no-emit-index-url -o requirements-dev.txt requirements-dev.in

.PHONY: help env apt lock
