"""Words and their times from Praat TextGrids, as forced aligners write them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from eeg2speech.errors import UserError

WORD_TIERS = ("words", "word")
SILENCES = {"", "sil", "sp", "spn", "{sl}", "<p:>", "#"}
"""What the Montreal, Prosodylab and MAUS aligners write between words."""

# Praat reads a text file as the strings, numbers and flags that stand free, and takes all else ("xmin =",
# "intervals [3]:") for comment: so its long and short form are one format.
_TOKEN = re.compile(r'"(?:[^"]|"")*"|(?<!\S)(?:<exists>|[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)(?!\S)')


def read_words(path: Path) -> pd.DataFrame:
    """The words of a sound: columns word, onset_s, duration_s; onsets count from the start of the sound.

    Raises UserError naming the file where it is no text TextGrid, is cut off, or has no interval
    tier of words.
    """
    tiers = read_tiers(path)
    found = {name.strip().lower(): intervals for name, intervals in tiers.items()}
    words = next((found[name] for name in WORD_TIERS if name in found), None)
    if words is None:
        raise UserError(f"{path}: has interval tiers {', '.join(tiers) or 'none'}; name the one with words 'words'")
    rows = [(label, start, stop - start) for start, stop, label in words if label.strip().lower() not in SILENCES]
    return pd.DataFrame(rows, columns=["word", "onset_s", "duration_s"])


def read_tiers(path: Path) -> dict[str, list[tuple[float, float, str]]]:
    """Interval tier name -> (start s, stop s, label) of each of its intervals; point tiers are left out.

    A reader that takes what it finds loses the end of a file that was cut off: here every count that
    the file declares must be met. The form: Praat manual, "TextGrid file formats".
    """
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error}); save it again as a text file") from error
    tokens = iter(_TOKEN.findall(text))
    try:
        if (next(tokens), next(tokens)) != ('"ooTextFile"', '"TextGrid"'):
            raise UserError(f"{path}: is no TextGrid; save it in Praat as a text file")
        next(tokens), next(tokens)  # start and stop of the whole
        if next(tokens) != "<exists>":
            return {}
        return dict(filter(None, [_tier(tokens) for _ in range(int(next(tokens)))]))
    except (StopIteration, ValueError) as error:
        raise UserError(f"{path}: is cut off or damaged; get this TextGrid again") from error


def _tier(tokens: Iterator[str]) -> tuple[str, list[tuple[float, float, str]]] | None:
    kind, name = _string(next(tokens)), _string(next(tokens))
    next(tokens), next(tokens)  # start and stop of the tier
    count = int(next(tokens))
    if kind == "TextTier":
        for _ in range(2 * count):
            next(tokens)
        return None
    if kind != "IntervalTier":
        raise ValueError(f"unknown tier class {kind}")
    rows = [(float(next(tokens)), float(next(tokens)), _string(next(tokens))) for _ in range(count)]
    return name, rows


def _string(token: str) -> str:
    if not token.startswith('"'):
        raise ValueError(f"{token} is no string")
    return token[1:-1].replace('""', '"')
