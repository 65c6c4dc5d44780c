"""Parameter groups: a method for each, by the names of the leaves."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optikit.calculus import Eval, Oracle
from optikit.calculus.restrict import completed, part, restricted
from optikit.core import Counts, Key, Params, Status, memoized, tally
from optikit.core.paths import Pattern, key_paths, matches
from optikit.optimizers.optax_bridge import from_optax
from optikit.optimizers.protocol import Optimizer, Refresh, StepInfo, keep, value_and_grad

Method = str | Optimizer | optax.GradientTransformation


class _Group(NamedTuple):
    """A group of leaves: its name, its method, and the leaves that are in it."""

    name: str
    method: Optimizer
    chosen: tuple[bool, ...]

    def evaluation(self, at: Eval, local: Any) -> Eval:
        """The part of an evaluation that the method looks at."""
        params, grad = part(at.params, self.chosen), part(at.grad, self.chosen)
        return Eval(params, at.value, grad, at.aux, local)


def groups(methods: Mapping[Pattern, Method], *, default: Method | None = None) -> Optimizer:
    """One method from several, each for the leaves whose names fit its pattern.

    A leaf goes to the first pattern that fits. All groups step from the same point at once, each by
    an oracle in which the others' leaves are held there, so a group's curvature is its block of the
    whole. A line search in one group does not see the steps of the others.

    Args:
      methods: pattern -> a name, an Optimizer or an optax transformation. The name of a leaf is its
        key path, "layers/0/kernel". A pattern is a glob over the whole of it, in which `*` also
        crosses slashes, or a compiled regular expression, searched for in it.
      default: for leaves that fit no pattern.

    Returns: an Optimizer. Per step one grad, and what the methods ask beyond it; `info.extras` has
      the groups' own, prefixed by their patterns.

    Raises:
      ValueError: while tracing, if a leaf fits no pattern and there is no default, or a pattern
        fits no leaf that is not taken by an earlier one; the leaves are listed. Or an unknown name.

    Example:
      >>> import optikit as ok
      >>> method = ok.optimizers.groups({"scale": "newton"}, default=ok.optimizers.adam(0.1))
      >>> def fun(p):
      ...     return (p["scale"] - 3.0) ** 2 + jnp.sum((p["w"] - 1.0) ** 2)
      >>> start = {"scale": jnp.array(0.0), "w": jnp.zeros(2)}
      >>> sol = ok.minimize(fun, start, method=method, max_steps=100)
      >>> bool(sol.value < 1e-2)
      True
    """
    if not methods:
        msg = "groups({}) has no pattern: give a method for one, or use the default by itself."
        raise ValueError(msg)
    chosen = tuple((pattern, _as_optimizer(method)) for pattern, method in methods.items())
    return _groups(chosen, None if default is None else _as_optimizer(default))


def _as_optimizer(method: Method) -> Optimizer:
    if isinstance(method, Optimizer):
        return method
    if isinstance(method, str):
        from optikit.optimizers import named  # the registry, which lists what is here

        return named(method)
    return from_optax(method)


@memoized
def _groups(methods: tuple[tuple[Pattern, Optimizer], ...], default: Optimizer | None) -> Optimizer:
    everyone = [m for _, m in methods] + ([] if default is None else [default])

    def resolved(params: Params) -> list[_Group]:
        return resolve(methods, default, params)

    def evaluate(oracle: Oracle, params: Params) -> tuple[Eval, Counts]:
        at, price = value_and_grad(oracle, params)
        locals_, prices = [], [price]
        for group in resolved(params):
            local = ()
            if group.method.evaluate is not value_and_grad:
                inner = restricted(oracle, params, group.chosen)
                own, price = group.method.evaluate(inner, part(params, group.chosen))
                local = own.local
                prices.append(price)
            locals_.append(local)
        return at._replace(local=tuple(locals_)), tally(*prices)

    def parts(at: Eval) -> list[tuple[_Group, Eval]]:
        found = resolved(at.params)
        locals_ = at.local if at.local else ((),) * len(found)
        return [(g, g.evaluation(at, own)) for g, own in zip(found, locals_, strict=True)]

    def init(at: Eval) -> tuple[Any, ...]:
        return tuple(group.method.init(own) for group, own in parts(at))

    def step(oracle: Oracle, at: Eval, state: tuple[Any, ...], key: Key):
        params, states, infos, extras = at.params, [], [], {}
        keys = jax.random.split(key, len(state))
        for (group, own), s, k in zip(parts(at), state, keys, strict=True):
            inner = restricted(oracle, at.params, group.chosen)
            moved, _, s, info = group.method.step(inner, own, s, k)
            params = completed(moved, params, group.chosen)
            states.append(s)
            infos.append(info)
            extras.update({f"{group.name}: {k}": v for k, v in info.extras.items()})
        return params, None, tuple(states), _report(infos, extras)

    def refresh(number: int, which: int, every: int) -> Refresh:
        def update(oracle: Oracle, at: Eval, state: tuple[Any, ...], key: Key):
            found = parts(at)
            if number >= len(found):  # a default without leaves
                return state, Counts()
            group, own = found[number]
            inner = restricted(oracle, at.params, group.chosen)
            new, counts = group.method.refresh[which].update(inner, own, state[number], key)
            return (*state[:number], new, *state[number + 1 :]), counts

        return Refresh(every, update)

    def readout(params: Params, state: tuple[Any, ...]) -> Params:
        for group, s in zip(resolved(params), state, strict=True):
            read = group.method.readout(part(params, group.chosen), s)
            params = completed(read, params, group.chosen)
        return params

    plain = all(m.evaluate is value_and_grad for m in everyone)
    made = Optimizer(
        init,
        step,
        evaluate=value_and_grad if plain else evaluate,
        name="groups",
        learns=any(m.learns for m in everyone),
        patience=max(m.patience for m in everyone),
        refresh=tuple(
            refresh(i, j, r.every) for i, m in enumerate(everyone) for j, r in enumerate(m.refresh)
        ),
    )
    averages = any(m.readout is not keep for m in everyone)
    return made._replace(readout=readout) if averages else made


def resolve(
    methods: tuple[tuple[Pattern, Optimizer], ...], default: Optimizer | None, params: Params
) -> list[_Group]:
    """The groups of these parameters: one for each pattern, and the default's if it has leaves.

    Raises:
      ValueError: as `groups`.
    """
    names = key_paths(params)
    first = [next((i for i, (p, _) in enumerate(methods) if matches(p, n)), None) for n in names]
    unmatched = [n for n, i in zip(names, first, strict=True) if i is None]
    if unmatched and default is None:
        msg = f"no pattern fits {_listed(unmatched)}: add one, or default=."
        raise ValueError(msg)
    found = []
    for i, (pattern, method) in enumerate(methods):
        chosen = tuple(f == i for f in first)
        if not any(chosen):
            taken = [n for n in names if matches(pattern, n)]
            why = f"earlier patterns take {_listed(taken)}" if taken else "no leaf has such a name"
            msg = (
                f"pattern {_text(pattern)!r} fits nothing: {why}. The leaves are {_listed(names)}."
            )
            raise ValueError(msg)
        found.append(_Group(_text(pattern), method, chosen))
    if default is not None and unmatched:
        found.append(_Group("default", default, tuple(f is None for f in first)))
    return found


def _text(pattern: Pattern) -> str:
    return pattern if isinstance(pattern, str) else pattern.pattern


def _listed(names: list[str], most: int = 20) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _report(infos: list[StepInfo], extras: dict[str, Any]) -> StepInfo:
    """The groups' reports as one: it goes on as long as one of them does."""
    running = jnp.asarray(Status.RUNNING.value, jnp.int32)
    status = infos[0].status
    for info in infos[1:]:
        status = jnp.where(info.status == running, running, status)
    return StepInfo(
        step_norm=jnp.sqrt(sum((i.step_norm**2 for i in infos[1:]), infos[0].step_norm ** 2)),
        accepted=jnp.any(jnp.stack([i.accepted for i in infos])),
        counts=tally(*(i.counts for i in infos)),
        predicted=None,
        status=status,
        extras=extras,
    )
