"""Addresses of the metadata that the kernel lacks, without a cause in status.json."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from subprocess import TimeoutExpired
from types import TracebackType
from typing import Any, Self

from tests.lab import Lab, LabError, Nic
from tests.system.service import ip, status

LIMIT = 5.0  # seconds, of issue 17
PERIOD = 0.25
SERIOUS = ("metadata", "kernel", "netagent")
"""Kinds of errors that may keep the fetcher from any address: it cannot read the metadata, or change the kernel."""


@dataclass(frozen=True)
class Absence:
    """An address that was missing without a cause for longer than the limit."""

    address: str
    link: str
    seconds: float
    status: str  # as it was then

    def __str__(self) -> str:
        return f"{self.address} of {self.link} was missing for {self.seconds:.1f} s without a cause\n{self.status}"


class Absences:
    """Keeps the time for which each address has been missing without a cause."""

    def __init__(self, limit: float = LIMIT) -> None:
        self._limit = limit
        self._since: dict[tuple[str, str], float] = {}
        self._told = set[tuple[str, str]]()
        self.longest = 0.0

    def observe(self, now: float, missing: Collection[tuple[str, str]], said: str) -> list[Absence]:
        """Take in the (address, link) pairs that are missing now. Return each that is newly above the limit."""
        self._since = {each: self._since.get(each, now) for each in missing}
        self._told &= set(missing)
        found = []
        for each, since in self._since.items():
            self.longest = max(self.longest, now - since)
            if now - since > self._limit and each not in self._told:
                self._told.add(each)
                found.append(Absence(*each, now - since, said))
        return found


def is_reported(said: dict[str, Any], nic: Nic, address: str) -> bool:
    """Return True if status.json gives a cause for the lack of an address."""
    error = said.get("last_error")
    link = next((each for each in said.get("links", {}).values() if each["mac"] == nic.mac), None)
    if (error and error["kind"] in SERIOUS) or (link and link["state"] == "excluded"):
        return True
    about_addresses = [*(link["drift"] if link else []), *(each["object"] for each in said.get("conflicts", []))]
    causes = [*(error["message"].split("; ") if error else []), *said.get("notices", [])]
    if ":" not in address:
        causes = [each for each in causes if "IPv6" not in each]
    words = (address, nic.name, nic.mac)
    return any(_names(text, address) for text in about_addresses) or any(
        _names(text, word) for text in causes for word in words
    )


def _names(text: str, word: str) -> bool:
    """Return True if a text has a word, not as a part of another: 10.0.1.1 is not in 10.0.1.10."""
    return re.search(rf"(?<![\w.:]){re.escape(word)}(?![\w]|[.:]\w)", text) is not None


class Watch:
    """Samples kernel and status.json several times a second, in a thread of its own: `with Watch(lab) as watch:`."""

    def __init__(self, lab: Lab, unlisted: Callable[[], Collection[str]] = tuple, limit: float = LIMIT) -> None:
        """`unlisted` gives the MACs that the metadata does not name at the moment."""
        self._lab, self._unlisted = lab, unlisted
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
        """Seconds."""
        return self._absences.longest

    def _run(self) -> None:
        while not self._ended.wait(PERIOD):
            try:
                missing, said = self._sample()
            except (LabError, OSError, ValueError, TimeoutExpired):  # the lab changes, or ends
                continue
            self.samples += 1
            self.found += self._absences.observe(time.monotonic(), missing, json.dumps(said))

    def _sample(self) -> tuple[list[tuple[str, str]], dict[str, Any]]:
        """Nothing counts while the fetcher does not run: readers of status.json notice that."""
        nics, unlisted = self._lab.nics, self._unlisted()
        links = {link["address"]: link for link in ip(self._lab, "address")}
        said = status(self._lab)
        if not self._lab.daemons.running("fetcher") or said.get("state") in (None, "starting"):
            return [], said
        missing = []
        for nic in nics:
            has = {each["local"] for each in links[nic.mac]["addr_info"]} if nic.mac in links else set()
            lacks = set(nic.everything) - has if nic.mac not in unlisted else set()
            missing += [(each, nic.name) for each in lacks if not is_reported(said, nic, each)]
        return missing, said
