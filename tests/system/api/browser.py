"""Headless Chromium, as a user's browser on this host."""

import shutil
import subprocess
from pathlib import Path

import pytest

needs_chromium = pytest.mark.skipif(
    not shutil.which("chromium"), reason="Debian's package chromium is not installed (apt-get install chromium)"
)


def load_page(url: str, profile: Path, *options: str) -> tuple[str, str]:
    """Return the page after loading and running its scripts, and the messages of the browser's console."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += ["--disable-background-networking", "--enable-logging=stderr", f"--user-data-dir={profile}"]
    ended = subprocess.run(
        [*command, *options, "--dump-dom", url], capture_output=True, text=True, check=False, timeout=180
    )
    console = [line for line in ended.stderr.splitlines() if "CONSOLE" in line]
    return ended.stdout, "\n".join(console)
