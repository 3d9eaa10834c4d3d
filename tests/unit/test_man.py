"""The man pages contain every command, option and key, and are valid roff."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from cloud_network.api.cnctl.main import cli
from cloud_network.fetcher.config import KEYS

MAKER = Path(__file__).parents[2] / "docs" / "man"
PAGES = ("cnctl.1", "cnctl-status-network.1", "cloud-network.8", "cloud-network.toml.5")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("man")
    subprocess.run([sys.executable, str(MAKER), str(path)], check=True, timeout=60)
    return path


def plain(page: Path) -> str:
    """Return the page's text without roff's fonts, escapes and macros."""
    text = re.sub(r"\\f[BIR]|\\&", "", page.read_text()).replace(r"\-", "-").replace(r"\e", "\\")
    return re.sub(r"^\.(SS|SH|TP|BR) ?", "", text, flags=re.MULTILINE)


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for below, each in command.commands.items():
            yield from commands(each, f"{name}-{below}")


def test_every_command_has_a_page_with_its_options(pages: Path) -> None:
    found = dict(commands(cli, "cnctl"))
    assert {page.stem for page in pages.glob("*.1")} == found.keys()
    for name, command in found.items():
        text = plain(pages / f"{name}.1")
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.opts[-1] in text, (name, parameter.opts)


def test_every_key_is_in_the_toml_page_with_what_is_accepted(pages: Path) -> None:
    text = plain(pages / "cloud-network.toml.5")
    for section, keys in KEYS.items():
        assert f'"[{section}]"' in text
        for key, meaning in keys.items():
            assert f"\n{key} =\n" in text, key
            assert f"Accepted: {meaning.accepted}. Default: " in text, key


def test_words_have_only_existing_keys() -> None:
    """words.py documents exactly the existing keys."""
    text = (MAKER / "words.py").read_text().split("ENVIRONMENT")[0]
    assert set(re.findall(r'^    "([A-Za-z]+)":', text, re.MULTILINE)) == {
        key for keys in KEYS.values() for key in keys
    }


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.skipif(shutil.which("mandoc") is None, reason="there is no mandoc")
def test_mandoc_accepts_the_page(pages: Path, page: str) -> None:
    ended = subprocess.run(
        ["mandoc", "-Tlint", "-W", "error" if page.startswith("cnctl") else "warning", str(pages / page)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (0, "")


def test_pages_are_reproducible(tmp_path: Path) -> None:
    for name in ("one", "two"):
        subprocess.run(
            [sys.executable, str(MAKER), str(tmp_path / name)], check=True, timeout=60, env={"SOURCE_DATE_EPOCH": "0"}
        )
    for page in PAGES:
        first, second = ((tmp_path / name / page).read_bytes() for name in ("one", "two"))
        assert first == second
        assert b"1970-01-01" in first
