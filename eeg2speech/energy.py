"""What the machine has used meanwhile, where its counters can be read: RAPL for CPUs, NVML for GPUs."""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules since it was made, of all packages and GPUs of the machine, whoever used them.

    RAPL's counters start again at some 10^5 J (under an hour at 100 W): `read` must be called more often than that.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._zones = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        self._last = self._counters()
        self._joules = 0.0

    def read(self) -> float | None:
        """None where the system gives no counter, or not to this user."""
        now = self._counters()
        for name in set(now) & set(self._last):
            spent, span = now[name][0] - self._last[name][0], now[name][1]
            self._joules += spent + span if spent < 0 else spent
        self._last = now
        return self._joules if now else None

    def _counters(self) -> dict[str, tuple[float, float]]:
        """Name -> (joules so far, joules at which it starts again)."""
        found = _gpus()
        for zone in self._zones:
            try:
                values = [int((zone / key).read_text()) / 1e6 for key in ("energy_uj", "max_energy_range_uj")]
            except OSError:
                continue  # root alone may read them on most systems
            found[zone.name] = (values[0], values[1])
        return found


def _gpus() -> dict[str, tuple[float, float]]:
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        used = [pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000 for handle in handles]
    except pynvml.NVMLError:
        return {}  # no driver, or a GPU too old to count
    return {f"gpu{i}": (joules, 0.0) for i, joules in enumerate(used)}
