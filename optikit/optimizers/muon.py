"""Muon: momentum, orthogonalised."""

import math
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from optikit.core import Key, memoized
from optikit.core.paths import Pattern
from optikit.linalg.roots import Coefficients, orthogonalize
from optikit.optimizers.descent import Rate, mixed
from optikit.optimizers.matrix_method import Adam, MatrixRule, Stack, matrix_method
from optikit.optimizers.protocol import Optimizer

EMBEDDINGS = re.compile(
    r"(^|/)(wte|wpe|\w*embed(ding|dings)?(_\d+)?|(\w+_)?head|unembed\w*|logits)(/|$)", re.IGNORECASE
)
"""Names by which embeddings and output layers usually go."""


class MuonState(NamedTuple):
    """The average of the gradients of a stack."""

    momentum: Stack


@memoized
def muon(
    learning_rate: Rate = 0.02,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    steps: int = 5,
    coefficients: Coefficients = "muon",
    scale: Literal["spectral", "rms"] = "spectral",
    dtype: Any = None,
    weight_decay: float = 0.0,
    adam_learning_rate: Rate = 3e-4,
    adam_b1: float = 0.9,
    adam_b2: float = 0.95,
    stacked: Sequence[Pattern] = (),
    apart: Sequence[Pattern] = (EMBEDDINGS,),
    bucketed: bool = True,
) -> Optimizer:
    """Steps along the nearest orthogonal matrix to the averaged gradient; AdamW on other leaves.

    The orthogonal factor is found by Newton-Schulz turns, one batched product for all leaves of a
    shape; about 20 m n min(m, n) + 10 min(m, n)^3 flops a step; one grad. Memory: one copy of the
    matrices, two of the other leaves.

    Args:
      learning_rate: of the matrices; a number or a schedule (step -> number).
      steps, coefficients: of `optikit.linalg.roots.orthogonalize`: "muon", "polar-express", or
        triples.
      scale: "spectral" multiplies by sqrt(max(1, n / m)) (for y = x W with W (m, n)); "rms" by
        0.2 sqrt(max(m, n)), with which Adam's learning rate and decay suit.
      dtype: in which to multiply; by default bfloat16, but that of the state on a CPU, which has no
        fast bfloat16, and in float64.
      weight_decay: decoupled, on all leaves.
      adam_learning_rate, adam_b1, adam_b2: for leaves that are no matrices, and for `apart`.
      stacked: patterns of leaves that hold several matrices along their first axis.
      apart: patterns of leaves to leave to AdamW; by default embeddings and output layers, by the
        names they usually have.
      bucketed: False treats leaves of one shape one by one.

    Raises:
      ValueError: an unknown scale.

    Reference: Jordan et al. (2024), "Muon: an optimizer for hidden layers in neural networks"; Liu
      et al. (2025), "Muon is scalable for LLM training", section 2.2 ("rms").

    Example:
      >>> import optikit as ok
      >>> sol = ok.minimize(lambda w: jnp.sum((w - 1) ** 2), jnp.zeros((2, 2)), max_steps=40,
      ...                   method=ok.optimizers.muon(0.1))
      >>> bool(sol.value < 0.5)
      True
    """
    if scale not in ("spectral", "rms"):
        msg = f"scale must be 'spectral' or 'rms'; got {scale!r}."
        raise ValueError(msg)

    def init(g: Stack) -> MuonState:
        return MuonState(jnp.zeros_like(g))

    def update(g: Stack, state: MuonState, count: Int[Array, ""], key: Key):
        del count, key
        average = mixed(momentum, state.momentum, g)
        d = factor(mixed(momentum, g, average) if nesterov else average)
        m, n = g.shape[1:]
        size = math.sqrt(max(1, n / m)) if scale == "spectral" else 0.2 * math.sqrt(max(m, n))
        return size * d, MuonState(average)

    def factor(x: Stack) -> Stack:
        def by(kind: Any) -> Stack:
            found = orthogonalize(x.astype(kind), steps=steps, coefficients=coefficients)
            return found.astype(x.dtype)

        if dtype is not None or x.dtype == jnp.float64:
            return by(x.dtype if dtype is None else dtype)
        return lax.platform_dependent(cpu=lambda: by(x.dtype), default=lambda: by(jnp.bfloat16))

    return matrix_method(
        MatrixRule(init, update),
        learning_rate=learning_rate,
        adam=Adam(adam_learning_rate, adam_b1, adam_b2),
        weight_decay=weight_decay,
        name="muon",
        stacked=stacked,
        apart=apart,
        bucketed=bucketed,
    )
