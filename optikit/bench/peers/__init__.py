"""Other libraries' optimizers in a study: `use: scipy:trust-exact`, `jaxopt:LBFGS`, ...

Every peer gets the same problem, start, precision and referee, and its oracle calls are counted;
tolerances are off, so that only the referee decides what is solved. A peer measures itself into the
same `Run` as our own optimizers, and from there on there is one path. optax needs no peer: its
transformations run under our own protocol.
"""

from typing import TYPE_CHECKING, Any, Protocol

from optikit.bench.peers.catalogue import LIBRARIES, complaint, declared, is_peer, version

if TYPE_CHECKING:
    import jax

    from optikit.bench.execute import Judge, Run
    from optikit.bench.refine import Goal
    from optikit.bench.replay import Along
    from optikit.bench.spec import Budget, Measure
    from optikit.problems import Problem


class Peer(Protocol):
    """A method of another library, as a trial uses it."""

    @property
    def name(self) -> str:
        """As in a study."""
        ...

    def measure(
        self, problem: "Problem", key: "jax.Array", *,
        budget: "Budget", how: "Measure", judge: "Judge", goal: "Goal | None" = None,
    ) -> "Run":  # fmt: skip
        """As `optikit.bench.execute.measure`.

        Raises:
          TypeError: the peer does not minimise such a problem, with the reason.
        """
        ...

    def costs(self, problem: "Problem", key: "jax.Array", steps: list[int]) -> "Along | None":
        """Model FLOPs and bytes at some steps; None where the library does not show them all."""
        ...

    def facts(self) -> dict[str, Any]:
        """What a record says of the library and of how its last run ended."""
        ...


def peer_of(use: str, arguments: dict[str, Any]) -> Peer:
    """The peer of a name such as `scipy:BFGS`, with the library's own options.

    Raises:
      ValueError: there is no such method.
      ImportError: its library is not installed.
    """
    wrong = complaint(use)
    if wrong:
        raise (ImportError if "not installed" in wrong else ValueError)(wrong)
    library, _, method = use.partition(":")
    if library == "scipy":
        from optikit.bench.peers.scipy_methods import ScipyPeer

        return ScipyPeer(method, arguments)
    if library == "sklearn":
        from optikit.bench.peers.sklearn_models import SklearnPeer

        return SklearnPeer(method)
    from optikit.bench.peers.compiled import CompiledPeer

    return CompiledPeer(library, method, arguments)


__all__ = ["LIBRARIES", "Peer", "complaint", "declared", "is_peer", "peer_of", "version"]
