"""The state of the machine while a clock ran: what it offered, and who else wanted it."""

import os
import pathlib
import resource
import sys
from typing import Any

from optikit.bench import nvml

WAITED = 0.1
"""Share of its running time for which a process had to wait for a core, from which it counts as
sharing the machine."""


def memory() -> dict[str, int | None]:
    """Peaks until now, in bytes: of this process in host memory, of its device.

    `process_peak_bytes` is the largest resident set since the process began, imports included;
    `device_peak_bytes` what JAX's allocator had in use at most, None where it does not count.
    """
    import jax

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stats = jax.local_devices()[0].memory_stats() or {}
    return {
        "process_peak_bytes": peak if sys.platform == "darwin" else peak * 1024,
        "device_peak_bytes": stats.get("peak_bytes_in_use"),
    }


def state() -> dict[str, Any]:
    """Load and clock rate of the processor; clock, temperature and tenants of the device."""
    device = nvml.device()
    return {
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "processor_mhz": _processor_mhz(),
        **({} if device is None else device.state()),
    }


class Watch:
    """A context whose `seen` says how things stood before, after and meanwhile.

    `waited`: the share of running time that this process' threads spent waiting for a core, None if
    the system does not tell; `stolen`: the share of the machine that its hypervisor gave to others.
    `marks`: "shared", "throttled", in words; `invalid`: those that make the clock worthless.
    """

    seen: dict[str, Any]

    def __enter__(self) -> "Watch":
        self._before, self._threads, self._ticks = state(), _threads(), _ticks()
        return self

    def __exit__(self, *_: object) -> None:
        threads, ticks, after = _threads(), _ticks(), state()
        self.seen = {
            "before": self._before,
            "after": after,
            "waited": _waited(self._threads, threads),
            "stolen": _stolen(self._ticks, ticks),
        }
        self.seen |= _judged(self.seen)


def _judged(seen: dict[str, Any]) -> dict[str, list[str]]:
    """What to hold against the clock."""
    marks, invalid = [], []
    if (seen["waited"] or 0) > WAITED or (seen["stolen"] or 0) > WAITED:
        marks.append("shared")
    for moment in (seen["before"], seen["after"]):
        if moment.get("device_tenants"):
            invalid.append("shared")
        slowed = set(moment.get("slowed_by") or ())
        if slowed & nvml.SLOWED:
            invalid.append("throttled")
        marks += sorted(slowed - nvml.SLOWED)
    invalid = list(dict.fromkeys(invalid))
    return {"marks": list(dict.fromkeys([*invalid, *marks])), "invalid": invalid}


def _processor_mhz() -> float | None:
    """The mean clock rate of the cores now."""
    files = pathlib.Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    try:
        rates = [float(file.read_text()) / 1e3 for file in files]
        if not rates:
            lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
            rates = [float(x.partition(":")[2]) for x in lines if x.startswith("cpu MHz")]
    except (OSError, ValueError):
        return None
    return sum(rates) / len(rates) if rates else None


def _threads() -> dict[str, tuple[int, int]]:
    """Nanoseconds run, and waited for a core, by thread; empty if the system keeps none."""
    found = {}
    for file in pathlib.Path("/proc/self/task").glob("*/schedstat"):
        try:
            ran, waited, _ = map(int, file.read_text().split())
        except (OSError, ValueError):
            continue
        found[file.parent.name] = (ran, waited)
    return found


def _waited(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> float | None:
    pairs = [(now, before.get(name, (0, 0))) for name, now in after.items()]
    ran, waited = (sum(now[i] - then[i] for now, then in pairs) for i in (0, 1))
    return waited / (ran + waited) if ran > 0 else None


def _ticks() -> list[int]:
    """The system's clock ticks by use; the eighth is what a hypervisor took. Empty if unknown."""
    try:
        first = pathlib.Path("/proc/stat").read_text().partition("\n")[0]
        return [int(x) for x in first.split()[1:]]
    except (OSError, ValueError):
        return []


def _stolen(before: list[int], after: list[int]) -> float | None:
    if len(before) < 8 or len(after) < 8:
        return None
    total = sum(after) - sum(before)
    return (after[7] - before[7]) / total if total > 0 else 0.0
