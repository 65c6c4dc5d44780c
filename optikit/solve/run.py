"""The part of a fit that runs on the host: what to dispatch next, when to look, what to write."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optikit.calculus import Objective
from optikit.calculus.validate import as_args
from optikit.core import Key, Params, Status
from optikit.optimizers import Optimizer
from optikit.solve.budget import CHUNK, LOOK_EVERY_SECONDS, Budget, exhausted, stride
from optikit.solve.checkpoint import Checkpoint, Record, Stand
from optikit.solve.course import Course, answered, begin, look, take, value
from optikit.solve.feed import Feed, Position
from optikit.solve.history import ROWS, Page, Row, collect
from optikit.solve.placement import Placement, agreed
from optikit.solve.solution import Solution, Validation

CHUNK_BYTES = 2**25
"""A chunk's batches are copied side by side, so large ones go one by one; a step on them is long
enough to hide its dispatch."""

LOOK_EVERY_DISPATCHES = 8
"""Over several processes, which must all stop at the same step."""

Evaluate = tuple[Iterable[tuple] | Callable[[Params], Any], int]


class Run:
    """A fit under way. What it holds between two steps is a Stand.

    Args:
      reason: why the method was chosen, if it was.
      feed: the batches, one of which has been looked at.
      files: where to write, if anywhere.
      recoveries: as for `fit`.
      record: a checkpoint to go on from.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: Optimizer,
        params: Params,
        key: Key,
        feed: Feed,
        *,
        budget: Budget,
        recoveries: int,
        reason: str,
        files: Checkpoint | None,
        record: Record | None,
        evaluate: Evaluate | None,
        placement: Placement,
    ):
        assert feed.example is not None
        self.objective, self.optimizer, self.reason = objective, optimizer, reason
        self.feed, self.budget, self.recoveries = feed, budget, recoveries
        self.files, self.evaluate, self.placement = files, evaluate, placement
        self.started = self.written = time.perf_counter()
        self.several = jax.process_count() > 1
        self.course: Course = begin(
            params, feed.example, key, objective, optimizer, placement=placement,
        )  # fmt: skip
        self.pages: list[Page] = []
        self.on_page, self.position = 0, Position()
        self.validation: list[tuple[int, Any]] = []
        self.capacity = _capacity(feed.example)
        self.begun = not optimizer.refresh
        """Whether there is a state that the refreshes have been at."""
        self.complete = False
        """Whether the last evaluation is there, or will be after the next step."""
        self.settled = True
        """Whether course and position are those of one and the same step."""
        if record is not None:
            assert files is not None
            self._resume(record.stand(self.course, optimizer.name, files.folder))
        if budget.gradients is not None:  # each step is looked at, and none may be too many
            self.capacity = 1
        feed.deepen(self.capacity + 1)

    def _resume(self, stand: Stand) -> None:
        self.course = self.placement.put(stand.course)
        self.pages, self.position, self.capacity = stand.pages, stand.position, stand.capacity
        self.validation = stand.validation
        self.started -= stand.seconds
        self.begun = self.begun or int(self.course.health[3]) == 1
        self.complete = stand.ended != Status.RUNNING

    def stand(self, ended: Status = Status.RUNNING) -> Stand:
        """How it stands."""
        return Stand(
            self.course, self.pages, self.position, self.validation,
            time.perf_counter() - self.started, ended, self.optimizer.name, self.reason,
            self.capacity,
        )  # fmt: skip

    def on(
        self, report: Callable[[int, Row], None], on_look: Callable[[int, Row], Any] | None
    ) -> Status:
        """Steps until a bound is reached, the batches end or the device has given up."""
        pace, looked, dispatches, gradients = None, time.perf_counter(), 0, 0
        exact = self.budget.gradients is not None or self.budget.seconds is not None
        while True:
            begun, taken = time.perf_counter(), self.position.taken
            seconds = self._seconds()
            ended = exhausted(self.budget, taken, seconds, gradients)
            if ended != Status.RUNNING:
                return ended
            room = stride(self.budget, taken, seconds, pace, self._periods())
            steps = self._dispatch(room)
            if steps == 0:
                return Status.OUT_OF_DATA
            taken, dispatches = taken + steps, dispatches + 1
            if self.several:
                pace, late = 0.0, dispatches % LOOK_EVERY_DISPATCHES == 0
            else:
                late = time.perf_counter() - looked > LOOK_EVERY_SECONDS
            if exact or pace is None or late:
                row = self.course.page.last()
                looked = time.perf_counter()
                if (exact or pace is None) and taken > 1 and not self.several:
                    # the first step compiles, and others queue behind others
                    pace = (looked - begun) / steps
                gradients = row.gradients
                report(taken, row)
                if on_look is not None:
                    on_look(taken, row)
                if row.status != Status.RUNNING:
                    return row.status
            self._validate(taken)
            if self.files is not None and self._due(taken, late) and self.feed.peek() is not None:
                self.save()  # at the end of the batches the end writes what is more

    def _dispatch(self, room: int) -> int:
        """Up to so many steps, in one dispatch; how many there were batches for."""
        due, room = self._refreshes(room)
        items: list[Any] = []
        while len(items) < min(room, self.capacity):
            item = self.feed.peek()
            if item is None or (items and _shapes(item[0]) != _shapes(items[0][0])):
                break
            items.append(self.feed.next())
        if not items:
            return 0
        if self.on_page + len(items) > ROWS:
            self.pages.append(self.course.page)
            blank = self.placement.put(Page.blank(self.course.page.measures.dtype))
            self.course, self.on_page = self.course._replace(page=blank), 0
        batches = [batch for batch, _ in items]
        batches += batches[-1:] * (self.capacity - len(batches))
        self.settled = False
        self.course = take(
            self.course, tuple(batches), len(items), self.recoveries,
            objective=self.objective, optimizer=self.optimizer, placement=self.placement, due=due,
        )  # fmt: skip
        self.position, self.settled, self.complete = items[-1][1], True, True
        self.on_page += len(items)
        if not self.begun:
            self.begun = int(self.course.health[3]) == 1
        return len(items)

    def _refreshes(self, room: int) -> tuple[tuple[int, ...], int]:
        """Which refreshes are due before the next step, and for how many steps the same ones."""
        refresh = self.optimizer.refresh
        if not self.begun:
            return tuple(range(len(refresh))), 1

        def due(steps: int) -> tuple[int, ...]:
            return tuple(i for i, r in enumerate(refresh) if r.due(steps))

        first = self.position.taken
        alike = 1
        while refresh and alike < room and due(first + alike) == due(first):
            alike += 1
        return due(first), min(room, alike) if refresh else room

    def _seconds(self) -> float:
        seconds = time.perf_counter() - self.started
        return seconds if self.budget.seconds is None else agreed(seconds)

    def _periods(self) -> list[int]:
        every = None if self.files is None else self.files.every_steps
        periods = [] if every is None else [every]
        return periods if self.evaluate is None else [*periods, self.evaluate[1]]

    def _validate(self, taken: int) -> None:
        if self.evaluate is None or taken % self.evaluate[1]:
            return
        what, params = self.evaluate[0], answered(self.course, self.optimizer)
        if callable(what):
            self.validation.append((taken, what(params)))
            return
        values = [
            value(params, self.placement.batch(as_args(batch)), objective=self.objective)
            for batch in what
        ]
        self.validation.append((taken, sum(values) / len(values)))

    def _due(self, taken: int, late: bool) -> bool:
        assert self.files is not None
        if self.files.every_steps is not None and taken % self.files.every_steps == 0:
            return True
        if not late or not np.isfinite(self.files.seconds):
            return False
        return agreed(time.perf_counter() - self.written) >= self.files.seconds

    def save(self) -> None:
        """Write a checkpoint, unless the device has given up, which the end will."""
        if self.files is not None and int(self.course.status) == Status.RUNNING.value:
            self.files.write(self.stand())
            self.written = time.perf_counter()

    def interrupted(self) -> None:
        """Write a checkpoint if that is possible between two steps."""
        if self.settled and self.complete and not self.several:
            self.save()

    def solution(self, ended: Status, *, over: bool) -> Solution:
        """The outcome.

        Args:
          over: whether it had ended before, so that there is nothing to write.
        """
        if int(self.course.status) == Status.NOT_FINITE.value:
            ended = Status.NOT_FINITE
        useless = ended == Status.NOT_FINITE and not over
        if not self.complete or useless:  # the last step's own evaluation is of no use
            self.course = look(
                self.course, self.feed.example,
                objective=self.objective, optimizer=self.optimizer, placement=self.placement,
            )  # fmt: skip
        if self.files is not None and not over and self.position.taken > 0:
            self.files.write(self.stand(ended))
        course = self.course
        return Solution(
            params=answered(course, self.optimizer),
            value=course.last.value,
            aux=course.last.aux,
            grad=course.last.grad,
            grad_norm=course.size,
            status=jnp.asarray(ended.value, jnp.int32),
            steps=course.steps,
            counts=course.counts,
            trace=collect([*self.pages, course.page], self._curve()),
            method=self.optimizer.name,
            reason=self.reason,
            skipped=course.health[0],
        )

    def _curve(self) -> Validation | None:
        if self.evaluate is None and not self.validation:
            return None
        steps, values = zip(*self.validation, strict=True) if self.validation else ((), ())
        host = [np.asarray(v, self.course.last.value.dtype) for v in values]
        return Validation(
            jnp.asarray(steps, jnp.int32),
            jnp.asarray(np.array(host, self.course.last.value.dtype)),
        )


def _shapes(batch: tuple) -> list:
    return [(jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(batch)]


def _capacity(batch: tuple) -> int:
    size = sum(np.prod(shape) * dtype.itemsize for shape, dtype in _shapes(batch))
    return int(np.clip(CHUNK_BYTES // max(size, 1), 1, CHUNK))
