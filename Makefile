# `make demo` and `make test` do all their own set-up; the other targets are for people who work on the code.
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
# An ordinary user has the lab in a user namespace; uidmap's newuidmap gives it the ids of the daemons.
ifneq ($(or $(SUDO_UID),$(shell id -u)),0)
APT += uidmap
endif
# Other people's programs, for tests/others: 5 MB and 7 s. NetworkManager is 30 MB, and may draw in a newer systemd.
OTHERS := dbus-daemon dhcpcd-base dnsmasq-base isc-dhcp-client
# A virtual machine that boots the package: QEMU without KVM, debootstrap, and what builds the package.
BOOT := debhelper debootstrap dnsmasq-base dpkg-dev e2fsprogs qemu-system-x86
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --no-deps
# What tools have to say is worth reading when they fail, and then all of it.
define quietly
said=$$($(1) 2>&1) || { status=$$?; printf '%s\n' "$$said" >&2; exit $$status; }
endef
ROOMS := netagent fetcher fetcher/metadata fetcher/metadata/providers fetcher/network api api/cnctl
# What builds the locked packages; python-prctl comes as source.
BUILD := ca-certificates gcc git libc6-dev libcap-dev python3-dev python3-venv
# What some tests run: a browser, shells, a reader of man pages, networkd and journald. NetworkManager and Prometheus are
# not among them, because their packages start a service on the host; their tests are skipped where they are missing.
TOOLS := chromium fish mandoc systemd zsh
# They mostly wait, so three at once keep two cores busy; a file stays together, for its fixtures.
PYTEST_ARGS ?= --numprocesses=3 --dist=loadfile
UNITS := cloud-network-fetcher.service cloud-network-netagent.socket cloud-network-api.socket

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: env ## an instance from unreachable to reachable, in ten seconds
	@$(BIN)/python -m tests.lab.demo

test: APT += $(OTHERS) $(BOOT) $(TOOLS)
test: lint ## lint, types, arrows, and all tests
	@$(BIN)/python -m pytest --hypothesis-profile=thorough $(PYTEST_ARGS)

check: lint ## lint, types and the quick unit tests, for the edit loop
	@$(BIN)/python -m pytest tests/unit -m 'not exhaustive' $(PYTEST_ARGS)

units: apt ## the unit tests on another Python: make units PYTHON=python3.13
	@$(PYTHON) -m venv --clear build/units
	@$(call quietly,build/units/bin/python -m pip install --no-deps --require-hashes -r requirements-dev.txt)
	@$(call quietly,build/units/bin/python -m pip install --no-deps --no-build-isolation --config-settings editable_mode=strict --editable .)
	@build/units/bin/python -m pytest tests/unit $(PYTEST_ARGS)

test-others: APT += $(OTHERS) network-manager systemd
test-others: env ## beside the real systemd-networkd, NetworkManager, DHCP clients and the like
	@$(BIN)/python -m pytest tests/system/others tests/system/test_coexistence.py $(PYTEST_ARGS)

lint: env ## ruff, mypy --strict (tests, too), import-linter, spelling
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/codespell

bench: env $(VENV)/.bench ## measure it all beside its references, and draw docs/performance.md (as root; 15 minutes)
	@$(BIN)/python -m bench $(PARTS)

# matplotlib draws the plots: 60 MB that nothing else needs.
$(VENV)/.bench: requirements-bench.txt $(VENV)/.ready
	@$(call quietly,$(PIP) --require-hashes -r requirements-bench.txt)
	@touch $@

man: env ## the man pages, in build/man
	@$(BIN)/python docs/man build/man

env: $(VENV)/.linked ## the virtual environment with everything locked

# An error of apt or pip stops make, with its text.
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

# Built again when the lock changes, so that nothing stays that the lock no longer names.
$(VENV)/.ready: requirements-dev.txt | apt
	@echo "building the virtual environment in $(VENV) (a minute the first time)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(call quietly,$(PIP) --require-hashes -r requirements-dev.txt)
	@$(BIN)/python -c 'import flask, gunicorn, msgpack, prctl, pyroute2'
	@touch $@

# A strict editable install links file by file (mypy sees it), so a new file, or one that went, asks for new links.
$(VENV)/.linked: $(VENV)/.ready pyproject.toml $(ROOMS) | apt
	@rm -rf build
	@$(call quietly,$(PIP) --no-build-isolation --config-settings editable_mode=strict --editable .)
	@cd / && $(CURDIR)/$(BIN)/python -c 'import cloud_network.netagent, cloud_network.fetcher, cloud_network.api'
	@$(BIN)/python -m compileall -q build  # the daemons' users could not write what they compile
	@touch $@

lock: env ## pin the newest versions of what requirements*.in name, with hashes
	@command -v uv >/dev/null || { echo "uv is missing. Install it with: pipx install uv" >&2; exit 1; }; \
	for name in requirements requirements-dev requirements-build requirements-bench; do \
	  uv pip compile --quiet --upgrade --python $(PYTHON) --generate-hashes --no-header --no-emit-index-url \
	    -o $$name.txt $$name.in; \
	done

wheels: APT := $(BUILD)
wheels: apt ## download what `make install` and `make deb` need, so that they work without a package index
	@rm -rf wheels.part
	@$(PYTHON) -m venv --clear build/wheels
	@$(call quietly,build/wheels/bin/pip install --no-deps --require-hashes -r requirements-build.txt)
	@for file in requirements-build.txt requirements.txt; do \
	  $(call quietly,build/wheels/bin/pip download --no-deps --no-build-isolation --require-hashes --dest wheels.part -r $$file); \
	done
	@rm -rf build/wheels wheels
	@mv wheels.part wheels
	@echo "wheels/ has $$(ls wheels | wc -l) packages"

dist: env ## the release: wheel, sdist, .deb and their checksums, in dist/
	@rm -rf dist
	@mkdir dist
	@$(call quietly,$(BIN)/python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist .)
	@$(call quietly,$(BIN)/python -c 'from setuptools import build_meta; build_meta.build_sdist("dist")')
	@$(MAKE) --no-print-directory deb
	@cp ../cloud-network_*.deb dist
	@cd dist && sha256sum * >SHA256SUMS && cat SHA256SUMS

install: APT := $(BUILD) iproute2 libseccomp2
install: apt ## install on this machine, or below DESTDIR=, and start
	@systemd/install "$(DESTDIR)"
	@[ -n "$(DESTDIR)" ] || { systemd-sysusers cloud-network.conf; systemd-tmpfiles --create cloud-network.conf; }
	@[ -n "$(DESTDIR)" ] || [ ! -d /run/systemd/system ] || { systemctl daemon-reload; \
	  systemctl preset cloud-network.target $(UNITS); \
	  systemctl restart cloud-network-netagent.socket cloud-network-api.socket cloud-network-fetcher.service; \
	  systemctl start cloud-network.target; }

uninstall: ## take away what install made; the network, the configuration and the log stay
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
deb: apt ## the Debian package, in the directory above
	@$(call quietly,dpkg-buildpackage --build=binary --no-sign)
	@ls ../cloud-network_*.deb

boot: APT += $(BOOT) lintian systemd-container
boot: env ## boot the package in a lab's cloud: Debian 12, 13 and Docker in virtual machines, and a container (as root)
	@$(BIN)/python -m pytest tests/vm/test_debian12.py tests/vm/boot_kernel510.py tests/vm/boot_udev.py tests/vm/boot_debian13.py tests/vm/boot_container.py \
	  tests/vm/boot_change_over.py tests/vm/boot_docker.py tests/vm/boot_package.py $(PYTEST_ARGS)

clean: ## remove all that the other targets made, but the package in the directory above
	rm -rf $(VENV) build dist wheels wheels.part *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf .import_linter_cache debian/.debhelper debian/cloud-network debian/files debian/debhelper-build-stamp
	rm -f debian/*.substvars debian/*.debhelper debian/*.log
	find . -name __pycache__ -prune -exec rm -rf {} +
	[ "$$(id -u)" != 0 ] || rm -rf /var/cache/cloud-network-boot /var/cache/cloud-network-ci

.PHONY: help demo test check units test-others bench lint man env apt lock install uninstall deb wheels dist boot clean
