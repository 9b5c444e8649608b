"""TEST ONLY: an invented run, so that the report can be built before any model is trained.

No number here was measured. Everything follows from `seed`; error rates come from jiwer, sums from numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pandas as pd

from eeg2speech import audio
from eval.results import (
    AuditFinding,
    Comparison,
    Endpoint,
    MetricInfo,
    MetricResult,
    RunResult,
    StageSummary,
    SystemInfo,
)

WORDS = """Peter Lucy Alan Rachel William Kathy Steven Nina Thomas Hannah
got sees bought gives sold likes has kept wins wants
three nine five eight four six two ten twelve seven
large small old dark heavy green cheap pretty red white
desks chairs tables toys spoons windows sofas rings flowers houses"""
SLOTS = [line.split() for line in WORDS.splitlines()]

SYSTEMS = {  # name: (role, word error probability, hears EEG, what it is)
    "reference": ("ceiling", 0.04, False, "the true recording"),
    "reconstruction": ("ceiling", 0.08, False, "the true audio through autoencoder and vocoder"),
    "oracle": ("ceiling", 0.12, False, "the true audio embedding as condition"),
    "eeg": ("claim", 0.26, True, "the true EEG"),
    "regression": ("rival", 0.24, True, "the true EEG through a plain EEG-to-mel regressor"),
    "shuffled": ("floor", 0.90, True, "EEG of another stimulus, same listener"),
    "noise": ("floor", 0.92, True, "spectrum-matched surrogate of the EEG"),
    "unconditional": ("floor", 0.95, False, "the null condition"),
}


@dataclass(frozen=True)
class Fake:
    """What to invent."""

    seed: int = 0
    n_stimuli: int = 12
    n_subjects: int = 3
    has_audio: bool = True
    effect: float = 1.0
    """1: as in SYSTEMS; 0: eeg is as bad as shuffled."""
    seconds: float = 0.3
    simulated: bool = True
    training_seeds: tuple[int, ...] = (0,)
    name: str = "matrix_fake"
    study: str = "matrix"


def _speechlike(text: str, seconds: float, rng: np.random.Generator, blur: float) -> np.ndarray:
    """A buzz with a formant pair per word: enough structure for a spectrogram to look at."""
    n = int(seconds * audio.SAMPLE_RATE)
    t = np.arange(n) / audio.SAMPLE_RATE
    words = text.split()
    out = np.zeros(n)
    for i, word in enumerate(words):
        start, stop = (0.05 + 0.85 * i / len(words)) * seconds, (0.05 + 0.85 * (i + 0.85) / len(words)) * seconds
        inside = (t >= start) & (t < stop)
        place = (t[inside] - start) / (stop - start)
        pitch = 110 + 10 * np.sin(4 * place + i) + 20 * (1 - place)
        phase = 2 * np.pi * np.cumsum(pitch) / audio.SAMPLE_RATE
        code = sum(map(ord, word))
        formants = (350 + 37 * (code % 11) + 150 * place, 1100 + 113 * (code % 13) - 250 * place)
        for k in range(1, 40):
            gain = sum(np.exp(-(((k * pitch - f) / (90 + 400 * blur)) ** 2)) for f in formants) / k**0.3
            out[inside] += gain * np.sin(k * phase) * np.sin(np.pi * place) ** 0.5
    out = 0.25 * out / max(1e-9, np.abs(out).max())
    return (out + 0.002 * (1 + 5 * blur) * rng.standard_normal(n)).astype(np.float32)


def _hear(reference: list[str], p_error: float, rng: np.random.Generator) -> str:
    words = []
    for slot, word in zip(SLOTS, reference, strict=True):
        if rng.random() >= p_error:
            words.append(word)
            continue
        kind = rng.random()
        if kind < 0.75:
            words.append(str(rng.choice([w for w in slot if w != word])))
        elif kind > 0.9:
            words += [word, str(rng.choice(slot))]
    return " ".join(words) or "thank you"


def _examples(fake: Fake, folder: Path, rng: np.random.Generator) -> pd.DataFrame:
    sentences = [[str(rng.choice(slot)) for slot in SLOTS] for _ in range(fake.n_stimuli)]
    rows: list[dict[str, Any]] = []
    (folder / "wavs").mkdir(parents=True, exist_ok=True)
    for system, (_, p_error, hears, _) in SYSTEMS.items():
        if system == "eeg":
            p_error = 0.90 - (0.90 - p_error) * fake.effect
        for subject in [f"S{k + 1:02d}" for k in range(fake.n_subjects)] if hears else [""]:
            for index, words in enumerate(sentences):
                rows.append(_row(fake, folder, rng, system, subject, index, words, p_error))
    return pd.DataFrame(rows)


def _row(
    fake: Fake,
    folder: Path,
    rng: np.random.Generator,
    system: str,
    subject: str,
    index: int,
    words: list[str],
    p_error: float,
) -> dict[str, Any]:
    row: dict[str, Any] = {"study": fake.study, "subject": subject, "stimulus_id": f"sentence{index:03d}"}
    row |= {
        "recording": row.get("subject", ""),
        "system": system,
        "sampling_seed": 0,
        "reference": None,
        "hypothesis": None,
        "wav": None,
    }
    easy = 0.25 * (hash_of(subject, index) - 0.5)
    p_error = float(np.clip(p_error + easy * (0.05 < p_error < 0.8), 0, 1))
    if fake.has_audio:
        hypothesis = _hear(words, p_error, rng)
        scored = jiwer.process_words(" ".join(words).lower(), hypothesis.lower())
        edits = scored.substitutions + scored.deletions + scored.insertions
        row |= {"reference": " ".join(words), "hypothesis": hypothesis, "wer": float(edits), "wer_n": 5.0}
        row |= {"substitutions": float(scored.substitutions), "deletions": float(scored.deletions)}
        row |= {"insertions": float(scored.insertions)}
        row["wav"] = f"wavs/{system}_{subject or 'all'}_{index:03d}.wav"
        waveform = _speechlike(hypothesis, fake.seconds, rng, p_error)
        audio.save(folder / row["wav"], waveform)
        row |= {"mel_correlation": float(np.clip(1 - 0.6 * p_error + 0.05 * rng.standard_normal(), -1, 1))}
        row |= {"mel_correlation_n": 1.0}
    if SYSTEMS[system][2]:
        n = fake.n_stimuli
        rank = 1 + int(min(n - 1, rng.integers(0, n) * min(1.0, (p_error / 0.9) ** 1.5)))
        row |= {"rank": float(rank), "top1": float(rank == 1), "top1_n": 1.0}
        row |= {"top5": float(rank <= 5), "top5_n": 1.0}
    return row


def hash_of(subject: str, index: int) -> float:
    """A repeatable number in [0, 1) for a listener and a stimulus."""
    return (sum(map(ord, subject)) * 31 + index * 17) % 97 / 97


def _metrics(fake: Fake) -> list[MetricInfo]:
    n = fake.n_stimuli
    return [
        MetricInfo(name="wer", label="WER", unit="%", higher_is_better=False, per_example=True, chance=0.9,
                   chance_reason="ten words a slot: a guess is wrong nine times in ten",
                   definition="Word error rate of Whisper tiny.en after its English normaliser: summed edits over "
                              "summed reference words (Radford et al., 2023)."),
        MetricInfo(name="top1", label="Top-1", unit="%", higher_is_better=True, per_example=True,
                   chance=1 / n, chance_reason=f"1 of {n} unique candidates",
                   definition="Share of windows whose own speech ranks first (Défossez et al., 2023, eq. 2)."),
        MetricInfo(name="top5", label="Top-5", unit="%", higher_is_better=True, per_example=True,
                   chance=5 / n, chance_reason=f"5 of {n} unique candidates",
                   definition="Share of windows whose own speech ranks among the first five."),
        MetricInfo(name="fad", label="FAD", unit="", higher_is_better=False, per_example=False,
                   definition="Fréchet distance of Gaussian fits to embeddings (Kilgour et al., 2019)."),
        MetricInfo(name="mel_correlation", label="Mel correlation", unit="", higher_is_better=True, per_example=True,
                   definition="Pearson correlation of log-mel frames, averaged over bands."),
        MetricInfo(name="estoi", label="ESTOI", unit="", higher_is_better=True, per_example=True,
                   definition="Extended short-time objective intelligibility (Jensen and Taal, 2016)."),
    ]  # fmt: skip


def _bootstrap(frame: pd.DataFrame, metric: str, rng: np.random.Generator) -> tuple[float, float]:
    sums = frame.groupby("stimulus_id")[[metric, f"{metric}_n"]].sum().to_numpy()
    draws = rng.integers(0, len(sums), (400, len(sums)))
    totals = sums[draws].sum(axis=1)
    low, high = np.percentile(totals[:, 0] / totals[:, 1], [2.5, 97.5])
    return float(low), float(high)


def _results(fake: Fake, frame: pd.DataFrame, rng: np.random.Generator) -> list[MetricResult]:
    silent = "the study has no audio"
    rows = []
    for system, (_, p_error, hears, _) in SYSTEMS.items():
        mine = frame[frame.system == system]
        for info in _metrics(fake):
            common = {"system": system, "metric": info.name}
            if info.name == "fad":
                for embedder, scale in (("resemblyzer", 1.0), ("whisper", 12.0)):
                    extra = {"embedder": embedder, "signature": f"fad|{embedder}|ab12|16000|-|{len(mine)}|0|1"}
                    value = scale * (0.02 + p_error**2) if fake.has_audio else None
                    ci = (0.85 * value, 1.2 * value) if value is not None else None
                    reason = None if fake.has_audio else silent
                    sizes = (len(mine) // 4, len(mine) // 2, 3 * len(mine) // 4, len(mine))
                    curve = [(n, value * (1 + 4 / n)) for n in sizes] if value is not None else []
                    rows.append(
                        MetricResult(**common, **extra, value=value, ci=ci, n=len(mine), reason=reason, curve=curve)
                    )
                continue
            reason = None
            if info.name == "estoi" and fake.has_audio:
                reason = "pystoi is not installed: install the eval extra"
            elif not fake.has_audio and "top" not in info.name:
                reason = silent
            elif not hears and "top" in info.name:
                reason = "this system hears no EEG"
            if reason:
                rows.append(MetricResult(**common, reason=reason))
                continue
            for subject in [None, *sorted(s for s in mine.subject.unique() if s)]:
                part = mine if subject is None else mine[mine.subject == subject]
                value = part[info.name].sum() / part[f"{info.name}_n"].sum()
                ci = _bootstrap(part, info.name, rng)
                signature = f"{info.name}|-|whisper-tiny.en:1a5afae0|16000|english|{len(part)}|0|1"
                rows.append(
                    MetricResult(**common, subject=subject, value=value, ci=ci, n=len(part), signature=signature)
                )
    return rows


def _comparisons(fake: Fake, frame: pd.DataFrame, rng: np.random.Generator) -> list[Comparison]:
    rows = []
    for metric in ("wer", "top1", "top5"):
        sign = -1 if metric == "wer" else 1
        if metric not in frame:
            continue
        means = frame.groupby(["system", "stimulus_id"])[metric].mean() / (5 if metric == "wer" else 1)
        for system, (role, *_) in SYSTEMS.items():
            if role not in ("floor", "rival") or means[system].isna().any():
                continue
            d = sign * (means["eeg"] - means[system]).to_numpy()
            flips = rng.choice([-1, 1], (2000, len(d))) @ d / len(d)
            p = float((1 + (np.abs(flips) >= abs(d.mean())).sum()) / 2001)
            boot = d[rng.integers(0, len(d), (400, len(d)))].mean(axis=1)
            ci = (float(np.percentile(boot, 2.5)), float(np.percentile(boot, 97.5)))
            rows.append(
                Comparison(metric=metric, system=system, role=role, gain=float(d.mean()), ci=ci, p=p,
                           p_holm=min(1.0, 3 * p) if role == "floor" else None, n_clusters=fake.n_stimuli,
                           minimum_detectable=float(2.8 * d.std(ddof=1) / np.sqrt(len(d))))
            )  # fmt: skip
    return rows


def _endpoint(results: list[MetricResult], comparisons: list[Comparison], metric: str) -> Endpoint:
    floors = [c for c in comparisons if c.metric == metric and c.role == "floor"]
    best = min(floors, key=lambda c: c.gain or 0)
    p = max(c.p_holm or 0 for c in floors)
    value = {r.system: r.value for r in results if r.metric == metric and r.subject is None}
    floor, eeg, ceiling = value[best.system], value["eeg"], value.get("reconstruction")
    share = (floor - eeg) / (floor - ceiling) if None not in (floor, eeg, ceiling) else None
    return Endpoint(
        metric=metric, best_floor=best.system, gain=best.gain, ci=best.ci, p=p, span_share=share,
        ceiling="reconstruction" if share is not None else None,
    )  # fmt: skip


def _stages() -> list[StageSummary]:
    def curve(low: float, high: float) -> list[dict[str, float]]:
        steps = np.arange(0, 601, 50)
        decay = np.exp(-steps / 150)
        return [
            {"step": float(s), "train_loss": low + (high - low) * d, "valid_loss": 1.1 * low + (high - low) * d}
            for s, d in zip(steps, decay, strict=True)
        ]

    sizes = {"autoencoder": 1.2e6, "contrastive": 4.3e6, "regression": 2.1e6, "diffusion": 11.7e6}
    return [
        StageSummary(
            name=name,
            parameters=int(n),
            steps=600,
            wall_s=120.0 + 40 * i,
            precision="float32",
            curve=curve(0.1 * (i + 1), 2.0),
        )
        for i, (name, n) in enumerate(sizes.items())
    ]


def write_fake_run(folder: Path, fake: Fake | None = None) -> RunResult:
    """Writes results.json, examples.parquet and wavs into `folder`."""
    fake = fake or Fake()
    rng = np.random.default_rng(fake.seed)
    folder.mkdir(parents=True, exist_ok=True)
    frame = _examples(fake, folder, rng)
    results = _results(fake, frame, rng)
    comparisons = _comparisons(fake, frame, rng)
    frame.to_parquet(folder / "examples.parquet")
    sizes = frame.groupby("system").agg(n=("system", "size"), stimuli=("stimulus_id", "nunique"))
    run = RunResult(
        name=fake.name, study=fake.study, simulated=fake.simulated, training_seeds=list(fake.training_seeds),
        sampling_seed=0, signature="0123456789abcdef",
        config={"study": {"name": fake.study, "snr_db": 5.0}, "diffusion": {"steps": 10, "guidance": 2.0}},
        data={"licence": "synthetic, no licence needed", "citation": "none", "subjects": fake.n_subjects,
              "split": {"train": 900, "valid": 52, "test": fake.n_stimuli}},
        audit=[AuditFinding(check="shared stimulus identity", passed=True, detail="0 of 48 test sounds in train"),
               AuditFinding(check="valid == test", passed=True, detail="no window in both")],
        systems=[SystemInfo(name=name, role=role, description=text, n_examples=int(sizes.n[name]),
                            n_stimuli=int(sizes.stimuli[name]), n_subjects=fake.n_subjects if hears else 0)
                 for name, (role, _, hears, text) in SYSTEMS.items()],
        metrics=_metrics(fake), results=results, comparisons=comparisons,
        endpoint=_endpoint(results, comparisons, "wer" if fake.has_audio else "top1"), stages=_stages(),
        environment={"python": "3.11.7", "packages": {"torch": "2.13.0"}, "cpu": "invented", "cores": 2,
                     "git": {"sha": "29bbb1a" + "0" * 33, "dirty": False}, "wall_s": {"train": 700.0}},
        provenance={"weights": {"whisper-tiny.en": "1a5afae06a4db91c" * 4}, "data": {"windows": "ab" * 32},
                    "commands": ["python -m eval run --config configs/default.yaml"]},
    )  # fmt: skip
    run.save(folder)
    return run
