"""The cost of a program as it actually ran: loops by their trips, branches by the one taken.

XLA's own cost analysis counts a loop's body once, adds both branches of a conditional and misses
factorisations. Here a program's jaxpr is re-interpreted with a counter beside its values: every
operation adds numbers known from its shapes (see `optikit.core.formulas`); a `while` carries the
counter through its trips, a `cond` adds the branch it took. The counted program is itself compiled,
so replaying a long run costs about as much as the run. It is used off the clock.

Of a batch under `jax.vmap`, two counts differ. What each lane asked for is logical:
`vmap(count_cost(f))` gives it lane by lane. What the machine did is executed: a loop runs its body
in all lanes until the last one is done, and a conditional becomes both branches;
`count_cost(vmap(f))` gives that, in all.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jex
from jax.interpreters import mlir

from optikit.core import Counts
from optikit.core.formulas import flops, traffic
from optikit.core.jaxpr import CALLS, bind_equation, called

_KINDS = Counts._fields


class Cost(NamedTuple):
    """What a call cost: FLOPs, bytes, and the oracle calls that `mark` saw. Each a () float."""

    flops: jax.Array
    bytes: jax.Array
    calls: Counts


_mark = jex.Primitive("oracle_call")
_mark.multiple_results = True
_mark.def_impl(lambda *, kind: [])
_mark.def_abstract_eval(lambda *, kind: [])
mlir.register_lowering(_mark, lambda ctx, *, kind: [])


def mark(kind: str) -> None:
    """Note an oracle call in the program being traced: the `tap` of an oracle to be counted.

    It computes nothing. A batch notes a call that all its lanes make together once.
    """
    _mark.bind(kind=kind)


def count_cost(
    function: Callable[..., Any], unknown: set[str] | None = None
) -> Callable[..., tuple[Any, Cost]]:
    """A function that returns (function(*args), the Cost of that call).

    The result can be jitted, and batched. The counters are float64 where x64 is enabled (as it
    should be for totals above 2^24), float32 otherwise.

    Args:
      unknown: takes the names of operations whose FLOPs are not known here, and are left out; it is
        filled while the program is traced.

    Example:
      >>> cost = count_cost(lambda a, b: a @ b)(jnp.ones((2, 3)), jnp.ones((3, 5)))[1]
      >>> float(cost.flops)
      60.0
    """

    def counted(*args: Any) -> tuple[Any, Cost]:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        if unknown is not None:
            _search(closed.jaxpr, unknown)
        outs, total = _run(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        cost = Cost(total[0], total[1], Counts(*total[2:]))
        return jax.tree.unflatten(jax.tree.structure(shape), outs), cost

    return counted


def _search(jaxpr: jex.Jaxpr, found: set[str]) -> None:
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name not in _CONTROL and name not in CALLS:
            if flops(eqn) is None:
                found.add(name)
            continue
        for leaf in jax.tree.leaves(dict(eqn.params), is_leaf=_is_jaxpr):
            if _is_jaxpr(leaf):
                _search(getattr(leaf, "jaxpr", leaf), found)


def _is_jaxpr(x: Any) -> bool:
    return isinstance(x, (jex.Jaxpr, jex.ClosedJaxpr))


def _zero() -> jax.Array:
    return jnp.zeros(2 + len(_KINDS), jnp.result_type(float))


def _run(jaxpr, consts, args) -> tuple[list, jax.Array]:
    """Evaluate a jaxpr and count; everything whose cost is static is added up in Python."""
    env: dict = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    fixed, varying = np.zeros(2 + len(_KINDS)), _zero()

    def value(v):
        return v.val if isinstance(v, jex.Literal) else env[v]

    for eqn in jaxpr.eqns:
        ins = [value(v) for v in eqn.invars]
        name = eqn.primitive.name
        if name in _CONTROL:
            outs, more = _CONTROL[name](eqn, ins)
            varying = varying + more
        elif (inner := called(eqn)) is not None:
            outs, more = _run(inner.jaxpr, inner.consts, ins)
            varying = varying + more
        elif name == _mark.name:
            outs = []
            fixed[2 + _KINDS.index(eqn.params["kind"])] += 1
        else:
            outs = bind_equation(eqn, ins)
            fixed[:2] += flops(eqn) or 0.0, traffic(eqn)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [value(v) for v in jaxpr.outvars], varying + fixed.astype(varying.dtype)


def _while(eqn, ins) -> tuple[list, jax.Array]:
    p = eqn.params
    split = p["cond_nconsts"]
    cond_consts, rest = ins[:split], ins[split:]
    body_consts, carry = rest[: p["body_nconsts"]], rest[p["body_nconsts"] :]

    def test(state):
        outs, cost = _run(p["cond_jaxpr"].jaxpr, p["cond_jaxpr"].consts, [*cond_consts, *state])
        return outs[0], cost

    def running(c):
        return jnp.any(test(c[0])[0])

    def body(c):
        state, total = c
        outs, cost = _run(p["body_jaxpr"].jaxpr, p["body_jaxpr"].consts, [*body_consts, *state])
        if lanes:  # of a batch: those that are done keep their state while the others go on
            going = test(state)[0]
            outs = [
                jnp.where(jnp.reshape(going, going.shape + (1,) * (x.ndim - going.ndim)), x, y)
                for x, y in zip(outs, state, strict=True)
            ]
        return outs, total + cost + test(state)[1]

    lanes = p["cond_jaxpr"].out_avals[0].shape
    out, total = lax.while_loop(running, body, (list(carry), _zero()))
    return list(out), total + test(out)[1]


def _cond(eqn, ins) -> tuple[list, jax.Array]:
    index, *operands = ins

    def branch(closed):
        def run(*args):
            outs, cost = _run(closed.jaxpr, closed.consts, list(args))
            return tuple(outs), cost

        return run

    outs, cost = lax.switch(index, [branch(b) for b in eqn.params["branches"]], *operands)
    return list(outs), cost


def _scan(eqn, ins) -> tuple[list, jax.Array]:
    p = eqn.params
    consts, carry = ins[: p["num_consts"]], ins[p["num_consts"] :][: p["num_carry"]]
    xs = ins[p["num_consts"] + p["num_carry"] :]

    def body(c, x):
        state, total = c
        outs, cost = _run(p["jaxpr"].jaxpr, p["jaxpr"].consts, [*consts, *state, *x])
        return (outs[: p["num_carry"]], total + cost), outs[p["num_carry"] :]

    (carry, total), ys = lax.scan(
        body, (list(carry), _zero()), list(xs), p["length"], p["reverse"], p["unroll"]
    )
    return [*carry, *ys], total


def _linear_solve(eqn, ins) -> tuple[list, jax.Array]:
    """A solve with a rule for its derivative: count the solve that runs."""
    lengths, closed = eqn.params["const_lengths"], eqn.params["jaxprs"].solve
    begin = lengths.matvec + lengths.vecmat
    consts = ins[begin : begin + lengths.solve]
    sides = ins[sum(lengths) :]
    return _run(closed.jaxpr, closed.consts, [*consts, *sides])


_CONTROL = {
    "while": _while,
    "cond": _cond,
    "scan": _scan,
    "custom_linear_solve": _linear_solve,
}
