"""Held-out quality of a pair on a task: free generation judged by the task, and teacher-forced scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from copilot.pair import PilotCopilotModel
from copilot.tasks import TASKS, Example, exact_match


@dataclass(frozen=True)
class Evaluation:
    """What a pair wrote for N examples.

    Attributes:
        texts: the completions.
        exact: (N,) bool, equal to the example's completion up to surrounding white space.
        correct: (N,) bool, the task's own judgement of the answer.
    """

    texts: list[str]
    exact: NDArray[np.bool_]
    correct: NDArray[np.bool_]


def to_rows(examples: Sequence[Example]) -> list[dict[str, str]]:
    """Examples as prompt/completion rows for training and calibration."""
    return [{"prompt": example.prompt, "completion": example.completion} for example in examples]


@torch.no_grad()
def complete(
    pair: PilotCopilotModel,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    strength: float | None = None,
    batch_size: int = 32,
    **generation: Any,
) -> list[str]:
    """Completions of the prompts, in their order.

    Args:
        pair: Pilot and Copilot.
        tokenizer: of the Pilot; padding goes to the left for a decoder-only Pilot.
        prompts: N texts.
        strength: lambda; None takes the configuration's, 0 is the Pilot alone.
        batch_size: prompts a batch; those of like length go together.
        **generation: arguments of `generate`, such as max_new_tokens and num_beams.
    """
    was_training = pair.training
    pair.eval()
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    texts = [""] * len(prompts)
    for start in tqdm(range(0, len(order), batch_size), desc="Generating", leave=False):
        chosen = order[start : start + batch_size]
        inputs = tokenizer(
            [prompts[index] for index in chosen], return_tensors="pt", padding=True, padding_side="left"
        ).to(pair.device)
        ids, mask = inputs.input_ids, inputs.attention_mask
        if not pair.config.is_encoder_decoder and (ids[:, -1] == tokenizer.eos_token_id).all():
            ids, mask = ids[:, :-1], mask[:, :-1]  # some tokenizers end every text; the prompt goes on
        written = pair.generate(
            input_ids=ids,
            attention_mask=mask,
            strength=strength,
            pad_token_id=tokenizer.pad_token_id,
            **generation,
        )
        if not pair.config.is_encoder_decoder:
            written = written[:, ids.shape[1] :]
        for index, text in zip(chosen, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
            texts[index] = text
    pair.train(was_training)
    return texts


def evaluate(
    pair: PilotCopilotModel,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    strength: float | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 64,
    **generation: Any,
) -> Evaluation:
    """Generate a completion for every example and judge it by its task.

    Args:
        pair, tokenizer, strength, batch_size, generation: see `complete`; greedy unless `generation` says otherwise.
        examples: N examples of tasks in `copilot.tasks.TASKS`.
        max_new_tokens: tokens a completion may have.

    Raises:
        ValueError: no examples.
    """
    if not examples:
        raise ValueError("examples must hold at least one example; got none")
    generation = {"do_sample": False, "max_new_tokens": max_new_tokens} | generation
    prompts = [example.prompt for example in examples]
    texts = complete(pair, tokenizer, prompts, strength=strength, batch_size=batch_size, **generation)
    pairs = list(zip(texts, examples, strict=True))
    return Evaluation(
        texts,
        np.array([exact_match(text, example.completion) for text, example in pairs]),
        np.array([TASKS[example.task].is_correct(text, example.answer) for text, example in pairs]),
    )
