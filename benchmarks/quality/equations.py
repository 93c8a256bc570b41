"""Word problems whose equations a small encoder-decoder learns to write from scratch."""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from models import small_t5
from tasks import HeldOut, per_example
from torch.nn import functional as F

from copilot import PilotCopilotForSeq2SeqLM
from copilot.calibration import Scores
from copilot.data import DataCollator, prepare_dataset
from copilot.pair import PilotCopilotModel
from copilot.tasks import read_examples

NUMBER = re.compile(r"\d+(?:\.\d+)?")
NAME = re.compile(r"\bn\d+\b")  # of a number
OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**", ast.USub: "neg"}
SOLVED = re.compile(r"[xX]=[^xX=]+")
SPECIAL = ("<pad>", "</s>", "<unk>")
PAD, END, UNKNOWN = range(len(SPECIAL))


def words_and_expression(problem: str, equation: str) -> tuple[list[str], list[str]]:
    """A problem's words and its equation in prefix notation, with the problem's numbers named in both.

    `"Ann has 3.0 figs and eats 1 ."` and `"x=3-1"` become `ann has n0 figs and eats n1 .` and `- n0 n1`, so that the
    answer does not depend on the numbers (Wang et al., EMNLP 2017, "Deep neural solver for math word problems").
    """
    names: dict[float, str] = {}
    for found in NUMBER.findall(problem):
        names.setdefault(float(found), f"n{len(names)}")
    named = NUMBER.sub(lambda found: f" {names[float(found.group())]} ", problem.lower())

    def prefix(node: ast.expr) -> list[str]:
        if isinstance(node, ast.BinOp):
            return [OPERATORS[type(node.op)], *prefix(node.left), *prefix(node.right)]
        if isinstance(node, ast.UnaryOp):
            return [OPERATORS[type(node.op)], *prefix(node.operand)]
        value = float(ast.literal_eval(node))
        return [names.get(value, f"{value:g}")]

    return re.findall(r"\w+|[^\w\s]", named), prefix(ast.parse(equation.partition("=")[2], mode="eval").body)


@dataclass(frozen=True)
class Equations:
    """MAWPS with its numbers named and its equations in prefix notation, and a small T5 trained from scratch.

    A wording, which may occur with several numbers, is held out or learned from, never both.

    Attributes:
        data: folder in the LLM-Adapters layout; its test file is not used, having no equations.
        held_out_size, validation_size: problems, each of another wording, the same for all seeds.
    """

    score: ClassVar[str] = "Brier score"

    data: str
    held_out_size: int
    validation_size: int

    @cached_property
    def splits(self) -> dict[str, list[tuple[list[str], list[str]]]]:
        """Problems with an equation that is solved for x."""
        of_wording: dict[str, list[tuple[list[str], list[str]]]] = {}
        for name in ("train", "valid"):
            for example in read_examples(self.data, "mawps", name):
                if SOLVED.fullmatch(equation := example.completion.strip()):
                    problem = words_and_expression(example.prompt, equation)
                    of_wording.setdefault(NAME.sub("n", " ".join(problem[0])), []).append(problem)
        wordings = list(of_wording.values())
        shuffled = [wordings[index] for index in np.random.default_rng(0).permutation(len(wordings))]
        apart = self.held_out_size + self.validation_size
        once = [problems[0] for problems in shuffled[:apart]]
        return {
            "held_out": once[: self.held_out_size],
            "validation": once[self.held_out_size :],
            "train": [problem for problems in shuffled[apart:] for problem in problems],
        }

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Numbers of the tokens that occur at least twice in training."""
        counts = Counter(token for problem in self.splits["train"] for part in problem for token in part)
        return {token: index for index, token in enumerate([*SPECIAL, *sorted(t for t in counts if counts[t] > 1)])}

    @cached_property
    def collate(self) -> DataCollator:
        return DataCollator(PAD, is_encoder_decoder=True)

    def rows(self, seed: int) -> Any:
        """What every Pilot learns from, whatever its seed."""
        return self.held_out_rows("train")

    def held_out_rows(self, split: str) -> Any:
        def numbers(tokens: list[str]) -> list[int]:
            return [self.vocabulary.get(token, UNKNOWN) for token in tokens]

        rows = [
            {"input_ids": numbers(problem), "labels": [*numbers(equation), END]}
            for problem, equation in self.splits[split]
        ]
        return prepare_dataset(rows, None, is_encoder_decoder=True)

    def held_out(self, split: str) -> HeldOut:
        return HeldOut(self.held_out_rows(split), self.collate)

    def pairs(self, designs: dict[str, dict[str, Any]], seed: int) -> dict[str, PilotCopilotModel]:
        """Fresh pairs on one fresh Pilot."""
        pilot = small_t5(len(self.vocabulary), PAD, END, seed)
        return {name: PilotCopilotForSeq2SeqLM.from_pilot(pilot, **design) for name, design in designs.items()}

    def judge(self, pair: PilotCopilotModel, found: Scores, strength: float, write: bool) -> dict[str, Any]:
        """Per problem: the teacher-forced scores, `exact` being that of greedy decoding; if `write`, of beams too."""
        facts = per_example(found)
        if write:
            facts["exact, 4 beams"] = self.exact(pair, strength=strength, num_beams=4)
        return facts

    @torch.no_grad()
    def exact(self, pair: PilotCopilotModel, **generation: Any) -> list[int]:
        """Whether the equation that is written freely is the one asked for, 0 or 1 per held-out problem."""
        found = []
        for batch in self.held_out("held_out").batches:
            asked = F.pad(batch.pop("labels").clamp(min=PAD), (0, 1), value=PAD)
            longest = asked.shape[1]  # one more than any that is right
            written = pair.generate(**batch, max_new_tokens=longest, do_sample=False, **generation)[:, 1:]
            written = F.pad(written, (0, longest - written.shape[1]), value=PAD)
            ends = (written == END).cumsum(1)  # beams go on with it
            written = written.masked_fill(ends.cumsum(1) > 1, PAD)
            found += (asked == written).all(1).int().tolist()
        return found
