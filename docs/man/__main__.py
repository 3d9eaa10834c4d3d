"""`python docs/man DIRECTORY`: writes cnctl.1, cloud-network.8 and cloud-network.toml.5 there, in roff (man(7)).

One source: the parser that reads the command line, the configuration's KEYS, and words.py for the prose.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import words
from cloud_network.api.cnctl.main import parser
from cloud_network.fetcher.config import ENVIRONMENT, KEYS, Config

Lines = Iterator[str]


def main(directory: Path) -> None:
    """Write the three pages."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, lines in {"cnctl.1": cnctl(), "cloud-network.8": overview(), "cloud-network.toml.5": toml()}.items():
        (directory / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def cnctl() -> Lines:
    """cnctl(1): from the parser, command by command."""
    root = parser()
    yield from head("cnctl", "1", "look at, and refresh, what cloud-network knows and does")
    yield from section("SYNOPSIS")
    yield r"\fBcnctl\fR [\fIoptions\fR] \fIcommand\fR [\fIoptions\fR]"
    yield from section("DESCRIPTION")
    yield from text(root.description or "")
    yield from section("OPTIONS")
    yield from options(root)
    yield from section("COMMANDS")
    for path, command in below(root):
        yield f".SS {bold(' '.join(path))}{''.join(' ' + placeholder(action) for action in positionals(command))}"
        yield from paragraphs(command.description or "")
        for action in positionals(command):
            yield from item(positional(action), action.help or "")
        yield from options(command, {option for action in root._actions for option in action.option_strings})
    yield from section("JSON")
    yield from text(words.JSON)
    yield from section("EXIT STATUS")
    yield from items(words.EXIT)
    yield from section("FILES")
    yield from items(words.FILES)
    yield from section("EXAMPLES")
    yield ".nf"
    for line in (root.epilog or "").split("exit codes:")[0].splitlines()[1:]:
        yield escape(line.strip()) if line.strip() else "."
    yield ".fi"
    yield from see("cloud-network(8)", "cloud-network.toml(5)", "ip(8)")


def overview() -> Lines:
    """cloud-network(8): what runs, and what becomes of the network."""
    yield from head("cloud-network", "8", "configure every address that the cloud gives this instance")
    yield from section("SYNOPSIS")
    yield r"\fBcloud\-network\-fetcher\fR [\fB\-\-config\fR \fIFILE\fR] [\fB\-\-check\-config\fR | \fB\-\-flush\fR]"
    for name in ("cloud-network-netagent", "cloud-network-api"):
        yield ".br"
        yield bold(name)
    yield from section("DESCRIPTION")
    yield from text(words.OVERVIEW)
    yield from items(words.DAEMONS)
    yield from section("WHAT STAYS AND WHAT GOES")
    yield from text(words.REMOVAL)
    yield from section("LOG")
    yield from text(words.LOG)
    yield from section("ENVIRONMENT")
    yield from items({name: words.ENVIRONMENT[name] for name in ENVIRONMENT})
    yield from section("FILES")
    yield from items(words.FILES)
    yield from see("cnctl(1)", "cloud-network.toml(5)", "ip-rule(8)", "systemd(1)")


def toml() -> Lines:
    """cloud-network.toml(5): every key, with its meaning, what is accepted, and the default."""
    yield from head("cloud-network.toml", "5", "configuration of cloud-network")
    yield from section("SYNOPSIS")
    yield escape("/etc/cloud-network/cloud-network.toml")
    yield from section("DESCRIPTION")
    yield from text(words.SYNTAX)
    for name, keys in KEYS.items():
        yield from section(f"[{name}]")
        for key, meaning in keys.items():
            yield from item(f"{bold(key)} =", words.KEYS[key])
            yield ".br"
            yield from text(f"Accepted: {meaning.accepted}. Default: {default(meaning.field)}.")
    yield from see("cloud-network(8)", "cnctl(1)")


def default(field: str) -> str:
    """A key's default, as one would write it."""
    value = getattr(Config(), field)
    if value is None:
        return "the cloud's own"
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}s"
    return hex(value) if field == "mark_mask" else str(value)


# --- the command line ---


def below(
    found: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every command, and the parts of each."""
    for action in found._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield (*path, name), command
                yield from below(command, (*path, name))


def positionals(command: argparse.ArgumentParser) -> list[argparse.Action]:
    """What stands without an option's name."""
    return [
        action
        for action in command._actions
        if not action.option_strings and not isinstance(action, argparse._SubParsersAction)
    ]


def positional(action: argparse.Action) -> str:
    """As the synopsis has it."""
    if action.choices:
        return " | ".join(bold(str(choice)) for choice in action.choices)
    return rf"\fI{escape(str(action.metavar or action.dest))}\fR"


def placeholder(action: argparse.Action) -> str:
    """As a heading has it."""
    return rf"\fI{escape(str(action.metavar or action.dest).upper())}\fR"


def options(command: argparse.ArgumentParser, known: set[str] | None = None) -> Lines:
    """Each with its meaning; without those that every command has."""
    for action in command._actions:
        if action.option_strings and not set(action.option_strings) & (known or set()):
            value = ""
            if isinstance(action.metavar, str):
                value = rf"[=\fI{action.metavar}\fR]" if action.nargs == "?" else rf" \fI{action.metavar}\fR"
            yield from item(", ".join(map(bold, action.option_strings)) + value, action.help or "")


# --- roff ---


def head(name: str, number: str, what: str) -> Lines:
    """The page's title. Its date is SOURCE_DATE_EPOCH's, so that the same source makes the same bytes."""
    date = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())), UTC).date()
    yield f'.TH {name.upper()} {number} "{date}" "cloud\\-network {version("cloud-network")}"'
    yield from section("NAME")
    yield rf"{escape(name)} \- {escape(what)}"


def section(title: str) -> Lines:
    """A heading."""
    yield f'.SH "{escape(title)}"'


def item(term: str, meaning: str) -> Lines:
    """A term, already in roff, and its meaning below."""
    yield ".TP"
    yield term
    yield from text(meaning)


def items(found: Mapping[str, str]) -> Lines:
    """Terms in bold, and their meanings."""
    for term, meaning in found.items():
        yield from item(bold(term), meaning)


def paragraphs(said: str) -> Lines:
    """Text with blank lines between paragraphs; indented lines stay as they are."""
    for number, part in enumerate(said.strip().split("\n\n")):
        if number:
            yield ".PP"
        for line in part.splitlines():
            if line.startswith("  "):
                yield ".br"
            yield from text(line)


def text(said: str) -> Lines:
    """Lines of running text."""
    for line in said.splitlines():
        if line.strip():
            yield escape(line.strip())


def see(*pages: str) -> Lines:
    """The last section."""
    yield from section("SEE ALSO")
    for page in pages:
        name, number = page.rstrip(")").split("(")
        yield f".BR {escape(name)} ({number})" + ("," if page != pages[-1] else "")


def bold(word: str) -> str:
    """In bold."""
    return rf"\fB{escape(word)}\fR"


def escape(said: str) -> str:
    """Text that roff takes as it is: man(7) wants hyphens that people copy as minus signs."""
    said = said.replace("\\", r"\e").replace("-", r"\-").replace("`", r"\(ga")
    return rf"\&{said}" if said.startswith((".", "'")) else said


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/man"))
