"""Entry point of cnctl. An interrupt while the modules are imported ends with 130, too."""

from __future__ import annotations

import sys

INTERRUPTED = 130


def main() -> int:
    """Run cnctl; return the exit code."""
    try:
        from cloud_network.api.cnctl.main import main as run

        return run()
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
