"""`python docs/man DIRECTORY`: write the man pages of cnctl, cloud-network.8 and cloud-network.toml.5, in roff.

click-man generates cnctl's pages from its commands; the others come from the configuration's KEYS and from words.py.
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
    for path in directory.glob("cnctl-*.1"):
        text = path.read_text(encoding="utf-8").replace("cnctl status-", "cnctl-status-")  # click-man's references
        path.write_text("\n".join([text.rstrip(), *see("cnctl(1)", "cloud-network(8)")]) + "\n", encoding="utf-8")
    with (directory / "cnctl.1").open("a", encoding="utf-8") as page:
        page.write("\n".join(more_of_cnctl()) + "\n")
    for name, lines in {"cloud-network.8": overview(), "cloud-network.toml.5": toml()}.items():
        (directory / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def more_of_cnctl() -> Lines:
    """Yield the sections of cnctl(1) that click-man does not generate."""
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
    """Yield cloud-network(8): the daemons, and their effect on the network."""
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
    yield ".PP"
    yield from text("With --help, each of them prints its options.")
    yield from section("REMOVAL")
    yield from text(words.REMOVAL)
    yield from section("LOG")
    yield from text(words.LOG)
    yield from section("EXIT STATUS")
    yield from items(words.DAEMON_EXIT)
    yield from section("ENVIRONMENT")
    yield from items({name: words.ENVIRONMENT[name] for name in ENVIRONMENT})
    yield from section("FILES")
    yield from items(words.FILES)
    yield from see("cnctl(1)", "cloud-network.toml(5)", "ip-rule(8)", "systemd(1)")


def toml() -> Lines:
    """Yield cloud-network.toml(5): every key with its meaning, the accepted values, and the default."""
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
    """Return a key's default in the syntax of the file."""
    value = getattr(Config(), field)
    if field == "allow_addresses":
        return "none"  # the key adds to the private prefixes
    if value is None:
        return "the cloud's own"
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}s"
    return hex(value) if field == "mark_mask" else str(value)


# --- roff ---


def head(name: str, number: str, summary: str) -> Lines:
    """Yield the page's title. Its date is that of SOURCE_DATE_EPOCH, for reproducible builds."""
    yield f'.TH {name.upper()} {number} "{date()}" "cloud\\-network {version("cloud-network")}"'
    yield from section("NAME")
    yield rf"{escape(name)} \- {escape(summary)}"


def date() -> str:
    """Return the date of SOURCE_DATE_EPOCH, or today."""
    return str(datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())), UTC).date())


def section(title: str) -> Lines:
    """Yield a heading."""
    yield f'.SH "{escape(title)}"'


def item(term: str, meaning: str) -> Lines:
    """Yield a term, already in roff, and its meaning below."""
    yield ".TP"
    yield term
    yield from text(meaning)


def items(found: Mapping[str, str]) -> Lines:
    """Yield terms in bold, and their meanings."""
    for term, meaning in found.items():
        yield from item(bold(term), meaning)


def text(prose: str) -> Lines:
    """Yield lines of running text."""
    for line in prose.splitlines():
        if line.strip():
            yield escape(line.strip())


def see(*pages: str) -> Lines:
    """Yield the section SEE ALSO."""
    yield from section("SEE ALSO")
    for page in pages:
        name, number = page.rstrip(")").split("(")
        yield f".BR {escape(name)} ({number})" + ("," if page != pages[-1] else "")


def bold(word: str) -> str:
    """Return a word in bold."""
    return rf"\fB{escape(word)}\fR"


def escape(plain: str) -> str:
    """Escape text for roff. Hyphens become minus signs, so that readers can copy them (man(7))."""
    escaped = plain.replace("\\", r"\e").replace("-", r"\-").replace("`", r"\(ga")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/man"))
