"""Factories that return the same object for equal hyperparameters.

`jax.jit` keys its cache on the identity of static arguments. A factory that built new closures at
each call would make `minimize(f, x, method=newton(damping=0.1))` compile again each time.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def memoized(factory: Callable[P, T]) -> Callable[P, T]:
    """Return the cached result for equal, hashable arguments; otherwise build afresh.

    Arrays and tracers are unhashable, so a hyperparameter under `vmap` or `grad` is never cached
    (which would leak the tracer). The cache is bounded, so a long sweep does not grow it.
    """
    cached = functools.lru_cache(maxsize=1024, typed=True)(factory)

    @functools.wraps(factory)
    def build(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            hash((args, tuple(kwargs.values())))
        except TypeError:
            return factory(*args, **kwargs)
        return cached(*args, **kwargs)

    return build
