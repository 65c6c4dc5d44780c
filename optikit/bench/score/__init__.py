"""From records to statements: curves, intervals, profiles, ratings, scaling, verdicts.

Everything here is a function of plain data; nothing imports JAX.
"""

from optikit.bench.score.breakeven import BreakEven, break_even
from optikit.bench.score.curves import Curve, Hit, ProblemScore, hit, main_target, score
from optikit.bench.score.fronts import (
    FrontPoint,
    RankChange,
    Standing,
    front,
    off_every_front,
    on_front,
    probability_cheapest,
    rank_changes,
    standings,
)
from optikit.bench.score.intervals import Interval, bootstrap, wilson
from optikit.bench.score.known import BestKnown, identity, merged, read_known, write_known
from optikit.bench.score.matched import Matched, matched
from optikit.bench.score.outcomes import Outcome, outcomes, trade_offs
from optikit.bench.score.penalised import Par2, par2
from optikit.bench.score.portfolio import Portfolio, portfolio, tunes, with_portfolio
from optikit.bench.score.profiles import (
    CostTable,
    LeftOut,
    Pair,
    Steps,
    cost_table,
    data_profile,
    ecdf,
    leave_one_solver_out,
    pairwise,
    performance_profile,
    ranking,
)
from optikit.bench.score.rating import Rating, RatingTable, rating_table, ratings
from optikit.bench.score.reach import (
    CLOCK_AXES,
    MACHINE_AXES,
    Ratio,
    Reach,
    cost_ratio,
    expected_running_time,
    median_cost,
    on_one_machine,
    reach,
    reaches,
    success_rate,
)
from optikit.bench.score.roofline import Placement, placement
from optikit.bench.score.scaling import (
    Crossover,
    Exponent,
    Sweep,
    crossover,
    exponents,
    fit_exponent,
    sweeps,
)
from optikit.bench.score.sceptical import Doubt, sceptical
from optikit.bench.score.verdicts import verdict, verdicts

__all__ = [
    "CLOCK_AXES",
    "MACHINE_AXES",
    "BestKnown",
    "BreakEven",
    "CostTable",
    "Crossover",
    "Curve",
    "Doubt",
    "Exponent",
    "FrontPoint",
    "Hit",
    "Interval",
    "LeftOut",
    "Matched",
    "Outcome",
    "Pair",
    "Par2",
    "Placement",
    "Portfolio",
    "ProblemScore",
    "RankChange",
    "Rating",
    "RatingTable",
    "Ratio",
    "Reach",
    "Standing",
    "Steps",
    "Sweep",
    "bootstrap",
    "break_even",
    "cost_ratio",
    "cost_table",
    "crossover",
    "data_profile",
    "ecdf",
    "expected_running_time",
    "exponents",
    "fit_exponent",
    "front",
    "hit",
    "identity",
    "leave_one_solver_out",
    "main_target",
    "matched",
    "median_cost",
    "merged",
    "off_every_front",
    "on_front",
    "on_one_machine",
    "outcomes",
    "pairwise",
    "par2",
    "performance_profile",
    "placement",
    "portfolio",
    "probability_cheapest",
    "rank_changes",
    "ranking",
    "rating_table",
    "ratings",
    "reach",
    "reaches",
    "read_known",
    "sceptical",
    "score",
    "standings",
    "success_rate",
    "sweeps",
    "trade_offs",
    "tunes",
    "verdict",
    "verdicts",
    "wilson",
    "with_portfolio",
    "write_known",
]
