"""Each daemon is killed with SIGKILL in the lab: cnctl, REST, /metrics and the page each report it within 5 s."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import Lab, Spec
from tests.system.service import CONFIG, cnctl, status
from tests.system.test_clouds import local

REPORT_TIMEOUT_S = 5.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Spec.aws(interfaces=2, addresses=2)) as lab:
        lab.write_config(CONFIG)
        for name in ("netagent", "fetcher", "api"):
            lab.start(name)
        lab.wait_for(lambda: {*lab.addresses} <= local(lab) and status(lab).get("state") == "ok", 20, "all in place")
        yield lab


def get(lab: Lab, path: str) -> tuple[int, str]:
    command = ["curl", "--silent", "--max-time", "2", "--write-out", "\n%{http_code}", f"http://127.0.0.1:5209{path}"]
    body, _, code = lab.run(command, check=False).stdout.rpartition("\n")
    return int(code), body


def healthy(lab: Lab) -> bool:
    return cnctl(lab, "status").returncode == 0 and get(lab, "/api/v1/health")[0] == 200


def restart(lab: Lab, name: str) -> None:
    lab.start(name)
    lab.wait_for(lambda: healthy(lab), 20, "a healthy host")


def test_killed_fetcher_is_reported_by_every_reader(lab: Lab) -> None:
    assert healthy(lab)
    lab.kill("fetcher")
    lab.run(["ip", "address", "del", f"{lab.nics[1].addresses[1]}/32", "dev", lab.nics[1].name])
    ended = cnctl(lab, "status")
    assert (ended.returncode, ended.stdout[:19]) == (3, "fetcher not running")
    code, body = get(lab, "/api/v1/health")
    assert (code, json.loads(body)["fetcher"]) == (503, "not running")
    assert "cloud_network_fetcher_up 0.0" in get(lab, "/metrics")[1]
    assert "the fetcher is not running" in get(lab, "/")[1]
    restart(lab, "fetcher")


def test_hanging_fetcher_is_reported(lab: Lab) -> None:
    lab.kill("fetcher", signal.SIGSTOP)
    lab.wait_for(
        lambda: cnctl(lab, "status").stdout.startswith("fetcher hangs"), 15, "the hanging fetcher to be reported"
    )
    assert get(lab, "/api/v1/health")[0] == 503
    lab.daemons.resume("fetcher")
    lab.wait_for(lambda: healthy(lab), 20, "a healthy host")


def test_killed_netagent_is_reported_by_every_reader(lab: Lab) -> None:
    """No change of the network is needed meanwhile."""
    assert "cloud_network_netagent_up 1.0" in get(lab, "/metrics")[1]
    lab.kill("netagent")
    lab.wait_for(
        lambda: get(lab, "/api/v1/health")[0] == 503, REPORT_TIMEOUT_S, "the absence of netagent to be reported"
    )
    detail = json.loads(get(lab, "/api/v1/health")[1])["detail"]
    assert "netagent is not running" in detail
    ended = cnctl(lab, "status")
    assert (ended.returncode, ended.stdout.splitlines()[0][:6]) == (1, "error:")
    assert "Netagent: not running; last answer: confirmed" in ended.stdout
    metrics = get(lab, "/metrics")[1]
    assert "cloud_network_netagent_up 0.0" in metrics
    assert 'cloud_network_state{state="error"} 1.0' in metrics
    assert "netagent is not running" in get(lab, "/")[1]
    found = json.loads(cnctl(lab, "doctor", "--json").stdout)
    assert found["broken"] == "netagent"
    restart(lab, "netagent")


def test_restarted_netagent_repairs_the_network(lab: Lab) -> None:
    lab.kill("netagent")
    lab.run(["ip", "address", "del", f"{lab.nics[1].addresses[1]}/32", "dev", lab.nics[1].name])
    until = time.monotonic() + REPORT_TIMEOUT_S

    def reported() -> bool:
        found: dict[str, Any] = json.loads(cnctl(lab, "status", "--json").stdout)
        return bool(found["state"] != "ok" and found["netagent"]["verdict"] == "unreachable")

    lab.wait_for(reported, until - time.monotonic(), "the absence of netagent to be reported")
    assert cnctl(lab, "status").returncode == 1
    restart(lab, "netagent")
    assert {*lab.addresses} <= local(lab)


def test_killed_api_is_replaced_by_the_files(lab: Lab) -> None:
    lab.kill("api")
    lab.wait_for(lambda: "does not answer" in cnctl(lab, "status").stderr, REPORT_TIMEOUT_S, "the end of the api")
    assert cnctl(lab, "status").returncode == 0
    assert [get(lab, path) for path in ("/api/v1/health", "/metrics", "/")] == [(0, "")] * 3
    restart(lab, "api")
