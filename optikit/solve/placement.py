"""Where a fit's arrays live: one device, or batches in parts over the devices of a mesh.

Parameters and the method's memory are copied to every device, and each holds its rows of a batch;
the compiler adds the sums over devices that gradients and curvature need, so a step is the same
computation as on one device up to the order of its sums. Over hosts each process brings its own
rows.
"""

import dataclasses
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Number = TypeVar("Number", int, float)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Devices for a fit; equal ones compile once.

    Attributes:
      mesh: the devices, None for where the arrays are; batches are split over all its axes.
      spread: split large arrays of the method's memory over the devices too.
    """

    mesh: Mesh | None = None
    spread: bool = False

    @property
    def copied(self) -> NamedSharding:
        """Every device has the whole."""
        assert self.mesh is not None
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def rows(self) -> NamedSharding:
        """Every device has its part of axis 0."""
        assert self.mesh is not None
        return NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))

    def put(self, course: Any) -> Any:
        """A course on the devices."""
        if self.mesh is None:
            return course
        return jax.tree.map(_put, course, self._shardings(course))

    def hold(self, course: Any) -> Any:
        """A course, inside a compiled program, kept where `put` has put it."""
        if self.mesh is None:
            return course
        return jax.lax.with_sharding_constraint(course, self._shardings(course))

    def batch(self, args: tuple, *, copy: bool = True) -> tuple:
        """A batch on the devices.

        Args:
          copy: arrays of the host may change there; a CPU's device arrays share their memory.

        Raises:
          ValueError: the rows of an array do not divide among the devices.
        """
        paths, structure = jax.tree_util.tree_flatten_with_path(args)
        arrays = [self._array(path, leaf, copy=copy) for path, leaf in paths]
        return jax.tree.unflatten(structure, arrays)

    def _array(self, path: tuple, leaf: Any, *, copy: bool) -> Any:
        if isinstance(leaf, jax.Array):
            if self.mesh is None or leaf.sharding == self.rows:
                return leaf
        elif hasattr(leaf, "__array__"):
            leaf = np.array(leaf) if copy else np.asarray(leaf)
            if self.mesh is None:
                return jax.device_put(leaf)
        else:
            return leaf  # a Python number, which has no dtype of its own
        if leaf.ndim == 0:
            return _put(leaf, self.copied)
        parts = self.rows.num_devices // jax.process_count()
        if leaf.shape[0] % parts:
            name = jax.tree_util.keystr(path)
            msg = (
                f"batch{name} has {leaf.shape[0]} rows, which do not divide among {parts} devices: "
                "leave out the remainder, or fill it up with rows of weight 0 (a composite "
                "objective takes weights as its last argument)."
            )
            raise ValueError(msg)
        if jax.process_count() > 1 and getattr(leaf, "is_fully_addressable", True):
            return jax.make_array_from_process_local_data(self.rows, np.asarray(leaf))
        return jax.device_put(leaf, self.rows)

    def _shardings(self, course: Any) -> Any:
        everywhere = jax.tree.map(lambda _: self.copied, course)
        if not self.spread:
            return everywhere
        return everywhere._replace(state=jax.tree.map(self._spread, course.state))

    def _spread(self, leaf: Any) -> NamedSharding:
        """The first axis that divides among the devices, e.g. that of stacked layers, is split."""
        assert self.mesh is not None
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) or leaf.ndim == 0:
            return self.copied
        parts = self.mesh.size
        axis = next((i for i, n in enumerate(leaf.shape) if n > 0 and n % parts == 0), None)
        if axis is None:
            return self.copied
        spec = PartitionSpec(*[None] * axis, self.mesh.axis_names)
        return NamedSharding(self.mesh, spec)


def placement_over(mesh: Mesh | None, *, spread: bool) -> Placement:
    """The placement over a mesh, whose axes the compiler may use as it likes.

    Raises:
      TypeError: it is no mesh.
    """
    if mesh is None:
        return Placement()
    if not isinstance(mesh, Mesh):
        msg = (
            f"mesh must be a jax.sharding.Mesh, e.g. jax.make_mesh((8,), ('batch',)); got {mesh!r}."
        )
        raise TypeError(msg)
    return Placement(Mesh(mesh.devices, mesh.axis_names), spread)


def agreed(number: Number) -> Number:
    """The number of the first process, in every process; they must all ask."""
    if jax.process_count() == 1:
        return number
    kind = np.int32 if isinstance(number, int) else np.float32
    return type(number)(multihost_utils.broadcast_one_to_all(np.asarray(number, kind)))


def fetched(tree: Any) -> Any:
    """Arrays on the host, also those of which other processes hold a part; all must ask."""

    def whole(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            x = multihost_utils.process_allgather(x, tiled=True)
        return np.array(x)

    return jax.tree.map(whole, tree)


def _put(x: Any, sharding: NamedSharding) -> Any:
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
