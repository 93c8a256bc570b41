"""Sequential recommendation: item sequences."""

from dataclasses import dataclass
from pathlib import Path


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


def read_item_sequences(path: str | Path) -> ItemSequences:
    """Read a file with one user a line: the user's id, then item ids in order of time, separated by spaces.

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
        raise ValueError(f"{path} is empty; accepted is one user a line")
    return ItemSequences(
        users=tuple(sequences),
        items=tuple(sequences.values()),
        n_items=max(max(items) for items in sequences.values()),
    )
