"""Model card and dataset card, written from the results: sections in the order of Mitchell et al. (FAT* 2019)
and Gebru et al. (CACM 2021), as a section of the page and as Markdown that a model hub reads."""

from __future__ import annotations

import json
from dataclasses import dataclass

from eval.results import RunResult, Submission, audit_sentence
from reports.finding import find_out, seeds_note, simulation_note
from reports.formatting import clean, count, duration, energy, flatten, interval, is_number, plain, quantity
from reports.tables import claim_of, columns, find, size_sentence, value_of

Rows = tuple[tuple[str, str], ...]
PATTERNS = "\\`*_[]<>|#"


@dataclass(frozen=True)
class Section:
    """A heading with sentences, rows of facts, or both."""

    title: str
    sentences: tuple[str, ...] = ()
    rows: Rows = ()


@dataclass(frozen=True)
class Card:
    title: str
    tags: tuple[tuple[str, str | list[str]], ...]
    """What a hub indexes by."""
    sections: tuple[Section, ...]

    def markdown(self) -> str:
        lines = ["---", *(f"{key}: {json.dumps(_tag(value))}" for key, value in self.tags), "---"]
        lines += ["", f"# {_plain(self.title)}"]
        for section in self.sections:
            lines += ["", f"## {_plain(section.title)}", ""]
            lines += [_plain(sentence) for sentence in section.sentences]
            if section.rows:
                lines += [""] * bool(section.sentences) + ["| | |", "|---|---|"]
                lines += [f"| {_plain(key)} | {_plain(value)} |" for key, value in section.rows]
        return "\n".join(lines) + "\n"


def _tag(value: str | list[str]) -> str | list[str]:
    return clean(value, 200) if isinstance(value, str) else [clean(item, 200) for item in value]


def _plain(text: str) -> str:
    for character in PATTERNS:
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def _pick(pairs: dict[str, str], *wanted: tuple[str, str]) -> Rows:
    """(heading, value) of the keys that are there."""
    return tuple((heading, clean(pairs[key], 300)) for heading, key in wanted if pairs.get(key, "not set") != "not set")


def _submission_card(run: RunResult, about: Submission) -> Card:
    """Of sounds whose maker is not known here."""
    made = (
        f"Sounds that another system generated from the EEG of the test set of “{clean(run.study, 80)}”.",
        f"Beside it stand the rows of “{clean(about.beside, 80)}”; “submission_shuffled” is its own floor.",
    )
    hashes = (("Manifest", about.manifest_sha256), ("Sounds, in the order of the test set", about.sounds_sha256))
    return Card(
        "Submission card",
        (("tags", ["eeg", "speech"]), ("datasets", [run.study])),
        (
            Section("What it is", made, (("Folder", clean(about.sounds, 80)), ("Sounds", f"{about.n_sounds:,}"))),
            Section("Training", (seeds_note(run),)),
            Section("Evaluation", (find_out(run).sentence, f"N: {size_sentence(run)}."), _scores(run)),
            Section("Limits", _limits(run)),
            Section("SHA-256", (), hashes),
        ),
    )


def model_card(run: RunResult) -> Card:
    if run.submission is not None:
        return _submission_card(run, run.submission)
    config = dict(flatten(run.config))
    made = _pick(
        config,
        ("EEG encoder", "model.eeg_encoder.name"),
        ("Audio encoder", "model.audio_encoder.name"),
        ("Embedding dimension", "model.embedding.dim"),
        ("Conditioning", "model.denoiser.conditioning"),
        ("Prediction", "model.schedule.prediction_type"),
        ("Vocoder", "model.vocoder.name"),
        ("Sampler", "sampling.scheduler"),
        ("Sampling steps", "sampling.num_inference_steps"),
        ("Guidance scale", "sampling.guidance_scale"),
    )
    hashes = dict(flatten(run.provenance.get("weights_sha256", {})))
    stages = tuple((clean(s.name, 60), _stage(s.parameters, s.steps, s.wall_s, s.energy_j)) for s in run.stages)
    weights = tuple((clean(name, 60), clean(value, 80)) for name, value in hashes.items() if name)
    return Card(
        "Model card",
        (
            ("library_name", "diffusers"),
            ("tags", ["eeg", "speech", "latent-diffusion"]),
            ("datasets", [run.study]),
            ("license", "other"),
            ("license_name", "see-the-training-data"),
        ),
        (
            Section("What it is", ("A latent diffusion model that generates speech from a window of EEG.",), made),
            Section("Training", (_trained_on(run), seeds_note(run)), stages),
            Section(
                "Intended use",
                (
                    "Research: measuring how much of heard speech a pipeline recovers from EEG, against controls.",
                    "Not for diagnosis, not for decisions about a person, not evidence of what someone thinks: it was "
                    "trained on listening, and for the listeners it was trained on.",
                ),
            ),
            Section("Evaluation", (find_out(run).sentence, f"N: {size_sentence(run)}."), _scores(run)),
            Section("Limits", _limits(run)),
            *([Section("SHA-256 of the weights", (), weights)] if weights else []),
        ),
    )


def _stage(parameters: int, steps: int, wall_s: float, energy_j: float | None) -> str:
    spent = f", {energy(energy_j)}" if energy_j is not None else ""
    return f"{count(parameters, 'parameter')}, {count(steps, 'step')}, {duration(wall_s)}{spent}"


def _trained_on(run: RunResult) -> str:
    kind = "simulated" if run.simulated else "recorded"
    return f"Trained on the study “{clean(run.study, 80)}” ({kind} EEG); see the dataset card."


def _scores(run: RunResult) -> Rows:
    """The claim's values with their intervals, all listeners together, and what every floor scores."""
    claim = claim_of(run)
    floors = [system.name for system in run.systems if system.role == "floor"]
    rows = []
    for column in columns(run):
        unit, ours = column.info.unit, find(run, claim, column)
        if ours is None or (value := value_of(ours)) is None:
            continue
        text = quantity(value, unit)
        text += f" (95 % CI {interval(ours.ci, unit)})" if ours.ci and all(map(is_number, ours.ci)) else ""
        scored = [(name, value_of(find(run, name, column))) for name in floors]
        under = [f"{clean(name, 40)} {plain(v, unit)}" for name, v in scored if v is not None]
        rows.append((column.title, text + (f"; floors: {', '.join(under)}" if under else "")))
    return tuple(rows)


def _limits(run: RunResult) -> tuple[str, ...]:
    mine = [r for r in run.results if (r.system, r.subject) == (claim_of(run), None)]
    measured = {r.metric for r in mine if is_number(r.value)}
    missing = sorted({clean(r.metric, 40) for r in mine} - measured)
    lines = [simulation_note(run)]
    lines.append(clean(audit_sentence(run.audit), 600))
    lines += [f"Not run for the claim: {', '.join(missing)}."] if missing else []
    return tuple(lines)


def dataset_card(run: RunResult) -> Card:
    facts = dict(flatten(run.data))
    licence = clean(facts.get("licence", "not recorded"), 200)
    splits = run.data.get("splits", run.data.get("split", {}))
    per_split = tuple(
        (
            clean(name, 40),
            ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in flatten(part)) or "not recorded",
        )
        for name, part in (splits.items() if isinstance(splits, dict) else ())
    )
    known = _pick(
        facts,
        ("Modality", "modality"),
        ("Listeners", "subjects"),
        ("Recordings", "recordings"),
        ("Hours of EEG", "hours"),
        ("Channels", "channels"),
        ("Sampling rate, Hz", "sfreq_hz"),
        ("Window, s", "window_s"),
        ("Fingerprint", "fingerprint"),
    )
    prefix = "dropped_windows."
    dropped = tuple(
        (clean(k.removeprefix(prefix), 120), clean(v, 40)) for k, v in facts.items() if k.startswith(prefix)
    )
    origin = (
        "The EEG was computed from the speech by a forward model. Simulated EEG says nothing about real brains."
        if run.simulated
        else "The EEG was recorded from people listening to speech."
    )
    audit = tuple((clean(f.check, 80), f"{f.verdict}: {clean(f.detail, 200)}") for f in run.audit)
    return Card(
        "Dataset card",
        (
            ("pretty_name", run.study),
            ("license", "other"),
            ("license_name", "see-licence-consent-and-citation"),
            ("tags", ["eeg", "speech"]),
        ),
        (
            Section("What it is", (origin,), known),
            Section(
                "Licence, consent and citation",
                (),
                (("Licence", licence), *_pick(facts, ("Consent", "consent"), ("Citation", "citation"))),
            ),
            Section("Splits", (), per_split),
            *([Section("Windows left out, and why", (), dropped)] if dropped else []),
            Section("Leakage audit", () if audit else ("No leakage audit was made.",), audit),
        ),
    )
