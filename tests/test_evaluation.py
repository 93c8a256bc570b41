"""Free generation judged by a task."""

from __future__ import annotations

import copy

import pytest
import torch
from builders import random_pair, tiny_pilot
from tokenizers import processors

from copilot.evaluation import complete, evaluate, to_rows
from copilot.tasks import Example


@pytest.fixture
def pair():
    return random_pair(pilot=tiny_pilot(vocab_size=128))


PROMPTS = ["w1 w2 w3 w4", "w5", "w6 w7", "w8 w9 w10"]


@pytest.mark.parametrize("strength", [0, 1.0])
def test_completions_come_in_the_order_of_the_prompts_and_equal_single_generations(pair, tokenizer, strength):
    options = {"max_new_tokens": 5, "do_sample": False}
    together = complete(pair, tokenizer, PROMPTS, strength=strength, batch_size=3, **options)
    for prompt, text in zip(PROMPTS, together, strict=True):
        ids = torch.tensor([tokenizer(prompt).input_ids])
        alone = pair.generate(ids, attention_mask=torch.ones_like(ids), strength=strength, **options)
        assert text == tokenizer.decode(alone[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_tokenizer_that_ends_every_text_does_not_end_the_prompt(pair, tokenizer):
    ending = copy.deepcopy(tokenizer)
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    assert ending("w1").input_ids[-1] == ending.eos_token_id
    options = {"max_new_tokens": 5, "do_sample": False}
    assert complete(pair, ending, PROMPTS, **options) == complete(pair, tokenizer, PROMPTS, **options)


def test_exact_match_and_the_tasks_own_judgement_are_per_example(pair, tokenizer):
    written = complete(pair, tokenizer, PROMPTS, strength=1.0, max_new_tokens=4, do_sample=False)
    examples = [Example(prompt, text, "true", "boolq") for prompt, text in zip(PROMPTS, written, strict=True)]
    examples[2] = Example(PROMPTS[2], written[2] + " w1", "true", "boolq")
    found = evaluate(pair, tokenizer, examples, strength=1.0, max_new_tokens=4)
    assert found.texts == written
    assert found.exact.tolist() == [True, True, False, True]
    assert found.correct.tolist() == [False] * 4  # none of the words is "true"


def test_no_examples_is_an_error(pair, tokenizer):
    with pytest.raises(ValueError, match="examples"):
        evaluate(pair, tokenizer, [])


def test_rows_for_training_hold_prompt_and_completion():
    assert to_rows([Example("a", " b", "b", "boolq")]) == [{"prompt": "a", "completion": " b"}]
