"""Compilation that suits the size of a problem.

On a CPU, XLA's fusion emitters produce faster code for large arrays at two to three times the
compile time. Where params and data together are small, a solve is over before the faster code could
repay that, so such programs are compiled without them.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
from jax import core
from jax.extend import core as jex

SMALL = 2**15
"""Entries of all array arguments together, up to which a program is compiled quickly."""

with core.eval_context():
    _OUTSIDE = jex.get_opaque_trace_state()

QUICK = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}


def jit(
    function: Callable[..., Any], *, unweighed: Collection[str] = (), **options: Any
) -> Callable[..., Any]:
    """`jax.jit`, compiled quickly where the arguments are small and the backend is a CPU.

    Inside another transformation it is `jax.jit` itself.

    Args:
      unweighed: keyword arguments whose size does not count, so that a program with them and one
        without are compiled alike, and round alike.
    """
    thorough = jax.jit(function, **options)
    quick = jax.jit(function, compiler_options=QUICK, **options)

    def chosen(args: tuple, kwargs: dict[str, Any]) -> Any:
        weighed = {name: value for name, value in kwargs.items() if name not in unweighed}
        return quick if compiler_options((args, weighed)) else thorough

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return chosen(args, kwargs)(*args, **kwargs)

    def compiled(*args: Any, **kwargs: Any) -> Any:
        return chosen(args, kwargs).lower(*args, **kwargs).compile()

    call.compiled = compiled  # for other threads, where this one's jax settings do not hold
    return call


def compiler_options(arguments: Any) -> Mapping[str, Any]:
    """Options to compile a program for these arguments with; empty for XLA's defaults."""
    leaves = jax.tree.leaves(arguments)
    if sum(getattr(leaf, "size", 1) for leaf in leaves) > SMALL:
        return {}
    return {} if under_transformation() or not _applicable() else QUICK


def under_transformation() -> bool:
    """Whether `jit`, `vmap` or differentiation is under way in this thread."""
    return jex.get_opaque_trace_state() != _OUTSIDE


@functools.lru_cache(maxsize=1)
def _applicable() -> bool:
    """Whether this backend is a CPU and its compiler knows the options; they are XLA's own."""
    if jax.default_backend() != "cpu":
        return False
    try:
        jax.jit(lambda: 0, compiler_options=QUICK)()
    except Exception:  # jaxlib's error type for an unknown option is not public
        return False
    return True
