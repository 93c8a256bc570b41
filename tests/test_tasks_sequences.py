"""Item sequences: reading them, splitting them, writing them as text."""

import os
from pathlib import Path

import pytest

from copilot.tasks import TASKS, ItemSequences, NextItem, random_item_numbers, read_item_sequences, sequence_examples

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


def test_the_last_item_is_the_test_and_the_one_before_the_validation() -> None:
    assert SEQUENCES.leave_one_out("test") == [NextItem(1, (1, 2, 3, 4), 5), NextItem(7, (5, 1), 6)]
    assert SEQUENCES.leave_one_out("validation") == [NextItem(1, (1, 2, 3), 4), NextItem(7, (5,), 1)]


def test_training_predicts_every_remaining_item_with_a_history() -> None:
    assert SEQUENCES.leave_one_out("train") == [NextItem(1, (1,), 2), NextItem(1, (1, 2), 3)]


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split is 'valid'; accepted are train, validation, test"):
        SEQUENCES.leave_one_out("valid")  # type: ignore[arg-type]


def test_items_get_random_numbers_one_to_one() -> None:
    numbers = random_item_numbers(100, seed=0)
    assert list(numbers) == list(range(1, 101))
    assert sorted(numbers.values()) == list(range(1, 101))
    assert list(numbers.values()) != list(range(1, 101))
    assert numbers == random_item_numbers(100, seed=0) != random_item_numbers(100, seed=1)


def test_text_names_the_same_item_with_the_same_number_in_every_split() -> None:
    number = random_item_numbers(6, seed=3)
    validation = sequence_examples(SEQUENCES, "lastfm", "validation", seed=3)[0]
    test = sequence_examples(SEQUENCES, "lastfm", "test", seed=3)[0]
    history = f"item_{number[1]}, item_{number[2]}, item_{number[3]}"
    assert validation.prompt == f"LastFM user_1 chose in this order: {history}.\nNext item:"
    assert validation.completion == f" LastFM item_{number[4]}"
    assert validation.answer == f"item_{number[4]}"
    assert test.prompt == f"LastFM user_1 chose in this order: {history}, item_{number[4]}.\nNext item:"


def test_a_completion_is_a_correct_answer() -> None:
    for example in sequence_examples(SEQUENCES, "beauty", "train"):
        assert TASKS["beauty"].is_correct(example.completion, example.answer)


def test_a_prompt_keeps_the_most_recent_items() -> None:
    number = random_item_numbers(6)
    prompt = sequence_examples(SEQUENCES, "lastfm", "test", max_history=2)[0].prompt
    assert f"order: item_{number[3]}, item_{number[4]}." in prompt


def test_a_task_without_items_is_refused() -> None:
    with pytest.raises(ValueError, match="task is 'gsm8k'; accepted are beauty, lastfm"):
        sequence_examples(SEQUENCES, "gsm8k", "test")


def test_an_empty_history_is_refused() -> None:
    with pytest.raises(ValueError, match="max_history is 0; accepted is 1 or more"):
        sequence_examples(SEQUENCES, "lastfm", "test", max_history=0)


@pytest.mark.skipif(DATA is None, reason="COPILOT_DATA names no folder of data sets")
def test_lastfm_has_the_size_the_paper_states() -> None:
    sequences = read_item_sequences(Path(str(DATA)) / "sequences" / "LastFM.txt")
    assert len(sequences.users) == 1090
    assert sequences.n_items == len({item for items in sequences.items for item in items}) == 3646
    assert sum(len(items) for items in sequences.items) == 52_551
    assert len(sequences.leave_one_out("test")) == 1090
