"""The studies of networks and of physics, as one results file.

    python benchmarks/deep.py [--minutes 60] [KEY=VALUE ...]

They are `optikit run configs/physics.yaml` and `configs/deep.yaml`, small readings for a CPU; their
full protocol is told there, and comes as overrides.
"""

import argparse
import time


def main() -> None:
    """Run them, half of the time each at most."""
    from common import save
    from studies import study

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    results = []
    for name in ("physics", "deep"):
        deadline = time.monotonic() + 30 * options.minutes
        results += study(name, name, deadline, *options.overrides)
    save("deep", "Does second order pay for networks, and where?", results)


if __name__ == "__main__":
    main()
