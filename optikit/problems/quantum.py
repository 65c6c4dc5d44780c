"""Neural quantum states: the ground state of a spin chain, with every configuration summed.

H = -sum_i (s^z_i s^z_{i+1} + field s^x_i) on a ring, in the basis of the 2^n configurations of s^z.
The state psi_theta(s) = exp(log_amplitude(theta, s)) is a restricted Boltzmann machine; the
objective is its Rayleigh quotient <psi|H|psi> / <psi|psi>, a pure function of theta that knows the
state's metric. Where methods sample (MinSR, SPRING), nothing is sampled here, so what differs is
the method alone.

References: Carleo & Troyer (2017), Science 355 (the ansatz); Pfeuty (1970), Annals of Physics 57
(the exact energy); Chen & Heyl (2024), Nature Physics 20 (MinSR).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from optikit.calculus import Objective, variational
from optikit.core import Key, Params, Scalar, memoized
from optikit.problems.problem import Metric, Problem
from optikit.problems.sizes import at_least

MOST_SITES = 20
"""Sites up to which all configurations are held: 2^20 of 20 neighbours each."""


def log_amplitude(params: Params, spins: Float[Array, "N n"]) -> Float[Array, " N"]:
    """Log psi(s) = a.s + sum_j log 2 cosh(b_j + (s W)_j), real: the ground state has no signs."""
    angles = spins @ params["weights"] + params["hidden"][None, :]
    return spins @ params["visible"] + jnp.sum(jnp.logaddexp(angles, -angles), axis=1)


def local_energies(
    log_psi: Float[Array, " N"],
    spins: Float[Array, "N n"],
    flipped: Int[Array, "N n"],
    field: Float[Array, ""] | float,
) -> Float[Array, " N"]:
    """(H psi)(s) / psi(s) of every configuration.

    Args:
      flipped: the place of each configuration with its i-th spin turned over.
    """
    bonds = jnp.sum(spins * jnp.roll(spins, -1, axis=1), axis=1)
    ratios = jnp.exp(log_psi[flipped] - log_psi[:, None])
    return -bonds - field * jnp.sum(ratios, axis=1)


def energy(
    params: Params,
    spins: Float[Array, "N n"],
    flipped: Int[Array, "N n"],
    field: Float[Array, ""],
) -> Scalar:
    """<psi|H|psi> / <psi|psi>: the mean of the local energies under |psi|^2."""
    log_psi = log_amplitude(params, spins)
    share = jax.nn.softmax(2 * log_psi)
    return jnp.vdot(share, local_energies(log_psi, spins, flipped, field))


@memoized
def rayleigh_quotient(field: float) -> Objective:
    """The same as an objective of (params, (spins, flipped)) that natural gradients know."""

    def amplitude(params: Params, configurations: tuple[Array, Array]) -> Array:
        return log_amplitude(params, configurations[0])

    def local(params: Params, configurations: tuple[Array, Array]) -> Array:
        return local_energies(amplitude(params, configurations), *configurations, field)

    return variational(amplitude, local)


def relative_energy_error(params: Params, exact: Scalar, *args: Array) -> Scalar:
    """(E - E0) / |E0|."""
    return (energy(params, *args) - exact) / jnp.abs(exact)


def configurations(sites: int) -> tuple[Float[np.ndarray, "N n"], Int[np.ndarray, "N n"]]:
    """All 2^n configurations of +-1, and where each one's neighbours by a single flip stand."""
    places = np.arange(2**sites)
    bits = (places[:, None] >> np.arange(sites)[None, :]) & 1
    flipped = places[:, None] ^ (1 << np.arange(sites))[None, :]
    return 1.0 - 2.0 * bits, flipped.astype(np.int32)


def ground_energy(sites: int, field: float = 1.0) -> float:
    """The least eigenvalue of H, by its free fermions; -2 / sin(pi / 2n) at field 1."""
    momenta = np.pi * (2 * np.arange(sites) + 1) / sites
    return -float(np.sum(np.sqrt(1 + field**2 - 2 * field * np.cos(momenta))))


def neural_quantum_state(
    sites: int = 10, density: int = 2, field: float = 1.0, deviation: float = 0.01
) -> Problem:
    """The ground state of the transverse-field Ising ring by a real Boltzmann machine.

    The optimum is the exact energy, which the machine comes near, not to. Reported besides: the
    relative error of the energy.

    Args:
      sites: of the ring, 3 to 20; 2^sites configurations are summed. 14 to 18 for a GPU.
      density: hidden units per site.
      field: transverse; 1 is the critical point.
      deviation: of the normal start of all parameters.

    Raises:
      ValueError: sites out of range, or a field that is not positive.
    """
    if not 3 <= sites <= MOST_SITES:
        msg = f"sites must be 3 to {MOST_SITES}, for all 2^sites are summed; got {sites}."
        raise ValueError(msg)
    at_least(1, density=density)
    if field <= 0:
        msg = f"field must be positive (the amplitudes are); got {field}."
        raise ValueError(msg)
    spins, flipped = configurations(sites)
    exact = ground_energy(sites, field)
    error_args = (np.asarray(exact), spins, flipped, np.asarray(float(field)))

    def start(key: Key) -> Params:
        hidden = density * sites
        shapes = {"weights": (sites, hidden), "hidden": (hidden,), "visible": (sites,)}
        keys = jax.random.split(key, len(shapes))
        return {
            name: deviation * jax.random.normal(k, shape)
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    return Problem(
        rayleigh_quotient(float(field)),
        start,
        ((spins, flipped),),
        exact,
        f"ground state of {sites} spins at field {field:g}, {density * sites} hidden units",
        metrics={"relative energy error": Metric(relative_energy_error, error_args)},
    )
