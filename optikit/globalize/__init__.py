"""How far to trust a direction: line searches and the trust region, interchangeable parts."""

from optikit.globalize.backtracking import backtracking
from optikit.globalize.cubic import cubic_regularization
from optikit.globalize.hager_zhang import hager_zhang
from optikit.globalize.projected import projected
from optikit.globalize.search import Globalize, Search, Trials, Verdict, verdict
from optikit.globalize.trust_region import trust_region
from optikit.globalize.wolfe import wolfe

__all__ = [
    "Globalize",
    "Search",
    "Trials",
    "Verdict",
    "backtracking",
    "cubic_regularization",
    "hager_zhang",
    "projected",
    "trust_region",
    "verdict",
    "wolfe",
]
