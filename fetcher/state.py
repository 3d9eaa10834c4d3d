"""The state files: what the fetcher knows, for everybody to read.

    /run/cloud-network/
        system                     what the metadata says of the instance, nested by key, in its own words
        links/<ifindex>            the same for one interface
        status.json                what the fetcher believes (fetcher/status.py, docs/status.schema.json)
        provider/<name>/<part>     signed identity: document, pkcs7, signature, rsa2048, byte for byte

Files are 0644, directories 0755 whatever the umask. A file is written whole under a temporary name beside its
final one and renamed, so a reader never sees half of it. One process writes, many read. No secrets here.
cnctl imports this module on every call: `os` and `json` only, no pathlib, typing or dataclasses.
"""
# ruff: noqa: PTH101, PTH103, PTH104, PTH108, PTH116, PTH123, PTH208

from __future__ import annotations

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cloud_network.fetcher.status import Status

PATH = "/run/cloud-network"
IDENTITY_PARTS = ("document", "pkcs7", "signature", "rsa2048")

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]
Document = dict[str, Json]
"""One object of a provider's metadata, in the provider's own words."""


class StateError(Exception):
    """A state file cannot be read or is not what it should be; str() names the file and what to do."""


class StateDirectory:
    """The files below one directory. Reading needs nothing prepared; a missing file reads as None."""

    def __init__(self, path: str | os.PathLike[str] = PATH):
        self.path = os.fspath(path)

    # --- where things are ---

    @property
    def system_path(self) -> str:
        """The file of the system document."""
        return f"{self.path}/system"

    @property
    def status_path(self) -> str:
        """The file of the status."""
        return f"{self.path}/status.json"

    @property
    def links_path(self) -> str:
        """The directory of the link documents."""
        return f"{self.path}/links"

    def link_path(self, ifindex: int) -> str:
        """The file of one link's document."""
        if ifindex < 1:
            raise ValueError(f"ifindex {ifindex} is not above 0")
        return f"{self.links_path}/{ifindex}"

    def identity_path(self, provider: str, name: str) -> str:
        """The file of one part of a provider's signed identity."""
        return f"{self.path}/provider/{_component(provider)}/{_component(name)}"

    def link_indexes(self) -> list[int]:
        """The ifindexes that have a document, ascending."""
        try:
            names = os.listdir(self.links_path)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _unreadable(self.links_path, error) from error
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    # --- writing: the fetcher alone ---

    def prepare(self) -> None:
        """Make the directories, and clear away what a killed writer left half written. Call at start."""
        for directory in (self.path, self.links_path, f"{self.path}/provider"):
            _make_directory(directory)
        for directory, _, names in os.walk(self.path):
            for name in names:
                if name.startswith(".") and name.endswith(".tmp"):
                    os.unlink(f"{directory}/{name}")

    def write_system(self, document: Mapping[str, object]) -> None:
        """Write what the metadata says of the instance."""
        _write(self.system_path, _encode(document))

    def write_link(self, ifindex: int, document: Mapping[str, object]) -> None:
        """Write what the metadata says of one interface."""
        _write(self.link_path(ifindex), _encode(document))

    def remove_link(self, ifindex: int) -> None:
        """Forget a link; one that has no document is forgotten already."""
        try:
            os.unlink(self.link_path(ifindex))
        except FileNotFoundError:
            return

    def write_status(self, status: Status) -> None:
        """Write what the fetcher believes."""
        _write(self.status_path, _encode(status))

    def write_identity(self, provider: str, name: str, content: bytes) -> None:
        """Write one part of the signed identity, byte for byte."""
        _write(self.identity_path(provider, name), content)

    # --- reading ---

    def read_system(self) -> Document | None:
        """Return what the metadata says of the instance."""
        return _read_object(self.system_path)

    def read_link(self, ifindex: int) -> Document | None:
        """Return what the metadata says of one interface."""
        return _read_object(self.link_path(ifindex))

    def read_links(self) -> dict[int, Document]:
        """Every link's document by ifindex, ascending; empty when there is none."""
        found = ((ifindex, self.read_link(ifindex)) for ifindex in self.link_indexes())
        return {ifindex: document for ifindex, document in found if document is not None}

    def read_status(self) -> Status | None:
        """Return what the fetcher believes."""
        return _read_object(self.status_path)  # type: ignore[return-value]  # the schema is held by the writer

    def read_identity(self, provider: str, name: str) -> bytes | None:
        """Return one part of the signed identity."""
        return _read(self.identity_path(provider, name))


def _component(name: str) -> str:
    """One file name; never a path, hidden or a way out."""
    if not name or name.startswith(".") or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in name):
        raise ValueError(f"{name!r} cannot be a file's name: letters, digits, '-', '_' and '.', not first")
    return name


def _encode(value: object) -> bytes:
    # ASCII only: whatever the metadata holds, control characters and lone surrogates included, stays inert.
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _make_directory(path: str) -> None:
    os.makedirs(path, exist_ok=True)
    if os.stat(path).st_mode & 0o7777 != 0o755:
        os.chmod(path, 0o755)  # noqa: S103  # everybody may read


def _write(path: str, content: bytes) -> None:
    directory, name = os.path.split(path)
    temporary = f"{directory}/.{name}.{os.getpid()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(temporary, flags, 0o644)
    except FileNotFoundError:
        _make_directory(directory)
        descriptor = os.open(temporary, flags, 0o644)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o644)
            file.write(content)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error


def _read_object(path: str) -> Document | None:
    content = _read(path)
    if content is None:
        return None
    try:
        document = json.loads(content)
    except ValueError as error:
        raise StateError(f"{path}: not JSON ({error}); `cnctl refresh` as root writes it again") from error
    if not isinstance(document, dict):
        raise StateError(f"{path}: not a JSON object; `cnctl refresh` as root writes it again")
    return document


def _unreadable(path: str, error: OSError) -> StateError:
    return StateError(f"{path}: cannot be read: {error.strerror}; it should be 0644 in directories of 0755")
