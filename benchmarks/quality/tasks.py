"""What an experiment is about: the rows to learn from, and how a pair is judged on those held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from models import add_lora, pretrained, small_llama
from torch import Tensor
from torch.utils.data import DataLoader
from training import autocast
from transformers import AutoTokenizer

from copilot import PilotCopilotForCausalLM
from copilot.calibration import Held, Scores, evaluating, supervision_of
from copilot.data import DataCollator, prepare_dataset, prompt_tokens
from copilot.evaluation import evaluate, to_rows
from copilot.ops import Mistakes, mistake_cross_entropy
from copilot.pair import PilotCopilotModel
from copilot.tasks import (
    TASKS,
    Example,
    discounted_gains,
    extract_item,
    hit_at_k,
    ndcg_at_k,
    ranks_in_lists,
    read_examples,
    read_item_sequences,
    sequence_examples,
)
from copilot.tasks.llm_adapters import Split

BATCH = 32  # rows a forward when measuring
HISTORY = 50  # items of a user
TEMPERATURES = [0.6 + step / 10 for step in range(25)]
SCORES = ("Brier score", "NLL")  # a task's `score`, of validation data, chooses a temperature
BEAMS = {"greedy": 1, "4 beams": 4}
LISTED = 10  # beams that list items


@dataclass(frozen=True)
class Collected:
    """What was seen of held-out rows.

    Attributes:
        held: by pair.
        tempered: by pair and temperature T, the same corrections with the mistakes of softmax(z / T); nothing of a pair
            that corrects the whole vocabulary.
    """

    held: dict[str, list[Held]]
    tempered: dict[str, dict[float, list[Held]]]


class HeldOut:
    """Rows that no model was trained on, in batches of like length."""

    def __init__(self, rows: Any, collate: DataCollator):
        by_length = sorted(rows, key=lambda row: len(row["input_ids"]))
        self.batches = DataLoader(by_length, BATCH, collate_fn=collate)

    @torch.no_grad()
    def collect(self, pairs: dict[str, PilotCopilotModel], temperatures: Sequence[float] = ()) -> Collected:
        """One pass of the Pilot that the pairs share, also at each temperature."""
        held: dict[str, list[Held]] = {name: [] for name in pairs}
        tempered: dict[str, dict[float, list[Held]]] = {
            name: {temperature: [] for temperature in temperatures}
            for name, pair in pairs.items()
            if pair.config.candidates is not None
        }
        first = next(iter(pairs.values()))
        for pair in pairs.values():
            pair.eval()
        for batch in self.batches:
            with autocast(first):
                passed = first.pilot_pass(**{name: value.to(first.device) for name, value in batch.items()})
                for name, pair in pairs.items():
                    held[name].append(Held.of(pair, passed))
            for temperature in temperatures:
                logits = passed.logits.float() / temperature  # which keeps their order, and so the candidates
                mistakes: dict[int, Mistakes] = {}
                for name, parts in tempered.items():
                    k = pairs[name].config.candidates
                    if k not in mistakes:
                        mistakes[k] = mistake_cross_entropy(logits, passed.supervision.target, k)[1].cpu()
                    parts[temperature].append(replace(held[name][-1], mistakes=mistakes[k]))
        return Collected(held, tempered)


def per_example(found: Scores) -> dict[str, Any]:
    """The scores as a results file keeps them."""
    return {
        "exact": found.exact.int().tolist(),
        "brier": [round(value, 5) for value in found.brier.tolist()],
        "nll": [round(value, 5) for value in found.nll.tolist()],
        "tokens": found.tokens.tolist(),
    }


def ranking(score: Tensor, target: Tensor, lengths: list[int]) -> dict[str, list[float]]:
    """Hit@10 and NDCG@10 among all items, the mean over the tokens of each user.

    Args:
        score: (M, items), of which item 0 is padding; items of equal score share their ranks.
        target: (M,), the true items.
        lengths: how many of the M tokens each user has.
    """
    true, items = score.gather(1, target[:, None]), score[:, 1:]
    ranks = (1 + (items > true).sum(1) + ((items == true).sum(1) - 1) // 2).split(lengths)
    by_metric = {"hit@10": hit_at_k, "ndcg@10": ndcg_at_k}
    return {name: [round(metric(of_user, 10), 5) for of_user in ranks] for name, metric in by_metric.items()}


def read_splits(data: str, task: str) -> dict[str, list[Example]]:
    """Examples for train, test and, where there are some, valid."""
    if TASKS[task].kind == "recommendation":
        sequences = read_item_sequences(data)
        return {
            "train": sequence_examples(sequences, task, "train"),
            "valid": sequence_examples(sequences, task, "validation"),
            "test": sequence_examples(sequences, task, "test"),
        }
    names: list[Split] = ["train", "test"]
    if (Path(data) / task / "valid.json").is_file():
        names.append("valid")
    return {name: read_examples(data, task, name) for name in names}


@torch.no_grad()
def ranked_lists(pair: PilotCopilotModel, tokenizer: Any, prompts: list[str], **generation: Any) -> list[list[str]]:
    """For each prompt the items that `LISTED` beams name, the likeliest first, each once."""
    found = []
    for start in range(0, len(prompts), BATCH // 4):
        tokens = [prompt_tokens(prompt, tokenizer) for prompt in prompts[start : start + BATCH // 4]]
        batch = tokenizer.pad({"input_ids": tokens}, padding_side="left", return_tensors="pt").to(pair.device)
        beams = {"num_beams": LISTED, "num_return_sequences": LISTED, "pad_token_id": tokenizer.pad_token_id}
        written = pair.generate(**batch, do_sample=False, **beams, **generation)
        texts = tokenizer.batch_decode(written[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
        for first in range(0, len(texts), LISTED):
            named = [item for text in texts[first : first + LISTED] if (item := extract_item(text))]
            found.append(list(dict.fromkeys(named)))
    return found


@dataclass(frozen=True)
class WrittenAnswers:
    """A task of `copilot.tasks` and a pretrained decoder-only Pilot with LoRA.

    Attributes:
        data: folder in the LLM-Adapters layout; of a recommendation task the file of its sequences.
        pilot: folder or hub id.
        task: its name.
        train_size: examples to learn from, drawn anew for each seed.
        held_out_size: examples, the same for all seeds, on which everything is measured: of the test file where it has
            completions, else of the training file.
        validation_size: examples, the same for all seeds, that choose lambda: of the validation file, else of the
            training file.
        lora: fields of the Pilot's `peft.LoraConfig`.
        new_tokens: an answer may have.
        decoding: how answers are also written freely: names of `BEAMS`. Items are then also listed by ten beams.
        max_length: tokens of a row at most; see `copilot.data.prepare_dataset`.
    """

    score: ClassVar[str] = "Brier score"

    data: str
    pilot: str
    task: str
    train_size: int
    held_out_size: int
    validation_size: int
    lora: dict[str, Any]
    new_tokens: int
    decoding: Sequence[str] = ()
    max_length: int = 256

    @cached_property
    def tokenizer(self) -> Any:
        tokenizer = AutoTokenizer.from_pretrained(self.pilot)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token  # masked wherever it pads
        return tokenizer

    @cached_property
    def splits(self) -> dict[str, list[Example]]:
        """held_out, validation, train (what is left) and, where the test file has no completions, test."""
        shuffle = np.random.default_rng(0).permutation
        read = read_splits(self.data, self.task)
        pool = {name: [examples[index] for index in shuffle(len(examples))] for name, examples in read.items()}
        splits = {}
        if pool["test"][0].completion:
            splits["held_out"] = pool["test"][: self.held_out_size]
        else:
            splits["test"] = pool["test"]
            splits["held_out"], pool["train"] = pool["train"][: self.held_out_size], pool["train"][self.held_out_size :]
        if "valid" not in pool:
            pool["valid"], pool["train"] = pool["train"][: self.validation_size], pool["train"][self.validation_size :]
        taken = {example.prompt for examples in (pool["test"], splits["held_out"]) for example in examples}
        splits["validation"] = [e for e in pool["valid"] if e.prompt not in taken][: self.validation_size]
        taken |= {example.prompt for example in splits["validation"]}
        splits["train"] = [e for e in pool["train"] if e.prompt not in taken]
        if lacking := [name for name in ("train", "validation") if not splits[name]]:
            raise ValueError(
                f"task {self.task!r} in {self.data} has nothing left for {' and '.join(lacking)} that is not held out; "
                "training data with other prompts than the test file is needed"
            )
        return splits

    @cached_property
    def collate(self) -> DataCollator:
        return DataCollator(self.tokenizer.pad_token_id)

    def examples(self, seed: int) -> list[Example]:
        """What a Pilot of this seed learns from."""
        train = self.splits["train"]
        order = np.random.default_rng(seed).permutation(len(train))[: self.train_size]
        return [train[index] for index in order]

    def rows(self, seed: int) -> Any:
        """The same, prepared."""
        return self._prepared(self.examples(seed))

    def held_out_rows(self, split: str) -> Any:
        return self._prepared(self.splits[split])

    def _prepared(self, examples: list[Example]) -> Any:
        return prepare_dataset(to_rows(examples), self.tokenizer, max_length=self.max_length)

    def held_out(self, split: str) -> HeldOut:
        return HeldOut(self.held_out_rows(split), self.collate)

    def pairs(self, designs: dict[str, dict[str, Any]], seed: int) -> dict[str, PilotCopilotModel]:
        """Fresh pairs on one fresh Pilot."""
        torch.manual_seed(seed)
        pilot = pretrained(self.pilot)
        pairs = {name: PilotCopilotForCausalLM.from_pilot(pilot, **design) for name, design in designs.items()}
        add_lora(pilot, self.lora, seed)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return {name: pair.to(device) for name, pair in pairs.items()}

    def judge(self, pair: PilotCopilotModel, found: Scores, strength: float, write: bool) -> dict[str, Any]:
        """Per example: teacher-forced scores and, if `write`, whether freely written answers are right."""
        facts = per_example(found)
        for name in self.decoding if write else ():
            options = {"strength": strength, "batch_size": BATCH * 2, "max_new_tokens": self.new_tokens}
            examples = self.splits.get("test", self.splits["held_out"])
            with autocast(pair):
                written = evaluate(pair, self.tokenizer, examples, num_beams=BEAMS[name], **options)
            facts[f"answers, {name}"] = written.correct.astype(int).tolist()
        if write and self.decoding and TASKS[self.task].kind == "recommendation":
            examples = self.splits["held_out"]
            with autocast(pair), evaluating(pair):
                options = {"strength": strength, "max_new_tokens": self.new_tokens}
                lists = ranked_lists(pair, self.tokenizer, [example.prompt for example in examples], **options)
            ranks = ranks_in_lists(lists, [example.answer for example in examples])
            facts["listed, hit@10"] = (ranks <= LISTED).astype(int).tolist()
            facts["listed, ndcg@10"] = discounted_gains(ranks, LISTED).round(5).tolist()
        return facts


@dataclass(frozen=True)
class NextItem:
    """The next item of a sequence, and a small decoder-only Pilot trained from scratch.

    Every item is predicted from those before it, as SASRec does (Kang and McAuley, arXiv:1808.09781), for users that no
    model was trained on (strong generalisation: Liang et al., arXiv:1802.05814): a fifth of the users is held out, a
    tenth is for validation.

    Attributes:
        data: a file with one user a line.
        dropout: of the Pilot; see `models.small_llama`.
    """

    score: ClassVar[str] = "NLL"

    data: str
    dropout: float = 0.0

    @cached_property
    def sequences(self) -> Any:
        return read_item_sequences(self.data)

    @cached_property
    def splits(self) -> dict[str, list[list[int]]]:
        """Each user's most recent items."""
        users = [list(items[-HISTORY:]) for items in self.sequences.items]
        shuffled = [users[index] for index in np.random.default_rng(0).permutation(len(users))]
        held_out, validation = round(0.2 * len(users)), round(0.1 * len(users))
        return {
            "held_out": shuffled[:held_out],
            "validation": shuffled[held_out:][:validation],
            "train": shuffled[held_out + validation :],
        }

    @cached_property
    def collate(self) -> DataCollator:
        return DataCollator(0)

    def rows(self, seed: int) -> Any:
        """What every Pilot learns from, whatever its seed."""
        return self.held_out_rows("train")

    def held_out_rows(self, split: str) -> Any:
        return prepare_dataset([{"input_ids": items, "labels": items} for items in self.splits[split]], None)

    def held_out(self, split: str) -> HeldOut:
        return HeldOut(self.held_out_rows(split), self.collate)

    def pairs(self, designs: dict[str, dict[str, Any]], seed: int) -> dict[str, PilotCopilotModel]:
        """Fresh pairs on one fresh Pilot."""
        pilot = small_llama(self.sequences.n_items + 1, seed, self.dropout)
        return {name: PilotCopilotForCausalLM.from_pilot(pilot, **design) for name, design in designs.items()}

    @torch.no_grad()
    def judge(self, pair: PilotCopilotModel, found: Scores, strength: float, write: bool) -> dict[str, Any]:
        """Per user: the teacher-forced scores, and the means of Hit@10 and NDCG@10 among all items."""
        facts = per_example(found) | {"hit@10": [], "ndcg@10": []}
        for batch in self.held_out("held_out").batches:
            source = supervision_of(pair, batch)
            score = pair(**batch, strength=strength).logits[source].float()
            target = batch["labels"].roll(-1, dims=1)[source]
            for name, values in ranking(score, target, source.sum(1).tolist()).items():
                facts[name] += values
        return facts
