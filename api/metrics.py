"""status.json as Prometheus reads it: names by https://prometheus.io/docs/practices/naming/.

Nothing is measured here: a scrape shows what the fetcher wrote, so it costs the same however often it comes.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib.metadata import version

from cloud_network.fetcher.status import Status
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

MIMETYPE = "text/plain; version=0.0.4; charset=utf-8"
VERDICTS = ("applied", "confirmed", "refused", "rolled back", "unreachable")
STATES = ("ok", "degraded", "error", "starting")
NAMED_FIGHTS = 20


def encode(status: Status) -> bytes:
    """The whole exposition of one status."""
    registry = CollectorRegistry()
    registry.register(_Once(status))
    return generate_latest(registry)


class _Once(Collector):
    def __init__(self, status: Status):
        self._status = status

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        status = self._status
        yield InfoMetricFamily(
            "cloud_network",
            "Version of cloud-network, and the cloud that it found.",
            {"version": version("cloud-network"), "provider": status["provider"]},
        )
        yield _labelled(
            GaugeMetricFamily("cloud_network_state", "1 for the state the fetcher is in.", labels=["state"]),
            {(state,): status["state"] == state for state in STATES},
        )
        yield from _metadata(status)
        yield from _netagent(status)
        yield from _fights(status)
        yield from _links(status)


def _metadata(status: Status) -> Iterator[Metric]:
    counters = status["counters"]
    if status["fetched_at"]:
        yield GaugeMetricFamily(
            "cloud_network_last_success_timestamp_seconds",
            "When the last complete and valid metadata was read.",
            datetime.fromisoformat(status["fetched_at"]).timestamp(),
        )
    yield GaugeMetricFamily(
        "cloud_network_refresh_interval_seconds",
        "Time between two readings of the metadata.",
        status["refresh_timer"],
    )
    yield GaugeMetricFamily(
        "cloud_network_fetch_duration_seconds",
        "How long the last reading of the metadata took.",
        status["metadata_seconds"],
    )
    yield CounterMetricFamily(
        "cloud_network_metadata_requests_total",
        "HTTP requests to the metadata server.",
        counters["metadata_requests"],
    )
    yield _labelled(
        CounterMetricFamily(
            "cloud_network_metadata_errors_total", "Readings of the metadata that failed.", labels=["kind"]
        ),
        {(kind,): count for kind, count in sorted(counters["metadata_errors"].items())},
    )
    yield GaugeMetricFamily(
        "cloud_network_unknown_interfaces",
        "Interfaces that the metadata names and this host lacks.",
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
        "cloud_network_rollbacks_total", "Changes that netagent took back.", verdicts["rolled back"]
    )
    yield CounterMetricFamily(
        "cloud_network_drift_repaired_total",
        "Changes that put right what somebody else had changed in the kernel.",
        counters["drift_repaired"],
    )


def _fights(status: Status) -> Iterator[Metric]:
    """All are counted, and the first have a name: a label may not have a value for each of ten thousand objects."""
    fights = status.get("fights", [])  # a fetcher before this one had none
    yield GaugeMetricFamily(
        "cloud_network_fights", "Changes that somebody else undoes, or is in the way of.", len(fights)
    )
    yield _labelled(
        GaugeMetricFamily(
            "cloud_network_fight_attempts", "How often a change was made that is fought over.", labels=["object"]
        ),
        {(fight["object"],): fight["times"] for fight in fights[:NAMED_FIGHTS]},
    )


def _links(status: Status) -> Iterator[Metric]:
    links = status["links"].values()
    yield _labelled(
        GaugeMetricFamily(
            "cloud_network_addresses",
            "Addresses that the metadata gives a link (desired), and those of them that it has (actual).",
            labels=["link", "state"],
        ),
        {(link["name"], "desired"): len(link["addresses"]) for link in links}
        | {(link["name"], "actual"): sum(each["present"] for each in link["addresses"]) for link in links},
    )
    yield _labelled(
        GaugeMetricFamily(
            "cloud_network_objects",
            "Addresses, routes and rules that there should be for a link (desired), and those that there are (actual).",
            labels=["link", "state"],
        ),
        {(link["name"], "desired"): link["desired"] for link in links}
        | {(link["name"], "actual"): link["actual"] for link in links},
    )
    yield _labelled(
        GaugeMetricFamily("cloud_network_drift", "Changes that a link still needs.", labels=["link"]),
        {(link["name"],): len(link["drift"]) for link in links},
    )


def _labelled(
    family: GaugeMetricFamily | CounterMetricFamily,
    samples: Mapping[tuple[str, str], float] | Mapping[tuple[str], float],
) -> Metric:
    for labels, value in samples.items():
        family.add_metric(labels, value)
    return family
