"""The page of measured speed: a section for each device that pytest-benchmark wrote a file about."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from eeg2speech.errors import UserError
from reports.formatting import clean, flatten, is_number
from reports.page import render


@dataclass(frozen=True)
class Row:
    """One benchmark; None where a number was not measured."""

    group: str
    name: str
    setting: str
    """The lever, batch size or shape that the row is about."""
    median_s: float
    interval: tuple[float, float] | None
    coverage: float | None
    rounds: int
    rate: str
    real_time_factor: float | None
    share: float | None
    """Of the device's peak operations a second: the roofline share, or model FLOP utilisation."""
    memory_mib: float | None
    memory_of: str
    energy_j: float | None
    dtype: str
    promised_share: float | None
    work: str
    """How much one call does."""
    identity: str
    """What else tells whether two rows of one name are of the same work."""

    @property
    def share_verdict(self) -> str:
        return _verdict(self.share, self.promised_share)


@dataclass(frozen=True)
class Ratio:
    """Two ways to do one thing; `promise` is the least ratio that was promised."""

    name: str
    ratio: float
    promise: float | None
    ours: str
    peer: str

    @property
    def verdict(self) -> str:
        return _verdict(self.ratio, self.promise)


def _verdict(found: float | None, promise: float | None) -> str:
    return "" if found is None or promise is None else "kept" if found >= promise else "missed"


@dataclass(frozen=True)
class Device:
    name: str
    facts: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    ratios: tuple[Ratio, ...]
    peaks: tuple[tuple[str, str], ...]
    """(dtype, what the share is of and where that number comes from)"""

    @property
    def groups(self) -> list[tuple[str, list[Row]]]:
        return [(name, list(rows)) for name, rows in groupby(self.rows, key=lambda row: row.group)]


def load(folder: Path) -> list[Device]:
    """The devices of a results folder, by file name. Raises UserError naming a file that cannot be read."""
    return [read(path) for path in sorted(Path(folder).glob("*.json"))]


def read(path: Path) -> Device:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        info, benchmarks = raw["machine_info"], raw["benchmarks"]
        shapes = raw.get("sizes", {}).get("shapes", {})
        rows = [_row(b, shapes) for b in benchmarks]
        ratios = [Ratio(*(r[k] for k in ("name", "ratio", "promise", "ours", "peer"))) for r in raw.get("ratios", [])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no result of `nox -s bench` ({clean(error, 120)}): measure again") from error
    extra = [b["extra_info"] for b in benchmarks if is_number(b["extra_info"].get("peak_flops_per_s"))]
    found = {(e["dtype"], f"{e['peak_flops_per_s'] / 1e12:.3g} TFLOP/s, {e['peak_source']}") for e in extra}
    return Device(
        clean(info.get("device") or info.get("cpu", {}).get("brand_raw") or path.stem, 120),
        _facts(raw, info),
        tuple(sorted(rows, key=lambda row: row.group)),
        tuple(ratios),
        tuple(sorted(found)),
    )


def _facts(raw: dict[str, Any], info: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """What a reader needs in order to believe the numbers."""
    named = {"measured": raw.get("datetime"), "clocks": info.get("clocks"), "threads": info.get("threads")}
    load_before = info.get("load_before")
    infos = [b["extra_info"] for b in raw["benchmarks"]]
    if mhz := [e["sm_mhz"] for e in infos if is_number(e.get("sm_mhz"))]:
        named["SM clock after each benchmark's rounds"] = f"{min(mhz)} to {max(mhz)} MHz"
        held = Counter(reason for e in infos for reason in e.get("held_back_by", []))
        named["clock held back by"] = ", ".join(f"{reason} ({n} of {len(mhz)})" for reason, n in held.items()) or None
    named["load before (1, 5, 15 min)"] = load_before and ", ".join(f"{value:.2f}" for value in load_before)
    pairs = [(key, str(value)) for key, value in named.items() if value is not None]
    return tuple(pairs + [(k, v) for k, v in flatten(info.get("environment", {})) if k and v != "not set"])


def _row(benchmark: dict[str, Any], shapes: dict[str, Any]) -> Row:
    info, stats = benchmark["extra_info"], benchmark["stats"]
    name, _, rest = benchmark["name"].partition("[")
    unit = info.get("unit", "call")
    rate = info.get(f"{unit}s_per_s")
    interval = info.get("median_interval_s")
    device = is_number(info.get("device_peak_mib"))
    items, flops = info.get("items", 1), info.get("flops")
    shape = shapes.get(info.get("of") or re.split(r"[-\]]", rest)[0], {})
    kind = [shape.get(key) for key in ("model", "clip_s", "contrastive_weight")]
    return Row(
        benchmark.get("group") or "other",
        re.sub("_+", " ", name.removeprefix("test_")),
        rest.removesuffix("]").replace("-", " · "),
        stats["median"],
        (interval[0], interval[1]) if interval else None,
        info.get("interval_coverage"),
        stats["rounds"],
        f"{significant(rate)} {unit}s/s" if is_number(rate) else "–",
        info.get("real_time_factor"),
        info.get("mfu"),
        info.get("device_peak_mib") if device else info.get("host_peak_mib"),
        "device" if device else "process",
        info.get("energy_j_per_item"),
        info.get("dtype", ""),
        info.get("promised_mfu"),
        f"{items:g} {unit}s" if items != 1 else "",
        json.dumps([kind, info.get("parameters"), flops and flops / items], sort_keys=True),
    )


def significant(value: float | None) -> str:
    """Three significant digits, and whole numbers from a hundred on; a dash where there is none."""
    if value is None or not is_number(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def seconds(value: float | None) -> str:
    """A time in the unit that one would say it in."""
    if value is None or not is_number(value):
        return "–"
    scale, unit = (1.0, "s") if value >= 1 else (1e3, "ms") if value >= 1e-3 else (1e6, "µs")
    return f"{significant(value * scale)} {unit}"


def spread(row: Row) -> str:
    """The interval of the median, and how often such a one holds it where that is not 95 %."""
    if row.rounds < 2:
        return "one round"
    if row.interval is None:
        return f"{row.rounds} rounds"
    text = f"{seconds(row.interval[0])} to {seconds(row.interval[1])}"
    few = row.coverage is not None and row.coverage < 0.95
    return text + (f" ({100 * (row.coverage or 0):.0f} %, {row.rounds} rounds)" if few else "")


def across(devices: Sequence[Device]) -> list[tuple[str, list[str]]]:
    """(benchmark, median on each device) of what was measured on more than one; names with differing work are apart."""
    tables = [{(_label(row), row.identity): row for row in device.rows} for device in devices]
    keys = [key for table in tables for key in table]
    shared = [key for key in dict.fromkeys(keys) if sum(key in table for table in tables) > 1]
    return [(key[0], [seconds(t[key].median_s) if key in t else "–" for t in tables]) for key in shared]


def _label(row: Row) -> str:
    return ", ".join(filter(None, (f"{row.group}: {row.name} {row.setting}".strip(), row.work)))


def page(devices: Sequence[Device]) -> str:
    words: dict[str, Any] = {"seconds": seconds, "significant": significant, "spread": spread}
    return render("benchmarks.html.j2", devices=devices, shared=across(devices), **words)
