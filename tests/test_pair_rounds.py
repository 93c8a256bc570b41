"""What a pair's training forward logs, and what the Copilot learns from."""

from __future__ import annotations

import pytest
import torch
from builders import BOTH_KINDS, FAMILIES, ROWS, batch_of_rows, fresh_pair, layer_outputs, random_pair

from copilot import MistakeLog
from copilot.mistake_log import Round
from copilot.tap import embed

families = pytest.mark.parametrize("kind", FAMILIES)
both_kinds = pytest.mark.parametrize("kind", BOTH_KINDS)


@both_kinds
@pytest.mark.parametrize("training", [True, False])
def test_a_pilot_with_nan_weights_is_an_error_and_logs_nothing(kind, training):
    pair = random_pair(kind).train(training)
    pair.mistake_log = MistakeLog(2)
    pair.get_output_embeddings().weight.data[5] = float("nan")
    with pytest.raises(FloatingPointError, match="11 of 11 supervised tokens"):
        pair(**batch_of_rows(kind, ROWS))
    assert (len(pair.mistake_log), pair.mistake_log.rounds_seen) == (0, 0)


@both_kinds
def test_only_training_fills_the_log(kind):
    pair = random_pair(kind)
    pair.mistake_log = MistakeLog(2)
    pair(**batch_of_rows(kind, ROWS))
    assert len(pair.mistake_log) == 0
    pair.train()(**batch_of_rows(kind, ROWS))
    assert len(pair.mistake_log) == 1


class FirstRound(MistakeLog):
    """Always draws the oldest round."""

    def draw(self, device: torch.device | str = "cpu") -> Round:
        self.generator.manual_seed(0)
        kept, self.rounds = self.rounds, type(self.rounds)([self.rounds[0]], maxlen=self.capacity)
        try:
            return super().draw(device)
        finally:
            self.rounds = kept


@both_kinds
def test_the_copilot_learns_from_the_round_that_was_drawn(kind):
    pair = random_pair(kind).train()
    pair.mistake_log = FirstRound(4, hidden_dtype="float32")
    first = pair(**batch_of_rows(kind, ROWS[:1]))
    second = pair(**batch_of_rows(kind, ROWS[1:]))
    assert torch.equal(second.copilot_loss, first.copilot_loss)
    assert second.pilot_loss != first.pilot_loss


@pytest.mark.parametrize("kind", [family for family in FAMILIES if family != "t5"])
def test_a_frozen_embedding_is_replayed_from_ids_to_the_last_bit(kind):
    """X~ is what the first decoder layer reads, the scale of Gemma's embeddings included."""
    pair = fresh_pair(kind).train()
    pair.pilot.get_input_embeddings().requires_grad_(False)
    pair.mistake_log = MistakeLog(1)
    batch = batch_of_rows(kind, ROWS, "left")
    pair(**batch)
    _, first, _ = layer_outputs(pair.pilot, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    prompt = batch["attention_mask"].bool() & (batch["labels"] == -100)
    round_ = pair.mistake_log.draw()
    assert round_.context is None
    assert torch.equal(embed(pair.pilot, round_.context_ids), first[prompt])


@families
def test_an_embedding_that_is_trained_is_kept_itself(kind):
    pair = fresh_pair(kind).train()
    pair.mistake_log = MistakeLog(1, hidden_dtype="float32")
    batch = batch_of_rows(kind, ROWS)
    pair(**batch)
    output, first, _ = layer_outputs(pair.pilot, **batch)
    if kind == "t5":
        expected = output.encoder_last_hidden_state[batch["attention_mask"].bool()]
    else:
        expected = first[batch["attention_mask"].bool() & (batch["labels"] == -100)]
    round_ = pair.mistake_log.draw()
    assert round_.context_ids is None
    torch.testing.assert_close(round_.context, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_rounds_with_ids_and_rounds_with_states_give_the_same_loss(kind):
    """Freezing the Pilot's embedding changes how X~ is kept, not what the Copilot learns."""
    losses = []
    for frozen in (True, False):
        pair = random_pair(kind).train()
        pair.pilot.get_input_embeddings().requires_grad_(not frozen)
        pair.mistake_log = MistakeLog(1, hidden_dtype="float32")
        losses.append(pair(**batch_of_rows(kind, ROWS)).copilot_loss)
        assert (pair.mistake_log.draw().context_ids is not None) == frozen
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=0)


def test_a_pilot_that_is_certain_and_right_leaves_the_gradients_finite():
    """Nothing is left to correct: the mean under the root of Eq. 7 is 0, where the root has no slope."""
    pair = random_pair().train()
    prompt = ROWS[0][0]
    with torch.no_grad():
        pair.pilot.lm_head.weight *= 3000
        answer = pair.pilot(prompt[None]).logits[0, -1:].argmax(-1)
    loss = pair(**batch_of_rows("llama", [(prompt, answer)])).copilot_loss
    loss.backward()
    assert loss < 1e-12
    gradients = {name: p.grad for name, p in pair.copilot.named_parameters() if p.grad is not None}
    assert gradients
    assert [name for name, gradient in gradients.items() if not gradient.isfinite().all()] == []
