"""Batches read ahead by a thread: order, errors, ends, and what is left to the caller."""

import gc
import threading
import time
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optikit as ok
from optikit.solve.feed import Feed, Position, numbered
from optikit.solve.placement import Placement


def feed(batches, *, start=Position(), limit=None, threaded=True, remember=True):  # noqa: B008
    return Feed(batches, start=start, limit=limit, place=Placement().batch, threaded=threaded,
                remember=remember)  # fmt: skip


def taken(source, number):
    return [float(np.asarray(source.next()[0][0])) for _ in range(number)]


def feeding():
    return [t for t in threading.enumerate() if t.name == "optikit-feed"]


def numbers(n):
    return [(np.float32(k),) for k in range(n)]


class Loader:
    """A collection whose order depends on the epoch."""

    def __init__(self, n=4):
        self.n, self.epochs, self.read = n, 0, 0

    def __iter__(self):
        order = np.random.default_rng(self.epochs).permutation(self.n)
        self.epochs += 1
        for k in order:
            self.read += 1
            yield (np.float32(k),)


class Epochs(Loader):
    def set_epoch(self, epoch):
        self.epochs = epoch


class Stateful:
    """An iterator that can say where it is."""

    def __init__(self):
        self.k = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.k += 1
        return (np.float32(self.k),)

    def state_dict(self):
        return {"k": self.k, "rng": np.arange(2), "raw": b"\x00\xff", "nested": [1, (2.5, None)]}

    def load_state_dict(self, state):
        assert state["raw"] == b"\x00\xff"
        assert state["nested"] == [1, (2.5, None)]
        np.testing.assert_array_equal(state["rng"], np.arange(2))
        self.k = state["k"]


@pytest.mark.parametrize("make", [lambda: numbers(3), Loader, Epochs, Stateful,
                                  lambda: iter(numbers(40))])  # fmt: skip
def test_a_stream_goes_on_from_any_position(make):
    source = make()
    whole = list(zip(range(20), numbered(source, Position(), remember=True, seen=print),
                     strict=False))  # fmt: skip
    for k in (1, 3, 4, 7, 8):
        position = whole[k - 1][1][1]
        assert position.taken == k
        rest = numbered(make(), position, remember=True, seen=lambda batch: None)
        for (_, old), new in zip(whole[k:], rest, strict=False):
            assert (old[0], old[1][:3]) == (new[0], new[1][:3])


def test_epochs_that_can_be_set_are_not_read_again():
    loader = Epochs(4)
    stream = numbered(
        loader, Position(taken=4000, epoch=1000, within=0), remember=False, seen=print
    )
    next(stream)
    assert loader.read == 1


@pytest.mark.parametrize("threaded", [True, False])
def test_batches_come_in_order_and_no_more_are_read_than_asked_for(threaded):
    given = iter(numbers(10))
    with feed(given, limit=4, threaded=threaded) as source:
        source.deepen(9)
        assert float(source.peek()[0][0]) == 0
        assert taken(source, 4) == [0, 1, 2, 3]
        assert source.next() is None
        assert source.next() is None
    assert float(next(given)[0]) == 4  # the caller's iterator is where it should be
    assert not feeding()


def test_an_error_of_the_stream_is_raised_in_the_caller_with_its_traceback():
    def broken():
        yield from numbers(3)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone") as caught:
        ok.fit(lambda x, b: (x - b) ** 2, jnp.float32(0), broken(), method="adam")
    frames = "".join(traceback.format_tb(caught.value.__traceback__))
    assert "in broken" in frames
    assert "in fit" in frames
    assert not feeding()


def test_an_early_end_closes_what_was_opened_here_and_ends_the_thread():
    closed = []

    class Opened:
        def __iter__(self):
            try:
                while True:
                    yield (np.float32(1),)
            finally:
                closed.append(threading.current_thread().name)

    def interrupt(steps, row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ok.fit(lambda x, b: (x - b) ** 2, jnp.float32(0), Opened(), method="adam",
               on_look=interrupt)  # fmt: skip
    assert closed == ["optikit-feed"]
    assert not feeding()


def test_an_iterator_of_the_callers_is_let_go_of():
    closed = []

    def generated():
        try:
            while True:
                yield (np.float32(1),)
        finally:
            closed.append(1)

    source = feed(generated())
    source.next()
    source.close()
    del source
    gc.collect()
    assert closed


def test_reading_goes_on_while_a_step_is_taken():
    read = []

    def slow():
        for k in range(4):
            read.append(k)
            yield (np.float32(k),)

    with feed(slow()) as source:
        source.deepen(3)
        source.next()
        deadline = time.monotonic() + 5
        while len(read) < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert read == [0, 1, 2, 3]


def test_the_thread_has_the_callers_settings_and_copies():
    buffer = np.zeros(1024)

    def reused():
        for k in range(3):
            buffer[:] = k
            yield (buffer, 0.5)

    with jax.enable_x64(False), feed(reused()) as source:
        source.deepen(3)
        time.sleep(0.05)
        batches = [source.next()[0] for _ in range(3)]
    assert [float(b[0][0]) for b in batches] == [0, 1, 2]
    assert batches[0][0].dtype == jnp.float32
    assert isinstance(batches[0][1], float)  # Python numbers stay weakly typed
    assert batches[0][0].committed is False
