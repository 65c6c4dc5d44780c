"""From records to statements: curves, intervals, profiles, ratings, scaling, verdicts.

Everything here is a function of plain data; nothing imports JAX.
"""

from optikit.bench.score.curves import Curve, Hit, ProblemScore, hit, main_target, score
from optikit.bench.score.fronts import (
    FrontPoint,
    RankChange,
    Standing,
    front,
    off_every_front,
    rank_changes,
    standings,
)
from optikit.bench.score.intervals import Interval, bootstrap, wilson
from optikit.bench.score.known import BestKnown, identity, merged, read_known, write_known
from optikit.bench.score.matched import Matched, matched
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
from optikit.bench.score.scaling import (
    Crossover,
    Exponent,
    Sweep,
    crossover,
    exponents,
    fit_exponent,
    sweeps,
)
from optikit.bench.score.verdicts import verdict, verdicts

__all__ = [
    "MACHINE_AXES",
    "BestKnown",
    "CostTable",
    "Crossover",
    "Curve",
    "Exponent",
    "FrontPoint",
    "Hit",
    "Interval",
    "LeftOut",
    "Matched",
    "Pair",
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
    "on_one_machine",
    "pairwise",
    "performance_profile",
    "rank_changes",
    "ranking",
    "rating_table",
    "ratings",
    "reach",
    "reaches",
    "read_known",
    "score",
    "standings",
    "success_rate",
    "sweeps",
    "verdict",
    "verdicts",
    "wilson",
    "write_known",
]
