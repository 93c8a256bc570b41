"""Held-out quality of a pair on a task: free generation judged by the task, and teacher-forced scores."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from copilot.calibration import evaluating
from copilot.data import prompt_tokens
from copilot.pair import PilotCopilotModel
from copilot.tasks import TASKS, Example, exact_match

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 256  # as in the paper: a chain of thought fits


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
    max_new_tokens: int = MAX_NEW_TOKENS,
    **generation: Any,
) -> list[str]:
    """Completions of the prompts, in their order.

    Args:
        pair: Pilot and Copilot.
        tokenizer: of the Pilot; padding goes to the left for a decoder-only Pilot.
        prompts: N texts.
        strength: lambda; None takes the configuration's, 0 is the Pilot alone.
        batch_size: prompts per batch; those of like length go together.
        max_new_tokens: tokens a completion may have; one warning counts those that did not end by then.
        **generation: arguments of `generate`, such as num_beams, that give one text for each prompt.

    Raises:
        ValueError: a batch_size below 1, a prompt without a token, or several texts for a prompt.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    for option, expected in (("num_return_sequences", 1), ("return_dict_in_generate", False)):
        if generation.get(option, expected) is not expected:
            raise ValueError(f"{option} is {generation[option]!r}, expected {expected}; call pair.generate")
    is_encoder_decoder = pair.config.is_encoder_decoder
    tokens = [
        tokenizer(prompt).input_ids if is_encoder_decoder else prompt_tokens(prompt, tokenizer) for prompt in prompts
    ]
    rows = [torch.tensor(row, dtype=torch.int64) for row in tokens]
    empty = [index for index, row in enumerate(rows) if len(row) == 0]
    if empty:
        raise ValueError(f"prompt {empty[0]} has no token: {prompts[empty[0]]!r}")
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    texts = [""] * len(rows)
    end = generation.get("eos_token_id", pair.generation_config.eos_token_id)
    ends, cut = {tokenizer.pad_token_id, *np.atleast_1d(end).tolist()}, 0  # of one, several or None
    with evaluating(pair):
        for start in tqdm(range(0, len(order), batch_size), desc="Generating", leave=False):
            chosen = order[start : start + batch_size]
            batch = [rows[index] for index in chosen]
            padding = tokenizer.pad_token_id or 0  # masked: any token will do
            ids = pad_sequence(batch, batch_first=True, padding_value=padding, padding_side="left")
            mask = pad_sequence([torch.ones_like(row) for row in batch], batch_first=True, padding_side="left")
            written = pair.generate(
                input_ids=ids.to(pair.device),
                attention_mask=mask.to(pair.device),
                strength=strength,
                pad_token_id=tokenizer.pad_token_id,
                max_new_tokens=max_new_tokens,
                tokenizer=tokenizer,  # which stop_strings need
                **generation,
            )
            written = written[:, 1 if is_encoder_decoder else ids.shape[1] :]
            if written.shape[1] == max_new_tokens:  # else all have ended
                cut += sum(token not in ends for token in written[:, -1].tolist())
            decoded = tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for index, text in zip(chosen, decoded, strict=True):
                texts[index] = text
    if cut:
        strength = pair.config.strength if strength is None else strength
        message = "%d of %d texts at strength %g were cut off after max_new_tokens, %d, before they ended."
        logger.warning(message, cut, len(texts), strength, max_new_tokens)
    return texts


def is_written(tokenizer: Any, text: str, completion: str) -> bool:
    """Whether a text of `complete` is a completion, which may show the end-of-sequence token that rows may end with."""
    return exact_match(text, completion.rstrip().removesuffix(tokenizer.eos_token or ""))


def evaluate(
    pair: PilotCopilotModel,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    strength: float | None = None,
    batch_size: int = 32,
    **generation: Any,
) -> Evaluation:
    """Generate a completion for every example and judge it by its task.

    Args:
        pair, tokenizer, strength, batch_size, generation: see `complete`; greedy unless `generation` says otherwise.
        examples: N examples of tasks in `copilot.tasks.TASKS`.

    Raises:
        ValueError: no examples.
    """
    if not examples:
        raise ValueError("examples must hold at least one example; got none")
    generation = {"do_sample": False} | generation
    prompts = [example.prompt for example in examples]
    texts = complete(pair, tokenizer, prompts, strength=strength, batch_size=batch_size, **generation)
    pairs = list(zip(texts, examples, strict=True))
    return Evaluation(
        texts,
        np.array([is_written(tokenizer, text, example.completion) for text, example in pairs]),
        np.array([TASKS[example.task].is_correct(text, example.answer) for text, example in pairs]),
    )
