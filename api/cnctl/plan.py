"""`cnctl plan`: what would be changed now, as `ip` commands; nothing is changed."""

from __future__ import annotations

from cloud_network.api.cnctl import control, layout
from cloud_network.api.cnctl.failure import OK, WRONG
from cloud_network.api.cnctl.source import note

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from cloud_network.api.cnctl.source import Source


def run(arguments: argparse.Namespace, source: Source) -> int:
    """Ask for it and print it: commands on standard output, all else beside it. OK when there is nothing to do."""
    why = "a plan begins with a fresh read of the metadata, which a cloud rations. `cnctl status` needs no root"
    plan = control.ask(source.files.path, "plan", "plan", why)
    if arguments.json:
        layout.show_json(plan)
    else:
        if plan["metadata_error"]:
            note(f"the metadata could not be read as a whole ({plan['metadata_error']}); this is of what is known")
        if plan["flushed"]:
            note("the network was flushed: nothing of this happens before `sudo cnctl refresh`")
        for mac in plan["unknown_macs"]:
            note(f"the metadata names the interface {mac}, and no link here has that MAC")
        for text in plan["withheld"]:
            note(f"left out: {text}")
        print("\n".join(layout.safe(change) for change in plan["changes"]) or "nothing to do")
    return WRONG if plan["changes"] or plan["metadata_error"] else OK
