"""Parts of a host that a network namespace lacks: the system bus, and a writable directory in /etc."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab import Lab

from .programs import Program, require_program


@contextmanager
def bus(lab: Lab) -> Iterator[Program]:
    """Run the system bus. Any process may own any name: the policies of packages are not tested here."""
    lab.path("/run/dbus").mkdir()
    config = """<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen>
    <auth>EXTERNAL</auth><policy context="default"><allow user="*"/><allow own="*"/>
    <allow send_type="*"/><allow receive_type="*"/></policy></busconfig>"""
    lab.path("/run/dbus/lab.conf").write_text(config)
    argv = [
        require_program("dbus-daemon", "dbus-daemon"),
        "--config-file=/run/dbus/lab.conf",
        "--nofork",
        "--nopidfile",
    ]
    with Program(lab, argv) as program:
        lab.wait_for(lambda: lab.path("/run/dbus/system_bus_socket").exists(), message="the bus")
        yield program


def make_private_directory(lab: Lab, directory: str) -> None:
    """Make a directory of /etc empty and private to the lab: by default it is a link to the host's."""
    path = lab.path(directory)
    if path.is_symlink():
        path.unlink()
    path.mkdir()
