"""The ground: aliases, pytree algebra, the ledger of oracle calls, outcomes, operators.

Imports nothing of optikit; everything else imports from here.
"""

from optikit.core.box import Box, as_box, start_inside
from optikit.core.counts import Counts, tally, times
from optikit.core.linop import LinearOperator
from optikit.core.memo import memoized
from optikit.core.status import Status
from optikit.core.typing import Key, Params, PyTree, Scalar

__all__ = [
    "Box",
    "Counts",
    "Key",
    "LinearOperator",
    "Params",
    "PyTree",
    "Scalar",
    "Status",
    "as_box",
    "memoized",
    "start_inside",
    "tally",
    "times",
]
