"""The energy of a quantum state given by its log-amplitude: what variational Monte Carlo minimises.

E = sum_s p(s) e(s) with p = |psi|^2 / sum |psi|^2 and the local energy e(s) = (H psi)(s) / psi(s).
On all configurations this is the Rayleigh quotient of a Hermitian H. On a sample drawn with a known
density q it is the self-normalised estimate, whose weights |psi|^2 / q are all equal where the
parameters are those of the sampling.

The gradient is 2 Re sum_s p(s) conj(o(s)) (e(s) - E) with o = d log psi: on all configurations the
derivative itself, on a sample the estimate without the term sum p de, which is zero in expectation
and only adds noise.

References: Becca & Sorella (2017), "Quantum Monte Carlo Approaches for Correlated Systems",
sections 5.2 and 6.2; Sorella (1998) for the metric that goes with it (stochastic reconfiguration).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from optikit.core import Params, Scalar

LogAmplitude = Callable[[Params, Any], Array]
"""(params, configurations) -> log psi, (m,), real or complex; phases in its imaginary part."""

LocalEnergy = Callable[[Params, Any], Array]
"""(params, configurations) -> (H psi)(s) / psi(s), (m,)."""


class Estimate(NamedTuple):
    """What m configurations say of a state."""

    weights: Float[Array, " m"]  # sum to 1; 0 where the amplitude is
    log_psi: Array  # (m,), real or complex
    energies: Array  # (m,), local, real or complex; 0 where the weight is
    mean: Scalar  # the energy


def estimate(
    log_amplitude: LogAmplitude, local_energy: LocalEnergy, params: Params, args: tuple
) -> Estimate:
    """The estimate from args = (configurations,), all of them, or (configurations, log_density).

    Raises:
      TypeError: another number of arguments.
      ValueError: no configurations, or values that are not one number each.
    """
    if len(args) not in (1, 2):
        msg = (
            "a variational objective takes args=(configurations,) for all of them, or "
            f"(configurations, log_density) for a sample; got {len(args)}."
        )
        raise TypeError(msg)
    log_psi = log_amplitude(params, args[0])
    energies = local_energy(params, args[0])
    if log_psi.ndim != 1 or energies.shape != log_psi.shape or log_psi.size == 0:
        msg = (
            "log-amplitude and local energy are one number for each of at least one configuration; "
            f"got shapes {log_psi.shape} and {energies.shape}."
        )
        raise ValueError(msg)
    odds = 2 * jnp.real(log_psi)
    if len(args) == 2:
        odds = odds - args[1].astype(odds.dtype)
    weights = jax.nn.softmax(odds)
    energies = jnp.where(weights > 0, energies, 0)
    return Estimate(weights, log_psi, energies, jnp.sum(weights * jnp.real(energies)))


def energy(
    log_amplitude: LogAmplitude, local_energy: LocalEnergy, params: Params, args: tuple
) -> Scalar:
    """The mean energy, with the gradient that the module states."""
    found = estimate(log_amplitude, local_energy, params, args)
    if len(args) == 1:
        return found.mean
    slopes = lax.stop_gradient(2 * found.weights[:, None] * deviations(found))
    log_psi = parts(found.log_psi, slopes.shape[1])
    moved = jnp.where(slopes != 0, log_psi - lax.stop_gradient(log_psi), 0)  # 0, to be derived
    return lax.stop_gradient(found.mean) + jnp.sum(slopes * moved)


def deviations(found: Estimate) -> Float[Array, "m width"]:
    """E - E, in the parts that log psi has."""
    off = parts(found.energies, 2 if jnp.iscomplexobj(found.log_psi) else 1)
    return off.at[:, 0].add(-found.mean)


def parts(x: Array, width: int) -> Float[Array, "... width"]:
    """The real part, and for a width of 2 the imaginary one, along a last axis."""
    if width == 1:
        return jnp.real(x)[..., None]
    return jnp.stack([jnp.real(x), jnp.imag(x)], axis=-1)
