# `make demo` and `make test` install what they need. CONTRIBUTING.md describes the other targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
VENV := .venv
BIN := $(VENV)/bin
# Debian's interpreter: the daemons' users cannot read one below a home directory.
PYTHON ?= /usr/bin/python3
# gcc, python3-dev and libcap-dev build python-prctl; curl, iproute2, nftables and procps are the lab's.
# strace makes system calls of netagent fail (tests/system/netagent/test_faults.py).
APT := curl gcc git iproute2 libc6-dev libcap-dev nftables procps python3-dev python3-venv strace
# Without root, the lab runs in a user namespace; newuidmap (package uidmap) maps the ids of the daemons' users.
ifneq ($(or $(SUDO_UID),$(shell id -u)),0)
APT += uidmap
endif
# Network programs for tests/system/others: 5 MB, 7 s. Not NetworkManager: it is 30 MB and may upgrade systemd.
PROGRAMS := dbus-daemon dhcpcd-base dnsmasq-base isc-dhcp-client
# For tests/vm: build the package, make a root file system, and boot it in QEMU without KVM.
BOOT := debhelper debootstrap dnsmasq-base dpkg-dev e2fsprogs qemu-system-x86
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --no-deps
# Run a command; print its output only if it fails.
define quietly
output=$$($(1) 2>&1) || { status=$$?; printf '%s\n' "$$output" >&2; exit $$status; }
endef
PACKAGES := netagent fetcher fetcher/metadata fetcher/metadata/providers fetcher/network api api/cnctl
# Packages that build the locked Python packages; python-prctl has no wheel.
BUILD := ca-certificates gcc git libc6-dev libcap-dev python3-dev python3-venv
# Programs that some tests run. NetworkManager and Prometheus are not in the list, because their packages start a service
# on the host; without them, their tests are skipped.
TOOLS := chromium fish mandoc systemd zsh
# Tests mostly wait: three workers keep two cores busy. loadfile keeps each file's fixtures in one worker.
PYTEST_ARGS ?= --numprocesses=3 --dist=loadfile
UNITS := cloud-network-fetcher.service cloud-network-netagent.socket cloud-network-api.socket

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: env ## make the addresses of an instance in the lab reachable (10 seconds)
	@$(BIN)/python -m tests.lab.demo

test: APT += $(PROGRAMS) $(BOOT) $(TOOLS)
test: lint ## run lint and all tests
	@$(BIN)/python -m pytest -m '' --hypothesis-profile=thorough $(PYTEST_ARGS)

check: lint ## run lint and the quick unit tests (edit loop)
	@$(BIN)/python -m pytest tests/unit -p no:schemathesis $(PYTEST_ARGS) --dist=worksteal

units: apt ## run the unit tests with another Python: make units PYTHON=python3.13
	@$(PYTHON) -m venv --clear build/units
	@$(call quietly,build/units/bin/python -m pip install --no-deps --require-hashes -r requirements-dev.txt)
	@$(call quietly,build/units/bin/python -m pip install --no-deps --no-build-isolation --config-settings editable_mode=strict --editable .)
	@build/units/bin/python -m pytest tests/unit -m '' $(PYTEST_ARGS)

test-others: APT += $(PROGRAMS) network-manager systemd
test-others: env ## run the tests with systemd-networkd, NetworkManager and DHCP clients
	@$(BIN)/python -m pytest tests/system/others tests/system/test_coexistence.py $(PYTEST_ARGS)

lint: env ## run ruff, mypy --strict (tests, too), import-linter and codespell
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/codespell

bench: env $(VENV)/.bench ## run the benchmarks and write docs/performance.md (root; 15 minutes)
	@$(BIN)/python -m bench $(PARTS)

# Only the plots need matplotlib (60 MB).
$(VENV)/.bench: requirements-bench.txt $(VENV)/.ready
	@$(call quietly,$(PIP) --require-hashes -r requirements-bench.txt)
	@touch $@

man: env ## write the man pages to build/man
	@$(BIN)/python docs/man build/man

env: $(VENV)/.linked ## make the virtual environment in .venv, with locked versions

# If apt or pip fails, make stops and prints its output.
apt:
	@missing=; for p in $(sort $(APT)); do \
	  state=$$(dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null || true); \
	  [ "$$state" = installed ] || missing="$$missing $$p"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" != 0 ]; then \
	  echo "Missing Debian packages. Run: sudo apt-get install$$missing" >&2; exit 1; \
	fi; \
	echo "installing$$missing"; \
	export DEBIAN_FRONTEND=noninteractive; \
	$(call quietly,apt-get update); \
	$(call quietly,apt-get install -y --no-install-recommends $$missing)

# Rebuilt when the lock file changes, so that removed packages do not stay installed.
$(VENV)/.ready: requirements-dev.txt | apt
	@echo "building the virtual environment in $(VENV) (a minute the first time)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(call quietly,$(PIP) --require-hashes -r requirements-dev.txt)
	@$(BIN)/python -c 'import flask, gunicorn, msgpack, prctl, pyroute2'
	@touch $@

# A strict editable install links each file (mypy needs that), so it is repeated when a file is added or removed.
$(VENV)/.linked: $(VENV)/.ready pyproject.toml $(PACKAGES) | apt
	@rm -rf build
	@$(call quietly,$(PIP) --no-build-isolation --config-settings editable_mode=strict --editable .)
	@cd / && $(CURDIR)/$(BIN)/python -c 'import cloud_network.netagent, cloud_network.fetcher, cloud_network.api'
	@$(BIN)/python -m compileall -q build  # the daemons' users cannot write .pyc files
	@touch $@

lock: env ## update requirements*.txt to the newest versions, with hashes
	@command -v uv >/dev/null || { echo "uv is missing. Install it with: pipx install uv" >&2; exit 1; }; \
	for name in requirements requirements-dev requirements-build requirements-bench; do \
	  uv pip compile --quiet --upgrade --python $(PYTHON) --generate-hashes --no-header --no-emit-index-url \
	    -o $$name.txt $$name.in; \
	done

wheels: APT := $(BUILD)
wheels: apt ## download Python packages to wheels/, for `make install` and `make deb` without a network
	@rm -rf wheels.part
	@$(PYTHON) -m venv --clear build/wheels
	@$(call quietly,build/wheels/bin/pip install --no-deps --require-hashes -r requirements-build.txt)
	@for file in requirements-build.txt requirements.txt; do \
	  $(call quietly,build/wheels/bin/pip download --no-deps --no-build-isolation --require-hashes --dest wheels.part -r $$file); \
	done
	@rm -rf build/wheels wheels
	@mv wheels.part wheels
	@echo "wheels/ has $$(ls wheels | wc -l) packages"

dist: env ## build the release in dist/: wheel, sdist, .deb and checksums
	@rm -rf dist
	@mkdir dist
	@$(call quietly,$(BIN)/python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist .)
	@$(call quietly,$(BIN)/python -c 'from setuptools import build_meta; build_meta.build_sdist("dist")')
	@$(MAKE) --no-print-directory deb
	@cp ../cloud-network_*.deb dist
	@cd dist && sha256sum * >SHA256SUMS && cat SHA256SUMS

install: APT := $(BUILD) iproute2 libseccomp2
install: apt ## install and start on this host, or only install below DESTDIR=
	@systemd/install "$(DESTDIR)"
	@[ -n "$(DESTDIR)" ] || { systemd-sysusers cloud-network.conf; systemd-tmpfiles --create cloud-network.conf; }
	@[ -n "$(DESTDIR)" ] || [ ! -d /run/systemd/system ] || { systemctl daemon-reload; \
	  systemctl preset cloud-network.target $(UNITS); \
	  systemctl restart cloud-network-netagent.socket cloud-network-api.socket cloud-network-fetcher.service; \
	  systemctl start cloud-network.target; }

uninstall: ## remove the installed files; keep the network, the configuration and the log
	@[ -n "$(DESTDIR)" ] || [ ! -d /run/systemd/system ] || \
	  systemctl disable --now cloud-network.target $(UNITS) cloud-network-netagent.service cloud-network-api.service \
	    cloud-network-wait-online.service
	@rm -rf $(DESTDIR)/usr/lib/cloud-network $(DESTDIR)/usr/share/doc/cloud-network
	@rm -f $(DESTDIR)/usr/bin/cloud-network-{netagent,fetcher,api} $(DESTDIR)/usr/bin/cnctl $(DESTDIR)/usr/libexec/cloud-network-netagent
	@rm -f $(DESTDIR)/usr/share/man/man1/cnctl{,-*}.1 $(DESTDIR)/usr/share/man/man5/cloud-network.toml.5 \
	  $(DESTDIR)/usr/share/man/man8/cloud-network{,-netagent,-fetcher,-api}.8 \
	  $(DESTDIR)/usr/share/bash-completion/completions/cnctl $(DESTDIR)/usr/share/zsh/vendor-completions/_cnctl \
	  $(DESTDIR)/usr/share/fish/vendor_completions.d/cnctl.fish
	@rm -f $(DESTDIR)/usr/lib/systemd/system/cloud-network{.target,-netagent.service,-netagent.socket} \
	  $(DESTDIR)/usr/lib/systemd/system/cloud-network-{fetcher.service,api.service,api.socket,wait-online.service} \
	  $(DESTDIR)/usr/lib/systemd/system-preset/80-cloud-network.preset \
	  $(DESTDIR)/usr/lib/systemd/networkd.conf.d/50-cloud-network.conf \
	  $(DESTDIR)/usr/lib/sysusers.d/cloud-network.conf $(DESTDIR)/usr/lib/tmpfiles.d/cloud-network.conf

deb: APT := $(BUILD) build-essential debhelper dpkg-dev
deb: apt ## build the Debian package in the parent directory
	@$(call quietly,dpkg-buildpackage --build=binary --no-sign)
	@ls ../cloud-network_*.deb

boot: APT += $(BOOT) lintian systemd-container
boot: env ## boot the package in virtual machines and a container (root; slow)
	@$(BIN)/python -m pytest tests/vm/test_debian12.py tests/vm/boot_kernel510.py tests/vm/boot_udev.py tests/vm/boot_debian13.py tests/vm/boot_container.py \
	  tests/vm/boot_upgrade.py tests/vm/boot_docker.py tests/vm/boot_package.py $(PYTEST_ARGS)

clean: ## remove everything that the other targets made, except the package in ..
	rm -rf $(VENV) build dist wheels wheels.part *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf .import_linter_cache debian/.debhelper debian/cloud-network debian/files debian/debhelper-build-stamp
	rm -f debian/*.substvars debian/*.debhelper debian/*.log
	find . -name __pycache__ -prune -exec rm -rf {} +
	[ "$$(id -u)" != 0 ] || rm -rf /var/cache/cloud-network-boot /var/cache/cloud-network-ci

.PHONY: help demo test check units test-others bench lint man env apt lock install uninstall deb wheels dist boot clean
