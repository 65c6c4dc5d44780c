"""Why a solve ended: a closed set of outcomes, each with its sentence."""

import enum


class Status(enum.IntEnum):
    """How a solve stands. Inside a compiled loop it is a () int32 array.

    `Status(int(solution.status)).sentence` says it in words. Only CONVERGED and
    CONVERGED_TO_PRECISION count as success.
    """

    sentence: str

    def __new__(cls, code: int, sentence: str):
        """A code that carries its sentence."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.sentence = sentence
        return member

    RUNNING = 0, "The solve has not ended."
    CONVERGED = 1, "The gradient and the predicted decrease are both below the tolerance."
    CONVERGED_TO_PRECISION = (
        2,
        "No further decrease can be resolved: the predicted one is below the rounding error of "
        "the objective.",
    )
    MAX_STEPS = 3, "The budget of steps was used up."
    OUT_OF_BUDGET = 4, "The budget of seconds or gradients was used up."
    OUT_OF_DATA = 5, "The batches ended before the budget did."
    STALLED = 6, "Steps no longer move the parameters, but the tolerance is not met."
    LINE_SEARCH_FAILED = (
        7,
        "No acceptable step was found along the direction: the gradient may be wrong, the "
        "objective rough, or the tolerance below what the precision allows.",
    )
    NOT_FINITE = (
        8,
        "The objective or its gradient is NaN or infinite; the best finite point is kept.",
    )
    UNBOUNDED = 9, "The objective falls without bound."
    SINGULAR = (
        10,
        "The Hessian is singular: of the linear system's answers, that of least norm is given.",
    )
    INCONSISTENT = (
        11,
        "The Hessian is singular and the linear system has no answer: the least-squares answer of "
        "least norm is given.",
    )
