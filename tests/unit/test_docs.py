"""The documentation: every name in it exists, and every file to copy is valid."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from cloud_network.api.cnctl import main
from cloud_network.fetcher import config

from tests.lab.lab import CHECKOUT

PAGES = [
    *sorted((CHECKOUT / "docs").glob("*.md")),
    *(CHECKOUT / f"{name}.md" for name in ("README", "SECURITY", "CONTRIBUTING")),
]
TESTS = "\n".join(path.read_text() for path in (CHECKOUT / "tests").rglob("*.py"))


def blocks(page: Path) -> list[str]:
    """Return the indented blocks, without their indentation."""
    found = re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", page.read_text(), re.MULTILINE)
    return [dedent(each).strip("\n") + "\n" for each in found]


def block(page: str, start: str) -> str:
    [found] = [each for each in blocks(CHECKOUT / "docs" / page) if each.startswith(start)]
    return found


def cnctl_commands() -> Iterator[str]:
    """Yield the cnctl commands in the pages, one for each alternative."""
    for page in PAGES:
        text = page.read_text()
        lines = [line for each in blocks(page) for line in each.splitlines()]
        found = re.findall(r"`(?:sudo )?(cnctl [^`]+)`", text)
        found += [
            hit[1] for line in lines if (hit := re.match(r"(?:sudo )?(cnctl [^&#(]+?)(?: {2,}.*| *[&#].*)?$", line))
        ]
        for each in found:
            yield each.replace("\\|", "|").replace("ADDRESS", "10.0.1.10").strip()


@pytest.mark.parametrize("command", sorted({each for each in cnctl_commands() if "…" not in each}))
def test_cnctl_commands_are_valid(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "execute", lambda *_: None)  # parse only
    words = shlex.split(command)[1:]
    for number in range(max(word.count("|") for word in [*words, ""]) + 1):
        chosen = [(word.split("|") * 9)[number] if "|" in word else word for word in words]
        if chosen != ["--json"]:
            main.cli.main(chosen, standalone_mode=False)


def commands(page: Path, program: str) -> Iterator[str]:
    """Yield the rest of each line or code span that runs the program."""
    text = page.read_text()
    lines = [line.removeprefix("sudo ") for each in blocks(page) for line in each.splitlines()]
    lines += [span.removeprefix("sudo ") for span in re.findall(r"`([^`\n]+)`", text)]
    yield from (line.removeprefix(f"{program} ") for line in lines if line.startswith(f"{program} "))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_commands_name_existing_targets_modules_and_options(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    assert {line.split()[0] for line in commands(page, "make")} <= targets
    for program in (".venv/bin/python", "python"):
        for line in commands(page, program):
            module = re.match(r"-m ([\w.]+)", line)
            if module and module[1] != "pytest":
                path = CHECKOUT / module[1].replace(".", "/")
                assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), line
    for name in ("fetcher", "netagent"):
        known = (CHECKOUT / name / "__main__.py").read_text()
        for line in commands(page, f"cloud-network-{name}"):
            assert all(f'"{option}"' in known for option in re.findall(r"--[a-z-]+", line)), line


def test_units_tests_and_keys_are_there() -> None:
    units = {path.name for path in (CHECKOUT / "systemd/system").iterdir()}
    for page in PAGES:
        text = page.read_text()
        named = set(re.findall(r"cloud-network(?:-\w+)?\.(?:service|socket|target)", text)) - {"cloud-network.service"}
        assert named <= units, page
        for name in re.findall(r"`(tests/[^` ]+)`", text):
            assert "NAME" in name or (CHECKOUT / name).exists(), (page, name)
        for name in re.findall(r"\btest_\w+\b(?!\.py)", text):
            assert f"def {name}(" in TESTS, (page, name)
        for section, key in re.findall(r"\[(System|Network|Netagent)\] (\w+)=", text):
            assert key in config.KEYS[section], (page, section, key)


def test_cloud_init_configuration_is_valid(tmp_path: Path) -> None:
    data = block("operations.md", "#cloud-config\n")
    content = dedent(data.partition("content: |\n")[2].partition("runcmd:")[0])
    path = tmp_path / "cloud-network.toml"
    path.write_text(content)
    assert config.load(path, {}) != config.Config(), content


@pytest.mark.skipif(not shutil.which("promtool"), reason="not here: apt-get install prometheus")
def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    path = tmp_path / "prometheus.yml"
    path.write_text(block("operations.md", "scrape_configs:"))
    done = subprocess.run(["promtool", "check", "config", "--agent", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("page", "start", "program"),
    [
        ("operations.md", "#cloud-config\n", ["cloud-init", "schema", "--config-file"]),
        ("operations.md", "- hosts: cloud\n", ["ansible-playbook", "--syntax-check", "-i", "localhost,"]),
    ],
)
def test_fleet_examples_are_valid(tmp_path: Path, page: str, start: str, program: list[str]) -> None:
    if not shutil.which(program[0]):
        pytest.skip(f"not here: {program[0]}")
    path = tmp_path / "copy.yml"
    path.write_text(block(page, start))
    done = subprocess.run([*program, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
