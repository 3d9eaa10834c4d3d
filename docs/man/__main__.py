"""`python docs/man DIRECTORY`: writes the man pages of cnctl, cloud-network.8 and cloud-network.toml.5 there, in roff.

click-man makes cnctl's pages from its commands; the others come from the configuration's KEYS and from words.py.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import words
from click_man.core import write_man_pages
from cloud_network.api.cnctl.main import EXAMPLES, cli
from cloud_network.fetcher.config import ENVIRONMENT, KEYS, Config

Lines = Iterator[str]


def main(directory: Path) -> None:
    """Write the pages."""
    directory.mkdir(parents=True, exist_ok=True)
    write_man_pages("cnctl", cli, version=version("cloud-network"), target_dir=str(directory), date=date())
    with (directory / "cnctl.1").open("a", encoding="utf-8") as page:
        page.write("\n".join(more_of_cnctl()) + "\n")
    for name, lines in {"cloud-network.8": overview(), "cloud-network.toml.5": toml()}.items():
        (directory / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def more_of_cnctl() -> Lines:
    """Yield the sections of cnctl(1) that click-man does not make."""
    yield from section("JSON")
    yield from text(words.JSON)
    yield from section("EXIT STATUS")
    yield from items(words.EXIT)
    yield from section("FILES")
    yield from items(words.FILES)
    yield from section("EXAMPLES")
    yield ".nf"
    for line in EXAMPLES.partition("Exit codes:")[0].splitlines()[2:]:
        if line.strip() not in ("", "\b"):
            yield escape(line.strip())
    yield ".fi"
    yield from see("cloud-network(8)", "cloud-network.toml(5)", "ip(8)")


def overview() -> Lines:
    """cloud-network(8): what runs, and what becomes of the network."""
    yield from head("cloud-network", "8", "configure every address that the cloud gives this instance")
    yield from section("SYNOPSIS")
    yield r"\fBcloud\-network\-fetcher\fR [\fB\-\-config\fR \fIFILE\fR] [\fB\-\-check\-config\fR | \fB\-\-flush\fR]"
    yield ".br"
    yield r"\fBcloud\-network\-netagent\fR [\fB\-\-config\fR \fIFILE\fR] [\fB\-\-idle\fR \fISECONDS\fR]"
    yield ".br"
    yield r"\fBcloud\-network\-api\fR [\fB\-\-config\fR \fIFILE\fR] [\fB\-\-idle\-exit\fR \fISECONDS\fR]"
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


# --- roff ---


def head(name: str, number: str, what: str) -> Lines:
    """Yield the page's title. Its date is SOURCE_DATE_EPOCH's, so that the same source makes the same bytes."""
    yield f'.TH {name.upper()} {number} "{date()}" "cloud\\-network {version("cloud-network")}"'
    yield from section("NAME")
    yield rf"{escape(name)} \- {escape(what)}"


def date() -> str:
    """Return the date of SOURCE_DATE_EPOCH, or today."""
    return str(datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())), UTC).date())


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
