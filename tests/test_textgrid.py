"""TextGrids: what an aligner wrote is what is read, and a file that was cut off never is."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
from studies_fixture import write_textgrid

from eeg2speech.data.textgrid import read_tiers, read_words
from eeg2speech.errors import UserError

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("EEG2SPEECH_REALDATA", ROOT.parent / "shared" / "realdata"))
WORDS = [(0.0, 0.25, ""), (0.25, 0.5, "THE"), (0.5, 1.0, "old"), (1.0, 1.5, "sp"), (1.5, 2.0, 'man "x" [3]')]
PHONES = [(0.0, 0.25, "sil"), (0.25, 2.0, "DH")]


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("tier", ["words", "Word"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_both_forms_of_praat_are_read_without_silences(tmp_path: Path, short: bool, tier: str, encoding: str) -> None:
    path = tmp_path / "a.TextGrid"
    write_textgrid(path, {"phones": PHONES, tier: WORDS}, 2.0, short)
    path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)
    assert read_tiers(path) == {"phones": PHONES, tier: WORDS}
    expected = pd.DataFrame(
        {"word": ["THE", "old", 'man "x" [3]'], "onset_s": [0.25, 0.5, 1.5], "duration_s": [0.25, 0.5, 0.5]}
    )
    pd.testing.assert_frame_equal(read_words(path), expected)


@pytest.mark.parametrize("short", [False, True])
def test_a_textgrid_cut_off_anywhere_is_refused_by_name(tmp_path: Path, short: bool) -> None:
    path = tmp_path / "cut.TextGrid"
    write_textgrid(path, {"words": WORDS, "phones": PHONES}, 2.0, short)
    whole = path.read_text()
    for length in range(0, len(whole.rstrip()) - 1, 5):
        path.write_text(whole[:length])
        with pytest.raises(UserError, match=r"cut\.TextGrid: is (cut off|no TextGrid)"):
            read_words(path)


def test_a_point_tier_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.TextGrid"
    write_textgrid(path, {"marks": [], "words": WORDS}, 2.0, short=True)
    points = '"TextTier"\n"marks"\n0\n2.0\n2\n0.5\n"a"\n1.5\n"b"'
    path.write_text(path.read_text().replace('"IntervalTier"\n"marks"\n0\n2.0\n0', points))
    assert read_tiers(path) == {"words": WORDS}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"word,onset\n", "is no TextGrid|is cut off"),
        (b'File type = "ooTextFile"\nObject class = "Sound 2"\n', "is no TextGrid"),
        (b"\xff\xfe\x00", "cannot be read as text"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "other.TextGrid"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"other\.TextGrid: ({message})"):
        read_words(path)


def test_a_grid_without_words_says_what_it_has(tmp_path: Path) -> None:
    write_textgrid(tmp_path / "a.TextGrid", {"phones": PHONES, "notes": []}, 2.0)
    with pytest.raises(UserError, match=r"has interval tiers phones, notes; name the one with words 'words'"):
        read_words(tmp_path / "a.TextGrid")


@pytest.mark.skipif(not (REAL / "alice" / "textgrids").is_dir(), reason="no real TextGrids beside the repository")
def test_real_textgrids_agree_with_the_word_table_of_the_study() -> None:
    table = pd.read_csv(REAL / "alice" / "AliceChapterOne-EEG.csv")
    for segment, rows in table.groupby("Segment"):
        path = REAL / "alice" / "textgrids" / f"DownTheRabbitHoleFinal_SoundFile{segment}.TextGrid"
        words = read_words(path)
        # the table was made from another alignment of the same sound; both start with the same word, at the same time
        assert words["word"].iloc[0] == str(rows["Word"].iloc[0]).lower()
        assert words["onset_s"].iloc[0] == pytest.approx(rows["onset"].iloc[0], abs=0.15)
        assert words["onset_s"].is_monotonic_increasing
