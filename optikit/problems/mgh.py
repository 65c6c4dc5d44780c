"""The test functions of Moré, Garbow and Hillstrom, as residuals with their starts and minima.

The objective is half the sum of squares, so the values the paper prints are halved. Where the least
value is zero or has a closed form it is the problem's optimum; where the paper prints six digits,
they are in `PUBLISHED` for checking, and a long solve settles the value.

Reference: Moré, Garbow & Hillstrom (1981), "Testing unconstrained optimization software", ACM
Transactions on Mathematical Software 7(1); the functions keep the paper's numbers.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from optikit.calculus import residuals
from optikit.problems import mgh_residuals as r
from optikit.problems.problem import Problem


class Case(NamedTuple):
    """One function at one size: what `mgh` makes a problem of."""

    start: Any
    data: tuple = ()
    least: float | None = 0.0  # the sum of squares, as in the paper; None if there is no formula
    solution: Any = None


class Function(NamedTuple):
    """An entry of the collection.

    Attributes:
      number: the paper's.
      residuals: (x, *data) -> r.
      case: (n, m) -> its Case.
      n: the default number of unknowns, and whether it may be changed.
      m: the default number of residuals as a function of n, where it may be changed.
    """

    number: int
    residuals: Callable[..., Any]
    case: Callable[[int, int], Case]
    n: int
    sized: bool = False
    m: Callable[[int], int] | None = None
    smallest: int = 1
    multiple: int = 1


def _fixed(number: int, fun: Callable[..., Any], start: list[float], **rest: Any) -> Function:
    return Function(number, fun, lambda n, m: Case(np.array(start), **rest), len(start))


def _count(m: int) -> np.ndarray:
    return np.arange(1.0, m + 1)


def _gulf(m: int) -> Case:
    t = _count(m) / 100
    y = 25 + (-50 * np.log(t)) ** (2 / 3)
    return Case(np.array([5, 2.5, 0.15]), (t, y), 0.0, np.array([50, 25, 1.5]))


def _biggs(m: int) -> Case:
    t = _count(m) / 10
    y = np.exp(-t) - 5 * np.exp(-10 * t) + 3 * np.exp(-4 * t)
    return Case(np.array([1.0, 2, 1, 1, 1, 1]), (t, y), 0.0, np.array([1.0, 10, 1, 5, 4, 3]))


def _jennrich(m: int) -> Case:
    return Case(np.array([0.3, 0.4]), (_count(m),), None)


def _brown_dennis(m: int) -> Case:
    return Case(np.array([25.0, 5, -5, -1]), (_count(m) / 5,), None)


def _box(m: int) -> Case:
    return Case(np.array([0.0, 10, 20]), (_count(m) / 10,), 0.0, np.array([1.0, 10, 1]))


def _penalty2(n: int) -> Case:
    i = _count(n)
    y = np.exp(i / 10) + np.exp((i - 1) / 10)
    return Case(np.full(n, 0.5), (y[1:], i[::-1].copy()), None)


def _boundary(n: int) -> Case:
    t = _count(n) / (n + 1)
    return Case(t * (t - 1), (t,))


def _full_rank(n: int, m: int) -> Case:
    return Case(np.ones(n), (np.zeros(m - n),), float(m - n), -np.ones(n))


def _rank_one(n: int, m: int) -> Case:
    least = m * (m - 1) / (2 * (2 * m + 1))
    return Case(np.ones(n), (_count(m), _count(n)), least)


def _rank_one_zeros(n: int, m: int) -> Case:
    rows, columns = _count(m) - 1, _count(n)
    rows[-1] = columns[0] = columns[-1] = 0
    return Case(np.ones(n), (rows, columns), (m * m + 3 * m - 6) / (2 * (2 * m - 3)))


def _chebyquad(n: int, m: int) -> Case:
    i = _count(m)
    integrals = np.where(i % 2 == 0, -1 / (i**2 - 1 + (i == 1)), 0)
    zero = m == n and n in (1, 2, 3, 4, 5, 6, 7, 9)
    return Case(_count(n) / (n + 1), (integrals,), 0.0 if zero else None)


def _sized(
    number: int,
    fun: Callable[..., Any],
    case: Callable[[int], Case],
    n: int = 10,
    smallest: int = 1,
    multiple: int = 1,
) -> Function:
    return Function(number, fun, lambda n, m: case(n), n, True, None, smallest, multiple)


def _rows(
    number: int, fun: Callable[..., Any], case: Callable[[int], Case], n: int, m: int
) -> Function:
    return Function(number, fun, lambda n, m: case(m), n, m=lambda n: m)


FUNCTIONS: dict[str, Function] = {
    "rosenbrock": _fixed(1, r.rosenbrock, [-1.2, 1], solution=np.ones(2)),
    "freudenstein-roth": _fixed(2, r.freudenstein_roth, [0.5, -2], solution=np.array([5.0, 4])),
    "powell-badly-scaled": _fixed(3, r.powell_badly_scaled, [0.0, 1]),
    "brown-badly-scaled": _fixed(
        4, r.brown_badly_scaled, [1.0, 1], solution=np.array([1e6, 2e-6])
    ),
    "beale": _fixed(5, r.beale, [1.0, 1], solution=np.array([3, 0.5])),
    "jennrich-sampson": _rows(6, r.jennrich_sampson, _jennrich, 2, 10),
    "helical-valley": _fixed(7, r.helical_valley, [-1.0, 0, 0], solution=np.array([1.0, 0, 0])),
    "bard": _fixed(8, r.bard, [1.0, 1, 1], data=r.BARD, least=None),
    "gaussian": _fixed(9, r.gaussian, [0.4, 1, 0], data=r.GAUSSIAN, least=None),
    "meyer": _fixed(10, r.meyer, [0.02, 4000, 250], data=r.MEYER, least=None),
    "gulf": _rows(11, r.gulf, _gulf, 3, 10),
    "box": _rows(12, r.box, _box, 3, 10),
    "powell-singular": _fixed(13, r.powell_singular, [3.0, -1, 0, 1], solution=np.zeros(4)),
    "wood": _fixed(14, r.wood, [-3.0, -1, -3, -1], solution=np.ones(4)),
    "kowalik-osborne": _fixed(
        15, r.kowalik_osborne, [0.25, 0.39, 0.415, 0.39], data=r.KOWALIK, least=None
    ),
    "brown-dennis": _rows(16, r.brown_dennis, _brown_dennis, 4, 20),
    "osborne-1": _fixed(
        17, r.osborne_1, [0.5, 1.5, -1, 0.01, 0.02], data=r.OSBORNE_1, least=None
    ),
    "biggs": _rows(18, r.biggs, _biggs, 6, 13),
    "osborne-2": _fixed(
        19,
        r.osborne_2,
        [1.3, 0.65, 0.65, 0.7, 0.6, 3, 5, 7, 2, 4.5, 5.5],
        data=r.OSBORNE_2,
        least=None,
    ),
    "watson": _sized(20, r.watson, lambda n: Case(np.zeros(n), r.watson_data(n), None), n=6,
                     smallest=2),
    "extended-rosenbrock": _sized(
        21, r.rosenbrock, lambda n: Case(np.tile([-1.2, 1], n // 2), (), 0.0, np.ones(n)),
        smallest=2, multiple=2,
    ),
    "extended-powell-singular": _sized(
        22, r.powell_singular, lambda n: Case(np.tile([3.0, -1, 0, 1], n // 4), (), 0.0,
                                              np.zeros(n)),
        n=12, smallest=4, multiple=4,
    ),
    "penalty-1": _sized(23, r.penalty_1, lambda n: Case(_count(n), (), None)),
    "penalty-2": _sized(24, r.penalty_2, _penalty2, smallest=2),
    "variably-dimensioned": _sized(
        25, r.variably_dimensioned, lambda n: Case(1 - _count(n) / n, (_count(n),), 0.0,
                                                   np.ones(n)),
    ),
    "trigonometric": _sized(
        26, r.trigonometric, lambda n: Case(np.full(n, 1 / n), (_count(n),), 0.0, np.zeros(n))
    ),
    "brown-almost-linear": _sized(
        27, r.brown_almost_linear, lambda n: Case(np.full(n, 0.5), (), 0.0, np.ones(n)),
        smallest=2,
    ),
    "discrete-boundary-value": _sized(28, r.discrete_boundary, _boundary),
    "discrete-integral-equation": _sized(29, r.discrete_integral, _boundary),
    "broyden-tridiagonal": _sized(30, r.broyden_tridiagonal, lambda n: Case(-np.ones(n))),
    "broyden-banded": _sized(31, r.broyden_banded, lambda n: Case(-np.ones(n))),
    "linear-full-rank": Function(
        32, r.linear_full_rank, _full_rank, 10, sized=True, m=lambda n: 2 * n
    ),
    "linear-rank-1": Function(33, r.linear_rank_one, _rank_one, 10, sized=True, m=lambda n: 2 * n),
    "linear-rank-1-zeros": Function(
        34, r.linear_rank_one, _rank_one_zeros, 10, sized=True, m=lambda n: 2 * n, smallest=3
    ),
    "chebyquad": Function(35, r.chebyquad, _chebyquad, 9, sized=True, m=lambda n: n),
}  # fmt: skip

PUBLISHED: dict[tuple[str, int], float] = {
    ("jennrich-sampson", 2): 124.362,
    ("bard", 3): 8.21487e-3,
    ("gaussian", 3): 1.12793e-8,
    ("meyer", 3): 87.9458,
    ("kowalik-osborne", 4): 3.07505e-4,
    ("brown-dennis", 4): 85822.2,
    ("osborne-1", 5): 5.46489e-5,
    ("osborne-2", 11): 4.01377e-2,
    ("watson", 6): 2.28767e-3,
    ("watson", 9): 1.39976e-6,
    ("watson", 12): 4.72238e-10,
    ("penalty-1", 4): 2.24997e-5,
    ("penalty-1", 10): 7.08765e-5,
    ("penalty-2", 4): 9.37629e-6,
    ("penalty-2", 10): 2.93660e-4,
    ("chebyquad", 8): 3.51687e-3,
    ("chebyquad", 10): 6.50395e-3,
}
"""Least sums of squares as the paper prints them, by function and n."""


def mgh(
    function: Literal[
        "rosenbrock",
        "freudenstein-roth",
        "powell-badly-scaled",
        "brown-badly-scaled",
        "beale",
        "jennrich-sampson",
        "helical-valley",
        "bard",
        "gaussian",
        "meyer",
        "gulf",
        "box",
        "powell-singular",
        "wood",
        "kowalik-osborne",
        "brown-dennis",
        "osborne-1",
        "biggs",
        "osborne-2",
        "watson",
        "extended-rosenbrock",
        "extended-powell-singular",
        "penalty-1",
        "penalty-2",
        "variably-dimensioned",
        "trigonometric",
        "brown-almost-linear",
        "discrete-boundary-value",
        "discrete-integral-equation",
        "broyden-tridiagonal",
        "broyden-banded",
        "linear-full-rank",
        "linear-rank-1",
        "linear-rank-1-zeros",
        "chebyquad",
    ] = "helical-valley",
    n: int | None = None,
    m: int | None = None,
    distance: float = 1.0,
) -> Problem:
    """A function of Moré, Garbow & Hillstrom (1981) by name: residuals, start, known minimum.

    Args:
      function: its name; `FUNCTIONS` holds the paper's number.
      n: unknowns, where the function comes in every size.
      m: residuals, where their number is free; at least n.
      distance: the start is this many times the standard one (the paper uses 1, 10 and 100); where
        the standard start is the origin, every entry is `distance` unless it is 1.

    Raises:
      ValueError: an unknown function, or a size it does not come in.
    """
    if function not in FUNCTIONS:
        msg = f"unknown function {function!r}: choose from {', '.join(FUNCTIONS)}."
        raise ValueError(msg)
    entry = FUNCTIONS[function]
    size, rows = _sizes(function, entry, n, m)
    case = entry.case(size, rows)
    start = case.start * distance
    if distance != 1 and not np.any(case.start):
        start = np.full_like(case.start, distance)
    return Problem(
        residuals(entry.residuals),
        start,
        case.data,
        None if case.least is None else case.least / 2,
        f"{function} (Moré-Garbow-Hillstrom {entry.number}), n = {size}",
        solution=case.solution,
    )  # fmt: skip


def _sizes(name: str, entry: Function, n: int | None, m: int | None) -> tuple[int, int]:
    size = entry.n if n is None else n
    if size != entry.n and not entry.sized:
        msg = f"{name} has {entry.n} unknowns: leave n out (got {n})."
        raise ValueError(msg)
    if size < entry.smallest or size % entry.multiple:
        msg = (
            f"{name} needs n >= {entry.smallest}"
            + (f", a multiple of {entry.multiple}" if entry.multiple > 1 else "")
            + f"; got {n}."
        )
        raise ValueError(msg)
    if entry.m is None:
        if m is not None:
            msg = f"the number of residuals of {name} is not free: leave m out (got {m})."
            raise ValueError(msg)
        return size, size
    rows = entry.m(size) if m is None else m
    if rows < size or (name == "gulf" and rows > 100):
        limit = " and at most 100" if name == "gulf" else ""
        msg = f"{name} needs m >= n = {size}{limit}; got {m}."
        raise ValueError(msg)
    return size, rows
