"""Word problems whose equations a small encoder-decoder learns to write from scratch."""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from models import small_t5
from tasks import HeldOut, per_example

from copilot import PilotCopilotForSeq2SeqLM
from copilot.calibration import Scores
from copilot.data import DataCollator, prepare_dataset
from copilot.pair import PilotCopilotModel
from copilot.tasks import read_examples

NUMBER = re.compile(r"\d+(?:\.\d+)?")
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

    Of 400 held-out problems 85 stand in the training data, too, but for their numbers.

    Attributes:
        data: folder in the LLM-Adapters layout.
        held_out_size: problems, the same for all seeds, of the training file: those of the test file have no equations.
    """

    data: str
    held_out_size: int

    @cached_property
    def splits(self) -> dict[str, list[tuple[list[str], list[str]]]]:
        """Problems with an equation that is solved for x."""
        read = {}
        for name in ("train", "valid"):
            examples = [
                (example.prompt, example.completion.strip()) for example in read_examples(self.data, "mawps", name)
            ]
            read[name] = [
                words_and_expression(problem, equation) for problem, equation in examples if SOLVED.fullmatch(equation)
            ]
        order = np.random.default_rng(0).permutation(len(read["train"]))
        shuffled = [read["train"][index] for index in order]
        return {
            "held_out": shuffled[: self.held_out_size],
            "validation": read["valid"],
            "train": shuffled[self.held_out_size :],
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
        """Per problem: the teacher-forced scores, of which `exact` is that of greedy decoding."""
        return per_example(found)
