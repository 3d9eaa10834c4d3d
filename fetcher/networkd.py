"""systemd-networkd beside us: is it told to leave other people's rules and routes alone?

With its defaults it takes away what no .network file names when it configures a link of its own anew: of rules, those
of every link. Said once, with the file that cures it; what it took away is put back in any case.
Source: networkd.conf(5), ManageForeignRoutingPolicyRules= and ManageForeignRoutes=.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

DROP_IN = "/etc/systemd/networkd.conf.d/50-cloud-network.conf"
_KEYS = ("ManageForeignRoutingPolicyRules", "ManageForeignRoutes")
_WAYS = ("etc/systemd", "run/systemd", "usr/local/lib/systemd", "usr/lib/systemd")  # the first has the last word
_NO = frozenset(("0", "no", "n", "false", "f", "off"))  # systemd.syntax(7)


class Networkd:
    """What it is told, as its files say; `root` is where they are."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._said = False

    def warn(self) -> None:
        """Once: when it serves a link and is not told to leave what is not its own."""
        missing = self.missing() if not self._said and self.serves() else ()
        if missing:
            self._said = True
            logger.warning(
                "systemd-networkd removes rules and routes of others when it configures a link anew; install %s, with "
                "[Network] %s, and restart it",
                DROP_IN,
                " ".join(f"{key}=no" for key in missing),
            )

    def serves(self) -> bool:
        """Whether it has configured a link by a .network file."""
        return any("\nNETWORK_FILE=" in text for text in map(_read, self._files("run/systemd/netif/links", "*")))

    def missing(self) -> tuple[str, ...]:
        """The keys that are not set to no."""
        found = dict.fromkeys(_KEYS, "yes")
        for path in self._configuration():
            found |= {key: value for key, value in _settings(_read(path)) if key in found}
        return tuple(key for key, value in found.items() if value.lower() not in _NO)

    def _configuration(self) -> Iterator[Path]:
        """In the order in which they are read: one main file, then drop-ins by name, each from its first place."""
        mains = (self._root / way / "networkd.conf" for way in _WAYS)
        yield from [path for path in mains if path.exists()][:1]
        places = [path for way in reversed(_WAYS) for path in self._files(f"{way}/networkd.conf.d", "*.conf")]
        drop_ins = {path.name: path for path in places}
        yield from (drop_ins[name] for name in sorted(drop_ins))

    def _files(self, directory: str, pattern: str) -> list[Path]:
        return sorted((self._root / directory).glob(pattern))


def _settings(text: str) -> Iterator[tuple[str, str]]:
    section = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            section = line
        elif section == "[Network]" and line[:1] not in ("", "#", ";"):
            key, _, value = line.partition("=")
            yield key.strip(), value.strip()


def _read(path: Path) -> str:
    """A file that is not for us, or gone again, says nothing."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
