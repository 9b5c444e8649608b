"""Run folders in, one self-contained page and its tables out: the same results give the same bytes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from eeg2speech.errors import UserError
from eeg2speech.files import write_atomically
from eval.results import RunResult
from reports import anchors, exports, figures, formatting, tables
from reports.finding import find_metric, find_out, seeds_note, simulation_note
from reports.listening import build_room, ratio
from reports.provenance import checklist, config_changes, differences
from reports.verify import check, metric_column

EXAMPLES_PER_SYSTEM = 200
"""Rows of the per-example table that the page itself holds for a system; `examples.csv` has all."""


def build(run_folders: Sequence[Path], output: Path) -> Path:
    """Writes `output/index.html`, `output/results.csv` and per run `output/runs/<name>/` with its tables.

    One run: index.html is its report. Several: index.html compares them, one row each and never an
    average, and each run's report is `runs/<name>/index.html`.
    Raises UserError naming the file where a run folder is incomplete, or two runs share a name.
    """
    output = Path(output)
    loaded = [(Path(folder), *tables.load_run(folder)) for folder in run_folders]
    slugs = [slug(run.name) for _, run, _ in loaded]
    for name in slugs:
        if slugs.count(name) > 1:
            raise UserError(f"two of the run folders hold a run named {name!r}: evaluate one under another --name")
    single = len(loaded) == 1
    for (folder, run, examples), name in zip(loaded, slugs, strict=True):
        place = output / "runs" / name
        export(run, examples, place)
        page = report(folder, run, examples, f"runs/{name}/" if single else "")
        write_atomically(output / "index.html" if single else place / "index.html", page)
    runs = [run for _, run, _ in loaded]
    frame = pd.concat([exports.results_frame(run) for run in runs], ignore_index=True)
    write_atomically(output / "results.csv", exports.frame_to_csv(frame))
    if not single:
        write_atomically(output / "index.html", compare(runs, slugs))
    return output / "index.html"


def slug(name: str) -> str:
    """A folder name that stays inside its parent, whatever the run is called."""
    safe = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:80]
    return safe or hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:12]


def export(run: RunResult, examples: pd.DataFrame, place: Path) -> None:
    """The headline table as LaTeX, Markdown, CSV and JSON, and the per-example table as CSV."""
    table = tables.build_table(run).only(tables.headline_columns(run))
    write_atomically(place / "headline.tex", exports.to_latex(table))
    write_atomically(place / "headline.md", exports.to_markdown(table))
    write_atomically(place / "headline.csv", exports.to_csv(table))
    write_atomically(place / "headline.json", exports.to_json(table, run))
    write_atomically(place / "examples.csv", exports.frame_to_csv(examples))


def report(folder: Path, run: RunResult, examples: pd.DataFrame, links: str) -> str:
    """The page of one run; `links` leads from the page to the run's exported tables."""
    table = tables.build_table(run)
    headline = table.only(tables.headline_columns(run))
    checks = check(run, examples)
    pictures = [figures.per_subject(run), figures.rank_histogram(run, examples), figures.error_shares(run, examples)]
    curves = [figures.training_curve(stage, index) for index, stage in enumerate(run.stages)]
    return render(
        "run.html.j2",
        run=run,
        claim=tables.claim_of(run),
        finding=find_out(run),
        simulation=simulation_note(run),
        seeds=seeds_note(run),
        size=tables.size_sentence(run),
        headline=headline,
        chance=tables.chance(headline),
        table=table,
        full_chance=tables.chance(table),
        spans=figures.floor_to_ceiling(run),
        pictures=[picture for picture in pictures if picture is not None],
        curves=[curve for curve in curves if curve is not None],
        room=build_room(folder, run, examples),
        data=formatting.flatten(run.data),
        environment=formatting.flatten(run.environment),
        provenance=formatting.flatten({k: v for k, v in run.provenance.items() if k != "default_config"}),
        config=formatting.flatten(run.config),
        changes=config_changes(run),
        checklist=checklist(run, checks),
        outcomes={(c.result.system, c.result.metric, c.result.embedder): c for c in checks if c.result.subject is None},
        payload=payload(run, table, examples),
        links=links,
    )


def payload(run: RunResult, table: tables.Table, examples: pd.DataFrame) -> dict[str, Any]:
    """What stands behind each cell, for the page's script: per system the examples, per column their values."""
    held = {c.key: metric_column(c.info.name, c.embedder, examples) for c in table.columns if c.info.per_example}
    systems = {}
    for row in table.rows:
        mine = examples[examples.system == row.name].sort_values(["stimulus_id", "subject", "sampling_seed"])
        shown = mine.head(EXAMPLES_PER_SYSTEM)
        heard = shown["hypothesis"] if "hypothesis" in shown else pd.Series(None, index=shown.index, dtype=object)
        systems[row.name] = {
            "total": len(mine),
            "subject": [formatting.clean(v, 40) for v in shown.subject],
            "stimulus": [formatting.clean(v, 80) for v in shown.stimulus_id],
            "heard": [formatting.clean(v, 160) if isinstance(v, str) else "" for v in heard],
            "values": {key: _values(shown, name, table, key) for key, name in held.items() if name is not None},
        }
    return {"systems": systems}


def _values(rows: pd.DataFrame, name: str, table: tables.Table, key: str) -> list[float | None]:
    unit = next(c.info.unit for c in table.columns if c.key == key)
    numbers = ratio(rows, name) * (100 if unit == "%" else 1)
    return [round(float(v), 4) if formatting.is_number(float(v)) else None for v in numbers]


def compare(runs: Sequence[RunResult], slugs: Sequence[str]) -> str:
    """The page over several runs: one row each."""
    rows = []
    for run, name in zip(runs, slugs, strict=True):
        info = find_metric(run, run.endpoint.metric)
        unit = info.unit if info else ""
        rows.append({"run": run, "link": f"runs/{name}/index.html", "finding": find_out(run), "unit": unit})
    first = runs[0]
    changes = [(run, differences(first.config, run.config)) for run in runs[1:]]
    return render(
        "compare.html.j2",
        rows=rows,
        forests=figures.forests(runs),
        changes=changes,
        first=first,
        simulated=[run for run in runs if run.simulated],
        anchors=anchors.ANCHORS,
        payload=None,
    )


def render(template: str, **context: Any) -> str:
    """A template with its style, script and the policy that allows these two and nothing else."""
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
        "default-src 'none'; img-src data:; media-src data:; "
        f"style-src 'sha256-{_hash(style)}'; script-src 'sha256-{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    # Both are files of this package, and the hash in the policy holds only for them as they are.
    inlined = {"style": Markup(style), "script": Markup(script)}  # noqa: S704
    data = context.pop("payload")
    text = environment.get_template(template).render(
        **context, **inlined, policy=policy, payload=_json(data), fmt=formatting, tables=tables
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
