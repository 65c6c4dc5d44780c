"""What the contract tests run over: every registered optimizer on problems it is meant for."""

import jax
import jax.numpy as jnp

from optikit.calculus.objective import residual_vector
from optikit.optimizers import OPTIMIZERS, named
from optikit.problems import (
    double_well,
    exponential_decay,
    linear_regression,
    logistic_regression,
    quadratic,
    rosenbrock,
    softmax_regression,
)

PROBLEMS = {
    "quadratic": quadratic(n=8, condition=30.0),
    "rosenbrock": rosenbrock(2),
    "double-well": double_well(3, offset=0.1),
    "exponential-decay": exponential_decay(20),
    "diabetes": linear_regression("diabetes"),
    "breast-cancer": logistic_regression("breast_cancer", l2=1e-2),
    "iris": softmax_regression("iris", l2=1e-2),
}

# hyperparameters under which a method can be expected to get somewhere in a test's time
ARGUMENTS = {
    "adam": {"learning_rate": 0.05},
    "adahessian": {},
    "muon": {"learning_rate": 0.02, "adam_learning_rate": 0.05},
    "psgd-kron": {"learning_rate": 0.05},
    "shampoo": {"learning_rate": 0.05},
    "soap": {"learning_rate": 0.05},
    "sophia": {"learning_rate": 0.02},
}
# steps by a learning rate, not by a search: near in a test's time, not there
RATED = set(ARGUMENTS)
# made for layers: a matrix and a vector, and not a test of each problem
MATRICES = RATED - {"adam"}

METHODS = sorted(OPTIMIZERS)
OPTAX_METHODS = ["optax.lbfgs", "adamw", "sgd"]
NEEDS_RESIDUALS = {"gauss-newton", "levenberg-marquardt"}
NEEDS_STRUCTURE = {"fisher-scoring", "ggn-cg", "hessian-free", "natural-gradient"}
# on a model without any they are preconditioned by entries
NEEDS_LAYERS = {"ekfac", "foof", "kfac"}

# a step size from the curvature of up to 50 steps ago: nothing that bends much from step to step
NEEDS_CONVEXITY = {"sketchy-sgd"}
CONVEX = {"quadratic", "diabetes", "breast-cancer"}


def optimizer(name):
    return named(name, **ARGUMENTS.get(name, {}))


def suits(method, problem):
    """Whether a method is meant for a problem."""
    objective = PROBLEMS[problem].objective
    if problem == "iris" or method in MATRICES:
        return problem == "iris" and method in MATRICES
    if method in NEEDS_LAYERS:
        return objective.kind == "composite"
    if method in NEEDS_CONVEXITY:
        return problem in CONVEX
    if method in NEEDS_STRUCTURE:
        return objective.kind != "black_box"
    return method not in NEEDS_RESIDUALS or residual_vector(objective) is not None


PAIRS = [(m, p) for m in METHODS for p in PROBLEMS if suits(m, p)]


def usual(method, problem, otherwise="exponential-decay"):
    """A problem for one test of a method: this one if it suits."""
    return next(p for p in (problem, otherwise, "iris", "breast-cancer") if suits(method, p))


def ready(problem, dtype="float64"):
    """A problem's objective, start and data in a dtype."""
    cast = PROBLEMS[problem].cast(jnp.dtype(dtype))
    return cast.objective, cast.start(jax.random.key(0)), cast.args
