"""A template filled in: escaped, self-contained, and under a policy that allows its own script and style alone."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reports import formatting, tables


def render(template: str, *, payload: object = None, sounds: str = "data:", **context: Any) -> str:
    """The page as text. `sounds`: where the policy lets sounds come from."""
    environment = Environment(
        loader=PackageLoader("reports"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["clean"] = formatting.clean
    folder = files("reports") / "templates"
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("style.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; media-src {sounds}; "
        f"style-src 'sha256-{_hash(style)}'; script-src 'sha256-{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    # Both are files of this package, and the hash in the policy holds only for them as they are.
    inlined = {"style": Markup(style), "script": Markup(script)}  # noqa: S704
    text = environment.get_template(template).render(
        **context, **inlined, policy=policy, payload=_json(payload), fmt=formatting, tables=tables
    )
    return text.encode("utf-8", "replace").decode("utf-8")


def _printable(value: object) -> object:
    """The one gate that all text passes on its way into the page, before it is escaped."""
    return formatting.clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(data: object) -> Markup:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704
