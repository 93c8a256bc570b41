"""Free generation judged by a task."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from builders import random_pair, tiny_pilot
from tokenizers import processors

from copilot.comparison import compare
from copilot.evaluation import complete, evaluate, to_rows
from copilot.tasks import TASKS, Example


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


def test_an_answer_is_right_or_wrong_by_the_task(pair, tokenizer, monkeypatch):
    """Of a task whose answer is all that is written."""
    written = complete(pair, tokenizer, PROMPTS, strength=1.0, max_new_tokens=4, do_sample=False)
    assert len(set(written)) == len(written)
    monkeypatch.setitem(TASKS, "echo", replace(TASKS["boolq"], extract=lambda text: text))
    right = [True, False, True, False]
    answers = [text if is_right else text + " w1" for text, is_right in zip(written, right, strict=True)]
    examples = [Example(prompt, "w0", answer, "echo") for prompt, answer in zip(PROMPTS, answers, strict=True)]
    assert evaluate(pair, tokenizer, examples, strength=1.0, max_new_tokens=4).correct.tolist() == right
    compared = compare(pair, tokenizer, examples, strength=1.0, max_new_tokens=4)
    assert compared.metrics["answer accuracy"].b.mean == 0.5


def test_a_completion_may_end_with_the_token_that_ends_every_row(pair, tokenizer):
    (text,) = complete(pair, tokenizer, PROMPTS[:1], strength=1.0, max_new_tokens=4, do_sample=False)
    for completion, is_exact in ((text, True), (f"{text} <eos>", True), (f"{text} w1 <eos>", False)):
        examples = [Example(PROMPTS[0], completion, "true", "boolq")]
        assert evaluate(pair, tokenizer, examples, strength=1.0, max_new_tokens=4).exact.tolist() == [is_exact]
        compared = compare(pair, tokenizer, examples, strength=1.0, max_new_tokens=4)
        assert compared.metrics["exact match"].b.mean == float(is_exact)


def test_a_prompt_that_ends_with_the_end_token_is_continued_whatever_its_batch(pair, tokenizer):
    prompts = ["w1 w9 <eos>", "w2 w3 w5"]
    options = {"max_new_tokens": 4, "do_sample": False}
    alone = [complete(pair, tokenizer, [prompt], **options)[0] for prompt in prompts]
    assert complete(pair, tokenizer, prompts, **options) == alone


def test_what_cannot_be_completed_is_refused_and_the_mode_is_kept(pair, tokenizer):
    pair.train()
    without_start = copy.deepcopy(tokenizer)
    without_start.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(ValueError, match="prompt 1 has no token"):
        complete(pair, without_start, ["w1", ""])
    for option in ({"num_return_sequences": 2, "num_beams": 2}, {"return_dict_in_generate": True}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=next(iter(option))):
            complete(pair, tokenizer, PROMPTS, **option)
    with pytest.raises(ValueError, match="use_cache"):
        complete(pair, tokenizer, PROMPTS, use_cache=False)
    assert pair.training and pair.pilot.training and pair.copilot.training


@pytest.mark.parametrize("field", ["completion", "task"])
def test_examples_of_two_kinds_are_refused(pair, tokenizer, field):
    examples = [Example(prompt, "w1", "true", "boolq") for prompt in PROMPTS]
    examples[2] = replace(examples[2], **{field: ""})
    with pytest.raises(ValueError, match=f"all have a {field}, or none; 1 of 4 have none, the first is number 2"):
        compare(pair, tokenizer, examples)


def test_no_examples_is_an_error(pair, tokenizer):
    with pytest.raises(ValueError, match="examples"):
        evaluate(pair, tokenizer, [])


def test_rows_for_training_hold_prompt_and_completion():
    assert to_rows([Example("a", " b", "b", "boolq")]) == [{"prompt": "a", "completion": " b"}]
