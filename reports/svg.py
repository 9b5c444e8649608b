"""matplotlib figures as inline SVG that takes its colours and fonts from the page.

The page's Content-Security-Policy forbids style attributes, and its colours change with dark mode,
so every style becomes presentation attributes and every palette colour a CSS variable.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from reports.formatting import clean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE = {
    "ink": "#1b1b1a",
    "muted": "#5f5e5a",
    "rule": "#d8d6d0",
    "claim": "#0072b2",
    "ceiling": "#007a58",
    "rival": "#b35900",
    "floor": "#6f6f6d",
    "second": "#cc79a7",
}
"""Okabe and Ito's colours, darkened where they would be faint on white. The page names the same
colours as CSS variables and lightens them in dark mode."""

_VARIABLES = {colour: f"var(--{name})" for name, colour in PALETTE.items()}
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_KEPT = {
    "fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-dashoffset", "stroke-linecap", "stroke-linejoin",
    "opacity", "fill-opacity", "stroke-opacity", "font-size", "font-weight", "font-style", "text-anchor",
}  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """One look for all figures: seaborn's ticks theme, text kept as text, no file dates."""
    import matplotlib
    import seaborn

    own: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "eeg2speech",
        "text.parse_math": False,
        "axes.unicode_minus": True,
        "font.family": ["DejaVu Sans"],
        "font.size": 10.5,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 10.5,
        "xtick.labelsize": 10,
        "ytick.labelsize": 10,
        "legend.fontsize": 10,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "xtick.major.width": 0.8,
        "ytick.major.width": 0.8,
        "xtick.major.size": 3.5,
        "ytick.major.size": 3.5,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "lines.solid_capstyle": "round",
    }
    inks = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.labelcolor", "ytick.labelcolor")
    own |= dict.fromkeys(inks, PALETTE["ink"])
    own |= dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), PALETTE["muted"])
    with seaborn.axes_style("ticks"), matplotlib.rc_context(own):  # type: ignore[arg-type]
        yield


def figure(width: float, height: float) -> Figure:
    """An empty figure of a size in CSS pixels, outside pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), layout="constrained")


def inline(fig: Figure, name: str, description: str) -> Markup:
    """The figure as an `<svg>` element: same figure, same text. `name` keeps ids apart on the page."""
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = re.sub(r"<!DOCTYPE[^>]*>", "", buffer.getvalue())
    root = ElementTree.fromstring(text)
    _drop(root, {f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"})
    referenced = set(re.findall(r"#([\w.-]+)", text))
    for element in root.iter():
        _restyle(element)
        identifier = element.attrib.pop("id", None)
        if identifier in referenced:
            element.set("id", f"{name}-{identifier}")
        for key, value in list(element.attrib.items()):
            element.set(key, re.sub(r"url\(#([\w.-]+)\)", rf"url(#{name}-\1)", value))
        if (target := element.attrib.pop(_XLINK, None)) is not None:
            element.set("href", f"#{name}-{target[1:]}")
    root.attrib.pop("width"), root.attrib.pop("height"), root.attrib.pop("version", None)
    root.attrib |= {"role": "img", "aria-label": clean(description, 400), "stroke-linejoin": "round"}
    root.set("class", "figure")
    ElementTree.register_namespace("", _SVG)
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704 - ElementTree escaped it


def _drop(parent: ElementTree.Element, tags: set[str]) -> None:
    for child in list(parent):
        if child.tag in tags:
            parent.remove(child)
        else:
            _drop(child, tags)


def _restyle(element: ElementTree.Element) -> None:
    for rule in element.attrib.pop("style", "").split(";"):
        key, _, value = (part.strip() for part in rule.partition(":"))
        if key == "font":
            size = re.search(r"([\d.]+)px", value)
            element.set("font-size", size[1] if size else "10")
            if "bold" in value or re.search(r"\b[6-9]00\b", value):
                element.set("font-weight", "600")
        elif key in _KEPT:
            element.set(key, value.removesuffix("px"))
    for key in ("fill", "stroke"):
        colour = element.get(key, "")
        element.attrib |= {key: _VARIABLES[colour]} if colour in _VARIABLES else {}
