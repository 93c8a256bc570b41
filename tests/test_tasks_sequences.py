"""Item sequences are read, and malformed files named."""

import os
from pathlib import Path

import pytest

from copilot.tasks import ItemSequences, read_item_sequences

DATA = os.environ.get("COPILOT_DATA")
SEQUENCES = ItemSequences(users=(1, 7), items=((1, 2, 3, 4, 5), (5, 1, 6)), n_items=6)


def test_a_file_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "items.txt"
    path.write_text("1 1 2 3 4 5\n7 5 1 6\n", encoding="utf-8")
    assert read_item_sequences(path) == SEQUENCES


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 4 x 5", "holds 'x'; accepted are whole numbers from 1"),
        ("2 4 0 5", "holds '0'; accepted are whole numbers from 1"),
        ("2 4 -1 5", "holds '-1'; accepted are whole numbers from 1"),
        ("2 4 5", "holds 3 numbers; accepted is a user and at least three items"),
        ("", "holds 0 numbers; accepted is a user and at least three items"),
        ("1 4 5 6", "repeats user 1; accepted is one line a user"),
    ],
)
def test_a_malformed_line_is_named_with_its_file(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "items.txt"
    path.write_text(f"1 1 2 3\n{line}\n3 1 2 3\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"items\.txt, line 2 {message}"):
        read_item_sequences(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "items.txt"
    path.touch()
    with pytest.raises(ValueError, match=r"items\.txt is empty"):
        read_item_sequences(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"items\.txt' *, which is not a file"):
        read_item_sequences(tmp_path / "items.txt")


@pytest.mark.skipif(DATA is None, reason="COPILOT_DATA names no folder of data sets")
def test_lastfm_has_the_size_the_paper_states() -> None:
    sequences = read_item_sequences(Path(str(DATA)) / "sequences" / "LastFM.txt")
    assert len(sequences.users) == 1090
    assert sequences.n_items == len({item for items in sequences.items for item in items}) == 3646
    assert sum(len(items) for items in sequences.items) == 52_551
