"""What kind of point a trial ended at: the certificate of its best point, off the clock."""

from typing import Any

import jax

from optikit.analyze import certify
from optikit.problems import Problem, cast_floats


def final_certificate(problem: Problem, params: Any) -> dict[str, Any]:
    """The certificate of a point in float64, as plain data: kind, message, gradient norm.

    A point at which the function or its derivatives are not finite has the kind "not-finite".
    """
    with jax.enable_x64(True):
        exact = problem.cast("float64")
        point = cast_floats(params, "float64")
        try:
            found = certify(exact.objective, point, exact.args)  # type: ignore[arg-type]
        except FloatingPointError as error:
            return {"kind": "not-finite", "message": str(error)}
        return {"kind": str(found.kind), "message": found.message}
