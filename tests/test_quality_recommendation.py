"""The experiments' text form of a recommendation task: what is learned, and how written items are ranked."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from builders import fresh_pair
from experiments import QUALITY, run_experiment, saved_pilot
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from copilot.tasks import read_item_sequences

USERS, ITEMS = 9, 30
EXPERIMENT = {
    "kind": "written_answers",
    "task": {
        "task": "mawps",
        "train_size": 20,
        "held_out_size": 6,
        "validation_size": 4,
        "lora": {"r": 2},
        "new_tokens": 4,
        "decoding": ["greedy"],
    },
    "batch_size": 4,
    "learning_rate": 1e-3,
    "copilot_learning_rate": 1e-2,
    "warmup": 2,
    "arms": {"pair": {"design": {"layers": 2}, "write": True}},
    "points": {"short": {"epochs": 1}},
}


@pytest.fixture
def items() -> Any:
    """A tokenizer that knows items, and no token for padding."""
    words = ["<eos>", "<unk>", "LastFM", *(f"item_{number}" for number in range(1, ITEMS + 1))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")


@pytest.fixture
def pilot(tmp_path: Path, items: Any) -> str:
    return saved_pilot(tmp_path / "pilot", items)


@pytest.fixture
def sequences(tmp_path: Path) -> str:
    draw = random.Random(0)
    lines = [f"{user} {' '.join(map(str, draw.sample(range(1, ITEMS + 1), 7)))}" for user in range(1, USERS + 1)]
    path = tmp_path / "items.txt"
    path.write_text("\n".join(lines))
    return str(path)


def test_another_task_of_a_kind_is_trained_and_kept_apart(
    quality: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pilot: str, sequences: str
) -> None:
    facts = {"data": sequences, "pilot": pilot} | EXPERIMENT["task"] | {"task": "lastfm"}
    answers = {e.prompt: e.answer for e in quality.tasks.WrittenAnswers(**facts).splits["held_out"]}
    places, strengths, ranked = [1, 2, 3, 10, 11, 4], [], quality.tasks.ranked_lists

    def listed(pair: Any, items: Any, prompts: list[str], **options: Any) -> list[list[str]]:
        strengths.append(options["strength"])
        assert len(ranked(pair, items, prompts, **options)) == len(prompts)  # hardly any hits, untrained as it is
        return [["another"] * (place - 1) + [answers[of]] for place, of in zip(places, prompts, strict=True)]

    monkeypatch.setattr(quality.tasks, "ranked_lists", listed)
    arguments = ("--data", sequences, "--pilot", pilot, "--task", "lastfm", "--seeds", "0")
    folder = run_experiment(quality, monkeypatch, tmp_path, EXPERIMENT, *arguments)
    assert not folder.exists()
    result = json.loads((folder.parent / "toy_lastfm" / "short_seed0_copilots.json").read_text())
    assert result["settings"]["task"]["task"] == "lastfm"
    assert result["settings"]["task"]["train_size"] == 20
    assert strengths == [arm["strength"] for arm in result["arms"].values()]
    for arm in result["arms"].values():
        assert len(arm["answers, greedy"]) == 6
        assert arm["listed, hit@10"] == [1, 1, 1, 1, 0, 1]
        gains = [0.0 if place > 10 else 1 / math.log2(place + 1) for place in places]
        assert arm["listed, ndcg@10"] == pytest.approx(gains, abs=1e-5)


def test_the_last_item_of_a_user_is_held_out_and_the_one_before_for_validation(
    quality: Any, pilot: str, sequences: str
) -> None:
    sizes = {"held_out_size": 100, "validation_size": 100}
    task = quality.tasks.WrittenAnswers(data=sequences, pilot=pilot, **EXPERIMENT["task"] | {"task": "lastfm"} | sizes)
    assert {name: len(examples) for name, examples in task.splits.items()} == {
        "held_out": USERS,
        "validation": USERS,
        "train": 4 * USERS,
    }
    known = read_item_sequences(sequences)
    for example in task.splits["held_out"]:
        user = int(example.prompt.split("user_")[1].split()[0])
        assert example.prompt.count("item_") == len(known.items[user - 1]) - 1
    row = task.rows(0)[0]
    asked = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert task.tokenizer.decode(asked).split()[0] == "LastFM"


def test_items_are_listed_by_their_beams_each_once(quality: Any, items: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    items.pad_token = items.eos_token
    prompts = ["LastFM item_1", "LastFM item_1 item_2 item_3"]
    best = [["item_4", "item_4", "<unk>", "item_5"], ["item_6", "item_7", "item_6", "item_4"]]
    asked = []

    def generate(input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> torch.Tensor:
        asked.append((attention_mask.sum(1).tolist(), options["num_beams"], options["strength"]))
        beams = [(words * 3)[: quality.tasks.LISTED] for words in best]
        written = torch.tensor([items.convert_tokens_to_ids(["LastFM", word]) for words in beams for word in words])
        return torch.cat([input_ids.repeat_interleave(quality.tasks.LISTED, 0), written], 1)

    pair = SimpleNamespace(device=torch.device("cpu"), generate=generate)
    lists = quality.tasks.ranked_lists(pair, items, prompts, strength=0.5, max_new_tokens=2)
    assert lists == [["item_4", "item_5"], ["item_6", "item_7", "item_4"]]
    assert asked == [([2, 4], 10, 0.5)]


def test_warmup_is_a_share_of_the_steps_or_their_number(quality: Any) -> None:
    assert quality.training.warmup_steps(0.1, 60) == 6
    assert quality.training.warmup_steps(100, 60) == 100
    assert quality.training.warmup_steps(0, 60) == 0


def test_the_papers_copilot_trains_adapters_and_both_tables(quality: Any) -> None:
    paths = sorted((QUALITY / "paper").glob("*.yaml"))
    assert [path.stem for path in paths] == ["arithmetic", "commonsense", "recommendation"]
    for path in paths:
        design = quality.run.Experiment.read(path).arms["paper"].design
        copilot = fresh_pair("llama", **design).copilot
        trained = {name.split(".")[0] for name, weight in copilot.named_parameters() if weight.requires_grad}
        assert trained >= {"error_in", "layers", "head"}
        assert all("lora_" in n for n, w in copilot.layers.named_parameters() if w.requires_grad)


@pytest.mark.parametrize("held_out", [4, 8])
def test_a_task_whose_training_file_repeats_its_test_file_is_refused(
    quality: Any, pilot: str, tmp_path: Path, held_out: int
) -> None:
    folder = tmp_path / "data" / "AQuA"
    folder.mkdir(parents=True)
    rows = [{"instruction": f"q{n}", "input": "", "output": "The answer is A", "answer": "A"} for n in range(8)]
    for split in ("train", "test"):
        (folder / f"{split}.json").write_text(json.dumps(rows))
    sizes = {"task": "AQuA", "held_out_size": held_out}
    task = quality.tasks.WrittenAnswers(data=str(folder.parent), pilot=pilot, **EXPERIMENT["task"] | sizes)
    with pytest.raises(ValueError, match=r"task 'AQuA' in .* has nothing left for train and validation"):
        _ = task.splits
