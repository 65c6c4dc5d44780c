"""Nonlinear least-squares curve fits to seeded synthetic observations.

With noise 0 the observations lie on the curve: the minimum is 0 at the truth. Otherwise the least
value is not known beforehand.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optikit.calculus import residuals
from optikit.core import Params
from optikit.problems.problem import Problem
from optikit.problems.sizes import at_least

Times = Float[Array, " m"]


def _problem(
    curve: Callable[..., Any],
    fit: Callable[..., Any],
    truth: dict[str, Any],
    start: dict[str, Any],
    times: np.ndarray,
    noise: float,
    seed: int,
    description: str,
) -> Problem:
    exact = {name: np.asarray(value, float) for name, value in truth.items()}
    clean = curve(np, exact, times)
    observed = clean + noise * np.random.default_rng(seed).standard_normal(times.size)
    return Problem(
        residuals(fit),
        {name: np.asarray(value, float) for name, value in start.items()},
        (times, observed),
        0.0 if noise == 0 else None,
        description,
        solution=exact if noise == 0 else None,
    )


def _decay(xp: Any, p: Params, t: Times) -> Times:
    return p["amplitude"] * xp.exp(-p["rate"] * t) + p["floor"]


def _fit_decay(p: Params, t: Times, observed: Times) -> Times:
    return _decay(jnp, p, t) - observed


def exponential_decay(m: int = 60, noise: float = 0.01, seed: int = 0) -> Problem:
    """Fit amplitude exp(-rate t) + floor to noisy observations, by least squares."""
    at_least(1, m=m)
    return _problem(
        _decay,
        _fit_decay,
        {"amplitude": 2.5, "rate": 1.3, "floor": 0.5},
        {"amplitude": 1.0, "rate": 1.0, "floor": 0.0},
        np.linspace(0, 4, m),
        noise,
        seed,
        "exponential decay",
    )


def _decays(xp: Any, p: Params, t: Times) -> Times:
    return xp.exp(-t[:, None] * xp.exp(p["log_rates"])[None, :]) @ p["amplitudes"]


def _fit_decays(p: Params, t: Times, observed: Times) -> Times:
    return _decays(jnp, p, t) - observed


def exponential_sum(terms: int = 3, m: int = 100, noise: float = 0.0, seed: int = 0) -> Problem:
    """Fit a sum of decaying exponentials: each further term worsens the conditioning a hundredfold.

    Args:
      terms: exponentials; rates are e, e^2, ... apart, fitted by their logarithms.
      m: observations on [0, 4].
      noise: standard deviation.
      seed: of the noise.
    """
    at_least(1, terms=terms, m=m)
    k = np.arange(terms)
    return _problem(
        _decays,
        _fit_decays,
        {"amplitudes": 1 + 0.5 * (k % 2), "log_rates": k - 1.0},
        {"amplitudes": np.ones(terms), "log_rates": 0.8 * (k - 1.0) + 0.3},
        np.linspace(0, 4, m),
        noise,
        seed,
        f"sum of {terms} exponentials",
    )


def _saturation(xp: Any, p: Params, s: Times) -> Times:
    del xp
    return p["max_rate"] * s / (p["half"] + s)


def _fit_saturation(p: Params, s: Times, observed: Times) -> Times:
    return _saturation(jnp, p, s) - observed


def michaelis_menten(m: int = 40, noise: float = 0.01, seed: int = 0) -> Problem:
    """Fit the enzyme kinetics curve max_rate s / (half + s).

    Reference: Bates & Watts (1988), "Nonlinear regression analysis", appendix A1.3.
    """
    at_least(1, m=m)
    return _problem(
        _saturation,
        _fit_saturation,
        {"max_rate": 2.0, "half": 0.3},
        {"max_rate": 1.0, "half": 1.0},
        np.geomspace(0.02, 5, m),
        noise,
        seed,
        "Michaelis-Menten",
    )


def _growth(xp: Any, p: Params, t: Times) -> Times:
    return p["capacity"] / (1 + xp.exp(-p["rate"] * (t - p["middle"])))


def _fit_growth(p: Params, t: Times, observed: Times) -> Times:
    return _growth(jnp, p, t) - observed


def logistic_growth(m: int = 50, noise: float = 0.01, seed: int = 0) -> Problem:
    """Fit the sigmoid capacity / (1 + exp(-rate (t - middle)))."""
    at_least(1, m=m)
    return _problem(
        _growth,
        _fit_growth,
        {"capacity": 3.0, "rate": 1.5, "middle": 4.0},
        {"capacity": 1.0, "rate": 0.5, "middle": 2.0},
        np.linspace(0, 10, m),
        noise,
        seed,
        "logistic growth",
    )


def _peaks(xp: Any, p: Params, t: Times) -> Times:
    scaled = (t[:, None] - p["centres"][None, :]) / xp.exp(p["log_widths"])[None, :]
    return xp.exp(-(scaled**2) / 2) @ p["heights"] + p["floor"]


def _fit_peaks(p: Params, t: Times, observed: Times) -> Times:
    return _peaks(jnp, p, t) - observed


def gaussian_peaks(peaks: int = 3, m: int = 200, noise: float = 0.01, seed: int = 0) -> Problem:
    """Fit a spectrum of overlapping Gaussian peaks on a floor; 3 parameters a peak, and one.

    Args:
      peaks: their number; centres lie 2.5 widths apart, heights alternate.
      m: observations.
      noise: standard deviation.
      seed: of the noise.
    """
    at_least(1, peaks=peaks, m=m)
    k = np.arange(peaks)
    return _problem(
        _peaks,
        _fit_peaks,
        {"heights": 1 + 0.5 * (k % 2), "centres": 2.5 * k, "log_widths": 0 * k, "floor": 0.2},
        {
            "heights": np.ones(peaks),
            "centres": 2.5 * k + 0.4 * (-1.0) ** k,
            "log_widths": 0.2 + 0 * k,
            "floor": 0.0,
        },
        np.linspace(-4, 2.5 * (peaks - 1) + 4, m),
        noise,
        seed,
        f"{peaks} Gaussian peaks",
    )


def _oscillation(xp: Any, p: Params, t: Times) -> Times:
    return xp.exp(-p["damping"] * t) * (
        p["cosine"] * xp.cos(p["frequency"] * t) + p["sine"] * xp.sin(p["frequency"] * t)
    )


def _fit_oscillation(p: Params, t: Times, observed: Times) -> Times:
    return _oscillation(jnp, p, t) - observed


def damped_oscillation(
    m: int = 100, noise: float = 0.01, detuning: float = 0.05, seed: int = 0
) -> Problem:
    """Fit a damped sinusoid; a start too far off in frequency ends in a local minimum.

    Args:
      m: observations on [0, 10].
      noise: standard deviation.
      detuning: relative error of the frequency at the start.
      seed: of the noise.
    """
    at_least(1, m=m)
    return _problem(
        _oscillation,
        _fit_oscillation,
        {"damping": 0.2, "frequency": 3.0, "cosine": 1.0, "sine": 0.5},
        {"damping": 0.1, "frequency": 3.0 * (1 + detuning), "cosine": 0.5, "sine": 0.0},
        np.linspace(0, 10, m),
        noise,
        seed,
        "damped oscillation",
    )
