"""Symmetric linear operators over parameters that carry their price."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float

from optikit.core.counts import Counts
from optikit.core.typing import Params

Product = Callable[[Params], Params]


class LinearOperator(NamedTuple):
    """A linear map from parameters to parameters: a Hessian, Gauss-Newton or Fisher matrix.

    `linearize()` does the work that all products share (the primal pass) and returns the product;
    `matrix()` builds the dense matrix over the ravelled parameters in one go, by whatever
    structure is known, without that setup.

    A solver writes `product = op.mv` once, outside its loop, and calls `product` inside. The
    operators that the public functions return are linearised already, so there `op.mv(v)` and
    `op @ v` cost one product each.
    """

    linearize: Callable[[], Product]
    matrix: Callable[[], Float[Array, "n n"]]
    price: Counts  # of one product
    setup: Counts  # of linearize()
    matrix_price: Counts  # of matrix()

    @property
    def mv(self) -> Product:
        """The product, v -> A v; reading this attribute pays `setup`."""
        return self.linearize()

    def dense(self) -> Float[Array, "n n"]:
        """The matrix over the parameters ravelled in `jax.flatten_util.ravel_pytree` order."""
        return self.matrix()

    def linearized(self) -> "LinearOperator":
        """The same operator with `setup` paid now, once."""
        product = self.linearize()
        return self._replace(linearize=lambda: product)

    def __matmul__(self, vector: Params) -> Params:
        return self.mv(vector)
