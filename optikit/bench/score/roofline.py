"""Where a trial stands under the roofline: operations per byte, and the rates it came to.

FLOPs and bytes are the model's counts: what the algorithm asked for, each operation by itself. A
compiler that fuses operations moves fewer bytes, so the intensity is a lower bound, the bytes a
second are no measured traffic, and neither says which limit of the device was met.

Reference: Williams, Waterman & Patterson (2009), Commun. ACM 52.
"""

import math
from typing import NamedTuple

from optikit.bench.score.curves import Curve


class Placement(NamedTuple):
    """One trial's warm run; NaN where a count or the clock is missing.

    Attributes:
      intensity: model FLOPs per model byte.
      gflops: 1e9 model FLOPs a second. gigabytes: 1e9 model bytes a second.
    """

    intensity: float
    gflops: float
    gigabytes: float


def placement(curve: Curve) -> Placement:
    """A trial's place: all of its run, without what its tuning may have been charged."""
    charged = curve.costs["steps"][0] > 0
    flops, moved, seconds = (
        curve.costs[axis][-1] - (curve.costs[axis][0] if charged else 0.0)
        for axis in ("flops", "bytes", "warm")
    )
    if curve.facts.get("invalid"):
        seconds = math.nan
    return Placement(_over(flops, moved), _over(flops, 1e9 * seconds), _over(moved, 1e9 * seconds))


def _over(a: float, b: float) -> float:
    return a / b if a > 0 and b > 0 else math.nan
