"""generate() of a pair: the Pilot's own when nothing is corrected, else exactly what scoring the text gives."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from builders import BOTH_KINDS, EOS, FAMILIES, PAD, VOCAB_SIZE, fresh_pair, prompts, random_ids, random_pair
from torch import Tensor
from transformers import GenerationConfig, TextIteratorStreamer, pipeline

from copilot.ops import rectify

NEW = 7  # generated tokens
families = pytest.mark.parametrize("kind", FAMILIES)
both_kinds = pytest.mark.parametrize("kind", BOTH_KINDS)

DECODINGS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 4},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 20},
    "sampled beams": {"do_sample": True, "num_beams": 2, "num_return_sequences": 2},
}
decodings = pytest.mark.parametrize("decoding", DECODINGS)


def decode(model: torch.nn.Module, inputs: dict[str, Tensor], decoding: str, **options: Any) -> Tensor:
    torch.manual_seed(11)
    return model.generate(**inputs, **DECODINGS[decoding] | {"max_new_tokens": NEW} | options)


def generate_full(model: torch.nn.Module, inputs: dict[str, Tensor], **options: Any) -> Any:
    """Exactly NEW tokens, with the logits of each step and the sequences' scores."""
    defaults = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    return model.generate(
        **inputs, **defaults | options, return_dict_in_generate=True, output_logits=True, output_scores=True
    )


def as_labelled(kind: str, inputs: dict[str, Tensor], sequences: Tensor) -> dict[str, Tensor]:
    """The prompts and what was generated after them, as a supervised batch."""
    if kind == "t5":
        return inputs | {"labels": sequences[:, 1:]}
    length = inputs["input_ids"].shape[1]
    labels = sequences.clone()
    labels[:, :length] = -100
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(sequences[:, length:])], dim=1)
    return {"input_ids": sequences, "attention_mask": mask, "labels": labels}


@torch.no_grad()
def rescored(pair: torch.nn.Module, kind: str, inputs: dict[str, Tensor], sequences: Tensor) -> Tensor:
    """log p~ (B, NEW, V) at every generated token, from one teacher-forced forward without a cache."""
    logits = pair(**as_labelled(kind, inputs, sequences)).logits
    return logits if kind == "t5" else logits[:, -NEW - 1 : -1]


# ---- Nothing to correct: the Pilot itself ----


@families
@decodings
def test_strength_zero_is_the_pilots_own_generation(kind, decoding):
    pair = random_pair(kind)
    expected = decode(pair.pilot, prompts(), decoding)
    assert torch.equal(decode(pair, prompts(), decoding, strength=0), expected)
    assert not torch.equal(decode(pair, prompts(), decoding), expected)


@families
@decodings
def test_an_untrained_copilot_changes_nothing(kind, decoding):
    pair = fresh_pair(kind)
    assert torch.equal(decode(pair, prompts(), decoding), decode(pair.pilot, prompts(), decoding))


@both_kinds
@pytest.mark.parametrize("choice", [{"rectifier": "linear"}, {"fusion": "logit"}, {"candidates": None}])
def test_an_untrained_copilot_of_any_mode_leaves_the_pilots_log_probabilities_to_the_last_bit(kind, choice):
    pair = fresh_pair(kind, **choice)
    mine, pilots = (generate_full(model, prompts()) for model in (pair, pair.pilot))
    for step, (actual, logits) in enumerate(zip(mine.logits, pilots.logits, strict=True)):
        assert torch.equal(actual, rectify(logits, torch.zeros_like(logits), 0.0)), step
        # Another order of summation than torch's: 2 float32 ulp.
        torch.testing.assert_close(actual, logits.log_softmax(-1), rtol=2.4e-7, atol=2.4e-7)


# ---- Cached decoding is full recomputation ----


def assert_decoding_equals_rescoring(kind: str, pair: torch.nn.Module, **options: Any) -> None:
    inputs = prompts()
    output = generate_full(pair, inputs, **options)
    step_by_step, at_once = torch.stack(output.logits, dim=1), rescored(pair, kind, inputs, output.sequences)
    if (pair.config.rectifier, pair.config.fusion) == ("linear", "probability"):
        # p^ + lambda f is a difference of float32 numbers: its absolute error is small, not its logarithm's.
        torch.testing.assert_close(step_by_step.exp(), at_once.exp(), atol=2e-6, rtol=1e-5)
    else:
        torch.testing.assert_close(step_by_step, at_once, atol=1e-5, rtol=1e-5)


MODES = [
    {"rectifier": r, "fusion": f, "feedback": b, "visibility": v, "candidates": k}
    for r, f, b, v, k in product(
        ("simplex", "linear"), ("probability", "logit"), ("observed", "predicted"), ("current", "previous"), (8, None)
    )
    if (r, f) != ("linear", "logit") or b == "predicted"  # elsewhere the same as the simplex with this fusion
]


@both_kinds
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "-".join(map(str, mode.values())))
def test_decoding_step_by_step_equals_one_forward_in_every_mode(kind, mode):
    pair = random_pair(kind, **mode)
    if mode["rectifier"] == "linear":
        pair.copilot.head.weight.data.mul_(0.02)  # a difference of probabilities, not of logits
    pair.config.strength = 0.6
    assert_decoding_equals_rescoring(kind, pair)


@families
@pytest.mark.parametrize("table", ["own", "tied", "factored"])
def test_decoding_step_by_step_equals_one_forward_in_every_family(kind, table):
    assert_decoding_equals_rescoring(kind, random_pair(kind, head=table, error_in=table))


@pytest.mark.parametrize("context_layers", ["every", "first_half", "second_half", "last"])
@pytest.mark.parametrize("pooling", ["mean", "max", "sum"])
@both_kinds
def test_decoding_step_by_step_equals_one_forward_in_every_pattern(kind, context_layers, pooling):
    assert_decoding_equals_rescoring(kind, random_pair(kind, context_layers=context_layers, pooling=pooling))


@both_kinds
def test_feedback_of_its_own_stays_exact_when_all_tokens_are_candidates(kind):
    """Nothing is left outside the candidates, so a common shift of the corrections changes nothing."""
    pair = random_pair(kind, feedback="predicted", candidates=VOCAB_SIZE)
    pair.copilot.head.register_forward_hook(lambda _module, _args, delta: delta - 20)
    assert_decoding_equals_rescoring(kind, pair)


@both_kinds
def test_a_sampled_text_is_scored_as_it_was_decoded(kind):
    torch.manual_seed(2)
    assert_decoding_equals_rescoring(kind, random_pair(kind), do_sample=True)


# ---- Beams ----


def rescored_one_by_one(pair: torch.nn.Module, kind: str, sequences: Tensor, beams: int) -> Tensor:
    """Mean log p~ of each sequence, without batch, padding or cache."""
    scores = []
    for row, sequence in enumerate(sequences):
        inputs = {name: value[row // beams][None] for name, value in prompts().items()}
        real = inputs["attention_mask"].bool()[0]
        if kind != "t5":
            sequence = torch.cat([sequence[: len(real)][real], sequence[len(real) :]])
        inputs = {name: value[:, real] for name, value in inputs.items()}
        log_p = rescored(pair, kind, inputs, sequence[None])[0]
        scores.append(log_p.gather(1, sequence[-NEW:, None]).mean())
    return torch.stack(scores)


@families
@pytest.mark.parametrize("feedback", ["observed", "predicted"])
def test_beam_scores_equal_unbatched_rescoring(kind, feedback):
    pair = random_pair(kind, feedback=feedback)
    output = generate_full(pair, prompts(), num_beams=4, num_return_sequences=4)
    expected = rescored_one_by_one(pair, kind, output.sequences, beams=4)
    torch.testing.assert_close(output.sequences_scores, expected, atol=1e-5, rtol=1e-5)


# ---- Batches ----


@families
@pytest.mark.parametrize("beams", [1, 3])
def test_a_left_padded_batch_equals_its_rows_alone(kind, beams):
    """The log-probabilities of every step, not only the tokens that they choose."""
    pair = random_pair(kind)
    inputs = prompts()
    together = generate_full(pair, inputs, num_beams=beams)
    for row, mask in enumerate(inputs["attention_mask"].bool()):
        alone = generate_full(
            pair, {name: value[row : row + 1, mask] for name, value in inputs.items()}, num_beams=beams
        )
        assert torch.equal(together.sequences[row, -NEW:], alone.sequences[0, -NEW:])
        for batched, single in zip(together.logits, alone.logits, strict=True):
            mine = batched[row * beams : (row + 1) * beams]
            torch.testing.assert_close(mine, single, atol=1e-5, rtol=1e-5)


@both_kinds
def test_rows_that_end_early_leave_the_others_alone(kind):
    """With an end token that the first row reaches, the second row goes on as if alone."""
    pair, free, end = next(
        (pair, free, token)
        for pair in (random_pair(kind, seed=seed) for seed in range(9))
        for free in [generate_full(pair, prompts()).sequences[:, -NEW:]]
        for token in free[0].tolist()
        if token not in free[1].tolist()  # only the first row reaches it
    )
    stopped = pair.generate(**prompts(), max_new_tokens=NEW, do_sample=False, eos_token_id=end, pad_token_id=PAD)
    length = free[0].tolist().index(end) + 1
    assert stopped[0, -NEW:].tolist() == [*free[0, :length].tolist(), *[PAD] * (NEW - length)]
    assert torch.equal(stopped[1, -NEW:], free[1])


@both_kinds
def test_a_missing_attention_mask_means_that_every_token_is_real(kind):
    pair = random_pair(kind)
    inputs = prompts(padding=0)
    without = generate_full(pair, {"input_ids": inputs["input_ids"]})
    torch.testing.assert_close(torch.stack(without.logits), torch.stack(generate_full(pair, inputs).logits))


# ---- What users of generate() expect ----


@both_kinds
def test_several_sequences_a_prompt_are_returned(kind):
    pair = random_pair(kind)
    torch.manual_seed(0)
    sequences = pair.generate(**prompts(), max_new_tokens=NEW, do_sample=True, num_return_sequences=3)
    assert len(sequences) == 6
    assert len({tuple(row.tolist()) for row in sequences}) == 6


@families
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("feedback", ["observed", "predicted"])
@pytest.mark.parametrize("padding", [0, 3])
def test_a_static_cache_equals_a_dynamic_one(kind, beams, feedback, padding):
    """`generate` drops a mask without padding before the Pilot makes its own from it."""
    pair = random_pair(kind, feedback=feedback)
    dynamic, static = (
        generate_full(pair, prompts(padding), num_beams=beams, cache_implementation=cache)
        for cache in ("dynamic", "static")
    )
    assert torch.equal(dynamic.sequences, static.sequences)
    torch.testing.assert_close(torch.stack(dynamic.logits), torch.stack(static.logits), atol=1e-5, rtol=1e-5)


def test_a_second_generation_is_not_touched_by_the_first():
    pair = random_pair("llama")
    first = decode(pair, prompts(), "beams")
    decode(pair, prompts(padding=0), "sampling")
    assert torch.equal(decode(pair, prompts(), "beams"), first)


def test_a_streamer_receives_the_tokens(tokenizer):
    pair = random_pair("llama")
    inputs = {"input_ids": random_ids(1, 5), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    sequences = pair.generate(**inputs, max_new_tokens=NEW, do_sample=False, streamer=streamer)
    assert "".join(streamer) == tokenizer.decode(sequences[0, 5:])


def test_a_text_generation_pipeline_accepts_a_pair(tokenizer):
    pair = random_pair("llama")
    generator = pipeline("text-generation", model=pair, tokenizer=tokenizer)
    (result,) = generator("w1 w2 w3", max_new_tokens=NEW, do_sample=False, return_full_text=False)
    inputs = tokenizer("w1 w2 w3", return_tensors="pt")
    sequences = pair.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=NEW, do_sample=False
    )
    assert result["generated_text"] == tokenizer.decode(sequences[0, 4:], skip_special_tokens=True)


def test_embeddings_in_place_of_ids_give_the_same_tokens():
    pair = random_pair("llama")
    inputs = prompts()
    embeds = pair.get_input_embeddings()(inputs["input_ids"])
    expected = pair.generate(**inputs, max_new_tokens=NEW, do_sample=False)[:, 6:]
    actual = pair.generate(
        inputs_embeds=embeds, attention_mask=inputs["attention_mask"], max_new_tokens=NEW, do_sample=False
    )
    assert torch.equal(actual, expected)


# ---- The strength ----


@both_kinds
def test_the_strength_argument_goes_before_the_configured_one(kind):
    pair = random_pair(kind)
    configured = {}
    for strength in (0.0, 0.3, 1.0):
        pair.config.strength = strength
        configured[strength] = torch.stack(generate_full(pair, prompts()).logits)
    for strength, expected in configured.items():
        assert torch.equal(torch.stack(generate_full(pair, prompts(), strength=strength).logits), expected)
    assert not torch.allclose(configured[0.3], configured[1.0])


def test_a_step_follows_equation_8():
    """log p~ of the first step at strength 0.3 lies between the Pilot's p^ and the corrected q."""
    pair = random_pair("llama")
    p, mixed, q = (generate_full(pair, prompts(), strength=s).logits[0].softmax(-1) for s in (0, 0.3, 1))
    torch.testing.assert_close(mixed, 0.7 * p + 0.3 * q, atol=1e-6, rtol=0)


@pytest.mark.parametrize("strength", [-0.5, 1.5, float("nan")])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(ValueError, match=r"^strength must"):
        random_pair("llama").generate(**prompts(), max_new_tokens=2, strength=strength)


# ---- What a pair refuses ----

REFUSED = {
    "guidance_scale": 1.5,
    "output_attentions": True,
    "output_hidden_states": True,
    "prefill_chunk_size": 2,
    "use_cache": False,
    "prompt_lookup_num_tokens": 2,
    "token_healing": True,
    "use_mtp": True,
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "num_beam_groups": 2,
    "force_words_ids": [[5]],
    "constraints": ["a constraint"],
}
# What `generate` takes as an argument of its own.
ARGUMENTS = {"custom_generate": "some/repository"}


@both_kinds
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("way", ["argument", "generation_config", "positional", "the model's own"])
def test_decoding_that_cannot_carry_the_copilots_state_is_refused(kind, name, way):
    pair = random_pair(kind)
    inputs = prompts()
    ids = inputs.pop("input_ids")
    if way == "the model's own":
        setattr(pair.generation_config, name, REFUSED[name])
    config = GenerationConfig(max_new_tokens=4, eos_token_id=EOS, pad_token_id=PAD, decoder_start_token_id=PAD)
    setattr(config, name, REFUSED[name])
    with pytest.raises(ValueError, match=f"{name}.* is not supported by a pair"):
        if way == "argument":
            pair.generate(ids, **inputs, max_new_tokens=4, **{name: REFUSED[name]})
        elif way == "generation_config":
            pair.generate(ids, **inputs, generation_config=config)
        elif way == "positional":
            pair.generate(ids, config, **inputs)
        else:
            pair.generate(ids, **inputs, max_new_tokens=4)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_that_replace_the_decoding_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}.* is not supported by a pair"):
        random_pair().generate(**prompts(), max_new_tokens=4, **{name: ARGUMENTS[name]})


def test_a_static_cache_beside_flash_attention_is_refused(monkeypatch):
    pair = random_pair("llama")
    monkeypatch.setattr(pair.pilot.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(
        ValueError, match=r"^a static cache is not supported by a pair whose Pilot has 'flash_attention_2'"
    ):
        pair.generate(**prompts(), max_new_tokens=4, cache_implementation="static")


@pytest.mark.parametrize("neutral", [{"guidance_scale": 1.0}, {"num_beam_groups": 1}])
def test_what_asks_for_nothing_is_not_refused(neutral):
    pair = random_pair("llama")
    plain, asked = (pair.generate(**prompts(), max_new_tokens=4, **more) for more in ({}, neutral))
    assert torch.equal(plain, asked)


def test_assisted_decoding_is_refused():
    pair = random_pair("llama")
    with pytest.raises(ValueError, match="assistant_model is not supported by a pair"):
        pair.generate(**prompts(), max_new_tokens=4, assistant_model=pair.pilot)


def test_early_exit_assistance_is_refused():
    pair = random_pair("llama")
    with pytest.raises(ValueError, match="assistant_early_exit is not supported by a pair"):
        pair.generate(**{k: v[1:] for k, v in prompts().items()}, max_new_tokens=4, assistant_early_exit=2)


def test_continuous_batching_is_refused():
    with pytest.raises(ValueError, match="generate_batch is not supported by a pair"):
        random_pair("llama").generate_batch([[3, 4, 5]])


def test_a_used_cache_is_refused():
    pair = random_pair("llama")
    inputs = prompts()
    used = pair.pilot(**inputs, use_cache=True).past_key_values
    longer = torch.cat([inputs["input_ids"], random_ids(2, 1)], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], dim=1)
    with pytest.raises(ValueError, match=r"^past_key_values must be absent or an empty cache"):
        pair.generate(input_ids=longer, attention_mask=mask, past_key_values=used, max_new_tokens=2)


@both_kinds
def test_a_forward_that_knows_no_tokens_to_correct_is_refused(kind):
    pair = random_pair(kind)
    decoder = {"decoder_input_ids": random_ids(2, 3)} if kind == "t5" else {}
    with pytest.raises(ValueError, match="past_key_values"):
        pair(**prompts(), **decoder)


def test_more_than_one_token_after_the_prompt_is_refused():
    pair = random_pair("llama")
    cache = pair.generate(**prompts(), max_new_tokens=2, return_dict_in_generate=True).past_key_values
    with pytest.raises(ValueError, match="one token at a time; got 2"):
        pair(input_ids=random_ids(2, 2), past_key_values=cache)


@both_kinds
def test_a_prompt_with_nan_logits_is_an_error(kind):
    pair = random_pair(kind)
    pair.get_output_embeddings().weight.data[5] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN"):
        pair.generate(**prompts(), max_new_tokens=2)


@both_kinds
def test_corrections_of_a_prompt_that_are_nan_are_an_error(kind):
    pair = random_pair(kind)
    with torch.no_grad():
        pair.copilot.head.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="corrections of the Copilot"):
        pair.generate(**prompts(), max_new_tokens=2)


def test_a_training_pilot_that_keeps_no_cache_is_refused():
    """Plain transformers goes on without, and each step sees the last token alone."""
    pair = random_pair("llama").train()
    pair.pilot.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match=r"keeps no cache in training mode: call pair\.eval\(\) first"):
        pair.generate(**prompts(), max_new_tokens=2)
    pair.eval().generate(**prompts(), max_new_tokens=2)
