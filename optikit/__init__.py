"""optikit: does second order pay, on your problem and your hardware?

Pure-functional losses, derivatives, curvature, first- and second-order optimizers on JAX, and a
harness that sets convergence against what it cost. `import optikit as ok`; everything public is
listed in `__all__`. Names are loaded on first use, so that importing the package (and the command
line's help) does not import JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optikit import losses as losses
    from optikit import optimizers as optimizers
    from optikit import problems as problems
    from optikit.analyze import Advice as Advice
    from optikit.analyze import Certificate as Certificate
    from optikit.analyze import MultiStart as MultiStart
    from optikit.analyze import ParameterCovariance as ParameterCovariance
    from optikit.analyze import Spectrum as Spectrum
    from optikit.analyze import advise as advise
    from optikit.analyze import certify as certify
    from optikit.analyze import certify_many as certify_many
    from optikit.analyze import diagonal as diagonal
    from optikit.analyze import eigenpairs as eigenpairs
    from optikit.analyze import multi_start as multi_start
    from optikit.analyze import parameter_covariance as parameter_covariance
    from optikit.analyze import spectrum as spectrum
    from optikit.analyze import trace as trace
    from optikit.bench import Experiment as Experiment
    from optikit.calculus import Objective as Objective
    from optikit.calculus import accumulate as accumulate
    from optikit.calculus import black_box as black_box
    from optikit.calculus import check_derivatives as check_derivatives
    from optikit.calculus import composite as composite
    from optikit.calculus import empirical_fisher as empirical_fisher
    from optikit.calculus import fisher as fisher
    from optikit.calculus import ggn as ggn
    from optikit.calculus import grad as grad
    from optikit.calculus import hessian as hessian
    from optikit.calculus import hvp as hvp
    from optikit.calculus import jacobian as jacobian
    from optikit.calculus import per_example_grads as per_example_grads
    from optikit.calculus import residuals as residuals
    from optikit.calculus import value_and_grad as value_and_grad
    from optikit.calculus import variational as variational
    from optikit.core import Counts as Counts
    from optikit.core import LinearOperator as LinearOperator
    from optikit.core import Status as Status
    from optikit.optimizers import Optimizer as Optimizer
    from optikit.optimizers import as_optax as as_optax
    from optikit.optimizers import from_optax as from_optax
    from optikit.optimizers import second_order as second_order
    from optikit.problems import Problem as Problem
    from optikit.solve import Budget as Budget
    from optikit.solve import Checkpoint as Checkpoint
    from optikit.solve import Response as Response
    from optikit.solve import Solution as Solution
    from optikit.solve import fit as fit
    from optikit.solve import implicit_response as implicit_response
    from optikit.solve import least_squares as least_squares
    from optikit.solve import least_squares_many as least_squares_many
    from optikit.solve import minimize as minimize
    from optikit.solve import minimize_many as minimize_many

__version__ = "0.1.0"

_HOME = {
    "Advice": "optikit.analyze",
    "Budget": "optikit.solve",
    "Certificate": "optikit.analyze",
    "Checkpoint": "optikit.solve",
    "Counts": "optikit.core",
    "Experiment": "optikit.bench",
    "LinearOperator": "optikit.core",
    "MultiStart": "optikit.analyze",
    "Objective": "optikit.calculus",
    "Optimizer": "optikit.optimizers",
    "ParameterCovariance": "optikit.analyze",
    "Problem": "optikit.problems",
    "Response": "optikit.solve",
    "Solution": "optikit.solve",
    "Spectrum": "optikit.analyze",
    "Status": "optikit.core",
    "advise": "optikit.analyze",
    "accumulate": "optikit.calculus",
    "as_optax": "optikit.optimizers",
    "black_box": "optikit.calculus",
    "certify": "optikit.analyze",
    "certify_many": "optikit.analyze",
    "check_derivatives": "optikit.calculus",
    "composite": "optikit.calculus",
    "diagonal": "optikit.analyze",
    "eigenpairs": "optikit.analyze",
    "empirical_fisher": "optikit.calculus",
    "fisher": "optikit.calculus",
    "fit": "optikit.solve",
    "from_optax": "optikit.optimizers",
    "ggn": "optikit.calculus",
    "grad": "optikit.calculus",
    "hessian": "optikit.calculus",
    "hvp": "optikit.calculus",
    "implicit_response": "optikit.solve",
    "jacobian": "optikit.calculus",
    "least_squares": "optikit.solve",
    "least_squares_many": "optikit.solve",
    "losses": "optikit",
    "minimize": "optikit.solve",
    "minimize_many": "optikit.solve",
    "multi_start": "optikit.analyze",
    "optimizers": "optikit",
    "parameter_covariance": "optikit.analyze",
    "per_example_grads": "optikit.calculus",
    "problems": "optikit",
    "residuals": "optikit.calculus",
    "second_order": "optikit.optimizers",
    "spectrum": "optikit.analyze",
    "trace": "optikit.analyze",
    "value_and_grad": "optikit.calculus",
    "variational": "optikit.calculus",
}

__all__ = [
    "Advice",
    "Budget",
    "Certificate",
    "Checkpoint",
    "Counts",
    "Experiment",
    "LinearOperator",
    "MultiStart",
    "Objective",
    "Optimizer",
    "ParameterCovariance",
    "Problem",
    "Response",
    "Solution",
    "Spectrum",
    "Status",
    "accumulate",
    "advise",
    "as_optax",
    "black_box",
    "certify",
    "certify_many",
    "check_derivatives",
    "composite",
    "diagonal",
    "eigenpairs",
    "empirical_fisher",
    "fisher",
    "fit",
    "from_optax",
    "ggn",
    "grad",
    "hessian",
    "hvp",
    "implicit_response",
    "jacobian",
    "least_squares",
    "least_squares_many",
    "losses",
    "minimize",
    "minimize_many",
    "multi_start",
    "optimizers",
    "parameter_covariance",
    "per_example_grads",
    "problems",
    "residuals",
    "second_order",
    "spectrum",
    "trace",
    "value_and_grad",
    "variational",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        msg = f"module 'optikit' has no attribute {name!r}"
        raise AttributeError(msg)
    home = _HOME[name]
    if home == "optikit":
        return importlib.import_module(f"optikit.{name}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
