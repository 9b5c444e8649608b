"""The rows of every table: each system is another answer to "what was the EEG input?".

All share one contract, one pipeline, and per stimulus one sampling seed, so that rows differ in
their condition alone. A system that hears no EEG runs once per stimulus.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from eeg2speech.batch import Batch
from eeg2speech.errors import UserError
from eeg2speech.evaluation import SamplingConfig
from eeg2speech.losses import similarity
from eeg2speech.models.autoencoder import decode, encode
from eeg2speech.models.layers import normalise_embedding
from eeg2speech.pipeline import EEG2SpeechPipeline
from eeg2speech.training.loop import derived_seed
from eeg2speech.training.run import Trained
from eval.metrics.base import SystemOutput, TestSet

BATCH_SIZE = 64
NO_AUDIO = "the study has no audio"
NOT_TRAINED = "the config trains no {}"


@dataclass(frozen=True, eq=False)
class Bench:
    """What every system runs on: the trained modules and the test windows."""

    trained: Trained
    test: TestSet
    windows: np.ndarray
    """Rows of `trained.data.windows`, aligned with `test.examples`."""
    stimuli: np.ndarray
    """Rows of `trained.data.stimuli`, aligned with `test.stimuli`."""
    sampling: SamplingConfig
    seed: int

    @property
    def pipeline(self) -> EEG2SpeechPipeline:
        assert self.trained.pipeline is not None
        return self.trained.pipeline

    def seeds(self, stimulus: np.ndarray) -> list[int]:
        """The sampling seed of each stimulus: the noise a sample starts from depends on nothing else."""
        ids = self.test.stimuli["stimulus_id"]
        return [derived_seed(self.sampling.seed, "sample", ids[int(s)]) for s in stimulus]

    @property
    def device(self) -> torch.device:
        """Where the modules are. What they are given goes there, and what they give comes back, in here alone."""
        return self.trained.device

    def batches(self, windows: np.ndarray) -> Iterator[Batch]:
        for start in range(0, len(windows), BATCH_SIZE):
            yield self.trained.data.batch(windows[start : start + BATCH_SIZE])

    def embed_speech(self, stimuli: np.ndarray) -> Tensor:
        """(n, D, T') audio embeddings of rows of the study's stimulus table."""
        features = self.trained.data.features.heard
        starts = range(0, len(stimuli), BATCH_SIZE)
        return self.trained.embed_speech(
            torch.from_numpy(np.array(features[stimuli[i : i + BATCH_SIZE]])) for i in starts
        )

    @torch.no_grad()
    def embed_eeg(self, encoder: nn.Module, batches: Iterable[Batch]) -> Tensor:
        """(n, K, F) of an EEG encoder or of a regressor."""
        there = (batch.to(self.device) for batch in batches)
        return torch.cat([encoder(b.eeg, b.positions, b.subject).cpu() for b in there])

    @cached_property
    def training_stimuli(self) -> np.ndarray:
        data = self.trained.data
        return np.unique(data.windows["stimulus"].to_numpy()[data.indices("train")])

    @cached_property
    def training_embeddings(self) -> Tensor:
        """(n, D, T') of every training stimulus."""
        return self.embed_speech(self.training_stimuli)

    @cached_property
    def other_windows(self) -> np.ndarray:
        """For each test example, the row of a test window of the same listener and another stimulus."""
        return self.windows[other_examples(self.test, self.seed)]

    @torch.no_grad()
    def generate(self, cond: Tensor, stimulus: np.ndarray) -> np.ndarray:
        """Normalised or raw embeddings (n, D, T') -> (n, N) waveforms."""
        return self._in_batches(
            stimulus,
            lambda rows, seeds: self.pipeline(
                cond=cond[rows].to(self.device), seeds=seeds, **self.sampling.call_arguments()
            ),
        )

    def _in_batches(self, stimulus: np.ndarray, make: Callable[[slice, list[int]], Tensor]) -> np.ndarray:
        seeds, size = self.seeds(stimulus), self.sampling.batch_size
        slices = [slice(i, i + size) for i in range(0, len(stimulus), size)]
        return torch.cat([make(rows, seeds[rows]) for rows in slices]).float().cpu().numpy()


def other_examples(test: TestSet, seed: int) -> np.ndarray:
    """(n,) for each test example another one: the same listener's, of another stimulus, each used once.

    Raises UserError where a listener heard too few different stimuli for that.
    """
    rng = np.random.default_rng([seed, 1])
    examples, other = test.examples, np.empty(len(test.examples), dtype=np.int64)
    for subject, group in examples.groupby("subject", sort=True):
        places = group.index.to_numpy()
        stimuli = examples["stimulus"].to_numpy()[places]
        order = rng.permutation(len(places))
        # In an order where equal stimuli are neighbours, moving on by the size of the largest
        # group gives everyone another stimulus, wherever that is possible at all.
        relabelled = rng.permutation(len(test.stimuli))[stimuli]
        order = order[np.argsort(relabelled[order], kind="stable")]
        largest = int(np.bincount(stimuli).max())
        moved = np.roll(order, -largest)
        if (stimuli[order] == stimuli[moved]).any():
            raise UserError(
                f"listener {subject} has heard too few different test stimuli to shuffle: raise splits.test"
            )
        other[places[order]] = places[moved]
    return other


class System(ABC):
    """A row: what its EEG input is, and why the row is there."""

    name: ClassVar[str]
    role: ClassVar[str]
    """ceiling, claim, floor or rival."""
    description: ClassVar[str]
    hears_eeg: ClassVar[bool] = False

    def no_sound(self, bench: Bench) -> str | None:
        """Why the system makes no sound here."""
        if not bench.trained.data.has_audio:
            return NO_AUDIO
        return None if bench.trained.pipeline is not None else NOT_TRAINED.format("diffusion model")

    def run(self, bench: Bench) -> SystemOutput:
        """Everything the system makes of the test set."""
        rows = self.rows(bench)
        stimulus = rows["stimulus"].to_numpy()
        estimate = self.estimate(bench)
        reason = self.no_sound(bench)
        return SystemOutput(
            self.name,
            self.hears_eeg,
            rows,
            waveform=None if reason else self.speak(bench, stimulus, estimate),
            waveform_reason=reason,
            estimate=None if estimate is None else estimate.numpy(),
        )

    def rows(self, bench: Bench) -> pd.DataFrame:
        if self.hears_eeg:
            return bench.test.examples
        stimuli = bench.test.stimuli
        return stimuli.assign(study=bench.trained.data.name, subject="", recording="", stimulus=np.arange(len(stimuli)))

    def estimate(self, bench: Bench) -> Tensor | None:
        """(n, D, T') embedding of the EEG, or None where the system has no EEG."""
        return None

    @abstractmethod
    def speak(self, bench: Bench, stimulus: np.ndarray, estimate: Tensor | None) -> np.ndarray:
        """(n, N) waveforms, aligned with the rows."""


class Reference(System):
    name, role = "reference", "ceiling"
    description = "the true recording: what the scorers make of perfect speech"

    def no_sound(self, bench: Bench) -> str | None:
        return None if bench.trained.data.has_audio else NO_AUDIO

    def speak(self, bench: Bench, stimulus: np.ndarray, estimate: Tensor | None) -> np.ndarray:
        assert bench.test.waveform is not None
        return np.array(bench.test.waveform)


class Reconstruction(System):
    name, role = "reconstruction", "ceiling"
    description = "the true recording through autoencoder and vocoder: the best the decoder can do"

    @torch.no_grad()
    def speak(self, bench: Bench, stimulus: np.ndarray, estimate: Tensor | None) -> np.ndarray:
        features = torch.from_numpy(np.array(bench.trained.data.features.features[bench.stimuli]))
        log_mel, vae = features.transpose(1, 2).unsqueeze(1), bench.pipeline.vae
        return bench._in_batches(
            stimulus,
            lambda rows, seeds: bench.pipeline.vocode(decode(vae, encode(vae, log_mel[rows].to(bench.device))), seeds),
        )


class Oracle(System):
    name, role = "oracle", "ceiling"
    description = "the true audio's embedding as condition: the best the diffusion model can do"

    def speak(self, bench: Bench, stimulus: np.ndarray, estimate: Tensor | None) -> np.ndarray:
        return bench.generate(bench.embed_speech(bench.stimuli), stimulus)


class EEG(System):
    name, role, hears_eeg = "eeg", "claim", True
    description = "the true EEG"

    def heard(self, bench: Bench) -> Iterator[Batch]:
        return bench.batches(bench.windows)

    def estimate(self, bench: Bench) -> Tensor | None:
        return bench.embed_eeg(bench.trained.eeg_encoder, self.heard(bench))

    def speak(self, bench: Bench, stimulus: np.ndarray, estimate: Tensor | None) -> np.ndarray:
        assert estimate is not None
        return bench.generate(estimate, stimulus)


class Shuffled(EEG):
    name, role = "shuffled", "floor"
    description = "the EEG of another stimulus, same listener: is the EEG used at all?"

    def heard(self, bench: Bench) -> Iterator[Batch]:
        return bench.batches(bench.other_windows)


class Noise(EEG):
    name, role = "noise", "floor"
    description = "a phase-randomised surrogate with the spectra and covariance of the listener's EEG"

    def heard(self, bench: Bench) -> Iterator[Batch]:
        heard = bench.test.examples[["recording", "stimulus_id"]].itertuples(index=False)
        seeds = iter([derived_seed(bench.seed, "surrogate", *names) for names in heard])
        for batch in bench.batches(bench.other_windows):
            yield replace(batch, eeg=phase_randomised(batch.eeg, list(islice(seeds, len(batch)))))


class Mean(System):
    name, role = "mean", "floor"
    description = "the mean embedding of the training speech: what guessing the average sounds like"

    def speak(self, bench: Bench, stimulus: np.ndarray, estimate: Tensor | None) -> np.ndarray:
        mean = normalise_embedding(bench.training_embeddings).mean(dim=0, keepdim=True)
        return bench.generate(mean.expand(len(stimulus), -1, -1), stimulus)


class Unconditional(System):
    name, role = "unconditional", "floor"
    description = "the null condition: what the model says when told nothing"

    def speak(self, bench: Bench, stimulus: np.ndarray, estimate: Tensor | None) -> np.ndarray:
        steps, temperature = bench.sampling.num_inference_steps, bench.sampling.temperature
        return bench._in_batches(
            stimulus,
            lambda rows, seeds: bench.pipeline.unconditional(seeds, num_inference_steps=steps, temperature=temperature),
        )


class Regression(System):
    name, role, hears_eeg = "regression", "rival", True
    description = "the true EEG through a plain EEG-to-mel regressor and the same vocoder: is diffusion worth its cost?"

    def no_sound(self, bench: Bench) -> str | None:
        if bench.trained.data.has_audio and bench.trained.regressor is None:
            return NOT_TRAINED.format("regressor")
        return super().no_sound(bench)  # it speaks through the pipeline's vocoder

    @torch.no_grad()
    def speak(self, bench: Bench, stimulus: np.ndarray, estimate: Tensor | None) -> np.ndarray:
        regressor = bench.trained.regressor
        assert regressor is not None
        log_mel = bench.embed_eeg(regressor, bench.batches(bench.windows)).transpose(1, 2).unsqueeze(1)
        return bench._in_batches(
            stimulus, lambda rows, seeds: bench.pipeline.vocode(log_mel[rows].to(bench.device), seeds)
        )


class Retrieved(EEG):
    name, role = "retrieved", "rival"
    description = "the training clip whose embedding is nearest to the EEG's: generation without generating"

    def run(self, bench: Bench) -> SystemOutput:
        """Its estimate is that of `eeg`, so it has no retrieval rows of its own."""
        return replace(super().run(bench), estimate=None)

    def no_sound(self, bench: Bench) -> str | None:
        return None if bench.trained.data.has_audio else NO_AUDIO

    def speak(self, bench: Bench, stimulus: np.ndarray, estimate: Tensor | None) -> np.ndarray:
        assert estimate is not None
        assert bench.trained.data.features.waveforms is not None
        nearest = similarity(estimate, bench.training_embeddings).argmax(dim=1).numpy()
        return np.asarray(bench.trained.data.features.waveforms[bench.training_stimuli[nearest]])


SYSTEMS: dict[str, System] = {
    s.name: s
    for s in (
        Reference(),
        Reconstruction(),
        Oracle(),
        EEG(),
        Regression(),
        Retrieved(),
        Shuffled(),
        Noise(),
        Mean(),
        Unconditional(),
    )
}


def phase_randomised(eeg: Tensor, seeds: Sequence[int]) -> Tensor:
    """(B, C, T) -> a surrogate of the same spectra and cross-spectra: every channel of window b gets the
    same random phases, drawn by `seeds[b]` (Prichard & Theiler, Phys. Rev. Lett. 1994)."""
    spectrum = torch.fft.rfft(eeg, dim=-1)
    n = spectrum.shape[-1]
    generators = (torch.Generator().manual_seed(seed) for seed in seeds)
    phase = 2 * torch.pi * torch.stack([torch.rand(1, n, generator=g, dtype=torch.float64) for g in generators])
    # The mean, and with an even number of samples the highest frequency, must stay real.
    phase[..., 0] = 0.0
    if eeg.shape[-1] % 2 == 0:
        phase[..., -1] = 0.0
    return torch.fft.irfft(spectrum * torch.polar(torch.ones_like(phase), phase), n=eeg.shape[-1], dim=-1).to(eeg)
