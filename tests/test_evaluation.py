"""Free generation judged by a task."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import pytest
import torch
from builders import BOTH_KINDS, EOS, PAD, random_pair, tiny_pilot
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from copilot.calibration import collect, scores
from copilot.comparison import compare
from copilot.evaluation import MAX_NEW_TOKENS, complete, evaluate, to_rows
from copilot.tasks import TASKS, Example


@pytest.fixture(params=BOTH_KINDS)
def pair(request):
    return random_pair(request.param, pilot=tiny_pilot(request.param, vocab_size=128))


PROMPTS = ["w1 w2 w3 w4", "w5", "w6 w7", "w8 w9 w10"]


@pytest.mark.parametrize("strength", [0, 1.0])
def test_completions_come_in_the_order_of_the_prompts_and_equal_single_generations(pair, tokenizer, strength):
    options = {"max_new_tokens": 5, "do_sample": False}
    together = complete(pair, tokenizer, PROMPTS, strength=strength, batch_size=3, **options)
    for prompt, text in zip(PROMPTS, together, strict=True):
        ids = torch.tensor([tokenizer(prompt).input_ids])
        alone = pair.generate(ids, attention_mask=torch.ones_like(ids), strength=strength, **options)
        written = alone[0] if pair.config.is_encoder_decoder else alone[0, ids.shape[1] :]
        assert text == tokenizer.decode(written, skip_special_tokens=True)


@pytest.mark.parametrize("pair", ["llama"], indirect=True)  # an encoder reads the end of a text
def test_a_tokenizer_that_ends_every_text_does_not_end_the_prompt(pair, tokenizer):
    ending = copy.deepcopy(tokenizer)
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    assert ending("w1").input_ids[-1] == ending.eos_token_id
    options = {"max_new_tokens": 5, "do_sample": False}
    assert complete(pair, ending, PROMPTS, **options) == complete(pair, tokenizer, PROMPTS, **options)


@pytest.mark.parametrize(("options", "cut"), [({"suppress_tokens": [PAD, EOS]}, 4), ({"forced_eos_token_id": EOS}, 0)])
def test_texts_that_did_not_end_are_counted_in_one_warning(pair, tokenizer, caplog, options, cut):
    pair.config.strength = 0.5
    with caplog.at_level(logging.WARNING, logger="copilot.evaluation"):
        complete(pair, tokenizer, PROMPTS, batch_size=3, max_new_tokens=2, do_sample=False, **options)
    said = f"{cut} of 4 texts at strength 0.5 were cut off after max_new_tokens, 2, before they ended."
    assert [record.getMessage() for record in caplog.records] == [said] * (cut > 0)


def test_padding_behind_an_end_is_no_text_that_was_cut_off(pair, tokenizer, monkeypatch, caplog):
    written = torch.tensor([[7, EOS, PAD], [7, 8, 9]])

    def generate(input_ids, **_):
        return torch.cat([torch.zeros(2, 1).long() if pair.config.is_encoder_decoder else input_ids, written], dim=1)

    monkeypatch.setattr(pair, "generate", generate)
    with caplog.at_level(logging.WARNING, logger="copilot.evaluation"):
        complete(pair, tokenizer, PROMPTS[:2], max_new_tokens=3)
    assert [record.args[:2] for record in caplog.records] == [(1, 2)]


def test_a_tokenizer_without_padding_serves_as_well(pair, tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    options = {"max_new_tokens": 4, "do_sample": False}
    assert complete(pair, bare, PROMPTS, **options) == complete(pair, tokenizer, PROMPTS, **options)


@pytest.mark.parametrize("strength", [0, 1.0])
def test_a_string_can_end_a_text(pair, strength):
    letters = ["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())[:126]]
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    of_bytes = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    no_letters = [PAD, EOS, *range(96, 128)]  # what is no ASCII is a part of one
    options = {"strength": strength, "max_new_tokens": 5, "do_sample": False, "suppress_tokens": no_letters}
    whole = complete(pair, of_bytes, ["abc"], **options)[0]
    assert len(whole) == 5
    assert complete(pair, of_bytes, ["abc"], stop_strings=whole[0], **options) == [whole[0]]


def test_a_text_may_have_as_many_tokens_wherever_it_is_written(pair, tokenizer, monkeypatch):
    """One limit, where none is given."""
    limits = []

    def generate(**options):
        limits.append(options["max_new_tokens"])
        return options["input_ids"]

    monkeypatch.setattr(pair, "generate", generate)
    examples = [Example(prompt, "w1", "true", "boolq") for prompt in PROMPTS]
    complete(pair, tokenizer, PROMPTS)
    evaluate(pair, tokenizer, examples)
    compare(pair, tokenizer, examples)
    assert limits == [MAX_NEW_TOKENS] * 4


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_brier_score_and_nll_are_those_of_the_pilot_and_of_the_pair(pair, tokenizer, strength):
    examples = [Example(prompt, "w11 w12", "", "") for prompt in PROMPTS]
    metrics = compare(pair, tokenizer, examples, strength=strength, max_new_tokens=1).metrics
    held = collect(pair, to_rows(examples), tokenizer)
    alone, together = (scores(held, s, "simplex", "probability") for s in (0.0, strength))
    for name, field in (("Brier score", "brier"), ("NLL", "nll")):
        means = [getattr(of, field).mean().item() for of in (alone, together)]
        assert means[0] != pytest.approx(means[1], rel=1e-3)
        assert [metrics[name].a.mean, metrics[name].b.mean] == pytest.approx(means, rel=1e-4)


def test_a_scored_example_has_at_most_max_length_tokens(pair, tokenizer):
    examples = [Example(prompt, "w11 w12 w13 w14 w15 w16", "", "") for prompt in PROMPTS]
    compared = compare(pair, tokenizer, examples, strength=1.0, max_length=7, max_new_tokens=1)
    means = []
    for limit in (7, 256):
        held = collect(pair, to_rows(examples), tokenizer, max_length=limit)
        means.append(scores(held, 0.0, "simplex", "probability").nll.mean().item())
    assert means[0] != pytest.approx(means[1], rel=1e-3)
    assert compared.metrics["NLL"].a.mean == pytest.approx(means[0], rel=1e-4)


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


def test_prompts_of_like_length_are_written_together(pair, tokenizer, monkeypatch):
    widths = []

    def generate(**options):
        widths.append(options["input_ids"].shape[1])
        return options["input_ids"]

    monkeypatch.setattr(pair, "generate", generate)
    complete(pair, tokenizer, ["w1 w2 w3 w4", "w1", "w2 w3 w4 w5", "w3"], batch_size=2)
    assert widths == [widths[0], widths[0] + 3]


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


def test_a_pilot_that_samples_by_default_is_judged_by_its_likeliest_words(pair, tokenizer):
    examples = [Example(prompt, "w1", "true", "boolq") for prompt in PROMPTS]
    options = {"strength": 1.0, "max_new_tokens": 6}
    expected = complete(pair, tokenizer, PROMPTS, do_sample=False, **options)
    pair.generation_config.update(do_sample=True, temperature=5.0)
    assert complete(pair, tokenizer, PROMPTS, **options) != expected
    assert evaluate(pair, tokenizer, examples, **options).texts == expected
    compared = compare(pair, tokenizer, examples, **options)
    assert compared.pair_texts == expected
    assert compared.pilot_texts == complete(pair, tokenizer, PROMPTS, do_sample=False, **options | {"strength": 0.0})
