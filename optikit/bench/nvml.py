"""What an NVIDIA device says of itself, through NVML; nothing where there is none.

`nvidia-ml-py` is optional, and every question may go unanswered: the answer is None then.
"""

import functools
import importlib
import os
from typing import Any

_REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""Bits of NVML's clock event reasons; idling and chosen clocks are no events here."""

SLOWED = frozenset(_REASONS.values()) - {"power cap", "sync boost"}
"""Reasons that make a clock reading worthless; at its power cap a device still does its best."""


class Device:
    """One device, asked through NVML.

    Args:
      module: `pynvml`, initialised. handle: NVML's handle of the device.
    """

    def __init__(self, module: Any, handle: Any):
        self._module, self._handle = module, handle

    def joules(self) -> float | None:
        """Energy since the driver was loaded; the counter moves every 20 to 100 ms."""
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1e3

    def state(self) -> dict[str, Any]:
        """Clock, temperature, power, why the clock is held back, and who else is there."""
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:  # the name it had before
            reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        milliwatts = self._ask("nvmlDeviceGetPowerUsage")
        return {
            "device_mhz": self._ask("nvmlDeviceGetClockInfo", 1),
            "device_celsius": self._ask("nvmlDeviceGetTemperature", 0),
            "device_watts": None if milliwatts is None else milliwatts / 1e3,
            "slowed_by": None
            if reasons is None
            else [word for bit, word in _REASONS.items() if reasons & bit],
            "device_tenants": self._tenants(),
        }

    def driver(self) -> str | None:
        """The driver's version."""
        try:
            return str(self._module.nvmlSystemGetDriverVersion())
        except (self._module.NVMLError, AttributeError):
            return None

    def _tenants(self) -> int | None:
        """Other processes that compute on the device."""
        running = self._ask("nvmlDeviceGetComputeRunningProcesses")
        if running is None:
            return None
        # inside a container NVML may not know our own number: then one of them is ours
        pids = [process.pid for process in running]
        return len(pids) - 1 if pids else 0

    def _ask(self, question: str, *args: Any) -> Any:
        try:
            return getattr(self._module, question)(self._handle, *args)
        except (self._module.NVMLError, AttributeError):
            return None


@functools.cache
def device() -> Device | None:
    """The device that JAX computes on, or None: it is no NVIDIA one, or NVML is not there."""
    import jax

    first = jax.local_devices()[0]
    if first.platform not in ("gpu", "cuda"):
        return None
    return open_device(getattr(first, "local_hardware_id", None) or 0)


def open_device(index: int) -> Device | None:
    """NVML's view of the device with an index among those visible to this process."""
    try:
        module = importlib.import_module("pynvml")
        module.nvmlInit()
        return Device(module, _handle(module, index))
    except ImportError:
        return None
    except Exception as error:
        if type(error).__name__.startswith("NVMLError"):  # its classes are made at run time
            return None
        raise


def _handle(module: Any, index: int) -> Any:
    visible = [
        v.strip() for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v.strip()
    ]
    name = visible[index] if index < len(visible) else str(index)
    if name.isdigit():
        return module.nvmlDeviceGetHandleByIndex(int(name))
    return module.nvmlDeviceGetHandleByUUID(name)
