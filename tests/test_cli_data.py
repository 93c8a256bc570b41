"""Which rows tcopilot trains on."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from copilot.cli_arguments import DataArguments, TrainSplitArguments
from copilot.cli_data import load_splits, load_training_data


@pytest.fixture(autouse=True)
def keep_data_sets_in_the_test_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def task_data(root: Path, **problems: range) -> DataArguments:
    """GSM8K's files, by split the numbers of the problems in it."""
    (root / "gsm8k").mkdir()
    for split, numbers in problems.items():
        rows = [
            {"instruction": f"{n} + 0?", "input": "", "output": f"The answer is {n}.", "answer": n} for n in numbers
        ]
        (root / "gsm8k" / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")
    return DataArguments(str(root), task="gsm8k")


def test_a_task_whose_training_file_is_mostly_test_problems_is_refused(tmp_path):
    data = task_data(tmp_path, train=range(10), test=range(4, 20))
    with pytest.raises(ValueError, match="6 of 10 training rows are also in the test file"):
        load_training_data(data, TrainSplitArguments(), seed=0)


def test_a_few_test_problems_in_a_training_file_are_left_out_with_a_warning(tmp_path, caplog):
    data = task_data(tmp_path, train=range(10), test=range(8, 20))
    with caplog.at_level(logging.WARNING, logger="copilot.cli_data"):
        training, held_out = load_training_data(data, TrainSplitArguments(), seed=0)
    assert sorted([*training["answer"], *held_out["answer"]]) == [str(n) for n in range(8)]
    assert "2 of 10 training rows are also in the test file" in caplog.text


def test_a_task_without_test_problems_in_its_training_file_is_read_whole(tmp_path, caplog):
    data = task_data(tmp_path, train=range(10), valid=range(10, 12), test=range(12, 20))
    with caplog.at_level(logging.WARNING, logger="copilot.cli_data"):
        training, held_out = load_training_data(data, TrainSplitArguments(), seed=0)
    assert (len(training), len(held_out), caplog.text) == (10, 2, "")


def test_the_configuration_of_a_hub_data_set_is_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr("copilot.cli_data.load_dataset", lambda *names: asked.append(names))
    load_splits(DataArguments("openai/gsm8k", "socratic"))
    assert asked == [("openai/gsm8k", "socratic")]
