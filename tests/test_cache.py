"""CopilotCache moves everything that has one row per sequence, and each of its parts matters."""

from __future__ import annotations

import pytest
import torch
from builders import random_ids, random_pair
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, StaticCache

from copilot.cache import CopilotCache

PARTS = {"pilot": DynamicCache(), "layers": [], "feedback": {}}  # each with nothing to move


def filled_cache(rows: int = 3, max_length: int | None = None) -> CopilotCache:
    """Every tensor of row r holds r."""
    row = torch.arange(float(rows))
    pilot = DynamicCache()
    states = row.view(-1, 1, 1, 1).expand(rows, 2, 4, 8)
    pilot.update(states.clone(), states.clone(), 0)
    cache = CopilotCache(pilot, attentions=2, max_length=max_length)
    for layer in cache.layers:
        layer.update(states.clone(), states.clone())
    cache.steps = 1
    cache.context_mask = row[:, None].bool().expand(rows, 4).clone()
    cache.context_mask[0] = torch.tensor([True, False, True, False])
    cache.feedback = {"index": row[:, None].long().expand(rows, 5), "value": row[:, None].expand(rows, 5)}
    return cache


def rows_of(cache: CopilotCache) -> dict[str, list[float]]:
    """Which row each part of the cache holds now, in order."""
    return {
        "pilot keys": cache.pilot.layers[0].keys[:, 0, 0, 0].tolist(),
        "pilot values": cache.pilot.layers[0].values[:, 0, 0, 0].tolist(),
        "copilot keys": cache.layers[1].keys[:, 0, 0, 0].tolist(),
        "copilot values": cache.layers[1].values[:, 0, 0, 0].tolist(),
        "feedback index": cache.feedback["index"][:, 0].float().tolist(),
        "feedback value": cache.feedback["value"][:, 0].tolist(),
    }


@pytest.mark.parametrize(
    ("move", "expected"),
    [
        (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    ],
    ids=["reorder_cache", "batch_select_indices", "batch_repeat_interleave"],
)
def test_every_part_follows_the_rows(move, expected):
    cache = filled_cache()
    mask = cache.context_mask
    move(cache)
    assert rows_of(cache) == {part: [float(row) for row in expected] for part in rows_of(cache)}
    assert torch.equal(cache.context_mask, mask[expected])


def test_every_part_of_a_static_cache_follows_a_reordering():
    cache = filled_cache(max_length=6)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    assert rows_of(cache) == {part: [2.0, 0.0, 0.0] for part in rows_of(cache)}


def test_a_reset_cache_is_empty():
    cache = filled_cache()
    cache.reset()
    assert (cache.steps, cache.context_mask, cache.feedback) == (0, None, {})
    assert cache.get_seq_length() == 0
    assert [layer.get_seq_length() for layer in cache.layers] == [0, 0]


def test_a_reset_static_cache_counts_from_zero_in_the_same_tensor():
    cache = CopilotCache(DynamicCache(), attentions=2, max_length=6)
    steps = cache.steps
    cache.steps += 3
    assert steps == 3
    cache.reset()
    assert cache.steps is steps
    assert steps == 0


def test_what_a_static_cache_remembers_stays_where_it_is():
    cache = CopilotCache(StaticCache(config=LlamaConfig(num_hidden_layers=1), max_cache_len=6), 2, max_length=6)
    first = torch.zeros(2, 3)
    for value in (first, torch.ones(2, 3)):
        cache.remember({"value": value})
    assert cache.feedback["value"] is first
    assert torch.equal(first, torch.ones(2, 3))


def test_a_cache_has_the_length_of_the_pilots():
    cache = filled_cache()
    assert cache.get_seq_length() == 4
    assert cache.get_mask_sizes(1, 0) == cache.pilot.get_mask_sizes(1, 0)
    assert cache.get_max_length() == cache.pilot.get_max_length()


def test_a_cache_cannot_be_cropped():
    cache = filled_cache()
    assert not cache.is_croppable
    with pytest.raises(NotImplementedError, match="cropped"):
        cache.crop(1)


# ---- Negative controls: beams go wrong when any part stays behind ----

NEW, BEAMS = 7, 4


def score_errors(kind: str, seed: int) -> float:
    """How far the beams' scores are from scoring the same sequences in one forward."""
    pair = random_pair(kind, seed=seed)
    ids = random_ids(2, 6, seed=seed)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    output = pair.generate(
        **inputs,
        do_sample=False,
        num_beams=BEAMS,
        num_return_sequences=BEAMS,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        return_dict_in_generate=True,
        output_scores=True,
    )
    sequences = output.sequences
    batch = {name: value.repeat_interleave(BEAMS, 0) for name, value in inputs.items()}
    if kind == "t5":
        labels = sequences[:, 1:]
    else:
        labels = sequences.clone()
        labels[:, :6] = -100
        batch = {"input_ids": sequences, "attention_mask": torch.ones_like(sequences)}
    with torch.no_grad():
        logits = pair(**batch, labels=labels).logits
    log_p = logits if kind == "t5" else logits[:, -NEW - 1 : -1]
    rescored = log_p.gather(2, sequences[:, -NEW:, None]).squeeze(2).mean(1)
    return float((rescored - output.sequences_scores).abs().max())


def leave_behind(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """From now on reordering a CopilotCache skips one of its parts."""
    whole = CopilotCache.reorder_cache

    def reorder(self: CopilotCache, beam_idx: Tensor) -> None:
        kept = getattr(self, part)
        setattr(self, part, PARTS[part])
        whole(self, beam_idx)
        setattr(self, part, kept)

    monkeypatch.setattr(CopilotCache, "reorder_cache", reorder)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_beams_are_right_when_all_parts_are_reordered(kind):
    assert max(score_errors(kind, seed) for seed in range(3)) < 2e-5


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("part", ["pilot", "layers", "feedback"])
def test_beams_go_wrong_when_one_part_stays_behind(monkeypatch, kind, part):
    leave_behind(monkeypatch, part)
    assert max(score_errors(kind, seed) for seed in range(3)) > 1e-3
