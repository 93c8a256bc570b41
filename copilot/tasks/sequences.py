"""Sequential recommendation: item sequences, their leave-one-out split and their form as text."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from copilot.tasks.example import Example
from copilot.tasks.llm_adapters import TASKS

SequenceSplit = Literal["train", "validation", "test"]

# As a data set is written in a prompt, by the name of its task.
_DATASETS = {"beauty": "Beauty", "lastfm": "LastFM"}


@dataclass(frozen=True)
class NextItem:
    """One prediction: after `history`, in order of time, `user` chose `target`."""

    user: int
    history: tuple[int, ...]
    target: int


@dataclass(frozen=True)
class ItemSequences:
    """What each user chose, in order of time.

    Attributes:
        users: Ids of the users, (users,).
        items: For each user the ids of the items, at least three of them.
        n_items: The largest item id. Ids run from 1 to `n_items`, so that 0 is free for padding.
    """

    users: tuple[int, ...]
    items: tuple[tuple[int, ...], ...]
    n_items: int

    def leave_one_out(self, split: SequenceSplit) -> list[NextItem]:
        """The predictions of a split: the last item of each user is the test, the one before it the validation.

        `train` has one prediction for every training item that has a history.
        """
        if split == "test":
            return [NextItem(user, items[:-1], items[-1]) for user, items in zip(self.users, self.items, strict=True)]
        if split == "validation":
            return [NextItem(user, items[:-2], items[-2]) for user, items in zip(self.users, self.items, strict=True)]
        if split == "train":
            return [
                NextItem(user, items[:position], items[position])
                for user, items in zip(self.users, self.items, strict=True)
                for position in range(1, len(items) - 2)
            ]
        raise ValueError(f"split is {split!r}; accepted are train, validation, test")


def read_item_sequences(path: str | Path) -> ItemSequences:
    """Read a file with one user on each line: the user's id, then item ids in order of time, separated by spaces.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is empty, or a line is malformed; the message names the file and the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path is {str(path)!r}, which is not a file")
    sequences: dict[int, tuple[int, ...]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        place = f"{path}, line {number}"
        words = line.split()
        wrong = [word for word in words if not (word.isascii() and word.isdigit() and int(word) > 0)]
        if wrong:
            raise ValueError(f"{place} holds {wrong[0]!r}; accepted are whole numbers from 1")
        if len(words) < 4:
            raise ValueError(f"{place} holds {len(words)} numbers; accepted is a user and at least three items")
        user, *items = (int(word) for word in words)
        if user in sequences:
            raise ValueError(f"{place} repeats user {user}; accepted is one line a user")
        sequences[user] = tuple(items)
    if not sequences:
        raise ValueError(f"{path} is empty; accepted is one user on each line")
    return ItemSequences(
        users=tuple(sequences),
        items=tuple(sequences.values()),
        n_items=max(max(items) for items in sequences.values()),
    )


def sequence_examples(
    sequences: ItemSequences, task: str, split: SequenceSplit, *, max_history: int = 20, seed: int = 0
) -> list[Example]:
    """The predictions of a split as text, in the order of `sequences.leave_one_out(split)`.

    Items are written with random numbers (`LastFM item_1253`) fixed by `seed`: the ids of a file follow the order in
    which items first occur, which would give the next item away. Use one seed for all splits. Prompts hold the most
    recent `max_history` items. A completion is ` LastFM item_1253`, the answer `item_1253`.

    Raises:
        ValueError: `task` is not a recommendation task, `split` is unknown, or `max_history` is below 1.
    """
    if task not in _DATASETS:
        raise ValueError(f"task is {task!r}; accepted are {', '.join(_DATASETS)}")
    if max_history < 1:
        raise ValueError(f"max_history is {max_history}; accepted is 1 or more")
    dataset = _DATASETS[task]
    numbers = random_item_numbers(sequences.n_items, seed)
    examples = []
    for step in sequences.leave_one_out(split):
        history = ", ".join(f"item_{numbers[item]}" for item in step.history[-max_history:])
        answer = f"item_{numbers[step.target]}"
        instruction = f"{dataset} user_{step.user} chose in this order: {history}."
        prompt = TASKS[task].template.format(instruction=instruction)
        examples.append(Example(prompt, f" {dataset} {answer}", answer, task))
    return examples


def random_item_numbers(n_items: int, seed: int = 0) -> dict[int, int]:
    """A random one-to-one map from the item ids 1 to `n_items` to the numbers written in prompts, 1 to `n_items`."""
    numbers = list(range(1, n_items + 1))
    random.Random(seed).shuffle(numbers)
    return dict(enumerate(numbers, start=1))
