"""The rows a `fit` writes on the device, page by page.

A fresh array per step and per fact would cost the host more than the step's own dispatch. So a step
writes its row into a page that travels with it in donated buffers; a full page is put by, unread.
"""

from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from optikit.core import Counts, Scalar, Status
from optikit.solve.solution import Trace

ROWS = 128
"""Rows of a page."""


class Page(NamedTuple):
    """Rows on the device: measures are (value, grad_norm), ledger the counts and a status."""

    measures: Float[Array, "rows 2"]
    ledger: Int[Array, "rows kinds+1"]
    filled: Int[Array, ""]

    @classmethod
    def blank(cls, dtype: jnp.dtype) -> Self:
        """An empty page."""
        return cls(
            jnp.zeros((ROWS, 2), dtype),
            jnp.zeros((ROWS, len(Counts._fields) + 1), jnp.int32),
            jnp.zeros((), jnp.int32),
        )

    def write(self, value: Scalar, grad_norm: Scalar, counts: Counts, status: Scalar) -> Self:
        """The page with one row more."""
        measures = jnp.stack([value, grad_norm]).astype(self.measures.dtype)
        ledger = jnp.stack([*counts, status]).astype(jnp.int32)
        return self._replace(
            measures=self.measures.at[self.filled].set(measures),
            ledger=self.ledger.at[self.filled].set(ledger),
            filled=self.filled + 1,
        )

    def last(self) -> "Row":
        """The latest row; waits for the device."""
        k = int(self.filled) - 1
        return Row(float(np.asarray(self.measures)[k, 0]), np.asarray(self.ledger)[k])


class Row(NamedTuple):
    """A row on the host."""

    value: float
    ledger: np.ndarray

    @property
    def status(self) -> Status:
        """Whether the fit goes on."""
        return Status(int(self.ledger[-1]))

    @property
    def gradients(self) -> int:
        """Gradient evaluations and Hessian or Gauss-Newton products so far."""
        counts = dict(zip(Counts._fields, self.ledger[:-1].tolist(), strict=True))
        return counts["grad"] + counts["hvp"] + counts["ggnvp"]


def collect(pages: list[Page]) -> Trace:
    """The rows of the pages in order, up to and with the first that ended the fit."""
    host = jax.device_get(pages)
    measures = np.concatenate([p.measures[: p.filled] for p in host])
    ledger = np.concatenate([p.ledger[: p.filled] for p in host])
    ends = np.flatnonzero(ledger[:, -1] != Status.RUNNING.value)
    rows = int(ends[0]) + 1 if len(ends) else len(ledger)
    return Trace(
        value=jnp.asarray(measures[:rows, 0]),
        grad_norm=jnp.asarray(measures[:rows, 1]),
        step_norm=None,
        counts=Counts(*(jnp.asarray(column) for column in ledger[:rows, :-1].T)),
    )
