"""Run folders in, one self-contained page and its tables out: the same results give the same bytes."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from eeg2speech.errors import UserError
from eeg2speech.files import atomic_path, write_atomically
from eeg2speech.runs import RunFolder, changed_files
from eval.results import RunResult
from reports import benchmarks, cards, comparison, curves, exports, figures, formatting, psychometric, sweeps, tables
from reports.finding import audit_failure, find_out, full_name, seeds_note, simulation_note
from reports.listening import Room, build_room, ratio
from reports.page import render
from reports.provenance import checklist, command_of, config_changes, environment, inputs
from reports.verify import check, metric_column

EXAMPLES_PER_SYSTEM = 200
"""Rows of the per-example table that the page itself holds for a system; `examples.csv` has all."""


def build(
    run_folders: Sequence[Path],
    output: Path,
    *,
    embed: bool = True,
    benchmark_results: Path | None = None,
    calibration_results: Path | None = None,
) -> Path:
    """Writes `output/index.html`, `output/results.csv` and per run `output/runs/<name>/` with its tables and cards.

    One run: index.html is its report. Several: index.html compares them, and each run's report is
    `runs/<name>/index.html`. Sounds are inside the page, or files beside its tables where `embed` is False.
    A folder of `benchmark_results` that holds any becomes `output/benchmarks.html`, and a folder of
    `calibration_results` `output/calibration.html`.
    Raises UserError naming the file where a run folder is incomplete, or two runs share a name.
    """
    output = Path(output)
    loaded = [(Path(folder), *tables.load_run(folder)) for folder in run_folders]
    slugs = [slug(run.name) for _, run, _ in loaded]
    for name in slugs:
        if slugs.count(name) > 1:
            raise UserError(f"two of the run folders hold a run named {name!r}: evaluate one under another --name")
    measured = benchmarks.load(benchmark_results) if benchmark_results is not None else []
    calibration = psychometric.load(calibration_results)
    single = len(loaded) == 1
    for (folder, run, examples), name in zip(loaded, slugs, strict=True):
        place, links = output / "runs" / name, f"runs/{name}/" if single else ""
        room = build_room(folder, run, examples, None if embed else f"{links}sounds/")
        export(run, examples, room, place)
        up = "" if single else "../../"
        others = (f"{up}benchmarks.html" if measured else "", f"{up}calibration.html" if calibration else "")
        changed = [os.path.relpath(path, folder) for path in changed_files(RunFolder(folder).evaluation) or []]
        page = report(run, examples, room, links, *others, swept=sweeps.pictures(folder, run), changed=changed)
        write_atomically(output / "index.html" if single else place / "index.html", page)
    runs = [run for _, run, _ in loaded]
    frame = pd.concat([exports.results_frame(run) for run in runs], ignore_index=True)
    write_atomically(output / "results.csv", exports.frame_to_csv(frame))
    if measured:
        write_atomically(output / "benchmarks.html", benchmarks.page(measured))
    if calibration is not None:
        write_atomically(output / "calibration.html", psychometric.page(calibration))
    if not single:
        others = ("benchmarks.html" if measured else "", "calibration.html" if calibration else "")
        write_atomically(output / "index.html", comparison.page(runs, slugs, *others))
    return output / "index.html"


def slug(name: str) -> str:
    """A folder name that stays inside its parent, whatever the run is called."""
    safe = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:80]
    return safe or hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:12]


def export(run: RunResult, examples: pd.DataFrame, room: Room, place: Path) -> None:
    """The headline table as LaTeX, Markdown, CSV and JSON; the per-example table; both cards; sounds that are files."""
    table = tables.build_table(run).only(tables.headline_columns(run))
    write_atomically(place / "headline.tex", exports.to_latex(table, run))
    write_atomically(place / "headline.md", exports.to_markdown(table, run))
    write_atomically(place / "headline.csv", exports.to_csv(table, run))
    write_atomically(place / "headline.json", exports.to_json(table, run))
    write_atomically(place / "examples.csv", exports.frame_to_csv(examples))
    for name, card in (("model_card.md", cards.model_card(run)), ("dataset_card.md", cards.dataset_card(run))):
        write_atomically(place / name, card.markdown())
    for name, content in room.files:
        with atomic_path(place / "sounds" / name) as partial:
            partial.write_bytes(content)
    kept = {name for name, _ in room.files}
    for old in (place / "sounds").glob("*.flac"):  # of an earlier page
        if old.name not in kept:
            old.unlink()


def report(
    run: RunResult,
    examples: pd.DataFrame,
    room: Room,
    links: str,
    speed: str = "",
    calibrated: str = "",
    swept: Sequence[figures.Picture] = (),
    changed: Sequence[str] = (),
) -> str:
    """The page of one run; `links` leads from the page to the run's exported tables, `speed` to the benchmarks,
    `calibrated` to the calibration. `swept` are the figures of its sampler, `changed` the files that are not as the
    evaluation left them."""
    table = tables.build_table(run)
    headline = table.only(tables.headline_columns(run))
    checks = check(run, examples)
    training = [figures.training_curve(stage, index) for index, stage in enumerate(run.stages)]
    return render(
        "run.html.j2",
        run=run,
        claim=tables.claim_of(run),
        finding=find_out(run),
        void=audit_failure(run),
        changed=changed,
        full_name=full_name,
        simulation=simulation_note(run),
        seeds=seeds_note(run),
        size=tables.size_sentence(run),
        headline=headline,
        chance=tables.chance(headline),
        table=table,
        full_chance=tables.chance(table),
        spans=figures.floor_to_ceiling(run),
        pictures=[*pictures(run, examples), *swept],
        training=[picture for picture in training if picture is not None],
        room=room,
        cards=[cards.model_card(run), cards.dataset_card(run)],
        data=formatting.flatten(run.data),
        environment=environment(run),
        provenance=formatting.flatten({k: v for k, v in run.provenance.items() if k != "default_config"}),
        inputs=inputs(run),
        command=command_of(run),
        config=formatting.flatten(run.config),
        changes=config_changes(run),
        checklist=checklist(run, checks),
        outcomes={(c.result.system, c.result.metric, c.result.embedder): c for c in checks if c.result.subject is None},
        payload=payload(run, table, examples),
        sounds="'self' file:" if room.files else "data:",
        links=links,
        speed=speed,
        calibrated=calibrated,
    )


def pictures(run: RunResult, examples: pd.DataFrame) -> list[figures.Picture]:
    """The figures that this run has the numbers for."""
    found = [
        figures.per_subject(run),
        figures.rank_histogram(run, examples, tables.candidates(run)),
        curves.candidate_curve(run, examples),
        figures.error_shares(run, examples),
        *curves.set_size_curves(run),
    ]
    return [picture for picture in found if picture is not None]


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
