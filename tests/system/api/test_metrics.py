"""/metrics: the values, names that promtool accepts, and a real Prometheus that scrapes and alerts."""

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cloud_network.fetcher.state import StateDirectory
from cloud_network.fetcher.status import ConflictStatus
from prometheus_client.parser import text_string_to_metric_families

from .conftest import Server, address, free_port, link, now, status, two_links, wait_for

ALERTS = Path(__file__).parents[3] / "docs/alerts.yaml"
debian = pytest.mark.skipif(
    not shutil.which("prometheus") or not shutil.which("promtool"),
    reason="Debian's package prometheus is not installed (apt-get install prometheus)",
)


def samples(server: Server) -> dict[str, float]:
    answer = server.ask("/metrics")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    found = {}
    for family in text_string_to_metric_families(answer.content.decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_metrics_equal_the_status(server: Server, state: StateDirectory) -> None:
    eth0 = [address("10.0.0.4"), address("10.0.0.5", present=False)]
    state.write_status(
        status(
            link(2, "eth0", eth0, desired=9, actual=7, drift=["a", "b"]),
            state="degraded",
            fetched_at="2026-01-02T03:04:05Z",
            unknown_macs=["02:00:00:00:00:07"],
        )
    )
    found = samples(server)
    expected = {
        "cloud_network_state{state=degraded}": 1,
        "cloud_network_state{state=ok}": 0,
        "cloud_network_last_success_timestamp_seconds{}": 1767323045,
        "cloud_network_refresh_interval_seconds{}": 300,
        "cloud_network_fetch_duration_seconds{}": 0.042,
        "cloud_network_metadata_requests_total{}": 170,
        "cloud_network_metadata_errors_total{kind=timeout}": 2,
        "cloud_network_metadata_errors_total{kind=too large}": 1,
        "cloud_network_unknown_interfaces{}": 1,
        "cloud_network_netagent_requests_total{verdict=confirmed}": 9,
        "cloud_network_netagent_requests_total{verdict=refused}": 0,
        "cloud_network_rollbacks_total{}": 1,
        "cloud_network_drift_repaired_total{}": 5,
        "cloud_network_addresses{link=eth0,state=desired}": 2,
        "cloud_network_addresses{link=eth0,state=actual}": 1,
        "cloud_network_objects{link=eth0,state=desired}": 9,
        "cloud_network_objects{link=eth0,state=actual}": 7,
        "cloud_network_drift{link=eth0}": 2,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert [name for name in found if name.startswith("cloud_network_info{provider=aws,version=")]


def conflict(number: int) -> ConflictStatus:
    change = f"ip rule add pref 31000 from 10.0.0.{number} lookup 10001 protocol 209"
    return {"object": change, "times": number, "since": now(60), "next_at": now(-5), "by": None}


def test_conflicts_are_counted_and_the_first_are_named(server: Server, state: StateDirectory) -> None:
    state.write_status(status(conflicts=[conflict(number) for number in range(1, 31)]))
    found = samples(server)
    assert found["cloud_network_conflicts{}"] == 30
    named = {name: value for name, value in found.items() if name.startswith("cloud_network_conflict_attempts")}
    assert list(named.values()) == [*range(1, 21)]
    assert named[f"cloud_network_conflict_attempts{{object={conflict(7)['object']}}}"] == 7


def test_never_read_metadata_has_the_time_0(server: Server, state: StateDirectory) -> None:
    state.write_status(status(fetched_at=None, state="starting"))
    assert samples(server)["cloud_network_last_success_timestamp_seconds{}"] == 0


@pytest.mark.parametrize("content", [None, "{half"])
def test_metrics_without_a_state_say_unknown(
    session_server: Server, state: StateDirectory, content: str | None
) -> None:
    if content:
        Path(state.status_path).write_text(content)
    found = samples(session_server)
    assert found["cloud_network_state{state=unknown}"] == 1
    assert found["cloud_network_fetcher_up{}"] == 0
    assert found["cloud_network_last_success_timestamp_seconds{}"] == 0


def test_state_of_a_stopped_fetcher_is_unknown(server: Server, state: StateDirectory) -> None:
    assert samples(server)["cloud_network_state{state=ok}"] == 1
    Path(state.lock_path).unlink()
    found = samples(server)
    assert (found["cloud_network_state{state=ok}"], found["cloud_network_state{state=unknown}"]) == (0, 1)
    assert found["cloud_network_fetcher_up{}"] == 0


@pytest.mark.parametrize(("kind", "value"), [("no-cloud", 1), ("detection", 0)])
def test_a_machine_without_a_cloud_is_told_apart(server: Server, state: StateDirectory, kind: str, value: int) -> None:
    assert samples(server)["cloud_network_no_cloud{}"] == 0
    error = {"at": "2026-01-02T03:04:05Z", "kind": kind, "message": "no supported cloud detected"}
    state.write_status(status(state="error", last_error=error))
    Path(state.lock_path).unlink()
    assert samples(server)["cloud_network_no_cloud{}"] == value


def test_a_hostile_name_stays_one_label(server: Server, state: StateDirectory) -> None:
    name = 'e"} 7\n\\evil 1\n'
    state.write_status(status(link(2, name, [])))
    found = samples(server)
    assert found[f"cloud_network_drift{{link={name}}}"] == 0
    assert not [each for each in found if each.startswith("evil")]


@debian
def test_promtool_accepts_the_metrics(server: Server) -> None:
    exposition = server.ask("/metrics").content
    checked = subprocess.run(["promtool", "check", "metrics"], input=exposition, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
    wrong = exposition.replace(b"cloud_network_rollbacks_total", b"cloud_network_rollbacks")
    assert subprocess.run(["promtool", "check", "metrics"], input=wrong, capture_output=True, check=False).returncode


RULES = {
    "CloudNetworkDown": {'up{job="cloud-network"}': "0x20"},
    "CloudNetworkFetcherDown": {"cloud_network_fetcher_up": "0x60"},
    "CloudNetworkNetagentDown": {"cloud_network_netagent_up": "0x60"},
    "CloudNetworkNeverRead": {"cloud_network_last_success_timestamp_seconds": "0x60"},
    "CloudNetworkMetadataStale": {
        "cloud_network_last_success_timestamp_seconds": "1x60",
        "cloud_network_refresh_interval_seconds": "300x60",
    },
    "CloudNetworkDegraded": {'cloud_network_state{state="degraded"}': "1x60"},
    "CloudNetworkError": {'cloud_network_state{state="error"}': "1x60"},
    "CloudNetworkAddressesMissing": {
        'cloud_network_addresses{link="eth0",state="desired"}': "15x60",
        'cloud_network_addresses{link="eth0",state="actual"}': "14x60",
        'cloud_network_addresses{link="eth1",state="desired"}': "15x60",
        'cloud_network_addresses{link="eth1",state="actual"}': "15x60",
    },
    "CloudNetworkDrift": {'cloud_network_drift{link="eth0"}': "3x60"},
    "CloudNetworkConflict": {"cloud_network_conflicts": "0x10 1x50"},
    "CloudNetworkRollback": {"cloud_network_rollbacks_total": "0x10 1x50"},
    "CloudNetworkRefused": {'cloud_network_netagent_requests_total{verdict="refused"}': "0x10 1x50"},
}
"""Values that make each rule fire, in promtool's notation of one value per minute."""
QUIET = {
    'up{job="cloud-network"}': "1x60",
    "cloud_network_no_cloud": "0x60",
    "cloud_network_fetcher_up": "1x60",
    "cloud_network_netagent_up": "1x60",
    'cloud_network_state{state="ok"}': "1x60",
    'cloud_network_state{state="degraded"}': "0x60",
    'cloud_network_state{state="error"}': "0x60",
    "cloud_network_last_success_timestamp_seconds": "1+60x60",
    "cloud_network_refresh_interval_seconds": "300x60",
    'cloud_network_addresses{link="eth0",state="desired"}': "15x60",
    'cloud_network_addresses{link="eth0",state="actual"}': "15x60",
    'cloud_network_drift{link="eth0"}': "0x60",
    "cloud_network_drift_repaired_total": "5x60",
    "cloud_network_conflicts": "0x60",
    "cloud_network_rollbacks_total": "1x60",
    'cloud_network_netagent_requests_total{verdict="refused"}': "1x60",
}


def unit_test(tmp_path: Path, values: dict[str, str], names: dict[str, bool]) -> subprocess.CompletedProcess[str]:
    """Run promtool on the rules after 20 minutes of these values; the expression names the alerts that must fire."""
    series = [{"series": name, "values": value} for name, value in values.items()]
    cases = [
        {
            "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)',
            "eval_time": "20m",
            "exp_samples": [{"labels": "{}", "value": int(fires)}],
        }
        for name, fires in names.items()
    ]
    document = {
        "rule_files": [str(ALERTS)],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": cases}],
    }
    path = tmp_path / "test.yaml"
    path.write_text(json.dumps(document))  # JSON is YAML
    return subprocess.run(
        ["promtool", "test", "rules", str(path)], capture_output=True, text=True, check=False, timeout=60
    )


@debian
def test_alert_rules_are_valid_and_all_tested() -> None:
    checked = subprocess.run(["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert f"{len(RULES)} rules found" in checked.stdout
    assert {line.split()[-1] for line in ALERTS.read_text().splitlines() if "- alert:" in line} == RULES.keys()


@debian
@pytest.mark.parametrize("name", RULES)
def test_each_alert_fires_in_its_case(tmp_path: Path, name: str) -> None:
    tried = unit_test(tmp_path, RULES[name], {name: True})
    assert tried.returncode == 0, tried.stdout + tried.stderr


@debian
def test_many_repairs_fire_the_conflict_alert(tmp_path: Path) -> None:
    tried = unit_test(tmp_path, {"cloud_network_drift_repaired_total": "0+2x60"}, {"CloudNetworkConflict": True})
    assert tried.returncode == 0, tried.stdout + tried.stderr


@debian
def test_no_alert_fires_on_a_machine_without_a_cloud(tmp_path: Path) -> None:
    """The package may be in the image of every machine."""
    ended = {
        'up{job="cloud-network"}': "1x60",
        "cloud_network_fetcher_up": "0x60",
        'cloud_network_state{state="unknown"}': "1x60",
        "cloud_network_last_success_timestamp_seconds": "0x60",
    }
    for no_cloud, fires in (("1x60", False), ("0x60", True)):
        alerts = {"CloudNetworkFetcherDown": fires, "CloudNetworkNeverRead": fires}
        others = dict.fromkeys(RULES.keys() - alerts.keys(), False)
        tried = unit_test(tmp_path, {**ended, "cloud_network_no_cloud": no_cloud}, {**alerts, **others})
        assert tried.returncode == 0, tried.stdout + tried.stderr


@debian
def test_no_alert_fires_on_a_healthy_host(tmp_path: Path) -> None:
    tried = unit_test(tmp_path, QUIET, dict.fromkeys(RULES, False))
    assert tried.returncode == 0, tried.stdout + tried.stderr


@pytest.fixture
def prometheus(server: Server, tmp_path: Path) -> Iterator[int]:
    """Run a Prometheus on loopback that scrapes the server every second, with docs/alerts.yaml; yield its port."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [
            {"job_name": "cloud-network", "static_configs": [{"targets": [f"127.0.0.1:{server.port}"]}]}
        ],
    }
    (tmp_path / "prometheus.yaml").write_text(json.dumps(config))
    port = free_port()
    command = ["prometheus", f"--config.file={tmp_path}/prometheus.yaml", f"--storage.tsdb.path={tmp_path}/data"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stderr=log, stdout=log)
    yield port
    process.terminate()
    process.wait(30)


def query(port: int, expression: str) -> list[Any]:
    url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            found: list[Any] = json.load(answer)["data"]["result"]
            return found
    except OSError:
        return []  # still starting


@debian
def test_a_real_prometheus_scrapes_it(prometheus: int, state: StateDirectory) -> None:
    state.write_status(two_links() | {"fetched_at": now()})
    wait_for(lambda: bool(query(prometheus, 'up{job="cloud-network"} == 1')), 60, "Prometheus to scrape the api")
    wait_for(lambda: bool(query(prometheus, 'cloud_network_addresses{state="actual"}')), 60, "the number of addresses")
    found = query(prometheus, 'cloud_network_addresses{link="eth0",state="actual"}')
    assert [sample["value"][1] for sample in found] == ["3"]
    missing = 'cloud_network_addresses{state="actual"} < ignoring(state) cloud_network_addresses{state="desired"}'
    assert query(prometheus, missing) == []
    changed = two_links()
    changed["links"]["2"]["addresses"][0]["present"] = False
    state.write_status(changed)
    wait_for(lambda: bool(query(prometheus, missing)), 60, "the missing address in Prometheus")
    wait_for(
        lambda: bool(query(prometheus, 'ALERTS{alertname="CloudNetworkAddressesMissing"}')),
        60,
        "the alert CloudNetworkAddressesMissing",
    )
    Path(state.status_path).unlink()
    wait_for(
        lambda: bool(query(prometheus, 'cloud_network_state{state="unknown"} == 1')),
        60,
        "the state unknown after the fetcher stopped",
    )
