"""The supervised forward of a pair: both losses, their gradients, padding, and the round it logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from builders import (
    BOTH_KINDS,
    FAMILIES,
    PAD,
    ROWS,
    VOCAB_SIZE,
    batch_of,
    batch_of_rows,
    dense,
    dense_loss,
    dense_rectified,
    layer_outputs,
    onehot,
    pair_class,
    prompts,
    random_ids,
    random_pair,
    tiny_pilot,
)
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, LlamaForSequenceClassification

from copilot import MistakeLog
from copilot.cache import CopilotCache

families = pytest.mark.parametrize("kind", FAMILIES)
both_kinds = pytest.mark.parametrize("kind", BOTH_KINDS)


@dataclass(frozen=True)
class ByHand:
    """Eq. 1 to 8 of one row, in float64 over the whole vocabulary.

    Attributes:
        cross_entropy: (n,) of every answer token.
        copilot: (n,) the Copilot's loss of every token, under the mean and root of Eq. 7.
        log_p: (n, V) log p~ at strength 0.6.
    """

    cross_entropy: Tensor
    copilot: Tensor
    log_p: Tensor


@torch.no_grad()
def by_hand(pair: torch.nn.Module, kind: str, prompt: Tensor, answer: Tensor) -> ByHand:
    """One row without padding, packing, log or cache; the Copilot's network is a black box, fed dense mistakes."""
    config, n = pair.config, len(answer)
    if kind == "t5":
        output, _, outputs = layer_outputs(pair.pilot, input_ids=prompt[None], labels=answer[None])
        z, context, steps = output.logits[0], output.encoder_last_hidden_state, slice(0, n)
    else:
        output, first, outputs = layer_outputs(pair.pilot, input_ids=torch.cat([prompt, answer])[None])
        steps = slice(len(prompt) - 1, len(prompt) - 1 + n)
        z, context = output.logits[0, steps], first[:, : len(prompt)]
    hidden = torch.stack(outputs).mean(0)[:, steps]
    p, y = z.double().softmax(-1), onehot(answer, VOCAB_SIZE)
    index = None if config.candidates is None else z.topk(config.candidates).indices
    kept = torch.ones_like(p) if index is None else torch.zeros_like(p).scatter(1, index, 1.0)

    def delta_of(errors: list[Tensor]) -> Tensor:
        """(steps so far, V), from the mistake that each step reads."""
        m = len(errors)
        delta = pair.copilot(
            error_index=None,
            error_value=torch.stack(errors).float()[None],
            context=context,
            context_mask=torch.ones(1, m, context.shape[1], dtype=torch.bool),
            hidden=hidden[:, :m],
            candidate_index=None if index is None else index[None, :m],
            pilot_tables=pair.pilot_tables(),
        )[0]
        return dense(delta, None if index is None else index[:m], VOCAB_SIZE)

    errors = [torch.zeros(VOCAB_SIZE, dtype=torch.float64)]
    for i in range(n - 1):
        if config.feedback == "observed":
            errors.append(y[i] - p[i] * kept[i])
        else:
            delta = delta_of(errors)[i].double()
            f = delta if config.rectifier == "linear" else (z[i].double() + delta).softmax(-1) - p[i]
            errors.append(f * kept[i])
    delta = delta_of(errors)
    return ByHand(
        cross_entropy=-(y * p.log()).sum(-1),
        copilot=dense_loss(z, answer, delta, config.rectifier, config.loss),
        log_p=dense_rectified(z, delta, 0.6, config.rectifier, config.fusion).log(),
    )


# ---- The losses ----

MODES: list[dict[str, Any]] = [
    {},
    {"candidates": None},
    {"candidates": None, "rectifier": "linear", "feedback": "predicted"},
    {"rectifier": "linear"},
    {"fusion": "logit"},
    {"loss": "ce"},
    {"loss": "kl"},
    {"feedback": "predicted"},
    {"visibility": "previous"},
    {"head": "tied", "error_in": "tied"},
    {"head": "factored", "error_in": "factored", "candidates": 1},
]
modes = pytest.mark.parametrize("mode", MODES, ids=lambda mode: "-".join(map(str, mode.values())) or "default")


@both_kinds
@modes
def test_losses_and_log_probabilities_equal_a_computation_by_hand(kind, mode):
    pair = random_pair(kind, **mode)
    if pair.config.rectifier == "linear":
        pair.copilot.head.weight.data.mul_(0.02)  # a difference of probabilities, not of logits
    with torch.no_grad():
        output = pair(**batch_of_rows(kind, ROWS), strength=0.6)
    truth = [by_hand(pair, kind, *row) for row in ROWS]
    torch.testing.assert_close(
        output.pilot_loss.double(), torch.cat([row.cross_entropy for row in truth]).mean(), atol=1e-5, rtol=0
    )
    mean = torch.cat([row.copilot for row in truth]).mean()
    expected = mean.sqrt() if pair.config.loss == "rmse" else mean
    torch.testing.assert_close(output.copilot_loss.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.loss, output.pilot_loss + output.copilot_loss)
    for row, (prompt, answer) in enumerate(ROWS):
        start = 0 if kind == "t5" else len(prompt) - 1
        actual = output.logits[row, start : start + len(answer)]
        torch.testing.assert_close(actual.double().exp(), truth[row].log_p.exp(), atol=1e-5, rtol=0)


@both_kinds
def test_logits_that_predict_nothing_supervised_are_the_pilots_log_probabilities(kind):
    pair = random_pair(kind)
    batch = batch_of_rows(kind, ROWS)
    with torch.no_grad():
        logits = pair(**batch).logits
        pilots = pair.pilot(**batch).logits.log_softmax(-1)
    supervised = batch["labels"] != -100
    if kind != "t5":
        supervised = supervised.roll(-1, dims=1)
    assert torch.equal(logits[~supervised], pilots[~supervised])
    assert not torch.isclose(logits[supervised], pilots[supervised]).all(1).any()


@both_kinds
def test_at_strength_zero_logits_are_the_pilots_raw_ones(kind):
    pair = random_pair(kind)
    batch = batch_of_rows(kind, ROWS)
    with torch.no_grad():
        assert torch.equal(pair(**batch, strength=0).logits, pair.pilot(**batch).logits)


@families
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_pilots_loss_is_hugging_faces_own(kind, side):
    pair = random_pair(kind).train()
    batch = batch_of_rows(kind, ROWS, side)
    expected = pair.pilot(**batch).loss
    torch.testing.assert_close(pair(**batch).pilot_loss, expected, atol=1e-6, rtol=1e-6)


@both_kinds
def test_the_pilots_loss_is_divided_by_the_items_of_the_whole_step(kind):
    pair = random_pair(kind)
    batch = batch_of_rows(kind, ROWS)
    plain, divided = pair(**batch), pair(**batch, num_items_in_batch=torch.tensor(44))
    torch.testing.assert_close(divided.pilot_loss, plain.pilot_loss * 11 / 44)
    assert torch.equal(divided.copilot_loss, plain.copilot_loss)


@both_kinds
def test_training_without_a_log_uses_the_fresh_round_and_returns_no_logits(kind):
    pair = random_pair(kind)
    batch = batch_of_rows(kind, ROWS)
    scored = pair(**batch)
    trained = pair.train()(**batch)
    assert trained.logits is None
    torch.testing.assert_close(trained.copilot_loss, scored.copilot_loss)
    torch.testing.assert_close(trained.pilot_loss, scored.pilot_loss)


def test_embeddings_in_place_of_ids_give_the_same_losses():
    pair = random_pair("llama")
    batch = batch_of_rows("llama", ROWS)
    expected = pair(**batch)
    embeds = pair.get_input_embeddings()(batch.pop("input_ids"))
    actual = pair(inputs_embeds=embeds, **batch)
    assert torch.equal(actual.logits, expected.logits)
    assert torch.equal(actual.loss, expected.loss)


# ---- The gradients ----

TABLES = pytest.mark.parametrize("table", ["own", "tied", "factored"])


def has_gradient(model: torch.nn.Module) -> bool:
    return any(p.grad is not None and bool((p.grad != 0).any()) for p in model.parameters())


@both_kinds
@TABLES
@pytest.mark.parametrize("logged", [False, True])
def test_the_copilots_loss_never_reaches_the_pilot(kind, table, logged):
    pair = random_pair(kind, head=table, error_in=table).train()
    pair.mistake_log = MistakeLog(2) if logged else None
    pair(**batch_of_rows(kind, ROWS)).copilot_loss.backward()
    assert has_gradient(pair.copilot)
    assert not has_gradient(pair.pilot)


@both_kinds
@TABLES
def test_the_pilots_loss_never_reaches_the_copilot(kind, table):
    pair = random_pair(kind, head=table, error_in=table).train()
    pair(**batch_of_rows(kind, ROWS)).pilot_loss.backward()
    assert has_gradient(pair.pilot)
    assert not has_gradient(pair.copilot)


@both_kinds
def test_the_backward_leaves_the_logits_that_are_returned_alone(kind):
    """It writes over a copy of the supervised ones."""
    output = random_pair(kind).eval()(**batch_of_rows(kind, ROWS), strength=0)
    before = output.logits.detach().clone()
    output.loss.backward()
    assert torch.equal(output.logits, before)


@families
def test_in_training_the_vocabulary_projection_sees_supervised_positions_only(kind):
    pair, batch = random_pair(kind).train(), batch_of_rows(kind, ROWS)
    seen = []
    pair.pilot.get_output_embeddings().register_forward_hook(lambda _module, args, _out: seen.append(args[0].shape))
    passed = pair.pilot_pass(**batch)
    assert seen == [(1, sum(len(answer) for _, answer in ROWS), pair.config.pilot_hidden_size)]
    everywhere = pair.pilot_pass(**batch, every_position=True)
    assert seen[1][:2] == passed.supervision.source.shape
    torch.testing.assert_close(passed.logits, everywhere.logits, atol=1e-5, rtol=1e-5)
    pair.pilot_pass(**batch)
    assert seen[2] == seen[0]


@families
def test_the_pilot_learns_as_if_there_were_no_copilot(kind):
    pair = random_pair(kind).train()
    batch = batch_of_rows(kind, ROWS)
    pair(**batch).loss.backward()
    actual = {name: p.grad for name, p in pair.pilot.named_parameters()}
    alone = tiny_pilot(kind).train()
    alone(**batch).loss.backward()
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(actual[name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)


# ---- Padding ----


@families
@pytest.mark.parametrize("feedback", ["observed", "predicted"])
def test_padding_changes_nothing(kind, feedback):
    """Right-padded, left-padded and one by one: the same mistakes, corrections and log-probabilities."""
    pair = random_pair(kind, feedback=feedback)
    with torch.no_grad():
        right, left = (pair(**batch_of_rows(kind, ROWS, side)) for side in ("right", "left"))
        alone = [pair(**batch_of_rows(kind, [row])) for row in ROWS]
    expected = torch.cat([output.delta for output in alone])
    torch.testing.assert_close(right.delta, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(left.delta, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(right.loss, left.loss, atol=1e-5, rtol=1e-5)
    assert torch.equal(right.mistakes.target, torch.cat([answer for _, answer in ROWS]))
    assert torch.equal(left.mistakes.target, right.mistakes.target)


def test_a_row_without_a_prompt_is_the_same_behind_padding():
    """Its first token is context: nothing, and no padding either, predicts it."""
    pair = random_pair("llama")
    rows = [(prompt[:0], answer) for prompt, answer in ROWS]
    with torch.no_grad():
        left = pair(**batch_of_rows("llama", rows, "left"))
        alone = [pair(**batch_of_rows("llama", [row])) for row in rows]
    assert torch.equal(left.mistakes.target, torch.cat([answer[1:] for _, answer in rows]))
    torch.testing.assert_close(left.delta, torch.cat([output.delta for output in alone]), atol=1e-5, rtol=1e-5)


@both_kinds
@pytest.mark.parametrize("visibility", ["current", "previous"])
def test_padding_changes_no_gradient(kind, visibility):
    gradients = []
    for batches in ([batch_of_rows(kind, ROWS)], [batch_of_rows(kind, [row]) for row in ROWS]):
        pair = random_pair(kind, visibility=visibility, loss="ce").train()  # a mean over tokens adds up over batches
        for batch in batches:
            tokens = int((batch["labels"] != -100).sum())
            (pair(**batch).copilot_loss * tokens / 11).backward()
        gradients.append({name: p.grad for name, p in pair.copilot.named_parameters()})
    for name, expected in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], expected, atol=1e-6, rtol=1e-4, msg=name)


@both_kinds
def test_a_row_with_nothing_supervised_changes_nothing(kind):
    pair = random_pair(kind).train()
    rows = [*ROWS[:2], (ROWS[2][0], torch.full_like(ROWS[2][1], -100))]
    batch = batch_of_rows(kind, rows)
    batch["input_ids"].clamp_(min=PAD)
    actual, expected = pair(**batch), pair(**batch_of_rows(kind, ROWS[:2]))
    torch.testing.assert_close(actual.pilot_loss, expected.pilot_loss)
    torch.testing.assert_close(actual.copilot_loss, expected.copilot_loss)
    actual.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in pair.parameters() if p.grad is not None)


def test_a_sequence_of_padding_alone_leaves_losses_and_gradients_finite():
    """Such a row fills up a last batch."""
    pair = random_pair("llama", visibility="previous").train()
    batch = batch_of_rows("llama", ROWS)
    for name, value in {"input_ids": PAD, "attention_mask": 0, "labels": -100}.items():
        batch[name][2] = value
    output = pair(**batch)
    torch.testing.assert_close(output.copilot_loss, pair(**batch_of_rows("llama", ROWS[:2])).copilot_loss)
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in pair.parameters() if p.grad is not None)


@both_kinds
def test_a_batch_with_nothing_supervised_is_refused(kind):
    pair = random_pair(kind).train()
    pair.mistake_log = MistakeLog(2)
    batch = batch_of_rows(kind, ROWS)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    with pytest.raises(ValueError, match=r"^labels must hold at least one supervised token"):
        pair(**batch)
    assert len(pair.mistake_log) == 0


@torch.no_grad()
def test_position_ids_are_the_pilots_and_rows_of_several_texts_are_refused():
    pair = random_pair()
    batch = batch_of_rows("llama", ROWS, side="left")
    mask = batch["attention_mask"]
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)  # as generate gives them
    losses = [
        pair(**batch, **given).pilot_loss for given in ({"position_ids": positions}, {"position_ids": 3 * positions})
    ]
    expected = pair.pilot(**batch, position_ids=3 * positions).loss
    torch.testing.assert_close(losses[1], expected)
    assert not torch.isclose(losses[0], losses[1])
    packed = torch.tensor([[0, 1, 2, 0, 1, 2]])
    ids = random_ids(1, 6)
    with pytest.raises(ValueError, match="position_ids must rise"):
        pair(input_ids=ids, position_ids=packed, labels=ids)


@torch.no_grad()
def test_a_decoder_prefix_is_scored_as_it_is_generated_from():
    pair = random_pair("t5")
    ids = random_ids(2, 5)
    options = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False}
    prefix = torch.cat([torch.full((2, 1), PAD), random_ids(2, 2, seed=5)], dim=1)
    written = pair.generate(ids, decoder_input_ids=prefix, max_new_tokens=3, min_new_tokens=3, **options)
    labels = written.sequences[:, 1:].clone()
    labels[:, :2] = -100
    scored = pair(input_ids=ids, decoder_input_ids=written.sequences[:, :-1], labels=labels)
    torch.testing.assert_close(scored.logits[:, 2:], torch.stack(written.logits, dim=1), rtol=1e-4, atol=1e-4)
    expected = pair.pilot(input_ids=ids, decoder_input_ids=written.sequences[:, :-1], labels=labels).loss
    torch.testing.assert_close(scored.pilot_loss, expected)


def test_a_pairs_vocabulary_is_not_resized():
    pair = random_pair()
    with pytest.raises(ValueError, match="resize the Pilot's before from_pilot"):
        pair.resize_token_embeddings(VOCAB_SIZE + 8)
    assert pair.pilot.get_input_embeddings().weight.shape[0] == VOCAB_SIZE


# ---- What a forward would leave unused ----


@both_kinds
def test_a_cache_beside_labels_is_refused(kind):
    pair = random_pair(kind)
    cache = CopilotCache(DynamicCache(), pair.copilot.attention_count())
    with pytest.raises(ValueError, match="past_key_values cannot be given with labels"):
        pair(**batch_of(kind), past_key_values=cache)
    with pytest.raises(ValueError, match="return_dict must be True"):
        pair(**batch_of(kind), return_dict=False)


@both_kinds
def test_a_step_without_its_tokens_or_its_cache_is_refused(kind):
    pair = random_pair(kind)
    with pytest.raises(ValueError, match="forward without labels needs past_key_values"):
        pair(input_ids=random_ids(2, 4))
    cache = CopilotCache(DynamicCache(), pair.copilot.attention_count())
    with pytest.raises(ValueError, match=r"a step of generation needs (decoder_)?input_ids"):
        pair(past_key_values=cache, strength=1.0)


@both_kinds
def test_the_first_step_by_hand_hides_padding_as_generate_does(kind):
    pair, inputs = random_pair(kind), prompts()
    whole = pair.generate(**inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True)
    pilot_cache = DynamicCache() if kind == "llama" else EncoderDecoderCache(DynamicCache(), DynamicCache())
    cache = CopilotCache(pilot_cache, pair.copilot.attention_count())
    decoder = {"decoder_input_ids": torch.zeros(2, 1, dtype=torch.long)} if kind == "t5" else {}
    positions = {} if kind == "t5" else {"position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)}
    with torch.no_grad():
        logits = pair(**inputs, **decoder, **positions, past_key_values=cache).logits
    torch.testing.assert_close(logits[:, -1], whole.logits[0])


@both_kinds
@pytest.mark.parametrize("own", [False, True], ids=["cache of a pair", "cache of the Pilot"])
def test_without_a_correction_a_pair_steps_as_its_pilot(kind, own):
    """By hand, with either cache, which comes back filled."""
    pair = random_pair(kind).eval()
    ids = random_ids(2, 6)
    text = {"input_ids": ids[:, :2]} if kind == "t5" else {}
    name = "decoder_input_ids" if kind == "t5" else "input_ids"
    expected = pair.pilot(**text | {name: ids}).logits
    first: dict[str, Any] = {}
    if not own:
        cache = DynamicCache(config=pair.pilot.config)
        cache = EncoderDecoderCache(cache, DynamicCache(config=pair.pilot.config)) if kind == "t5" else cache
        first = {"past_key_values": CopilotCache(cache, attentions=2)}
    before = pair(**text | {name: ids[:, :5]}, strength=0, **first)
    assert isinstance(before.past_key_values, CopilotCache) is not own
    after = pair(**text | {name: ids[:, 5:]}, past_key_values=before.past_key_values, strength=0)
    torch.testing.assert_close(torch.cat([before.logits, after.logits], dim=1), expected)


def test_a_pilot_without_a_language_models_head_is_refused():
    with pytest.raises(ValueError, match="a language model with its head; got a LlamaForSequenceClassification"):
        pair_class("llama").from_pilot(LlamaForSequenceClassification(tiny_pilot("llama").config))
