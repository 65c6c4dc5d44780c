"""Compilation that suits the size of a problem.

On a CPU, XLA's fusion emitters produce faster code for large arrays at two to three times the
compile time, and LLVM's optimisation takes most of what is left. Where params and data together
are small, a solve is over before the faster code could repay that: small programs are compiled
without the fusion emitters, tiny ones also without LLVM's optimisation, which takes a thousand
solves or more to repay what it costs them. Large problems whose time goes into matrix products,
which no emitter touches, are compiled without the fusion emitters too.
"""

import contextlib
import functools
import gc
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
from jax import core
from jax.extend import core as jex

SMALL = 2**15
"""Entries of all array arguments together, up to which a program is compiled quickly."""

TINY = 2**8
"""The same with those of the parameters squared, up to which it is compiled at once."""

with core.eval_context():
    _OUTSIDE = jex.get_opaque_trace_state()

THOROUGH: Mapping[str, Any] = {}
QUICK: Mapping[str, Any] = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
AT_ONCE: Mapping[str, Any] = {**QUICK, "xla_backend_optimization_level": 0}
PRODUCTS: Mapping[str, Any] = {"xla_cpu_use_fusion_emitters": False}


class Program:
    """A function that is compiled as suits the size of its arguments; see `jit`."""

    def __init__(
        self,
        function: Callable[..., Any],
        parameters: int | None,
        unweighed: Collection[str],
        products: Callable[..., bool] | None,
        options: Mapping[str, Any],
    ):
        functools.update_wrapper(self, function)
        self._parameters, self._unweighed, self._products = parameters, unweighed, products

        @functools.wraps(function)
        def traced(*args: Any, **kwargs: Any) -> Any:
            with _uncollected():
                return function(*args, **kwargs)

        self._programs = [
            (o, jax.jit(traced, compiler_options=dict(o) or None, **options))
            for o in (THOROUGH, PRODUCTS, QUICK, AT_ONCE)
        ]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function's result."""
        return self._fitting(args, kwargs)(*args, **kwargs)

    def compiled(self, *args: Any, **kwargs: Any) -> Any:
        """The executable for such arguments; it takes those that are not static.

        Any thread may call it, also one in which this one's jax settings do not hold.
        """
        return self._fitting(args, kwargs).lower(*args, **kwargs).compile()

    def _fitting(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        weighed = {name: value for name, value in kwargs.items() if name not in self._unweighed}
        matrix = None if self._parameters is None else args[self._parameters]
        chosen = compiler_options((args, weighed), matrix)
        if chosen is THOROUGH and self._products is not None and not under_transformation():
            chosen = PRODUCTS if _applicable() and self._products(*args, **kwargs) else THOROUGH
        return next(p for o, p in self._programs if o is chosen)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection: one of all objects, which tracing sets off, takes a tenth of a second.

    Nearly all of a trace is kept, so there is little to be found.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def jit(
    function: Callable[..., Any],
    *,
    parameters: int | None = None,
    unweighed: Collection[str] = (),
    products: Callable[..., bool] | None = None,
    **options: Any,
) -> Program:
    """`jax.jit`, compiled quickly where the arguments are small and the backend is a CPU.

    Inside another transformation it is `jax.jit` itself.

    Args:
      parameters: which positional argument a matrix may be over; without it, no program is tiny.
      unweighed: keyword arguments whose size does not count, so that a program with them and one
        without are compiled alike, and round alike.
      products: whether a call with such arguments, which are large, spends its time in matrix
        products; asked at each such call.
    """
    return Program(function, parameters, unweighed, products, options)


def compiler_options(arguments: Any, parameters: Any = None) -> Mapping[str, Any]:
    """Options to compile a program for these arguments with; empty for XLA's defaults.

    Args:
      arguments: all of them, the parameters too.
      parameters: those that a matrix may be over; None where that is not known.
    """
    entries = _entries(arguments)
    if entries > SMALL or under_transformation() or not _applicable():
        return THOROUGH
    tiny = parameters is not None and entries + _entries(parameters) ** 2 <= TINY
    return AT_ONCE if tiny else QUICK


def _entries(arrays: Any) -> int:
    return sum(getattr(leaf, "size", 1) for leaf in jax.tree.leaves(arrays))


def under_transformation() -> bool:
    """Whether `jit`, `vmap` or differentiation is under way in this thread."""
    return jex.get_opaque_trace_state() != _OUTSIDE


@functools.lru_cache(maxsize=1)
def _applicable() -> bool:
    """Whether this backend is a CPU and its compiler knows the options; they are XLA's own."""
    if jax.default_backend() != "cpu":
        return False
    try:
        jax.jit(lambda: 0, compiler_options=dict(AT_ONCE))()
    except Exception:  # jaxlib's error type for an unknown option is not public
        return False
    return True
