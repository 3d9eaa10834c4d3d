"""`cnctl flush`: have everything taken away that cloud-network put into the kernel, until `cnctl refresh`."""

from __future__ import annotations

from cloud_network.api.cnctl import control, layout
from cloud_network.api.cnctl.failure import OK, UNREACHABLE, Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from cloud_network.api.cnctl.source import Source


def run(arguments: argparse.Namespace, source: Source) -> int:
    """Ask, wait, and print how much went."""
    try:
        result = control.ask(source.files.path, "flush", "flush", "a flush changes the network")
    except Failure as failure:
        if failure.code != UNREACHABLE:
            raise
        raise Failure(failure.code, f"{failure}\nWithout it:   sudo cloud-network-fetcher --flush") from failure
    if arguments.json:
        layout.show_json(result)
    else:
        removed, request = (layout.safe(result[key]) for key in ("removed", "request"))
        print(f"removed {removed} addresses, routes and rules (audit log: {request})")
        print("Nothing is put back until `sudo cnctl refresh`, or the fetcher's next start.")
    return OK
