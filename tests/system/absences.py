"""Addresses of the metadata that the kernel lacks, without a cause in status.json."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from subprocess import TimeoutExpired
from types import TracebackType
from typing import Any, Self

from tests.lab import Lab, LabError, Nic
from tests.system.service import ip, status

LIMIT_S = 5.0  # seconds, of issue 17
SAMPLE_INTERVAL_S = 0.25
SERIOUS = ("metadata", "kernel", "netagent")
"""Kinds of errors that affect every address: the fetcher cannot read the metadata, or cannot change the kernel."""


@dataclass(frozen=True)
class Absence:
    """An address that was missing without a cause for longer than the limit."""

    address: str
    link: str
    seconds: float
    samples: int  # in which it was missing
    status: str  # status.json at that time
    events: tuple[str, ...] = ()  # the last events before that time

    def __str__(self) -> str:
        missing = f"{self.address} of {self.link} was missing for {self.seconds:.1f} s in {self.samples} samples"
        return "\n  ".join([f"{missing} without a cause. The last events:", *self.events, self.status])


class Absences:
    """Measures for how long each address has been missing without a cause."""

    def __init__(self, limit: float = LIMIT_S) -> None:
        self._limit = limit
        self._since: dict[tuple[str, str], float] = {}
        self._samples = Counter[tuple[str, str]]()
        self._reported = set[tuple[str, str]]()
        self.longest = 0.0

    def observe(
        self, now: float, missing: Collection[tuple[str, str]], report: str, events: Sequence[str] = ()
    ) -> list[Absence]:
        """Record the (address, link) pairs that are missing now. Return those that have just exceeded the limit."""
        self._since = {each: self._since.get(each, now) for each in missing}
        self._samples = Counter({each: self._samples[each] + 1 for each in missing})
        self._reported &= set(missing)
        found = []
        for each, since in self._since.items():
            self.longest = max(self.longest, now - since)
            if now - since > self._limit and each not in self._reported:
                self._reported.add(each)
                found.append(Absence(*each, now - since, self._samples[each], report, tuple(events)))
        return found


def is_reported(report: dict[str, Any], nic: Nic, address: str) -> bool:
    """Return True if status.json gives a cause for the lack of an address."""
    error = report.get("last_error")
    link = next((each for each in report.get("links", {}).values() if each["mac"] == nic.mac), None)
    if (error and error["kind"] in SERIOUS) or (link and link["state"] == "excluded"):
        return True
    about_addresses = [*(link["drift"] if link else []), *(each["object"] for each in report.get("conflicts", []))]
    causes = [*(error["message"].split("; ") if error else []), *report.get("notices", [])]
    if ":" not in address:
        causes = [each for each in causes if "IPv6" not in each]
    words = (address, nic.name, nic.mac)
    return any(_contains_word(text, address) for text in about_addresses) or any(
        _contains_word(text, word) for text in causes for word in words
    )


def _contains_word(text: str, word: str) -> bool:
    """Return True if a text contains a word as a whole: 10.0.1.1 is not in 10.0.1.10."""
    return re.search(rf"(?<![\w.:]){re.escape(word)}(?![\w]|[.:]\w)", text) is not None


class Watch:
    """Samples kernel and status.json several times a second, in a separate thread: `with Watch(lab) as watch:`."""

    def __init__(
        self,
        lab: Lab,
        unmanaged: Callable[[], Collection[str]] = tuple,
        limit: float = LIMIT_S,
        events: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """`unmanaged` returns the MACs of interfaces that need no addresses now, `events` the last events."""
        self._lab, self._unmanaged, self._events = lab, unmanaged, events
        self._absences = Absences(limit)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")
        self.found: list[Absence] = []
        self.samples = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def longest(self) -> float:
        """Return the longest absence in seconds."""
        return self._absences.longest

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_INTERVAL_S):
            try:
                missing, report = self._sample()
            except (LabError, OSError, ValueError, TimeoutExpired):  # the lab is changing or ending
                continue
            self.samples += 1
            self.found += self._absences.observe(time.monotonic(), missing, json.dumps(report), self._events())

    def _sample(self) -> tuple[list[tuple[str, str]], dict[str, Any]]:
        """Return the missing (address, link) pairs and status.json. While the fetcher does not run, nothing is missing:
        readers of status.json report that.
        """
        nics, unmanaged = self._lab.nics, self._unmanaged()
        links = {link["address"]: link for link in ip(self._lab, "address")}
        report = status(self._lab)
        if not self._lab.daemons.running("fetcher") or report.get("state") in (None, "starting"):
            return [], report
        missing = []
        for nic in nics:
            has = {each["local"] for each in links[nic.mac]["addr_info"]} if nic.mac in links else set()
            lacks = set(nic.all_addresses) - has if nic.mac not in unmanaged else set()
            missing += [(each, nic.name) for each in lacks if not is_reported(report, nic, each)]
        return missing, report
