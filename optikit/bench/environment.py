"""Where a number came from: device, versions, precision, flags, commit."""

import hashlib
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

from optikit.bench import nvml

PACKAGES = ("optikit", "jax", "jaxlib", "optax", "numpy", "scipy", "scikit-learn")
DEVICE_PACKAGES = (
    *(f"jax-cuda{major}-plugin" for major in (12, 13)),
    *(f"nvidia-{part}" for part in ("cublas", "cudnn-cu13", "cusolver")),
    *(f"nvidia-{part}-cu12" for part in ("cublas", "cudnn", "cusolver")),
)
"""Listed where they are installed."""
FLAGS = (
    "XLA_FLAGS", "JAX_PLATFORMS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION",
    "XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_MEM_FRACTION", "NVIDIA_TF32_OVERRIDE",
    "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
)  # fmt: skip


def capture() -> dict[str, Any]:
    """The environment of this process; imports JAX and starts its backend."""
    import jax

    device = jax.devices()[0]
    found = {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "driver": _driver(),
        "host": platform.node(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_bytes": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES}
        | {name: found for name in DEVICE_PACKAGES if (found := _version(name))},
        "flags": {name: os.environ[name] for name in FLAGS if name in os.environ},
        "commit": _commit(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
    found["machine"] = machine_id(found)
    return found


def machine_id(environment: dict[str, Any]) -> str:
    """A short hash of what a time depends on: results that differ in it share no time axis."""
    keys = ("device", "platform", "driver", "processor", "cores", "versions", "flags")
    text = repr([environment.get(key) for key in keys])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _driver() -> str | None:
    """The NVIDIA driver's version, if there is one."""
    device = nvml.device()
    if device is not None and (version := device.driver()):
        return version
    try:
        text = pathlib.Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    return text.splitlines()[0]


def _commit() -> str | None:
    """The commit of the source tree optikit runs from, marked if it has changes."""
    root = pathlib.Path(__file__).resolve().parents[2]
    try:
        name = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return name.stdout.strip() or None
