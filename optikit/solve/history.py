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
from optikit.solve.solution import Trace, Validation

ROWS = 128
"""Rows of a page."""


class Page(NamedTuple):
    """Rows on the device: measures are (value, grad_norm); ledger the counts, skipped, status."""

    measures: Float[Array, "rows 2"]
    ledger: Int[Array, "rows kinds+2"]
    filled: Int[Array, ""]

    @classmethod
    def blank(cls, dtype: jnp.dtype) -> Self:
        """An empty page."""
        return cls(
            jnp.zeros((ROWS, 2), dtype),
            jnp.zeros((ROWS, len(Counts._fields) + 2), jnp.int32),
            jnp.zeros((), jnp.int32),
        )

    def write(
        self, value: Scalar, grad_norm: Scalar, counts: Counts, skipped: Scalar, status: Scalar
    ) -> Self:
        """The page with one row more."""
        measures = jnp.stack([value, grad_norm]).astype(self.measures.dtype)
        ledger = jnp.stack([*counts, skipped, status]).astype(jnp.int32)
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
    def skipped(self) -> int:
        """Steps that were not finite so far."""
        return int(self.ledger[-2])

    @property
    def gradients(self) -> int:
        """Gradient evaluations and Hessian or Gauss-Newton products so far."""
        counts = dict(zip(Counts._fields, self.ledger[:-2].tolist(), strict=True))
        return counts["grad"] + counts["hvp"] + counts["ggnvp"]


class Rows(NamedTuple):
    """Rows on the host, as they are kept in a file."""

    measures: np.ndarray
    ledger: np.ndarray

    def page(self) -> Page:
        """A full page of them."""
        filled = jnp.asarray(len(self.ledger), jnp.int32)
        return Page(jnp.asarray(self.measures), jnp.asarray(self.ledger), filled)


def rows(pages: list[Page]) -> Rows:
    """The rows of the pages in order."""
    host = jax.device_get(pages)
    return Rows(
        np.concatenate([p.measures[: p.filled] for p in host]),
        np.concatenate([p.ledger[: p.filled] for p in host]),
    )


def collect(pages: list[Page], validation: Validation | None) -> Trace:
    """The rows of the pages in order, up to and with the first that ended the fit."""
    measures, ledger = rows(pages)
    ends = np.flatnonzero(ledger[:, -1] != Status.RUNNING.value)
    count = int(ends[0]) + 1 if len(ends) else len(ledger)
    return Trace(
        value=jnp.asarray(measures[:count, 0]),
        grad_norm=jnp.asarray(measures[:count, 1]),
        step_norm=None,
        counts=Counts(*(jnp.asarray(column) for column in ledger[:count, :-2].T)),
        skipped=jnp.asarray(ledger[:count, -2]),
        validation=validation,
    )
