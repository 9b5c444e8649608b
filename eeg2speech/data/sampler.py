"""The order in which training sees its windows."""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np


class TrainingSampler:
    """Which windows make up training step `step`: a pure function of the seed and the step.

    So a run that is resumed needs no state. In every epoch each window appears once, less a random
    rest that does not fill a batch. The windows of a stimulus are dealt to different batches, for
    in a contrastive batch every other window counts as a negative; a batch repeats a stimulus only
    where there are more windows of it than batches.
    """

    def __init__(self, rows: np.ndarray, stimulus_of_rows: np.ndarray, batch_size: int, seed: int) -> None:
        if not 0 < len(rows) == len(stimulus_of_rows):
            raise ValueError("rows and stimulus_of_rows must be of one length, not empty")
        self.batch_size, self.seed = min(batch_size, len(rows)), seed
        self.steps_per_epoch = len(rows) // self.batch_size
        self._rows, self._stimulus = np.asarray(rows), np.unique(stimulus_of_rows, return_inverse=True)[1]
        self._epoch = lru_cache(maxsize=2)(partial(_deal, self))

    def rows(self, step: int) -> np.ndarray:
        """(batch_size,) rows of step 0, 1, 2, ..."""
        epoch, number = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[number]


def _deal(sampler: TrainingSampler, epoch: int) -> np.ndarray:
    """(steps_per_epoch, batch_size) rows: sorted by stimulus, dealt out like cards."""
    rng = np.random.default_rng([sampler.seed, epoch])
    n_steps = sampler.steps_per_epoch
    kept = rng.permutation(len(sampler._rows))[: n_steps * sampler.batch_size]
    shuffled_name = rng.permutation(sampler._stimulus.max() + 1)[sampler._stimulus[kept]]
    cards = sampler._rows[kept[np.argsort(shuffled_name, kind="stable")]]
    return rng.permutation(cards.reshape(sampler.batch_size, n_steps).T)
