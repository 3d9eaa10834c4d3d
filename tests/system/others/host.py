"""What a host has that a room has not: the system bus, and a directory of /etc to write to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab import Lab

from .programs import Program, need


@contextmanager
def bus(lab: Lab) -> Iterator[Program]:
    """The system bus. Anybody may own any name: the policies of packages are not what is tried here."""
    lab.path("/run/dbus").mkdir()
    config = """<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen>
    <auth>EXTERNAL</auth><policy context="default"><allow user="*"/><allow own="*"/>
    <allow send_type="*"/><allow receive_type="*"/></policy></busconfig>"""
    lab.path("/run/dbus/lab.conf").write_text(config)
    argv = [need("dbus-daemon", "dbus-daemon"), "--config-file=/run/dbus/lab.conf", "--nofork", "--nopidfile"]
    with Program(lab, argv) as program:
        lab.wait_for(lambda: lab.path("/run/dbus/system_bus_socket").exists(), message="the bus")
        yield program


def own(lab: Lab, directory: str) -> None:
    """A directory of /etc that is empty and the lab's: by itself it would be a link to the host's."""
    path = lab.path(directory)
    if path.is_symlink():
        path.unlink()
    path.mkdir()
