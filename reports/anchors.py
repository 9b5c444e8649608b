"""Published figures to hold a retrieval result against, and why they are not comparable with it."""

from __future__ import annotations

from dataclasses import dataclass

_BRAINMAGICK = "Défossez et al., Nature Machine Intelligence 2023, Table 2"
_DIFFERS = "not comparable: other recordings, candidates, split and embedder"


@dataclass(frozen=True)
class Anchor:
    """Values in per cent, as published."""

    study: str
    metric: str
    system: str
    value: str
    source: str
    note: str = _DIFFERS


def _table_2(study: str, random: str, regression: str, best: str) -> tuple[Anchor, ...]:
    rows = (("chance", random), ("mel regression", regression), ("best", best))
    return tuple(Anchor(study, "retrieval top-10", system, value, _BRAINMAGICK) for system, value in rows)


ANCHORS = (
    *_table_2("Brennan 2019 (EEG)", "5.3", "6.0", "25.7 ± 2.9"),
    *_table_2("Broderick 2019 (EEG)", "0.5", "1.0", "17.7 ± 0.6"),
    *_table_2("Gwilliams 2022 (MEG)", "0.7", "12.4", "70.7 ± 0.1"),
    *_table_2("Schoffelen 2019 (MEG)", "0.8", "20.6", "67.5 ± 0.4"),
    Anchor("Brennan 2019 (EEG)", "retrieval top-5", "chance", "2.39", "NeuralBench"),
    Anchor("Brennan 2019 (EEG)", "retrieval top-5", "best", "5.49 ± 0.38", "NeuralBench"),
)
