"""`cnctl refresh`: have the fetcher read the metadata and repair the network now."""

from __future__ import annotations

from cloud_network.api.cnctl import control, layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from cloud_network.api.cnctl.source import Source


def run(arguments: argparse.Namespace, source: Source) -> int:
    """Ask, wait, and print what came of it."""
    result = control.ask(source.files.path, "refresh", "refresh", "a refresh can change the network")
    if arguments.json:
        layout.show_json(result)
    elif isinstance(result, dict):
        width = max((len(str(key)) for key in result), default=0)
        print(layout.rows([(layout.safe(key), layout.safe(value)) for key, value in result.items()], width, None))
    else:
        print("refreshed" if result is None else layout.safe(result))
    return 0
