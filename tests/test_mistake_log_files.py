"""A saved Mistake Log goes on bit for bit, and a damaged file changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rounds import assert_same_round, filled, random_round, take
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from copilot import MistakeLog, mistake_log


@pytest.mark.parametrize("k", [None, 6])
@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize("hidden_dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("through", ["state_dict", "file"])
def test_a_restored_log_goes_on_bit_for_bit(tmp_path, k, ids, hidden_dtype, through):
    log = MistakeLog(4, seed=3, hidden_dtype=hidden_dtype)
    for seed in range(6):
        log.append(random_round(seed, k=k, ids=ids))
        log.draw()
    other = MistakeLog(4, seed=99, hidden_dtype=hidden_dtype)
    if through == "file":
        log.save(tmp_path / "log.safetensors")
        other.load(tmp_path / "log.safetensors")
    else:
        other.load_state_dict(log.state_dict())
    assert (len(other), other.rounds_seen, other.nbytes) == (4, 6, log.nbytes)
    for seed in range(10, 20):
        assert_same_round(other.draw(), log.draw())
        log.append(random_round(seed, k=k, ids=ids))
        other.append(random_round(seed, k=k, ids=ids))


def test_a_state_does_not_change_when_the_log_goes_on():
    log = filled(1, 2, seed=3)
    state = log.state_dict()
    restored = MistakeLog(4, seed=0)
    expected = take(20, filled(1, 2, seed=3))
    log.append(random_round(7))
    take(5, log)
    restored.load_state_dict(state)
    assert len(restored) == 2
    assert take(20, restored) == expected


def test_an_empty_log_is_saved_and_restored(tmp_path):
    MistakeLog(4).save(tmp_path / "log.safetensors")
    other = filled(1, 2)
    other.load(tmp_path / "log.safetensors")
    assert len(other) == 0


def test_saving_replaces_an_older_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "log.safetensors"
    filled(1).save(path)
    filled(1, 2, 3).save(path)
    restored = MistakeLog(4)
    restored.load(path)
    assert len(restored) == 3
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_save_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "log.safetensors"
    filled(1).save(path)

    def interrupted(_tensors: Any, target: Any, *_others: Any, **_options: Any) -> None:
        Path(target).write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(mistake_log, "save_file", interrupted)
    with pytest.raises(OSError, match="no space left"):
        filled(1, 2, 3).save(path)
    restored = MistakeLog(4)
    restored.load(path)
    assert len(restored) == 1


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def write_text(path: Path) -> None:
    path.write_text("not a log, but long enough to hold a header of some length")


def write_model(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path)


def write_model_with_metadata(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path, {"format": "pt"})


def drop_the_generator(path: Path) -> None:
    rewrite(path, lambda tensors: tensors.pop("generator"))


def drop_a_tensor(path: Path) -> None:
    rewrite(path, lambda tensors: tensors.pop("1.hidden"))


def damage_the_generator(path: Path) -> None:
    rewrite(path, lambda tensors: tensors.update(generator=torch.zeros(3, dtype=torch.uint8)))


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        empty,
        write_text,
        write_model,
        write_model_with_metadata,
        drop_the_generator,
        drop_a_tensor,
        damage_the_generator,
    ],
)
def test_a_file_that_is_no_complete_log_is_refused_and_changes_nothing(tmp_path, damage):
    path = tmp_path / "log.safetensors"
    filled(7, 8, 9).save(path)
    damage(path)
    log, untouched = filled(1, 2, seed=3), filled(1, 2, seed=3)
    with pytest.raises(ValueError, match=r"log\.safetensors"):
        log.load(path)
    assert log.rounds_seen == 2
    assert take(20, log) == take(20, untouched)


@pytest.mark.parametrize(
    ("options", "named"), [({"capacity": 5}, "capacity"), ({"hidden_dtype": "int8"}, "hidden_dtype")]
)
def test_a_log_of_another_kind_is_refused_and_changes_nothing(tmp_path, options, named):
    path = tmp_path / "log.safetensors"
    filled(7, 8, 9).save(path)
    log, untouched = filled(1, 2, **options), filled(1, 2, **options)
    with pytest.raises(ValueError, match=f"^{named}"):
        log.load(path)
    assert log.rounds_seen == 2
    assert take(20, log) == take(20, untouched)
