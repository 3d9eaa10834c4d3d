"""netagent's server: tests without a kernel."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cloud_network.netagent import settings
from cloud_network.netagent.server import Server
from cloud_network.netagent.settings import Settings


def test_reload_during_a_reload_is_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python runs the second handler inside the first one, which would overwrite newer settings with older ones."""
    older, newer = Settings(), Settings(max_objects=7)
    loaded = list[int]()

    def load(_path: Path) -> Settings:
        loaded.append(len(loaded))
        if len(loaded) > 1:
            return newer
        signal.raise_signal(signal.SIGHUP)
        return older

    monkeypatch.setattr(settings, "load", load)
    server: Any = object.__new__(Server)
    server._audit, server._config = SimpleNamespace(reopen=lambda: None), Path("/nowhere")
    server._settings = Settings()
    monkeypatch.setattr(Server, "_settle_netfilter", lambda _: None)
    previous = signal.signal(signal.SIGHUP, server._reload)
    try:
        signal.raise_signal(signal.SIGHUP)
        assert (len(loaded), server._settings) == (2, newer)
    finally:
        signal.signal(signal.SIGHUP, previous)
