"""The rows that `tcopilot` reads: files, folders, data sets of the hub, tasks of the LLM-Adapters layout."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import get_args

from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetsError

from copilot.cli_arguments import DataArguments, TrainSplitArguments, one_line
from copilot.tasks import Example, read_examples
from copilot.tasks.llm_adapters import Split

logger = logging.getLogger(__name__)

FILE_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
VALIDATION_SPLITS = ("validation", "valid")
HELD_OUT_SHARE = 0.1  # of the training rows, where the data has no validation split


def load_splits(data: DataArguments) -> DatasetDict:
    """All splits of the data, by name; a single file is one split, "train"."""
    path = Path(data.dataset_name)
    if data.dataset_config is not None and (data.task is not None or path.suffix in FILE_FORMATS):
        raise ValueError(f"dataset_config is {data.dataset_config!r}, which only a hub data set has")
    if data.task is not None:
        found = [name for name in get_args(Split) if (path / data.task / f"{name}.json").is_file()]
        if not found:
            raise FileNotFoundError(f"dataset_name is {data.dataset_name!r}, which holds no {data.task}/train.json")
        examples = {name: read_examples(path, data.task, name) for name in found}
        return DatasetDict({name: Dataset.from_list([vars(e) for e in rows]) for name, rows in examples.items()})
    file_format = FILE_FORMATS.get(path.suffix)
    if file_format is None and path.is_file():
        raise ValueError(f"dataset_name is {data.dataset_name!r}, expected a file with {', '.join(FILE_FORMATS)}")
    if file_format is not None and not path.is_file():
        raise FileNotFoundError(f"dataset_name is {data.dataset_name!r}, which does not exist")
    try:
        if file_format is not None:
            return load_dataset(file_format, data_files=str(path))
        return load_dataset(data.dataset_name, data.dataset_config)
    except (DatasetsError, ValueError, StopIteration, ConnectionError) as error:
        cause = error.__cause__ or error
        reason = "it is empty" if isinstance(cause, StopIteration) else one_line(cause)
        raise ValueError(f"dataset_name is {data.dataset_name!r}, which cannot be read: {reason}") from error


def pick_split(splits: DatasetDict, name: str, option: str) -> Dataset:
    """The rows of a split; ValueError when there is none of that name."""
    if name not in splits:
        raise ValueError(f"{option} is {name!r}; the data has {', '.join(splits)}")
    return splits[name]


def load_training_data(data: DataArguments, choice: TrainSplitArguments, seed: int) -> tuple[Dataset, Dataset]:
    """Rows to train on, and others for calibration; of a task without the problems of its test file."""
    splits = load_splits(data)
    training = pick_split(splits, choice.dataset_train_split, "dataset_train_split")
    if data.task is not None and "test" in splits:
        training = without_test_problems(training, splits["test"])
    name = choice.dataset_validation_split or next((name for name in VALIDATION_SPLITS if name in splits), None)
    if name is not None:
        return training, pick_split(splits, name, "dataset_validation_split")
    if len(training) < 2:
        raise ValueError(f"the data has {len(training)} rows to train on, expected at least 2: some calibrate lambda")
    parts = training.train_test_split(test_size=HELD_OUT_SHARE, seed=seed)
    return parts["train"], parts["test"]


def without_test_problems(training: Dataset, test: Dataset) -> Dataset:
    """The rows of a task whose prompt, which holds the whole problem, is in no row of its test file.

    Raises:
        ValueError: most rows are in it: the file is no training data, as in LLM-Adapters that of GSM8K, AQuA and SVAMP.
    """
    tested = set(test["prompt"])
    new = [index for index, prompt in enumerate(training["prompt"]) if prompt not in tested]
    repeated = len(training) - len(new)
    if repeated == 0:
        return training
    found = f"{repeated} of {len(training)} training rows are also in the test file"
    if repeated > len(new):
        raise ValueError(f"{found}: training data with other problems is needed")
    logger.warning("%s, and are left out.", found)
    return training.select(new)


def load_examples(data: DataArguments, split: str | None) -> list[Example]:
    """The examples of one split."""
    splits = load_splits(data)
    name = split or (next(iter(splits)) if len(splits) == 1 else "test")
    rows = pick_split(splits, name, "dataset_test_split")
    if not {"prompt", "completion"} <= set(rows.column_names):
        raise ValueError(f"the data has the columns {sorted(rows.column_names)}, expected {{prompt, completion}}")
    examples = []
    for number, row in enumerate(rows.to_list()):
        for column in ("prompt", "completion"):
            if not isinstance(row[column], str):
                raise ValueError(f"row {number} of the data has {column} {row[column]!r}, expected a string")
        examples.append(Example(row["prompt"], row["completion"], row.get("answer", ""), data.task or ""))
    return examples
