"""Warning about systemd-networkd if it removes the rules and routes of other programs.

By default, networkd removes what no .network file names when it configures one of its links again: routes of that
link, and rules of every link. The warning appears once and names the drop-in that prevents this. The objects are
repaired in any case. Source: networkd.conf(5), ManageForeignRoutingPolicyRules= and ManageForeignRoutes=.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

DROP_IN = "/etc/systemd/networkd.conf.d/50-cloud-network.conf"
_KEYS = ("ManageForeignRoutingPolicyRules", "ManageForeignRoutes")
_DIRECTORIES = ("etc/systemd", "run/systemd", "usr/local/lib/systemd", "usr/lib/systemd")  # highest precedence first
_NO = frozenset(("0", "no", "n", "false", "f", "off"))  # systemd.syntax(7)


class Networkd:
    """The configuration of networkd in the files below `root`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._warned = False

    def warn(self) -> None:
        """Log a warning, once, if networkd manages a link and may remove the objects of other programs."""
        missing = self.missing() if not self._warned and self.manages_links() else ()
        if missing:
            self._warned = True
            logger.warning(
                "systemd-networkd removes rules and routes of other programs when it configures a link again; install "
                "%s, with [Network] %s, then: systemctl restart systemd-networkd",
                DROP_IN,
                " ".join(f"{key}=no" for key in missing),
            )

    def manages_links(self) -> bool:
        """Return True if networkd has configured a link from a .network file."""
        return any("\nNETWORK_FILE=" in text for text in map(_read, self._files("run/systemd/netif/links", "*")))

    def missing(self) -> tuple[str, ...]:
        """Return the keys that are not set to no."""
        found = dict.fromkeys(_KEYS, "yes")
        for path in self._configuration():
            found |= {key: value for key, value in _settings(_read(path)) if key in found}
        return tuple(key for key, value in found.items() if value.lower() not in _NO)

    def _configuration(self) -> Iterator[Path]:
        """Yield the files in the order in which they are read: one main file, then drop-ins by name."""
        mains = (self._root / directory / "networkd.conf" for directory in _DIRECTORIES)
        yield from [path for path in mains if path.exists()][:1]
        directories = [f"{directory}/networkd.conf.d" for directory in reversed(_DIRECTORIES)]
        found = [path for directory in directories for path in self._files(directory, "*.conf")]
        drop_ins = {path.name: path for path in found}  # the highest precedence overwrites the others
        yield from (drop_ins[name] for name in sorted(drop_ins))

    def _files(self, directory: str, pattern: str) -> list[Path]:
        return sorted((self._root / directory).glob(pattern))


def _settings(text: str) -> Iterator[tuple[str, str]]:
    """Yield the keys and values of the section [Network]."""
    section = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            section = line
        elif section == "[Network]" and line[:1] not in ("", "#", ";"):
            key, _, value = line.partition("=")
            yield key.strip(), value.strip()


def _read(path: Path) -> str:
    """Return the text of a file; "" if it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
