"""Numbers and text as a reader sees them. Values of unit '%' are fractions and shown times 100."""

from __future__ import annotations

import math
import re

MINUS = "\N{MINUS SIGN}"
HARD_SPACE = "\N{NO-BREAK SPACE}"
NARROW_SPACE = "\N{NARROW NO-BREAK SPACE}"
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
"""What no reader can see: control characters, and marks that turn the text after them around."""


def clean(value: object, limit: int = 0) -> str:
    """Any value as text that every encoder accepts: nothing of `_CONTROLS`, no lone surrogates.

    With a `limit` > 0 a longer text is cut there and says how long it was.
    """
    text = _CONTROLS.sub("\ufffd", str(value)).encode("utf-8", "replace").decode("utf-8")
    if 0 < limit < len(text):
        return f"{text[:limit]}… ({len(text):,} characters)"
    return text


def label(value: object, limit: int = 22) -> str:
    """A short figure label."""
    text = clean(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def places(value: float, unit: str) -> int:
    """Decimals to print: one in per cent, three significant digits or so elsewhere."""
    size = abs(value)
    return 1 if unit == "%" or size >= 10 else 2 if size >= 1 else 3


def plain(value: float, unit: str, decimals: int | None = None) -> str:
    """A value without its unit."""
    decimals = places(value, unit) if decimals is None else decimals
    text = f"{100 * value if unit == '%' else value:,.{decimals}f}"
    if not any(c in "123456789" for c in text):
        text = text.removeprefix("-")
    return text.replace("-", MINUS)


def quantity(value: float, unit: str) -> str:
    """A value with its unit."""
    return plain(value, unit) + (f"{NARROW_SPACE}{unit}" if unit else "")


def difference(value: float, unit: str) -> str:
    """A gain: percentages differ by points, never by per cent."""
    if unit == "%":
        return f"{plain(value, unit)} points"
    return quantity(value, unit)


def interval(ci: tuple[float, float], unit: str, decimals: int | None = None) -> str:
    decimals = max(places(bound, unit) for bound in ci) if decimals is None else decimals
    return f"{plain(ci[0], unit, decimals)} to {plain(ci[1], unit, decimals)}"


def p_value(p: float) -> str:
    """Two significant digits, and never below what is worth printing."""
    return f"p{HARD_SPACE}<{HARD_SPACE}0.0001" if p < 1e-4 else f"p{HARD_SPACE}={HARD_SPACE}{bare_p(p)}"


def bare_p(p: float | None) -> str:
    """A p-value for a column that is headed p."""
    if p is None or not is_number(p):
        return "–"
    if p < 1e-4:
        return "< 0.0001"
    return f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def stars(p: float) -> str:
    return "***" if p < 0.001 else "**" if p < 0.01 else "*" if p < 0.05 else ""


def count(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def energy(joules: float | None) -> str:
    """Watt hours, of which a stage on one machine takes between 1 and some thousands."""
    return f"{joules / 3600:,.3g} Wh" if joules is not None and is_number(joules) else "not measured"


def short(value: str) -> str:
    """A hash as one reads it; a text that holds more keeps its words."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{4,52}\b", r"\1…", clean(value, 200))


def flatten(value: object, prefix: str = "") -> list[tuple[str, str]]:
    """Nested plain data as (dotted key, text) pairs, in the order it is stored."""
    if isinstance(value, dict) and value:
        pairs = [flatten(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items()]
        return [pair for group in pairs for pair in group]
    if isinstance(value, list | tuple) and any(isinstance(item, dict | list | tuple) for item in value):
        pairs = [flatten(item, f"{prefix}[{index}]") for index, item in enumerate(value)]
        return [pair for group in pairs for pair in group]
    if isinstance(value, list | tuple):
        return [(prefix, ", ".join(map(str, value)) if value else "(empty)")]
    return [(prefix, "(empty)" if value in ({}, "") else "not set" if value is None else str(value))]
