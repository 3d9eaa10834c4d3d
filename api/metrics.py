"""The state as Prometheus metrics, named after https://prometheus.io/docs/practices/naming/.

Nothing is measured here: a scrape returns what the fetcher wrote. A state in doubt is reported as `unknown`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib.metadata import version

from cloud_network.fetcher.state import Claim, Doubt
from cloud_network.fetcher.status import Status, configured_addresses
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
VERDICTS = ("applied", "confirmed", "refused", "rolled back", "unreachable")
STATES = ("ok", "degraded", "error", "starting", "unknown")
NAMED_CONFLICTS = 20


def encode(claim: Claim | None) -> bytes:
    """Return the exposition of one state. `claim` is None if the state cannot be read."""
    registry = CollectorRegistry()
    registry.register(_StateCollector(claim or Claim(None, Doubt.NOT_RUNNING)))
    return generate_latest(registry)


class _StateCollector(Collector):
    def __init__(self, claim: Claim):
        self._claim = claim

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        status, running = self._claim.status, self._claim.doubt is None
        is_up = status is not None and self._claim.doubt in (None, Doubt.EARLIER_RUN)
        state = status["state"] if status is not None and running else "unknown"
        yield InfoMetricFamily(
            "cloud_network",
            "Version of cloud-network, and the detected cloud.",
            {"version": version("cloud-network"), "provider": _text(status["provider"]) if status else ""},
        )
        yield _labelled(
            GaugeMetricFamily(
                "cloud_network_state",
                "1 for the current state; unknown if the fetcher is not running, hangs, or has written no state.",
                labels=["state"],
            ),
            {(each,): state == each for each in STATES},
        )
        yield GaugeMetricFamily(
            "cloud_network_fetcher_up", "1 if the fetcher is running and renews its state.", int(is_up)
        )
        error = status["last_error"] if status is not None else None
        yield GaugeMetricFamily(
            "cloud_network_no_cloud",
            "1 if the fetcher ended because this machine is in no supported cloud.",
            int(not is_up and error is not None and error["kind"] == "no-cloud"),
        )
        yield GaugeMetricFamily(
            "cloud_network_last_success_timestamp_seconds",
            "Time of the last complete and valid answer of the metadata server; 0 before the first.",
            _timestamp(status["fetched_at"] if status else None),
        )
        if status is not None and running and status["netagent"]["listening"] is not None:
            yield GaugeMetricFamily(
                "cloud_network_netagent_up",
                "1 if netagent or systemd listens on netagent's socket; 0 if no change can be made.",
                int(status["netagent"]["listening"]),
            )
        if status is not None:
            yield from _metadata(status)
            yield from _netagent(status)
            yield from _conflicts(status)
            if running:  # else they are those of an earlier run
                yield from _links(status)


def _text(label: str) -> str:
    """Return a label without lone surrogates, which JSON can contain and UTF-8 cannot."""
    return label.encode(errors="replace").decode()


def _timestamp(at: str | None) -> float:
    return datetime.fromisoformat(at).timestamp() if at else 0.0


def _metadata(status: Status) -> Iterator[Metric]:
    counters = status["counters"]
    yield GaugeMetricFamily(
        "cloud_network_last_comparison_timestamp_seconds",
        "Time of the last comparison of the kernel with the metadata; 0 before the first.",
        _timestamp(status["compared_at"]),
    )
    yield GaugeMetricFamily(
        "cloud_network_refresh_interval_seconds",
        "Seconds between two reads of the metadata.",
        status["refresh_timer"],
    )
    yield GaugeMetricFamily(
        "cloud_network_fetch_duration_seconds",
        "Seconds that the last read of the metadata took.",
        status["metadata_seconds"],
    )
    yield CounterMetricFamily(
        "cloud_network_metadata_requests_total",
        "HTTP requests to the metadata server.",
        counters["metadata_requests"],
    )
    yield _labelled(
        CounterMetricFamily(
            "cloud_network_metadata_errors_total", "Reads of the metadata that failed.", labels=["kind"]
        ),
        {(kind,): count for kind, count in sorted(counters["metadata_errors"].items())},
    )
    yield GaugeMetricFamily(
        "cloud_network_unknown_interfaces",
        "Interfaces of the metadata for which this host has no link to configure.",
        len(status["unknown_macs"]),
    )


def _netagent(status: Status) -> Iterator[Metric]:
    counters = status["counters"]
    verdicts = dict.fromkeys(VERDICTS, 0) | counters["netagent_requests"]
    yield _labelled(
        CounterMetricFamily(
            "cloud_network_netagent_requests_total", "Requests to netagent by their verdict.", labels=["verdict"]
        ),
        {(verdict,): count for verdict, count in verdicts.items()},
    )
    yield CounterMetricFamily(
        "cloud_network_rollbacks_total", "Changes that netagent rolled back.", verdicts["rolled back"]
    )
    yield CounterMetricFamily(
        "cloud_network_drift_repaired_total",
        "Repairs of changes that another program made in the kernel.",
        counters["drift_repaired"],
    )


def _conflicts(status: Status) -> Iterator[Metric]:
    """Count all conflicts but label only the first: a label must not have a value for each of ten thousand objects."""
    conflicts = status["conflicts"]
    yield GaugeMetricFamily(
        "cloud_network_conflicts", "Changes that another program reverts or blocks.", len(conflicts)
    )
    yield _labelled(
        GaugeMetricFamily(
            "cloud_network_conflict_attempts", "Times that another program reverted the change.", labels=["object"]
        ),
        {(conflict["object"],): conflict["times"] for conflict in conflicts[:NAMED_CONFLICTS]},
    )


def _links(status: Status) -> Iterator[Metric]:
    links = status["links"].values()
    managed = {link["name"]: configured_addresses(link) for link in links if link["state"] != "excluded"}
    yield _labelled(
        GaugeMetricFamily(
            "cloud_network_addresses",
            "Addresses that a link must have (desired), and those in place (actual); without ExcludeAddresses=.",
            labels=["link", "state"],
        ),
        {(name, "desired"): len(addresses) for name, addresses in managed.items()}
        | {(name, "actual"): sum(each["present"] for each in addresses) for name, addresses in managed.items()},
    )
    yield _labelled(
        GaugeMetricFamily(
            "cloud_network_objects",
            "Addresses, routes and rules that a link needs (desired), and those in place (actual).",
            labels=["link", "state"],
        ),
        {(link["name"], "desired"): link["desired"] for link in links}
        | {(link["name"], "actual"): link["actual"] for link in links},
    )
    yield _labelled(
        GaugeMetricFamily("cloud_network_drift", "Missing changes of a link.", labels=["link"]),
        {(link["name"],): len(link["drift"]) for link in links},
    )


def _labelled(
    family: GaugeMetricFamily | CounterMetricFamily,
    samples: Mapping[tuple[str, str], float] | Mapping[tuple[str], float],
) -> Metric:
    for labels, value in samples.items():
        family.add_metric([_text(label) for label in labels], value)
    return family
