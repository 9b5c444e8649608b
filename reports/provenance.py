"""Where the numbers come from, and a reproducibility checklist that is computed and never ticked."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eval.results import MetricResult, RunResult, audit_sentence
from reports.formatting import clean, count, flatten, is_number
from reports.verify import Check

HASH = re.compile(r"\b[0-9a-f]{12,64}\b")


@dataclass(frozen=True)
class Item:
    claim: str
    passed: bool
    detail: str


def checklist(run: RunResult, checks: list[Check]) -> list[Item]:
    """Each item with the facts it was decided on."""
    tests: tuple[Callable[[RunResult, list[Check]], Item], ...] = (
        _audit, _endpoint, _controls, _seeds, _values, _intervals, _corrected, _signatures, _recomputed, _code,
        _versions, _hashes,
    )  # fmt: skip
    return [test(run, checks) for test in tests]


def _audit(run: RunResult, _: list[Check]) -> Item:
    passed = bool(run.audit) and all(f.passed for f in run.audit)
    return Item("The split was audited and no check found a leak", passed, clean(audit_sentence(run.audit), 600))


def _endpoint(run: RunResult, _: list[Check]) -> Item:
    end = run.endpoint
    named = (run.config.get("evaluation") or {}).get("primary", end.metric)
    text = f"{clean(end.metric, 60)}; {'computed' if is_number(end.gain) else clean(end.reason or 'not computed', 200)}"
    if named != end.metric:
        text += f"; the configuration names {clean(named, 60)}"
    computed = is_number(end.gain) and named == end.metric
    return Item("The primary endpoint is the configuration's and was computed", computed, text)


def _controls(run: RunResult, _: list[Check]) -> Item:
    roles = {role: [clean(s.name, 40) for s in run.systems if s.role == role] for role in ("floor", "ceiling")}
    detail = "; ".join(f"{role}s: {', '.join(names) or 'none'}" for role, names in roles.items())
    return Item("The claim stands between floors and a ceiling", all(roles.values()), detail)


def _seeds(run: RunResult, _: list[Check]) -> Item:
    n = len(set(run.training_seeds))
    return Item("At least three training seeds", n >= 3, count(n, "training seed"))


def _values(run: RunResult, _: list[Check]) -> Item:
    missing = [r for r in run.results if not is_number(r.value)]
    silent = [r for r in missing if not r.reason]
    detail = f"{len(missing)} not run, {len(silent)} of them without a reason"
    return Item("Every missing number has a reason", not silent, detail)


def _intervals(run: RunResult, _: list[Check]) -> Item:
    values = [r for r in run.results if r.subject is None and is_number(r.value)]
    bare = [_cell(r) for r in values if r.ci is None or not all(map(is_number, r.ci))]
    detail = f"{len(values) - len(bare)} of {len(values)}"
    detail += f"; without: {clean(', '.join(bare), 300)}" if bare else ""
    return Item("Every number has a 95 % interval", bool(values) and not bare, detail)


def _cell(result: MetricResult) -> str:
    return f"{result.system}/{result.metric}" + (f"|{result.embedder}" if result.embedder else "")


def _corrected(run: RunResult, _: list[Check]) -> Item:
    tested = [c for c in run.comparisons if c.role == "floor" and c.p is not None]
    raw = [c for c in tested if c.p_holm is None]
    return Item(
        "Tests against the floors are corrected for their number",
        bool(tested) and not raw,
        f"{len(tested) - len(raw)} of {count(len(tested), 'test')} Holm-adjusted",
    )


def _signatures(run: RunResult, _: list[Check]) -> Item:
    values = [r for r in run.results if is_number(r.value)]
    signed = sum(bool(r.signature) for r in values)
    complete = bool(values) and signed == len(values)
    return Item("Every number carries its signature", complete, f"{signed} of {len(values)}")


def _recomputed(_: RunResult, checks: list[Check]) -> Item:
    checked = [c for c in checks if c.outcome != "unchecked"]
    wrong = [c.cell for c in checked if c.outcome == "mismatch"]
    detail = f"{len(checked) - len(wrong)} of {len(checked)} match"
    detail += f"; not: {', '.join(wrong[:5])}" if wrong else ""
    return Item("The per-example table gives the same numbers again", bool(checked) and not wrong, detail)


def _code(run: RunResult, _: list[Check]) -> Item:
    git = run.environment.get("git")
    sha = git.get("sha") if isinstance(git, dict) else None
    if not isinstance(git, dict) or not isinstance(sha, str) or not sha:
        return Item("The code is a commit without local changes", False, "no commit is recorded")
    dirty = git.get("dirty")
    state = "no local changes" if dirty is False else "with local changes" if dirty else "local changes unknown"
    return Item("The code is a commit without local changes", dirty is False, f"{clean(sha, 40)}, {state}")


def _versions(run: RunResult, _: list[Check]) -> Item:
    keys = {key for key, text in flatten(run.environment) if text != "not set"}
    packages = sum(key.startswith("packages.") for key in keys)
    known = packages > 0 and any(key.split(".")[0] in ("cpu", "gpu", "hardware") for key in keys)
    return Item("Package versions and hardware are recorded", known, count(packages, "package"))


def _hashes(run: RunResult, _: list[Check]) -> Item:
    found = [key for key, text in flatten(run.provenance) if HASH.search(text)]
    return Item("Data and weights are named by their hash", bool(found), count(len(found), "hash", "hashes"))


def config_changes(run: RunResult) -> list[tuple[str, str, str]]:
    """(key, default, here) where the run tells its default configuration, as `provenance["default_config"]`."""
    default = run.provenance.get("default_config")
    return differences(default, run.config) if isinstance(default, dict) else []


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The dotted keys at which two configurations differ, with both values."""
    a, b = dict(flatten(first)), dict(flatten(second))
    keys = [*a, *(key for key in b if key not in a)]
    return [(key, a.get(key, "absent"), b.get(key, "absent")) for key in keys if a.get(key) != b.get(key)]


def command_of(run: RunResult) -> str:
    """What made the run, as it would be typed; empty where it was not recorded."""
    found = run.provenance.get("command") or run.provenance.get("commands") or ""
    return "; ".join(map(str, found)) if isinstance(found, list) else str(found)


def inputs(run: RunResult) -> list[tuple[str, str]]:
    """(what, hash) of everything that a number of this run came from."""
    git = run.environment.get("git")
    code = [("code", str(git["sha"]))] if isinstance(git, dict) and git.get("sha") else []
    named = [("configuration and code version", run.signature), *code]
    return named + [(key.replace("_", " "), text) for key, text in flatten(run.provenance) if _is_input(key, text)]


def environment(run: RunResult) -> list[tuple[str, str]]:
    """Memory to a tenth of a GiB."""
    facts = {k: round(v, 1) if k.endswith("_gib") and isinstance(v, float) else v for k, v in run.environment.items()}
    return flatten(facts)


def _is_input(key: str, text: str) -> bool:
    return HASH.search(text) is not None and not key.startswith("default_config")
