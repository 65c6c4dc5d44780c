"""Curvature factors of the layers of any `predict`, with no layer registered.

The model is traced to a jaxpr once; parameters are followed through operations that rearrange them
to the places where they enter linearly ("sites", see `optikit.calculus.sites`). Re-interpreting
the jaxpr gives either

- factors: each site takes zero-filled slots whose *cotangents* are the factors sum a a^T and
  sum g g^T, so that one backward pass returns the factors with the gradient, or in its place. It
  works through `jit`, `scan` and rematerialisation, knows no batch axis and stores nothing per
  example; or
- rows: each site's output gets a zero added, whose cotangent is g, and gives out a.

Parameters that enter in any other way are named in `generic`; nothing falls back silently.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex
from jaxtyping import Array

from optikit.calculus.sites import KIND, Site, View, is_bias_of, is_linear_site
from optikit.core import Params
from optikit.core.jaxpr import bind_equation

_LAYOUT = {
    "transpose", "reshape", "squeeze", "broadcast_in_dim", "convert_element_type", "copy", "copy_p",
    "slice", "split", "rev",
}  # fmt: skip
_REMAT = {"remat", "remat2", "checkpoint"}
_INLINE = {"jit", "pjit", "closed_call", "core_call", *_REMAT}
# custom_jvp and custom_vjp calls are not inlined, since that would lose their rules

_DATA = "data"
"""The mark of values that depend on the inputs; those of parameters alone have None, or a View."""

Key = tuple[int, ...]
"""Where an equation stands: its number in the jaxpr, after those of the equations around it."""


@dataclasses.dataclass(frozen=True)
class Capture:
    """A model whose layers are known.

    Attributes:
      sites: by place, in the order of evaluation; a bias that goes with a layer has none.
      generic: paths of leaves that enter in some other way, or in part: they have no factors.
      tied: paths of leaves with more than one site.
    """

    sites: dict[Key, Site]
    generic: tuple[str, ...]
    tied: tuple[str, ...]
    _closed: Any
    _outputs: Any

    def slots(self) -> dict[Key, tuple[Array, ...]]:
        """Zeros, by place, to be given to `with_factors`."""

        def blank(site: Site) -> tuple[Array, ...]:
            others = [v.aval for i, v in enumerate(site.eqn.invars) if i != site.position]
            shapes = jax.eval_shape(site.factors, others, site.eqn.outvars[0].aval)
            return tuple(jnp.zeros((*site.stacked, *s.shape), s.dtype) for s in shapes)

        return {key: blank(site) for key, site in self.sites.items()}

    def with_factors(self, params: Params, inputs: Any, slots: dict[Key, Any]) -> Any:
        """predict(params, inputs), with factors for derivatives with respect to the slots.

        The cotangents of `slots`, for any cotangent of the outputs, are `Site.factors` summed over
        rows and over the trips of scans that do not slice the leaf; for leaves that a scan slices
        there is one set a trip, along the first axis. They are not linear in the cotangent of the
        outputs, but quadratic in the G factors: scale them for the loss at hand.
        """
        return self._evaluate(params, inputs, slots, factors=True)[0]

    def probes(self) -> dict[Key, Array]:
        """Zeros, by place, to be given to `with_rows`."""
        outs = {k: s.eqn.outvars[0].aval for k, s in self.sites.items()}
        return {k: jnp.zeros((*self.sites[k].trips, *v.shape), v.dtype) for k, v in outs.items()}

    def with_rows(
        self, params: Params, inputs: Any, probes: dict[Key, Array]
    ) -> tuple[Any, dict[Key, list]]:
        """predict(params, inputs), and what stands beside the parameter at each site.

        The cotangents of `probes` are the gradients at the sites' outputs; axes of scans come
        first in both. `Site.rows` brings them together, trip by trip.
        """
        return self._evaluate(params, inputs, probes, factors=False)

    def _evaluate(self, params: Params, inputs: Any, slots: dict, *, factors: bool) -> Any:
        leaves = jax.tree.leaves(params)
        values = [*leaves, *jax.tree.leaves(inputs)]
        walk = _Walk(self.sites, factors=factors)
        marks = _first_marks(len(leaves), len(values))
        closed = self._closed
        outs, _, seen = walk.run(closed.jaxpr, closed.consts, values, marks, (), (), slots)
        return jax.tree.unflatten(self._outputs, outs), seen


def capture(predict: Callable[[Params, Any], Any], params: Params, inputs: Any) -> Capture:
    """Find the layers of predict(params, inputs), for parameters and inputs of these shapes.

    Args:
      predict: a pure function; it may hold `jit`, `vmap`, `scan` (over time, or over stacked
        layers) and `jax.checkpoint`.
      params, inputs: arrays or their shapes. Nothing is computed.

    Example:
      >>> def net(p, x):
      ...     return jnp.tanh(x @ p["w"] + p["b"]) @ p["v"]
      >>> params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3), "v": jnp.ones((3, 2))}
      >>> found = capture(net, params, jnp.ones((5, 4)))
      >>> [(s.kind, s.shape, s.bias) for s in found.sites.values()], found.generic
      ([('dense', (1, 4, 3), 0), ('dense', (1, 3, 2), None)], ())
    """
    closed, shapes = jax.make_jaxpr(predict, return_shape=True)(params, inputs)
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    walk = _Walk(None, factors=False)
    given = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
    marks = _first_marks(len(paths), len(given))

    def look(values: list) -> None:
        ends = walk.run(closed.jaxpr, closed.consts, values, marks, (), (), None)[1]
        walk.give_up(ends)

    jax.eval_shape(look, given)
    sites = _with_biases(walk)
    uses = collections.Counter(s.view.leaf for s in sites.values())
    uses.update(s.bias for s in sites.values() if s.bias is not None)
    seen = walk.generic
    return Capture(
        sites={k: s for k, s in sites.items() if s.view.leaf not in seen},
        generic=tuple(paths[i] for i in sorted(seen)),
        tied=tuple(paths[i] for i, n in sorted(uses.items()) if n > 1),
        _closed=closed,
        _outputs=jax.tree.structure(shapes),
    )


def _first_marks(leaves: int, values: int) -> list:
    return [View(i) for i in range(leaves)] + [_DATA] * (values - leaves)


def _with_biases(walk: "_Walk") -> dict[Key, Site]:
    """The sites, with each bias entered at its layer."""
    sites = dict(walk.sites)
    for key, (layer, order) in walk.added_to.items():
        if layer not in sites or sites[layer].bias is not None:
            continue
        alone = sum(s.view.leaf == sites[key].view.leaf for s in walk.sites.values()) == 1
        known = not {sites[key].view.leaf, sites[layer].view.leaf} & walk.generic
        if alone and known and is_bias_of(sites[layer], sites[key], order):
            sites[layer] = dataclasses.replace(sites[layer], bias=sites[key].view.leaf)
            del sites[key]
    return sites


class _Walk:
    """One re-interpretation of a jaxpr: finding the sites where none are given, else using them."""

    def __init__(self, sites: dict[Key, Site] | None, *, factors: bool):
        self.finding = sites is None
        self.sites = dict(sites or {})
        self.factors = factors
        self.generic: set[int] = set()
        # shift -> the layer whose output it is added to, and the order of that output's axes
        self.added_to: dict[Key, tuple[Key, tuple[int, ...]]] = {}

    def run(self, jaxpr, consts, args, marks, key: Key, trips: tuple[int, ...], slots):
        """Outputs, their marks, and what was seen at the sites."""
        values: dict = {}
        followed: dict = {}
        produced: dict = {}
        seen: dict[Key, list] = {}
        uses = collections.Counter(v for e in jaxpr.eqns for v in e.invars if _is_variable(v))
        uses.update(v for v in jaxpr.outvars if _is_variable(v))

        def put(variables, new, new_marks) -> None:
            values.update(zip(variables, new, strict=True))
            followed.update(zip(variables, new_marks, strict=True))

        def value(v):
            return values[v] if _is_variable(v) else v.val

        def mark(v) -> Any:
            return followed[v] if _is_variable(v) else None

        put(jaxpr.constvars, consts, [None] * len(consts))
        put(jaxpr.invars, args, marks)
        for i, eqn in enumerate(jaxpr.eqns):
            ins, tags = [value(v) for v in eqn.invars], [mark(v) for v in eqn.invars]
            here = (*key, i)
            live = [k for k, tag in enumerate(tags) if isinstance(tag, View)]
            name = eqn.primitive.name
            after = [_DATA if _DATA in tags else None] * len(eqn.outvars)
            if not live or name == "stop_gradient":
                turned = _turned(eqn, produced, uses) if self.finding else None
                if turned is not None:
                    produced[eqn.outvars[0]] = turned
                put(eqn.outvars, bind_equation(eqn, ins), after)
            elif (views := _rearranged(eqn, live[0], tags[live[0]])) is not None:
                put(eqn.outvars, bind_equation(eqn, ins), views)
            elif name in _INLINE:
                outs, ends, more = self._inlined(eqn, ins, tags, here, trips, slots)
                put(eqn.outvars, outs, ends)
                seen.update(more)
            elif name == "scan":
                outs, more = self._scanned(eqn, ins, tags, here, trips, slots)
                put(eqn.outvars, outs, after)
                seen.update(more)
            elif self._is_site(eqn, live, tags, here):
                if self.finding:
                    self.sites[here] = Site(KIND[name], eqn, live[0], tags[live[0]], trips)
                    other = eqn.invars[1 - live[0]]
                    if KIND[name] == "shift" and uses[other] == 1 and other in produced:
                        self.added_to[here] = produced[other]
                    axes = range(len(eqn.outvars[0].aval.shape))
                    produced[eqn.outvars[0]] = (here, tuple(axes))
                out, beside = self._at_site(here, ins, slots)
                put(eqn.outvars, [out], after)
                seen.update(beside)
            else:
                put(eqn.outvars, bind_equation(eqn, ins), after)
                self.give_up(tags)
        return [value(v) for v in jaxpr.outvars], [mark(v) for v in jaxpr.outvars], seen

    def _is_site(self, eqn, live: list[int], tags: list, here: Key) -> bool:
        if not self.finding:
            return here in self.sites
        beside = [tag for k, tag in enumerate(tags) if k != live[0]]
        # what stands beside the parameter has to be data: a row for each example
        return beside == [_DATA] and is_linear_site(eqn, live[0], tags[live[0]])

    def give_up(self, tags: list) -> None:
        """Note that these leaves enter in a way that has no rows."""
        self.generic.update(tag.leaf for tag in tags if isinstance(tag, View))

    def _at_site(self, here: Key, ins: list, slots) -> tuple[Array, dict[Key, list]]:
        site = self.sites[here]
        others = [x for i, x in enumerate(ins) if i != site.position]
        operand = ins[site.position]
        if self.factors:
            return _factored(site)(operand, slots[here], others), {}
        out = site.apply(operand, others)
        return (out if slots is None else out + slots[here]), {here: others}

    def _inlined(self, eqn, ins, tags, here: Key, trips, slots):
        body = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        closed = isinstance(body, jex.ClosedJaxpr)
        inner, consts = (body.jaxpr, body.consts) if closed else (body, [])
        ends: list = []

        def run(values, slots):
            outs, marks, seen = self.run(inner, consts, values, tags, here, trips, slots)
            ends[:] = marks
            return outs, seen

        if self.factors and eqn.primitive.name in _REMAT:
            run = jax.checkpoint(
                run, policy=eqn.params["policy"], prevent_cse=eqn.params["prevent_cse"]
            )
        outs, seen = run(ins, slots)
        return outs, list(ends), seen

    def _scanned(self, eqn, ins, tags, here: Key, trips, slots):
        """A scan: parameters among its constants are shared by the trips, among its xs sliced."""
        params = eqn.params
        body, length = params["jaxpr"], params["length"]
        first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
        self.give_up(tags[first:last])  # carried on as a state
        depth = len(trips)
        marks = [
            *tags[:first],
            *[_DATA if _DATA in tags else None] * (last - first),
            *[_sliced(tag, depth) for tag in tags[last:]],
        ]
        inside = {k: s for k, s in (slots or {}).items() if k[: len(here)] == here}
        sliced = {
            k for k in inside if not self.factors or depth in self.sites[k].view.levels
        }  # a slot a trip; the others are shared, and their cotangents summed

        def step(carry, xs):
            xs, mine = xs
            shared = {k: s for k, s in inside.items() if k not in sliced}
            given = [*ins[:first], *carry, *xs]
            handed = None if slots is None else {**shared, **mine}
            outs, ends, seen = self.run(
                body.jaxpr, body.consts, given, marks, here, (*trips, length), handed
            )
            self.give_up(ends)
            split = last - first
            return outs[:split], (outs[split:], seen)

        carry, (ys, seen) = lax.scan(
            step,
            ins[first:last],
            (ins[last:], {k: inside[k] for k in sliced}),
            length,
            params["reverse"],
            params["unroll"],
        )
        return [*carry, *ys], seen


def _sliced(mark: Any, depth: int) -> Any:
    if not isinstance(mark, View):
        return mark
    return dataclasses.replace(mark, levels=(*mark.levels, depth))


def _is_variable(v: Any) -> bool:
    return not isinstance(v, jex.Literal)


def _negated(view: View) -> View:
    return dataclasses.replace(view, scale=-view.scale)


def _rearranged(eqn, position: int, view: View) -> list[View] | None:
    """Views after an operation that moves or scales the entries of one operand, else None."""
    name = eqn.primitive.name
    rest = [v for i, v in enumerate(eqn.invars) if i != position]
    if any(_is_variable(v) for v in rest):
        return None
    if name in ("add", "sub"):
        return [view if name == "add" or position == 0 else _negated(view)]
    if name == "neg":
        return [_negated(view)]
    if name == "mul" or (name == "div" and position == 0):
        factor = float(rest[0].val)
        scale = view.scale * factor if name == "mul" else view.scale / factor
        return [dataclasses.replace(view, scale=scale)]
    if name not in _LAYOUT:
        return None
    if name == "convert_element_type" and not jnp.issubdtype(eqn.params["new_dtype"], jnp.floating):
        return None
    return [view.then(eqn, position, k) for k in range(len(eqn.outvars))]


def _turned(eqn: Any, produced: dict, uses: collections.Counter) -> tuple[Key, tuple] | None:
    """The site whose output is transposed or cast here and used nowhere else, and its axes."""
    first = eqn.invars[0] if eqn.invars else None
    if not _is_variable(first) or first not in produced or uses[first] != 1:
        return None
    key, order = produced[first]
    if eqn.primitive.name == "transpose":
        return key, tuple(order[i] for i in eqn.params["permutation"])
    return (key, order) if eqn.primitive.name == "convert_element_type" else None


def _factored(site: Site):
    """The site's operation with slots whose cotangents are its factors."""

    @jax.custom_vjp
    def operation(operand, slots, others):
        del slots
        return site.apply(operand, others)

    def forward(operand, slots, others):
        return operation(operand, slots, others), (operand, others)

    def backward(kept, g):
        operand, others = kept
        back = jax.vjp(site.apply, operand, others)[1]
        operand_bar, others_bar = back(g)
        return operand_bar, site.factors(others, g), others_bar

    operation.defvjp(forward, backward)
    return operation
