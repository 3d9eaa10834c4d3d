"""systemd-imdsd (systemd 261) in locked mode: a prohibit route keeps programs from the metadata server."""

from __future__ import annotations

import re
from dataclasses import replace

from tests.lab import Lab, Spec
from tests.lab.lab import CHECKOUT
from tests.system.service import CONFIG, kernel_addresses, refresh, running_lab, status, wait_until_healthy

METADATA = "169.254.169.254"
UNFILTERED = {"net.ipv4.conf.default.rp_filter": "0"}
LOCK = f"route add prohibit {METADATA}/32"


def ask(lab: Lab) -> int:
    """Return curl's exit status for a request of an ordinary user."""
    argv = ["curl", "--silent", "--max-time", "2", f"http://{METADATA}/"]
    return lab.run(argv, user="daemon", check=False).returncode


def test_metadata_is_read_despite_a_prohibit_route() -> None:
    """At the first start, for the confirmation of each change, and after a restart."""
    with Lab(replace(Spec.aws(interfaces=3, addresses=3), sysctl=UNFILTERED)) as lab:
        assert ask(lab) == 0
        lab.batch([LOCK])
        assert ask(lab) != 0
        lab.write_config(CONFIG)
        lab.start("netagent")
        lab.start("fetcher")
        wait_until_healthy(lab)
        assert all(lab.reachability().values())
        lab.add_address(lab.nics[1].mac, "10.0.2.77")
        assert refresh(lab) == "ok"
        assert "10.0.2.77" in kernel_addresses(lab)
        lab.restart("fetcher")
        wait_until_healthy(lab)
        assert ask(lab) != 0, "other users remain locked out"


def test_route_that_prohibits_the_metadata_later_changes_nothing() -> None:
    with running_lab(replace(Spec.aws(interfaces=3, addresses=3), sysctl=UNFILTERED), "", "netagent", "fetcher") as lab:
        before = kernel_addresses(lab)
        lab.batch([LOCK])
        assert refresh(lab) == "ok"
        lab.add_address(lab.nics[1].mac, "10.0.2.77")
        assert refresh(lab) == "ok"
        assert kernel_addresses(lab) == before | {"10.0.2.77"}
        assert status(lab)["last_error"] is None


def test_firewall_rule_locks_the_metadata_for_others() -> None:
    """The rule of docs/coexistence.md: a bound socket bypasses the route, but not the rule."""
    page = (CHECKOUT / "docs/coexistence.md").read_text()
    [rules] = re.findall(r"^ {6}table inet metadata \{\n(?: {6}.*\n)+", page, re.MULTILINE)
    with running_lab(replace(Spec.aws(interfaces=2, addresses=2), sysctl=UNFILTERED), "", "netagent", "fetcher") as lab:
        lab.batch([LOCK])
        bound = ["curl", "--silent", "--max-time", "2", "--interface", f"if!{lab.nics[0].name}", f"http://{METADATA}/"]
        assert lab.run(bound, user="daemon", check=False).returncode == 0
        lab.run(["nft", "-f", "-"], stdin=rules)
        assert lab.run(bound, user="daemon", check=False).returncode != 0
        lab.add_address(lab.nics[1].mac, "10.0.2.77")
        assert refresh(lab) == "ok"
        assert "10.0.2.77" in kernel_addresses(lab)


def test_known_reverse_path_filter_drops_the_answers() -> None:
    """With rp_filter 1 or 2 the prohibit route is also the reverse path: the state is error, and the network does not
    change.
    """
    with running_lab(Spec.aws(interfaces=3, addresses=3), "", "netagent", "fetcher") as lab:
        before = kernel_addresses(lab)
        lab.batch([LOCK])
        assert refresh(lab) == "error"
        message = status(lab)["last_error"]["message"]
        assert "no answer in time; a route prohibits 169.254.169.254 on this host (systemd-imdsd adds one)" in message
        assert f"set net.ipv4.conf.{lab.nics[0].name}.rp_filter=0, or its answers are dropped" in message
        assert kernel_addresses(lab) == before
        lab.run(["sysctl", "-qw", *(f"net.ipv4.conf.{nic.name}.rp_filter=0" for nic in lab.nics)])
        assert refresh(lab) == "ok"
