"""Which code a stage's networks are made of."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from eeg2speech.files import sha256

if TYPE_CHECKING:
    from eeg2speech.training.loop import Stage

LIBRARIES = ("torch", "diffusers", "transformers")


def code_of(stage: Stage) -> dict[str, str]:
    """Module -> hash of its source, for the classes that the stage's networks are made of; libraries are not ours."""
    named = {type(m).__module__ for network in stage.modules.values() for m in network.modules()}
    ours = sorted(name for name in named if name.partition(".")[0] not in LIBRARIES)
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in ours}
    return {name: sha256(Path(file)) for name, file in files.items() if file is not None}
