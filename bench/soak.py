"""Chaos for as long as one likes: `.venv/bin/python -m bench.soak --seconds 600`; replay with `--seed N`.

Every round is some random events and then peace, in which the kernel must equal the cloud, what is others' must be
byte for byte as before, and connections must still live (tests/system/chaos.py).
The refresh timer is 2 s, so that an hour
of a host's life at the default of 5 min is 24 s here. It ends with 1 at the first violation, and says how to repeat it.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback

from tests.lab import LabError
from tests.system.chaos import chaos


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one")
    parser.add_argument("--events", type=int, default=15, help="before each peace (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="in each lab (default: %(default)s)")
    arguments = parser.parse_args()
    seed = random.randrange(1 << 32) if arguments.seed is None else arguments.seed
    end, rounds, events = time.monotonic() + arguments.seconds, 0, 0
    while time.monotonic() < end:
        print(f"seed {seed}", flush=True)
        with chaos(seed) as storm:
            for number in range(arguments.rounds):
                began = time.monotonic()
                try:
                    storm.round(arguments.events)
                except (AssertionError, LabError, OSError, ValueError) as error:
                    print(f"VIOLATION in round {number}; again: python -m bench.soak --seed {seed}", flush=True)
                    traceback.print_exception(error)
                    sys.exit(1)
                rounds += 1
                took = time.monotonic() - began
                print(f"  round {number}: {len(storm.lab.nics)} links, {storm.events} events, {took:.1f} s", flush=True)
                if time.monotonic() > end:
                    break
            events += storm.events
        seed += 1
    print(f"{rounds} rounds and {events} events, no violation")


if __name__ == "__main__":
    main()
