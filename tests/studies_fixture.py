"""Tiny data sets on disk in the formats in which real studies are published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Interval = tuple[float, float, str]


def write_textgrid(path: Path, tiers: dict[str, Sequence[Interval]], duration_s: float, short: bool = False) -> None:
    """Praat's long text form, or its short one, which leaves all names of fields out."""
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', ""]
    if short:
        lines += ["0", str(duration_s), "<exists>", str(len(tiers))]
    else:
        lines += ["xmin = 0 ", f"xmax = {duration_s} ", "tiers? <exists> ", f"size = {len(tiers)} ", "item []: "]
    for number, (name, intervals) in enumerate(tiers.items(), start=1):
        if short:
            lines += ['"IntervalTier"', f'"{name}"', "0", str(duration_s), str(len(intervals))]
            for start, stop, label in intervals:
                lines += [str(start), str(stop), '"' + label.replace('"', '""') + '"']
            continue
        lines += [f"    item [{number}]:", '        class = "IntervalTier" ', f'        name = "{name}" ']
        lines += ["        xmin = 0 ", f"        xmax = {duration_s} ", f"        intervals: size = {len(intervals)} "]
        for row, (start, stop, label) in enumerate(intervals, start=1):
            quoted = label.replace('"', '""')
            lines += [f"        intervals [{row}]:", f"            xmin = {start} ", f"            xmax = {stop} "]
            lines += [f'            text = "{quoted}" ']
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
