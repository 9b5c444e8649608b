"""The report as files: the finding, the tables, the numbers and what hostile content does to them."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import jiwer
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_fixture import SYSTEMS, Fake, write_fake_run

from eeg2speech.errors import UserError
from eeg2speech.runs import write_done
from eval.results import AuditFinding, Comparison, Endpoint, MetricResult, RunResult, load_examples
from reports import listening, tables
from reports.__main__ import main
from reports.build import build, slug
from reports.figures import training_curve
from reports.finding import find_out, seeds_note, simulation_note
from reports.formatting import clean, flatten, interval, plain, quantity
from reports.provenance import checklist, differences, environment
from reports.verify import check, verify

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "fake"
    write_fake_run(place)
    return place


@pytest.fixture(scope="session")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "silent"
    write_fake_run(place, Fake(has_audio=False, simulated=False, name="silent", study="folder"))
    return place


@pytest.fixture(scope="session")
def run(folder: Path) -> RunResult:
    return RunResult.load(folder)


@pytest.fixture(scope="session")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build([folder], tmp_path_factory.mktemp("page")).read_text(encoding="utf-8")


class Reader(HTMLParser):
    """What an HTML parser sees: elements, attributes and text, so that escaping is judged as a browser would."""

    VOID = frozenset(("meta", "link", "img", "input", "br"))

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.text: list[str] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] in self.raw:
            self.raw[self.stack[-1]].append(data)
        else:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


def test_same_results_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    written = []
    for name in ("a", "b"):
        build([folder], tmp_path / name)
        found = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        written.append({str(p.relative_to(tmp_path / name)): p.read_bytes() for p in found})
    assert written[0] == written[1]
    assert set(written[0]) >= {"index.html", "results.csv", "runs/matrix_fake/headline.tex"}


def test_bytes_do_not_depend_on_the_process(folder: Path, tmp_path: Path) -> None:
    digests = set()
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "reports", "build", str(folder), "--output", str(tmp_path / seed)]
        subprocess.run(command, cwd=ROOT, check=True, env={"PYTHONHASHSEED": seed, "PATH": ""}, capture_output=True)
        digests.add(hashlib.sha256((tmp_path / seed / "index.html").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_markup_is_balanced_and_ids_are_unique(page: str) -> None:
    reader = Reader(page)
    assert not reader.stack
    ids = [a["id"] for _, a in reader.elements if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for tag, a in reader.elements if (a.get("href") or "").startswith("#") for a in [a]}
    assert targets <= set(ids)


def test_policy_allows_only_the_page_s_own_script_and_style(page: str) -> None:
    reader = Reader(page)
    policy = next(a["content"] for t, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    script, style = reader.raw["script"][-1], reader.raw["style"][-1]
    for kind, text in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert not [a for _, a in reader.elements if "style" in a], "the policy would drop style attributes"
    assert not [k for _, a in reader.elements for k in a if k.startswith("on")]


def test_nothing_on_the_page_leads_off_the_machine(page: str) -> None:
    addresses = [a.get(k) or "" for _, a in Reader(page).elements for k in ("src", "href")]
    assert not [x for x in addresses if re.match(r"(https?:)?//", x)]


def test_page_links_to_files_that_exist(folder: Path, tmp_path: Path) -> None:
    for target in (build([folder], tmp_path / "one"),):
        links = [a.get("href") or "" for _, a in Reader(target.read_text(encoding="utf-8")).elements]
        relative = [x for x in links if x and not x.startswith(("#", "data:"))]
        assert relative
        assert all((target.parent / x).is_file() for x in relative)


def test_every_cell_of_the_headline_shows_its_stored_value(page: str, run: RunResult) -> None:
    words = Reader(page).words
    for result in run.results:
        if result.subject is None and result.metric == "wer":
            assert result.value is not None
            assert f"{100 * result.value:.1f}" in words
    for system in SYSTEMS:
        assert system in words
    assert "not run: pystoi is not installed: install the eval extra" in words
    assert "n/a: this system hears no EEG" in words


def test_simulation_is_said_in_plain_words(page: str, silent: Path, tmp_path: Path) -> None:
    sentence = "Simulated EEG says nothing about real brains."
    words = Reader(page).words
    assert words.index(sentence) < words.index("Top-1")
    assert sentence not in Reader(build([silent], tmp_path).read_text(encoding="utf-8")).words


def test_a_study_without_audio_says_so(silent: Path, tmp_path: Path) -> None:
    reader = Reader(build([silent], tmp_path).read_text(encoding="utf-8"))
    assert "not run: the study has no audio" in reader.words
    room = reader.words[reader.words.index("Listening room") :]
    assert room.startswith("Listening room not run: the study has no audio.")
    assert not [t for t, _ in reader.elements if t == "audio"]


def with_endpoint(run: RunResult, **values: object) -> RunResult:
    return run.model_copy(update={"endpoint": run.endpoint.model_copy(update=values)})


@pytest.mark.parametrize(
    ("values", "verdict", "words"),
    [
        ({"gain": 0.2, "ci": (0.1, 0.3), "p": 0.004}, "better", "EEG beats the best control, shuffled, by 20.0 points"),
        ({"gain": 0.02, "ci": (-0.1, 0.3), "p": 0.4}, "none", "No evidence"),
        ({"gain": 0.02, "ci": (0.01, 0.3), "p": 0.06}, "none", "No evidence"),
        ({"gain": 0.02, "ci": (-0.01, 0.3), "p": 0.01}, "none", "No evidence"),
        ({"gain": 0.2, "ci": None, "p": 0.01}, "none", "No evidence"),
        ({"gain": 0.2, "ci": (0.1, 0.3), "p": math.nan}, "none", "No evidence"),
        ({"gain": -0.2, "ci": (-0.3, -0.1), "p": 0.01}, "worse", "EEG is worse than the best control"),
        ({"gain": None, "reason": "Whisper is absent"}, "missing", "was not computed: Whisper is absent"),
        ({"gain": math.nan, "reason": None}, "missing", "was not computed: no reason was given"),
    ],
)
def test_the_finding_follows_from_the_numbers(
    run: RunResult, values: dict[str, object], verdict: str, words: str
) -> None:
    values = {"best_floor": "shuffled", "span_share": 0.5, "ceiling": "reconstruction"} | values
    finding = find_out(with_endpoint(run, **values))
    assert finding.verdict == verdict
    assert words in finding.sentence
    assert ("25.6\u202f% against 92.2\u202f%" in finding.sentence) == (verdict != "missing")
    assert ("covering 50 % of the way" in finding.sentence) == (verdict == "better")


def test_no_finding_where_the_audit_failed_or_is_missing(run: RunResult) -> None:
    leak = AuditFinding(check="shared text", passed=False, detail="12 sentences")
    assert find_out(run).verdict == "better"
    failed = find_out(run.model_copy(update={"audit": [*run.audit, leak]}))
    assert failed.verdict == "void"
    assert "audit failed (shared text)" in failed.sentence
    assert find_out(run.model_copy(update={"audit": []})).verdict == "void"


def test_a_failed_audit_stands_above_the_table(folder: Path, run: RunResult, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    run.model_copy(update={"audit": []}).save(tmp_path / "run")
    words = Reader(build([tmp_path / "run"], tmp_path / "out").read_text(encoding="utf-8")).words
    line = "Results Nothing in this table may be believed: no leakage audit was made. Systems by metrics"
    assert line in words


def test_a_check_that_could_not_be_made_is_no_pass(folder: Path, run: RunResult, tmp_path: Path) -> None:
    old = {"check": "audio crosstalk", "passed": True, "detail": "not tested in 16 recordings: sampled at 128 Hz"}
    untested = run.model_copy(update={"audit": [*run.audit, AuditFinding.model_validate(old)]})
    assert find_out(untested).verdict == "better"
    shutil.copytree(folder, tmp_path / "run")
    untested.save(tmp_path / "run")
    assert RunResult.load(tmp_path / "run").audit == untested.audit
    page = build([tmp_path / "run"], tmp_path / "out").read_text(encoding="utf-8")
    words = Reader(page).words
    assert words.count("2 of 3 checks passed, 1 could not be made (audio crosstalk).") == 2, "card and checklist"
    assert page.count('<span class="aside">not tested</span>') == 1


def test_the_null_run_reports_no_evidence(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path, Fake(effect=0.0, seconds=0.1, seed=3))
    assert find_out(run).verdict == "none"


@pytest.mark.parametrize(
    ("windows", "overlap"),
    [
        ({"length_s": 3.0, "test_stride_s": None}, False),
        ({"length_s": 3.0, "test_stride_s": 3.0}, False),
        ({"length_s": 3.0, "test_stride_s": 0.9}, True),
        ({"length_s": 3.0, "test_stride_s": None, "placement": "brainmagick"}, True),
    ],
)
def test_windows_that_share_their_sound_are_said_to(run: RunResult, windows: dict[str, object], overlap: bool) -> None:
    found = find_out(run.model_copy(update={"config": run.config | {"windows": windows}}))
    assert any("overlap" in line for line in found.details) == overlap


def test_seeds_and_simulation_notes(run: RunResult) -> None:
    assert seeds_note(run).startswith("One training seed (0)")
    assert "Fewer than three" in seeds_note(run.model_copy(update={"training_seeds": [0, 1]}))
    assert seeds_note(run.model_copy(update={"training_seeds": [0, 1, 2]})).startswith("3 training seeds (0, 1, 2). ")

    def of(listeners: int, stimuli: int = 20) -> RunResult:
        heard = [s.model_copy(update={"n_subjects": listeners, "n_stimuli": stimuli}) for s in run.systems]
        return run.model_copy(update={"systems": heard, "simulated": False})

    assert simulation_note(of(7)) == "Recorded EEG: 7 listeners."
    assert seeds_note(of(1)).endswith(" One listener: says nothing about others.")
    assert seeds_note(of(19)).endswith(" 19 listeners: the intervals do not cover others.")
    assert seeds_note(of(20, 19)).endswith(" 20 listeners: the intervals do not cover others.")
    assert "listener" not in seeds_note(of(20)), "from here on they are clusters, too"


def test_a_loss_is_judged_by_the_named_floor_s_own_p(run: RunResult) -> None:
    ps = {"shuffled": 0.01, "noise": 0.4}
    floors = [Comparison(metric="wer", system=s, role="floor", gain=-0.1, p=p / 2, p_holm=p) for s, p in ps.items()]
    worse = with_endpoint(run, best_floor="shuffled", gain=-0.1, ci=(-0.2, -0.05), p=0.4)
    found = find_out(worse.model_copy(update={"comparisons": floors}))
    assert found.verdict == "worse"
    assert "p\xa0=\xa00.01, Holm-adjusted" in found.sentence
    assert not any("80 % power" in line for line in found.details)
    won = find_out(with_endpoint(worse, gain=0.1, ci=(0.05, 0.2), p=0.03).model_copy(update={"comparisons": floors}))
    assert "p\xa0=\xa00.03, the largest over 2 floors, Holm-adjusted" in won.sentence


def test_what_a_rival_wins_is_said_beside_what_it_loses(run: RunResult) -> None:
    others = {"wer": (0.1, 0.001), "top1": (-0.1, 0.001), "estoi": (0.1, 0.02), "top5": (-0.1, 0.04), "fad": (1.0, 0.9)}
    tests = [Comparison(metric=m, system="regression", role="rival", gain=g, p=p) for m, (g, p) in others.items()]
    said = " ".join(find_out(run.model_copy(update={"comparisons": tests})).details)
    assert "Of 4 other metrics it is behind regression in Top-1 (p < 0.05, Holm-adjusted)." in said
    tests[2] = tests[2].model_copy(update={"p": 0.004})
    said = " ".join(find_out(run.model_copy(update={"comparisons": tests})).details)
    assert "it is ahead of regression in ESTOI, and behind regression in Top-1 (" in said


def test_a_recogniser_that_hears_words_in_noise_is_named(run: RunResult) -> None:
    rate = MetricResult(system="reference", metric="hallucination_noise", value=0.6, n=4)

    def said(value: float) -> bool:
        rates = [*run.results, rate.model_copy(update={"value": value})]
        return any("hears words in" in line for line in find_out(run.model_copy(update={"results": rates})).details)

    assert said(0.6)
    assert not said(0.4)


def test_embedders_are_columns_of_their_own(run: RunResult) -> None:
    table = tables.build_table(run)
    keys = [column.key for column in table.columns]
    assert keys[0] == "wer"
    assert {"fad|resemblyzer", "fad|whisper"} <= set(keys)
    values = {}
    for column in table.columns:
        found = tables.find(run, "eeg", column)
        values[column.key] = found.value if found else None
    assert values["fad|whisper"] != values["fad|resemblyzer"]


def test_the_headline_mixes_kinds_of_metrics(run: RunResult) -> None:
    keys = [column.key for column in tables.headline_columns(run)]
    assert keys == ["wer", "top1", "fad|resemblyzer", "mel_correlation", "estoi", "top5"]
    absent = [r.model_copy(update={"value": None}) if r.embedder == "resemblyzer" else r for r in run.results]
    keys = [c.key for c in tables.headline_columns(run.model_copy(update={"results": absent}))]
    assert "fad|whisper" in keys
    assert "fad|resemblyzer" not in keys


def test_marks_need_a_gain_and_a_p_value(run: RunResult) -> None:
    def marks(**values: object) -> str:
        base = Comparison(metric="wer", system="shuffled", role="floor", gain=0.1, p=0.001, p_holm=0.001)
        changed = run.model_copy(update={"comparisons": [base.model_copy(update=values)]})
        row = next(r for r in tables.build_table(changed).rows if r.name == "shuffled")
        return row.cells[0].mark

    assert marks() == "**"
    assert marks(p_holm=0.0004) == "***"
    assert marks(p_holm=0.2) == "", "the corrected value decides"
    assert marks(gain=-0.1) == "†"
    assert marks(gain=None, p=None, p_holm=None) == ""


def test_a_part_of_the_table_has_its_own_letters_and_legend(run: RunResult) -> None:
    worse = Comparison(metric="top1", system="shuffled", role="floor", gain=-0.1, p=0.001, p_holm=0.001)
    table = tables.build_table(run.model_copy(update={"comparisons": [worse]}))
    assert [letter for letter, _ in table.notes] == ["a", "b"]
    assert any(line.startswith("†") for line in table.legend)
    estoi = table.only([c for c in table.columns if c.key == "estoi"])
    assert [letter for letter, _ in estoi.notes] == ["a"]
    assert {row.cells[0].note for row in estoi.rows} == {"a"}
    assert estoi.notes[0][1].startswith("not run: pystoi")
    assert not [line for line in estoi.legend if line.startswith("†")]
    sets = table.only([c for c in table.columns if c.info.name == "fad"])
    assert "FAD: of a whole set of clips" in " ".join(sets.legend)
    assert "of a whole set" not in " ".join(estoi.legend)


def test_what_does_not_apply_is_told_from_what_was_not_run(run: RunResult) -> None:
    old = "the system {} makes no embedding from EEG"
    rows = [
        r.model_copy(update={"value": None, "ci": None, "reason": old.format(r.system)}) if r.metric == "top1" else r
        for r in run.results
    ]
    table = tables.build_table(run.model_copy(update={"results": rows}))
    top1 = table.only([c for c in table.columns if c.key == "top1"])
    assert {row.cells[0].text for row in top1.rows} == {"n/a"}
    assert top1.notes == (("a", "n/a: this system makes no embedding from EEG"),)


def test_an_interval_without_width_is_not_certainty(run: RunResult) -> None:
    from scipy.stats import binomtest

    def legend(low: float) -> str:
        flat = MetricResult(system="reference", metric="top1", value=1.0, ci=(low, 1.0), n=12, signature="x")
        return " ".join(tables.build_table(run.model_copy(update={"results": [flat]})).legend)

    bound = 100 * (1 - binomtest(12, 12).proportion_ci(method="exact").low)
    assert f"a share of 0 or 100 % over 12 stimuli may truly lie {bound:.1f} points off" in legend(1.0)
    assert "without width" not in legend(0.9)


def test_a_test_set_that_was_cut_is_said_to_be(run: RunResult) -> None:
    assert "of 12 stimuli heard" in tables.size_sentence(run)
    cut = run.model_copy(update={"data": {"splits": {"test": {"stimuli": 67}}}})
    assert "of 12 of 67 test stimuli heard" in tables.size_sentence(cut)


def test_bold_only_where_the_interval_is_apart(run: RunResult) -> None:
    def best(**intervals: tuple[float, float]) -> list[str]:
        rows = [
            MetricResult(system=s, metric="wer", value=sum(ci) / 2, ci=ci, n=1, signature="x")
            for s, ci in {"reference": (0.0, 0.01), **intervals}.items()
        ]
        table = tables.build_table(run.model_copy(update={"results": rows}))
        return [row.name for row in table.rows if row.cells[0].best]

    assert best(eeg=(0.1, 0.2), regression=(0.3, 0.4), noise=(0.8, 0.9)) == ["eeg"]
    assert best(eeg=(0.1, 0.35), regression=(0.3, 0.4), noise=(0.8, 0.9)) == []


def test_exports_agree_with_the_results(folder: Path, run: RunResult, tmp_path: Path) -> None:
    build([folder], tmp_path)
    frame = pd.read_csv(tmp_path / "results.csv")
    assert len(frame) == len(run.results)
    stored = [math.nan if r.value is None else r.value for r in run.results]
    assert frame["value"].to_numpy() == pytest.approx(stored, nan_ok=True, rel=1e-15)
    place = tmp_path / "runs" / "matrix_fake"
    data = json.loads((place / "headline.json").read_text())
    cells = {row["system"]: row["cells"] for row in data["rows"]}
    for result in run.results:
        if result.subject is None and result.metric == "wer":
            assert cells[result.system]["wer"]["value"] == result.value
    assert len(pd.read_csv(place / "examples.csv")) == len(load_examples(folder))
    latex = (place / "headline.tex").read_text()
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 1
    assert latex.index(r"\bottomrule") < latex.index("Simulated EEG") < latex.index("n/a: this system") < len(latex)
    body = [line for line in latex.splitlines() if line.endswith(r"\\") and r"\multicolumn" not in line]
    assert len({line.count(" & ") for line in body}) == 1
    lines = (place / "headline.md").read_text().splitlines()
    assert lines[0].startswith("Simulated EEG")
    assert lines[2] == "Leakage audit of the split: 2 of 2 checks passed."
    sheet = pd.read_csv(place / "headline.csv")
    assert list(sheet["EEG"].unique()) == ["simulated"]
    assert list(sheet["audit"].unique()) == ["pass"]
    assert "n/a: this system hears no EEG" in sheet.set_index("System").loc["reference", "notes"]
    assert data["notes"]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")}
    assert len(widths) == 1


def test_verify_matches_and_finds_a_changed_number(
    folder: Path, run: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = {c.outcome for c in verify(folder)}
    assert outcomes == {"match", "unchecked"}
    assert main(["verify", str(folder)]) == 0
    assert capsys.readouterr().out.endswith("files: no evaluation left a record here\n")
    changed = [
        r.model_copy(update={"value": r.value + 1e-6})
        if (r.system, r.metric, r.subject) == ("eeg", "wer", None) and r.value is not None
        else r
        for r in run.results
    ]
    run.model_copy(update={"results": changed}).save(tmp_path)
    (tmp_path / "examples.parquet").write_bytes((folder / "examples.parquet").read_bytes())
    assert main(["verify", str(tmp_path)]) == 1
    assert "mismatch   eeg/wer " in capsys.readouterr().out
    assert main(["verify", str(tmp_path), "--cell", "eeg/wer"]) == 1
    assert main(["verify", str(tmp_path), "--cell", "shuffled/wer"]) == 0
    assert main(["verify", str(tmp_path), "--cell", "eeg/nonsense"]) == 2
    assert main(["verify", str(tmp_path), "--cell", "eeg/fad|whisper"]) == 2


def test_the_page_names_files_that_were_changed_after_the_evaluation(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    (run / "evaluation").mkdir(exist_ok=True)
    write_done(run / "evaluation", "depends", ["../results.json", "../examples.parquet"], {})
    told = []
    for _ in range(2):
        build([run], tmp_path / "page")
        told.append("Changed after the evaluation" in (tmp_path / "page" / "index.html").read_text(encoding="utf-8"))
        (run / "results.json").write_text((run / "results.json").read_text() + "\n")
    assert told == [False, True]


def test_the_finding_says_what_a_mean_and_a_p_hide(run: RunResult) -> None:
    """For how many listeners; what the audit could not see, or saw faintly; how often the test set was looked at."""
    plain = " ".join(find_out(run).details)
    assert "evaluated" not in plain
    assert "could not check" not in plain
    looks = [{"signature": "other", "primary": "mrr"}, {"signature": "another", "primary": "wer"}]
    looks.append({"signature": run.signature, "primary": "wer"})
    audit = [
        *run.audit,
        AuditFinding(check="audio crosstalk", passed=True, detail="not tested in 2 recordings: slow", tested=False),
        AuditFinding(check="other", passed=True, detail="", remark="In 1 of 2 recordings something is faint."),
    ]
    told = run.model_copy(update={"audit": audit, "provenance": run.provenance | {"evaluated_before": looks}})
    details = " ".join(find_out(told).details)
    assert "evaluated 2 times before with other settings (by mrr, wer)" in details
    assert "could not check audio crosstalk (not tested in 2 recordings: slow)" in details
    assert "In 1 of 2 recordings something is faint." in details


@pytest.mark.parametrize(("values", "ahead"), [((10.0, 20.0, 60.0), 2), ((60.0, 60.0, 50.0), 0)])
def test_the_finding_counts_the_listeners_for_whom_it_holds(
    values: tuple[float, ...], ahead: int, run: RunResult
) -> None:
    floor = run.endpoint.best_floor
    mine = [r for r in run.results if r.metric == run.endpoint.metric and r.subject is None]
    claim = next(r for r in mine if r.system == "eeg")
    cells = [claim.model_copy(update={"subject": f"l{i}", "value": value}) for i, value in enumerate(values)]
    cells += [claim.model_copy(update={"system": floor, "subject": f"l{i}", "value": 50.0}) for i in range(3)]
    details = " ".join(find_out(run.model_copy(update={"results": [*mine, *cells]})).details)
    assert f"It is ahead of {floor} for {ahead} of 3 listeners." in details


def test_verify_counts_a_value_without_examples_as_wrong(run: RunResult, folder: Path) -> None:
    table = load_examples(folder).drop(columns=["wer_n"])
    outcomes = {c.outcome for c in check(run, table) if c.result.metric == "wer"}
    assert outcomes == {"mismatch"}


def test_checklist_is_computed(run: RunResult, folder: Path) -> None:
    table = load_examples(folder)
    items = {item.claim: item.passed for item in checklist(run, check(run, table))}
    failing = {claim for claim, passed in items.items() if not passed}
    assert failing == {"At least three training seeds"}
    worse = run.model_copy(
        update={
            "environment": {"git": {"sha": "abc", "dirty": True}},
            "results": [r.model_copy(update={"signature": "", "reason": None}) for r in run.results],
            "provenance": {},
            "audit": [],
            "endpoint": Endpoint(metric="wer", reason="no floors"),
        }
    )
    items = {item.claim: item.passed for item in checklist(worse, check(worse, table.assign(wer=0.0)))}
    assert {claim for claim, passed in items.items() if passed} == {
        "The claim stands between floors and a ceiling",
        "Every number has a 95 % interval",
        "Tests against the floors are corrected for their number",
    }


def test_what_a_training_stage_cost(page: str, folder: Path, run: RunResult, tmp_path: Path) -> None:
    assert "float32" in page
    assert "Energy: not measured" in page
    metered = run.model_copy(update={"stages": [s.model_copy(update={"energy_j": 7200.0}) for s in run.stages]})
    shutil.copytree(folder, tmp_path / "run")
    metered.save(tmp_path / "run")
    text = build([tmp_path / "run"], tmp_path / "out").read_text(encoding="utf-8")
    assert "2 Wh" in text
    assert "Energy: not measured" not in text


def test_curves_over_decades_and_of_one_value_are_drawn(run: RunResult) -> None:
    stage = run.stages[0].model_copy(
        update={"curve": [{"step": 0.0, "train/loss": 100.0}, {"step": 9.0, "train/loss": 0.1, "valid/loss": 0.2}]}
    )
    picture = training_curve(stage, 0)
    assert picture is not None
    assert "mathdefault" not in picture.svg
    assert re.search(r">\s*0\.1\s*<", picture.svg), "the axis is labelled in plain numbers"
    plain = training_curve(stage.model_copy(update={"curve": [*stage.curve, {"step": 5.0, "valid/loss": 0.3}]}), 0)
    assert plain is not None
    assert picture.svg.count("<use") > plain.svg.count("<use"), "one value is a point"


def test_examples_are_chosen_by_the_printed_rule(run: RunResult, folder: Path) -> None:
    table = load_examples(folder)
    mine = table[table.system == "eeg"]
    chosen, rule = listening.choose(run, mine)
    rates = (mine.wer / mine.wer_n).sort_values().to_numpy()
    found = {rank: row.wer / row.wer_n for rank, row in chosen}
    assert found["best"] == rates[0]
    assert found["worst"] == rates[-1]
    assert found["median"] == rates[len(rates) // 2]
    assert len({(row.subject, row.stimulus_id) for _, row in chosen}) == 4
    assert "WER" in rule
    again, _ = listening.choose(run, mine.sample(frac=1, random_state=1))
    assert [(k, r.subject, r.stimulus_id) for k, r in again] == [(k, r.subject, r.stimulus_id) for k, r in chosen]


words = st.lists(st.sampled_from(["one", "two", "three", "four", "five"]), max_size=7)


@given(words, words)
def test_word_diff_has_the_fewest_edits_and_loses_no_word(said: list[str], heard: list[str]) -> None:
    diff = listening.align(" ".join(said), " ".join(heard))
    assert " ".join(d.reference for d in diff if d.reference).split() == said
    assert " ".join(d.hypothesis for d in diff if d.hypothesis).split() == heard
    edits = sum(max(len(d.reference.split()), len(d.hypothesis.split())) for d in diff if d.kind != "equal")
    if said:
        expected = jiwer.process_words(" ".join(said), " ".join(heard)) if heard else None
        counted = len(said) if expected is None else expected.substitutions + expected.deletions + expected.insertions
        assert edits == counted


def test_why_there_is_no_sound_is_the_study_s_reason_or_none(folder: Path, run: RunResult) -> None:
    table = load_examples(folder).assign(wav=None)
    yamnet = MetricResult(system="eeg", metric="fad", embedder="yamnet", reason="weights absent: yamnet_audio.tflite")
    room = listening.build_room(folder, run.model_copy(update={"results": [yamnet]}), table)
    assert room.reason == "not run: the run stored no sounds"


def test_a_sound_that_is_gone_is_no_metric_that_was_not_run(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    for path in (tmp_path / "run" / "wavs").glob("eeg_*"):
        path.unlink()
    words = Reader(build([tmp_path / "run"], tmp_path / "out").read_text(encoding="utf-8")).words
    assert "no sound: wavs/eeg_" in words
    assert "not run: wavs/eeg_" not in words


def test_memory_is_told_to_a_tenth(run: RunResult) -> None:
    machine = run.model_copy(update={"environment": {"memory_gib": 23.540584564208984, "cpu": "none"}})
    assert environment(machine) == [("memory_gib", "23.5"), ("cpu", "none")]


def test_a_number_without_interval_is_named_with_its_embedder(run: RunResult) -> None:
    bare = MetricResult(system="eeg", metric="fad", embedder="whisper", value=1.0, n=1)
    items = {item.claim: item.detail for item in checklist(run.model_copy(update={"results": [bare]}), [])}
    assert items["Every number has a 95 % interval"] == "0 of 1; without: eeg/fad|whisper"


def test_wavs_outside_the_run_folder_are_not_read(folder: Path, run: RunResult, tmp_path: Path) -> None:
    secret = tmp_path / "secret.wav"
    secret.write_bytes(next((folder / "wavs").glob("*.wav")).read_bytes())
    table = load_examples(folder)
    for wav in (str(secret), "../../secret.wav", "wavs/absent.wav"):
        room = listening.build_room(folder, run, table.assign(wav=wav))
        clips = [clip for example in room.examples for clip in example.clips]
        assert clips
        assert not [clip for clip in clips if clip.audio]
        assert all(clip.reason for clip in clips)


def test_sounds_are_left_out_when_the_page_grows_too_large(
    folder: Path, run: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "AUDIO_BUDGET_BYTES", 50_000)
    room = listening.build_room(folder, run, load_examples(folder))
    clips = [clip for example in room.examples for clip in example.clips]
    held = sum(len(base64.b64decode(clip.audio.partition(",")[2])) for clip in clips)
    assert 0 < held <= 50_000
    assert any("left out" in clip.reason for clip in clips)


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{7*7}}\u202e\u0000\x1b$x^2$\\"
LONG = "A" * 10_000


def hostile_run(folder: Path, place: Path) -> RunResult:
    """The fake run with hostile text in every field that a user's data can reach."""
    run = RunResult.load(folder)
    table = load_examples(folder)
    evil = {"eeg": "eeg", **{name: HOSTILE + name for name in SYSTEMS if name not in ("eeg", "shuffled")}}
    table = table.assign(
        system=table.system.map(lambda s: evil.get(s, s)),
        subject=table.subject.map(lambda s: s and s + HOSTILE),
        hypothesis=[None, math.nan, LONG, HOSTILE] * (len(table) // 4),
        reference=HOSTILE,
        stimulus_id=table.stimulus_id + HOSTILE,
    )
    place.mkdir()
    table.to_parquet(place / "examples.parquet")
    (place / "wavs").symlink_to(folder / "wavs")

    def swap(record: MetricResult) -> MetricResult:
        subject = record.subject and record.subject + HOSTILE
        changed = {"system": evil.get(record.system, record.system), "subject": subject, "signature": HOSTILE}
        changed |= {"value": math.nan} if record.metric == "mel_correlation" else {}
        return record.model_copy(update=changed | ({"reason": LONG + HOSTILE} if record.value is None else {}))

    systems = [s.model_copy(update={"name": evil.get(s.name, s.name), "description": LONG}) for s in run.systems]
    nasty = run.model_copy(
        update={
            "name": "../../" + HOSTILE,
            "study": HOSTILE + LONG,
            "config": {HOSTILE: {LONG: HOSTILE, "none": None, "nan": math.nan, "empty": {}, "list": [HOSTILE, [1]]}},
            "data": {HOSTILE: LONG},
            "environment": {HOSTILE: HOSTILE},
            "provenance": {HOSTILE: HOSTILE, "default_config": {HOSTILE: LONG}},
            "audit": [AuditFinding(check=HOSTILE, passed=True, detail=LONG)],
            "systems": systems,
            "results": [swap(r) for r in run.results],
            "metrics": [m.model_copy(update={"label": HOSTILE + m.label, "definition": LONG}) for m in run.metrics],
            "comparisons": [c.model_copy(update={"gain": math.nan, "reason": HOSTILE}) for c in run.comparisons],
            "stages": [s.model_copy(update={"name": HOSTILE}) for s in run.stages[:1]],
        }
    )
    nasty.save(place)
    return nasty


def test_hostile_content_is_text(folder: Path, tmp_path: Path) -> None:
    hostile_run(folder, tmp_path / "nasty")
    page = build([tmp_path / "nasty"], tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    reader = Reader(text)
    assert not reader.stack
    assert [t for t, _ in reader.elements].count("script") == 2
    assert len(reader.raw["script"]) == 2
    json.loads(reader.raw["script"][0])
    assert not [a for t, a in reader.elements if t == "img" and a.get("src") == "x"]
    assert not [k for _, a in reader.elements for k in a if k.startswith("on")]
    assert [t for t, _ in reader.elements].count("audio") >= 8
    assert "alert(1)" in reader.words
    assert "{{7*7}}" in reader.words
    assert "A" * 2000 not in text
    assert not {"\x00", "\x1b", "\u202e"} & set(text)
    inside = {p.relative_to(tmp_path / "out").parts[0] for p in (tmp_path / "out").rglob("*")}
    assert inside == {"index.html", "results.csv", "runs"}
    latex = next((tmp_path / "out").rglob("headline.tex")).read_text()
    assert "^" not in latex
    assert not re.search(r"(?<!\\)[_#]", latex)


@given(st.text())
def test_slug_stays_in_its_folder(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,80}", slug(name))


def test_several_runs_are_rows_and_never_averaged(folder: Path, silent: Path, tmp_path: Path) -> None:
    page = build([folder, silent], tmp_path)
    reader = Reader(page.read_text(encoding="utf-8"))
    assert not reader.stack
    assert "never averaged" in reader.words
    links = [a["href"] for t, a in reader.elements if t == "a" and (a.get("href") or "").startswith("runs/")]
    assert list(dict.fromkeys(links)) == ["runs/matrix_fake/index.html", "runs/silent/index.html"]
    for link in links:
        own = Reader((tmp_path / str(link)).read_text(encoding="utf-8"))
        relative = [a.get("href") or "" for _, a in own.elements]
        relative = [x for x in relative if x and not x.startswith(("#", "data:"))]
        assert all((tmp_path / str(link)).parent.joinpath(x).is_file() for x in relative)
    assert set(pd.read_csv(tmp_path / "results.csv")["run"]) == {"matrix_fake", "silent"}
    with pytest.raises(UserError, match="two of the run folders"):
        build([folder, folder], tmp_path / "twice")


def test_configurations_are_compared_key_by_key() -> None:
    a = {"x": 1, "y": {"z": [1, 2], "same": 0}}
    b = {"x": 1, "y": {"z": [1, 3], "same": 0, "new": None}}
    assert differences(a, b) == [("y.z", "1, 2", "1, 3"), ("y.new", "absent", "not set")]
    assert flatten({"a": {}, "b": [{"c": 1}]}) == [("a", "(empty)"), ("b[0].c", "1")]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.2564, "%", "25.6"), (1.103, "%", "110.3"), (-0.00001, "%", "0.0"), (-0.5, "%", "−50.0"), (0.0123, "", "0.012"),
     (12.34, "dB", "12.3"), (1234567.0, "", "1,234,567.0")],
)  # fmt: skip
def test_numbers_read_as_a_reader_expects(value: float, unit: str, text: str) -> None:
    assert plain(value, unit) == text


def test_units_and_intervals() -> None:
    assert quantity(1.103, "%") == "110.3\u202f%"
    assert interval((-0.05, 0.123), "%") == "−5.0 to 12.3"
    assert clean("a\x00b\ud800") == "a\ufffdb?"
    assert clean("x" * 50, 10) == "x" * 10 + "… (50 characters)"


@pytest.mark.parametrize("broken", ["absent", "not json", "schema", "field", "parquet", "columns"])
def test_a_broken_run_folder_is_one_sentence(
    folder: Path, tmp_path: Path, broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "run"
    place.mkdir()
    raw = json.loads((folder / "results.json").read_text())
    raw |= {"schema_version": 99} if broken == "schema" else {"simulated": "perhaps"} if broken == "field" else {}
    if broken != "absent":
        (place / "results.json").write_text("{" if broken == "not json" else json.dumps(raw))
    if broken == "parquet":
        (place / "examples.parquet").write_text("not parquet")
    else:
        table = load_examples(folder)
        (table.drop(columns="subject") if broken == "columns" else table).to_parquet(place / "examples.parquet")
    assert main(["build", str(place), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert ("examples.parquet" if broken in ("parquet", "columns") else "results.json") in error
    assert ("its folder holds no evaluated run; name one" in error) == (broken == "absent")
    assert not (tmp_path / "out").exists()


RENDERED = """
import sys, time
from pathlib import Path
import reports.build
from reports.__main__ import main
start = time.perf_counter()
code = main(sys.argv[1:])
# Not ru_maxrss, which a process takes over from the one that started it.
status = Path("/proc/self/status")
lines = status.read_text().splitlines() if status.exists() else ["VmHWM: 0 kB"]
peak = [line.split()[1] for line in lines if line.startswith("VmHWM")]
print(time.perf_counter() - start, *peak)
sys.exit(code)
"""


def test_five_thousand_examples_render_in_time_and_memory(folder: Path, run: RunResult, tmp_path: Path) -> None:
    table = load_examples(folder)
    copies = -(-5000 // len(table[table.system == "eeg"]))
    parts = [table.assign(stimulus_id=table.stimulus_id + f"-{k}") for k in range(copies)]
    pd.concat(parts, ignore_index=True).to_parquet(tmp_path / "examples.parquet")
    (tmp_path / "wavs").symlink_to(folder / "wavs")
    run.save(tmp_path)
    command = [sys.executable, "-c", RENDERED, "build", str(tmp_path), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, peak_kib = map(float, done.stdout.splitlines()[-1].split())
    assert seconds < 30
    assert peak_kib * 1024 < 1e9
    page = tmp_path / "out" / "index.html"
    assert page.stat().st_size < 10_000_000
    assert "data:audio/flac" in page.read_text(encoding="utf-8")
