"""CopilotModel: what each correction may depend on, where the Pilot's states enter, and what is trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import (
    BOTH_KINDS,
    FAMILIES,
    VOCAB_SIZE,
    WIDTH,
    batch_of,
    fresh_pair,
    layer_outputs,
    random_ids,
    random_pair,
    randomize,
    tiny_pilot,
)
from inputs import CONTEXT, STEPS, Inputs, delta_of, random_inputs
from torch import Tensor

from copilot import CopilotModel, MistakeLog, PilotCopilotForCausalLM

J = 2  # the step that is perturbed
both_kinds = pytest.mark.parametrize("kind", BOTH_KINDS)
visibilities = pytest.mark.parametrize("visibility", ["current", "previous"])


def changed_steps(copilot: CopilotModel, before: Inputs, after: Inputs) -> list[int]:
    """The steps whose delta is not the same to the last bit."""
    difference = (delta_of(copilot, before) != delta_of(copilot, after)).any(2).any(0)
    return difference.nonzero().flatten().tolist()


def with_step(inputs: Inputs, name: str, step: int) -> Inputs:
    """The inputs with other values of one field at one step."""
    value = getattr(inputs, name).clone()
    value[:, step] += 1.0
    return replace(inputs, **{name: value})


@both_kinds
def test_dropout_belongs_to_training(kind):
    rate = {"dropout_rate": 0.5} if kind == "t5" else {"attention_dropout": 0.5}
    copilot = random_pair(kind, pilot=tiny_pilot(kind, **rate)).copilot
    inputs = random_inputs()
    assert torch.equal(delta_of(copilot, inputs), delta_of(copilot, inputs))
    copilot.train()
    assert not torch.equal(delta_of(copilot, inputs), delta_of(copilot, inputs))


# ---- Causality ----


@both_kinds
@visibilities
def test_a_correction_depends_on_its_own_and_earlier_mistakes_only(kind, visibility):
    """Input j is the mistake of token j - 1: no step before j may change, all from j on must."""
    copilot = random_pair(kind, visibility=visibility).copilot
    inputs = random_inputs()
    assert changed_steps(copilot, inputs, with_step(inputs, "error_value", J)) == [2, 3, 4]


@both_kinds
def test_a_correction_sees_the_state_that_produced_its_prediction_but_no_later_one(kind):
    copilot = random_pair(kind, visibility="current").copilot
    inputs = random_inputs()
    assert changed_steps(copilot, inputs, with_step(inputs, "hidden", J)) == [2, 3, 4]


@both_kinds
def test_with_previous_visibility_a_correction_sees_strictly_earlier_states(kind):
    copilot = random_pair(kind, visibility="previous").copilot
    inputs = random_inputs()
    assert changed_steps(copilot, inputs, with_step(inputs, "hidden", J)) == [3, 4]


@both_kinds
def test_every_correction_depends_on_the_context(kind):
    copilot = random_pair(kind).copilot
    inputs = random_inputs()
    assert changed_steps(copilot, inputs, with_step(inputs, "context", 0)) == [0, 1, 2, 3, 4]


@both_kinds
def test_a_masked_context_entry_is_seen_by_no_masked_step(kind):
    copilot = random_pair(kind).copilot
    inputs = random_inputs()
    inputs.context_mask[:, :3, 1] = False
    # Later steps see it, and hand it on to no earlier one.
    assert changed_steps(copilot, inputs, with_step(inputs, "context", 1)) == [3, 4]


@both_kinds
@visibilities
@pytest.mark.parametrize("feedback", ["observed", "predicted"])
def test_a_pairs_log_probability_does_not_depend_on_later_tokens(kind, visibility, feedback):
    pair = random_pair(kind, visibility=visibility, feedback=feedback)
    first = batch_of(kind, prompt=5, answer=6)
    second = {name: value.clone() for name, value in first.items()}
    cut = 3 if kind == "t5" else 8  # the answer's fourth token differs
    for name in ("labels",) if kind == "t5" else ("labels", "input_ids"):
        second[name][:, cut] = (second[name][:, cut] + 1) % VOCAB_SIZE
    with torch.no_grad():
        difference = (pair(**first).logits != pair(**second).logits).any(2).any(0)
    predicts_it = cut if kind == "t5" else cut - 1
    assert not difference[: predicts_it + 1].any()
    assert difference[predicts_it + 1 :].any()


def test_text_after_a_supervised_span_is_not_seen_by_it():
    """Two turns: the second question is no context of the first answer."""
    pair = random_pair("llama")
    ids = random_ids(1, 14)
    labels = ids.clone()
    labels[:, :4] = -100  # the first question; then the first answer
    labels[:, 7:10] = -100  # the second question; then the second answer
    other = ids.clone()
    other[:, 9] = (other[:, 9] + 1) % VOCAB_SIZE
    with torch.no_grad():
        first, second = (pair(input_ids=tokens, labels=labels).delta for tokens in (ids, other))
    difference = (first != second).any(1)
    assert difference.tolist() == [False] * 3 + [True] * 4


def test_text_before_a_supervised_span_is_seen_by_it():
    """The same two turns: the second answer reads the second question through X~, not through the Pilot alone."""
    pair = random_pair("llama")
    ids = random_ids(1, 14)
    labels = ids.clone()
    labels[:, :4] = -100
    labels[:, 7:10] = -100
    pair.train()
    pair.mistake_log = MistakeLog(1, hidden_dtype="float32")
    pair(input_ids=ids, labels=labels)
    round_ = pair.mistake_log.draw()
    assert round_.visible.tolist() == [4] * 3 + [7] * 4
    pair.eval()
    context = round_.context.clone()
    context[6] += 1  # the second question's last token
    with torch.no_grad():
        difference = (pair.predict(round_) != pair.predict(replace(round_, context=context))).any(1)
    assert difference.tolist() == [False] * 3 + [True] * 4


# ---- Patterns 1 to 4 and pooling: where the Pilot's states enter ----


def keys_per_layer(pair: PilotCopilotForCausalLM, inputs: Inputs) -> list[int]:
    """How many keys the attention of each Copilot layer has."""
    seen: list[int] = []
    handles = [
        layer.self_attn.k_proj.register_forward_pre_hook(lambda _module, args: seen.append(args[0].shape[1]))
        for layer in pair.copilot.layers
    ]
    delta_of(pair.copilot, inputs)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(
    ("context_layers", "reading"),
    [("even", [1, 3]), ("every", [0, 1, 2, 3]), ("first_half", [1, 3]), ("second_half", [1, 3]), ("last", [1, 3])],
)
def test_the_chosen_copilot_layers_read_the_context(context_layers, reading):
    """The 2nd and 4th layer (pattern 1), or all of them (pattern 2), attend to X~ and h instead of to themselves."""
    pair = random_pair("llama", layers=4, context_layers=context_layers)
    expected = [CONTEXT + STEPS if layer in reading else STEPS for layer in range(4)]
    assert keys_per_layer(pair, random_inputs()) == expected


def test_an_odd_layer_does_not_read_the_context():
    """The first layer's output is the same for another context and other states; the second layer's is not."""
    copilot = random_pair("llama").copilot
    inputs = random_inputs()
    other = replace(inputs, context=inputs.context + 1, hidden=inputs.hidden + 1)
    outputs: list[list[Tensor]] = [[], []]
    handles = [
        copilot.layers[i].register_forward_hook(lambda _module, _args, output, i=i: outputs[i].append(output))
        for i in range(2)
    ]
    delta_of(copilot, inputs)
    delta_of(copilot, other)
    for handle in handles:
        handle.remove()
    assert torch.equal(*outputs[0])
    assert not torch.allclose(*outputs[1])


def test_every_layer_of_an_encoder_decoder_copilot_reads_the_context():
    copilot = random_pair("t5").copilot
    seen: list[int] = []
    for block in copilot.layers:
        block.layer[0].SelfAttention.k.register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape[1]))
        block.layer[1].EncDecAttention.k.register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape[1]))
    delta_of(copilot, random_inputs())
    assert seen == [STEPS, CONTEXT + STEPS] * 3


@both_kinds
@pytest.mark.parametrize(
    ("context_layers", "pooled"),
    [("even", [0, 1, 2, 3]), ("every", [0, 1, 2, 3]), ("first_half", [0, 1]), ("second_half", [2, 3]), ("last", [3])],
)
@pytest.mark.parametrize("pooling", ["mean", "max", "sum"])
def test_the_logged_state_pools_the_outputs_of_the_chosen_pilot_layers(kind, context_layers, pooled, pooling):
    pair = fresh_pair(kind, context_layers=context_layers, pooling=pooling).train()
    batch = batch_of(kind, prompt=5, answer=6)
    _, _, outputs = layer_outputs(pair.pilot, **batch)
    supervised = slice(0, 6) if kind == "t5" else slice(4, 10)
    stack = torch.stack([outputs[layer][:, supervised].double() for layer in pooled])
    expected = {"mean": stack.mean(0), "sum": stack.sum(0), "max": stack.amax(0)}[pooling].flatten(0, 1)
    pair.mistake_log = MistakeLog(1, hidden_dtype="float32")
    pair(**batch)
    torch.testing.assert_close(pair.mistake_log.draw().hidden.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["context", "hidden"])
def test_without_context_norm_the_scale_of_the_states_matters(name):
    inputs = random_inputs()
    larger = replace(inputs, **{name: 7 * getattr(inputs, name)})
    normed, plain = (random_pair("llama", context_norm=norm).copilot for norm in (True, False))
    torch.testing.assert_close(delta_of(normed, larger), delta_of(normed, inputs), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(delta_of(plain, larger), delta_of(plain, inputs), atol=1e-2)


# ---- A fresh Copilot ----


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("table", ["own", "tied", "factored"])
@pytest.mark.parametrize("candidates", [None, 8])
def test_a_fresh_copilot_corrects_nothing(kind, table, candidates):
    pair = fresh_pair(kind, head=table, error_in=table, candidates=candidates)
    delta = pair(**batch_of(kind)).delta
    assert delta.shape[1] == (VOCAB_SIZE if candidates is None else 8)
    assert (delta == 0).all()


@pytest.mark.parametrize("table", ["own", "tied", "factored"])
def test_a_fresh_copilot_learns_from_its_first_step(table):
    """A head that starts at zero still gets a gradient."""
    pair = fresh_pair("llama", head=table, error_in=table).train()
    pair(**batch_of("llama")).copilot_loss.backward()
    assert max(p.grad.abs().max() for p in pair.copilot.head.parameters() if p.grad is not None) > 0


@pytest.mark.parametrize(
    ("kind", "table"), [*((kind, "own") for kind in FAMILIES), ("llama", "tied"), ("t5", "factored")]
)
def test_every_parameter_of_a_trained_copilot_gets_a_gradient(kind, table):
    pair = random_pair(kind, head=table, error_in=table).train()
    pair(**batch_of(kind)).copilot_loss.backward()
    without = [name for name, p in pair.copilot.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_layers_are_copies_of_evenly_spaced_pilot_layers(kind):
    pilot = tiny_pilot(kind)
    pair = fresh_pair(kind, pilot=pilot, layers=2)
    decoder = pilot.get_decoder()
    theirs = decoder.block if kind == "t5" else decoder.layers
    assert len(pair.copilot.layers) == 2
    for mine, index in zip(pair.copilot.layers, (0, 3), strict=True):
        original = theirs[index].state_dict()
        for name, value in mine.state_dict().items():
            assert torch.equal(value, original[name]), name
            assert value.data_ptr() != original[name].data_ptr(), name


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_final_norm_and_the_embedding_are_the_pilots(kind):
    pilot = tiny_pilot(kind)
    decoder = pilot.get_decoder()
    norm = decoder.final_layer_norm if kind == "t5" else decoder.norm
    norm.weight.data.uniform_(generator=torch.Generator().manual_seed(4))
    copilot = fresh_pair(kind, pilot=pilot).copilot
    assert torch.equal(copilot.norm.weight, norm.weight)
    assert torch.equal(copilot.error_in.weight, pilot.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("layers", "picked"),
    [(2, [0, 3]), (3, [0, 2, 3]), ("all", [0, 1, 2, 3]), ([1, 2], [1, 2]), (9, [0, 1, 2, 3])],
)
def test_layers_names_the_pilot_layers_to_copy(layers, picked):
    pilot = tiny_pilot("llama")
    pair = fresh_pair("llama", pilot=pilot, layers=layers)
    weights = [layer.mlp.up_proj.weight for layer in pair.copilot.layers]
    assert len(weights) == len(picked)
    assert all(torch.equal(w, pilot.model.layers[i].mlp.up_proj.weight) for w, i in zip(weights, picked, strict=True))


def test_a_single_layer_that_would_never_read_the_pilots_states_is_refused():
    with pytest.raises(ValueError, match=r"^layers must be at least 2"):
        fresh_pair("llama", layers=1)


@pytest.mark.parametrize("layers", [0, -1, [], [0, 4], "some", 2.0])
def test_layers_that_do_not_exist_are_refused(layers):
    with pytest.raises(ValueError, match=r"^layers must be"):
        fresh_pair("llama", layers=layers)


@pytest.mark.parametrize("unknown", ["candidtes", "device_map", "dtype", "vocab_size"])
def test_what_is_no_choice_of_a_copilot_is_refused(unknown):
    with pytest.raises(ValueError, match=f"^{unknown} is no choice of a Copilot; accepted are candidates, "):
        fresh_pair("llama", **{unknown: 4})


# ---- Another width ----


@both_kinds
@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("table", ["own", "tied", "factored"])
def test_a_copilot_of_another_width_is_aligned(kind, width, table):
    other = tiny_pilot(kind, seed=5, **{"d_model" if kind == "t5" else "hidden_size": width})
    pair = fresh_pair(kind, copilot_from=other, head=table, error_in=table)
    assert (pair.config.hidden_size, pair.config.pilot_hidden_size) == (width, WIDTH)
    assert pair.copilot.context_projection.weight.shape == (width, WIDTH)
    randomize(pair.copilot)
    batch = batch_of(kind)
    with torch.no_grad():
        delta = pair(**batch).delta
        for parameter in pair.copilot.context_projection.parameters():
            parameter.zero_()
        blind = pair(**batch).delta
    assert torch.isfinite(delta).all()
    assert not torch.allclose(delta, blind, atol=1e-3)


def test_a_copilot_of_another_family_is_refused():
    with pytest.raises(ValueError, match=r"^copilot_from must be of the Pilot's family 'llama'"):
        fresh_pair("llama", copilot_from=tiny_pilot("qwen2"))
