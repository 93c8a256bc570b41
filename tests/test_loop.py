"""The plain loop and CopilotTrainer are the same algorithm."""

from __future__ import annotations

import pytest
import torch

from copilot import PilotCopilotForCausalLM, PilotCopilotForSeq2SeqLM
from copilot.data import DataCollator, prepare_dataset
from copilot.loop import train
from copilot.trainer import CopilotTrainer
from copilot.training_arguments import CopilotTrainingArguments

# Eleven rows of different lengths: six batches, so the last of four steps an epoch has fewer batches, the last batch
# fewer rows.
ROWS = [
    {"prompt": f"w{i} w{i + 1}", "completion": " ".join(f"w{j}" for j in range(i, i + 1 + i % 4))} for i in range(11)
]


@pytest.mark.parametrize(
    ("kind", "bf16", "updates", "largest"),
    [("llama", False, 3, 0.0), ("llama", True, 1, 0.5), ("llama", True, 3, 0.5), ("t5", False, 2, 0.5)],
    ids=["llama-3-updates-not-clipped", "llama-bf16", "llama-bf16-3-updates", "t5-2-updates"],
)
def test_the_loop_reaches_the_trainers_parameters(tiny_pilot, tokenizer, tmp_path, kind, bf16, updates, largest):
    def make_pair() -> PilotCopilotForCausalLM | PilotCopilotForSeq2SeqLM:
        pair_class = PilotCopilotForSeq2SeqLM if kind == "t5" else PilotCopilotForCausalLM
        pilot = tiny_pilot(kind)
        torch.manual_seed(1)
        return pair_class.from_pilot(pilot, layers=2, candidates=8)

    with_trainer, with_loop = make_pair(), make_pair()
    shared = {
        "learning_rate": 1e-2,
        "copilot_learning_rate": 2e-2,
        "weight_decay": 0.1,
        "copilot_weight_decay": 0.2,
        "warmup_steps": 2,
        "copilot_updates": updates,
        "log_rounds": 2,
        "bf16": bf16,
        "seed": 5,
    }
    args = CopilotTrainingArguments(
        str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_grad_norm=largest,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **shared,
    )
    CopilotTrainer(with_trainer, args, ROWS, processing_class=tokenizer).train()

    is_encoder_decoder = kind == "t5"
    train(
        with_loop,
        prepare_dataset(ROWS, tokenizer, is_encoder_decoder=is_encoder_decoder),
        DataCollator(tokenizer.pad_token_id, is_encoder_decoder),
        epochs=2,
        batch_size=2,
        accumulation_steps=2,
        max_gradient_norm=largest,
        shuffle=False,
        **shared,
    )
    start, expected, actual = (pair.state_dict() for pair in (make_pair(), with_trainer, with_loop))
    assert [name for name in expected if not torch.equal(expected[name], actual[name])] == []
    for part in ("pilot.", "copilot."):
        assert any(not torch.equal(start[name], actual[name]) for name in start if name.startswith(part))


def test_every_epoch_has_all_rows_in_an_order_of_its_own(tiny_pilot, tokenizer):
    rows = prepare_dataset(ROWS, tokenizer)
    seen: list[list[int]] = []

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        seen.extend(row["input_ids"] for row in batch)
        return DataCollator(tokenizer.pad_token_id)(batch)

    pair = PilotCopilotForCausalLM.from_pilot(tiny_pilot("llama"), layers=2, candidates=8)
    train(pair, rows, collate, epochs=2)
    given, first, second = [row["input_ids"] for row in rows], seen[: len(rows)], seen[len(rows) :]
    assert sorted(first) == sorted(second) == sorted(given)
    assert first != given
    assert first != second


def test_the_seed_decides_the_training_whatever_was_drawn_before(tiny_pilot, tokenizer):
    def trained(drawn: int, seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        pair = PilotCopilotForCausalLM.from_pilot(tiny_pilot("llama"), layers=2, candidates=8)
        torch.manual_seed(drawn)
        train(pair, prepare_dataset(ROWS, tokenizer), DataCollator(tokenizer.pad_token_id), epochs=1, seed=seed)
        return pair.state_dict()

    first, again, other = trained(1, 3), trained(2, 3), trained(1, 4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_copilot_that_fails_stops_the_training(tiny_pilot, tokenizer):
    pair = PilotCopilotForCausalLM.from_pilot(tiny_pilot("llama"), layers=2, candidates=8)
    torch.nn.init.constant_(next(pair.copilot.parameters()), torch.nan)
    with pytest.raises(FloatingPointError, match="the Copilot's loss is NaN"):
        train(pair, prepare_dataset(ROWS, tokenizer), DataCollator(tokenizer.pad_token_id), epochs=1)
