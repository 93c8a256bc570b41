"""CopilotTrainer trains both models as Algorithm 1 says, and a resumed run continues bit for bit."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import TEXT_ROWS
from huggingface_hub import ModelCard
from peft import LoraConfig, PromptTuningConfig, RandLoraConfig, get_peft_model
from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments, trainer_utils

from copilot import MistakeLog, PilotCopilotForCausalLM, PilotCopilotForSeq2SeqLM
from copilot import trainer as trainer_module
from copilot import training_arguments as arguments_module
from copilot.data import DataCollator, prepare_dataset
from copilot.model_card import model_card
from copilot.trainer import CopilotTrainer
from copilot.training_arguments import CopilotTrainingArguments

PILOT_LORA = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["q_proj", "v_proj"])


@pytest.fixture
def make_pair(tiny_pilot):
    def build(kind: str = "llama", **config: Any) -> PilotCopilotForCausalLM | PilotCopilotForSeq2SeqLM:
        pair_class = PilotCopilotForSeq2SeqLM if kind == "t5" else PilotCopilotForCausalLM
        pilot = tiny_pilot(kind)
        torch.manual_seed(1)
        return pair_class.from_pilot(pilot, **{"layers": 2, "candidates": 8} | config)

    return build


@pytest.fixture
def make_trainer(make_pair, tokenizer, tmp_path):
    def build(
        pair=None, rows=TEXT_ROWS, eval_rows=None, peft_config=None, output="out", **options: Any
    ) -> CopilotTrainer:
        defaults = {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 4,
            "learning_rate": 1e-2,
            "copilot_learning_rate": 2e-2,
            "log_rounds": 3,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        args = CopilotTrainingArguments(str(tmp_path / output), **defaults | options)
        return CopilotTrainer(
            model=pair or make_pair(),
            args=args,
            train_dataset=rows,
            eval_dataset=eval_rows,
            processing_class=tokenizer,
            peft_config=peft_config,
        )

    return build


class KeepGradients(TrainerCallback):
    """Copies a module's gradients, as the optimizer sees them."""

    def __init__(self, module: torch.nn.Module, kept: dict[str, torch.Tensor]):
        self.module, self.kept = module, kept

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.kept |= {name: p.grad.clone() for name, p in self.module.named_parameters() if p.grad is not None}


def copied(pair) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in pair.state_dict().items()}


def assert_same(expected: dict[str, torch.Tensor], actual: dict[str, torch.Tensor]) -> None:
    assert expected.keys() == actual.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, actual[name])] == []


# ---- Training ----


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_both_models_learn(make_pair, make_trainer, kind):
    trainer = make_trainer(make_pair(kind), eval_rows=TEXT_ROWS, num_train_epochs=12, max_steps=-1)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_ce"] < 0.7 * before["eval_ce"]
    with torch.no_grad():
        trainer.model.copilot.head.weight.zero_()
    assert after["eval_rmse"] < 0.99 * trainer.evaluate()["eval_rmse"]  # as it is with no correction at all


def test_a_frozen_pilot_stays_and_its_copilot_learns(make_pair, make_trainer):
    pair = make_pair(candidates=None)
    pair.pilot.requires_grad_(False)
    before = copied(pair.pilot)
    trainer = make_trainer(pair, eval_rows=TEXT_ROWS, max_steps=20)
    untrained = trainer.evaluate()
    trainer.train()
    trained = trainer.evaluate()
    assert_same(before, copied(pair.pilot))
    assert trained["eval_ce"] == untrained["eval_ce"]
    assert trained["eval_rmse"] < 0.97 * untrained["eval_rmse"]  # the mistakes are the same: they are predicted


@pytest.mark.parametrize("frozen", [True, False])
def test_the_mistakes_of_a_frozen_pilot_are_made_without_dropout(make_pair, make_trainer, frozen):
    pair = make_pair("t5")
    pair.pilot.requires_grad_(not frozen)
    modes: list[tuple[bool, bool]] = []
    pair.pilot.register_forward_hook(lambda *_: modes.append((pair.training, pair.pilot.training)))
    make_trainer(pair, max_steps=1).train()
    assert set(modes) == {(True, not frozen)}


def test_adapters_are_all_that_moves_in_a_pilot_with_lora(make_pair, make_trainer):
    pair = make_pair()
    before = copied(pair.pilot)
    make_trainer(pair, peft_config=PILOT_LORA).train()
    after = {name.replace(".base_layer", ""): tensor for name, tensor in pair.pilot.state_dict().items()}
    assert_same(before, {name: after[name] for name in before})
    moved = [tensor for name, tensor in after.items() if "lora_B" in name]
    assert moved and all(tensor.abs().max() > 0 for tensor in moved)


def test_the_pilots_accumulated_gradient_is_that_of_one_large_batch(make_pair, make_trainer):
    """Rows of different lengths: every token weighs the same, whatever micro-batch it is in."""
    gradients = []
    for batch_size, steps in ((4, 1), (2, 2), (1, 4)):
        pair = make_pair()
        options = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": steps}
        trainer = make_trainer(pair, rows=TEXT_ROWS[:4], max_steps=1, max_grad_norm=0.0, **options)
        gradients.append({})
        trainer.add_callback(KeepGradients(pair.pilot, gradients[-1]))
        trainer.train()
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-7)


def test_the_copilots_loss_is_averaged_over_the_accumulation_steps(make_pair, make_trainer):
    """Four equal micro-batches weigh as much as one of them."""
    gradients = []
    for steps in (1, 4):
        pair = make_pair()
        options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": steps}
        trainer = make_trainer(pair, rows=[TEXT_ROWS[3]] * steps, max_steps=1, max_grad_norm=0.0, **options)
        gradients.append({})
        trainer.add_callback(KeepGradients(pair.copilot, gradients[-1]))
        trainer.train()
    assert max(gradient.abs().max() for gradient in gradients[0].values()) > 1e-5
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-7)


def test_further_updates_move_the_copilot_alone_each_on_rounds_of_its_own(make_pair, make_trainer, monkeypatch):
    once, twice = make_pair(), make_pair()
    make_trainer(once, log_rounds=1, max_steps=1, output="once").train()
    steps, draws = [], []
    draw = MistakeLog.draw
    monkeypatch.setattr(MistakeLog, "draw", lambda log, device: draws.append(log) or draw(log, device))
    trainer = make_trainer(twice, log_rounds=1, max_steps=1, copilot_updates=3)
    trainer.create_optimizer()
    trainer.optimizer.register_step_post_hook(
        lambda optimizer, *_: steps.append([p.grad is not None for g in optimizer.param_groups for p in g["params"]])
    )
    trainer.train()
    pilot, copilot = (sum(1 for _ in part.parameters()) for part in (twice.pilot, twice.copilot))
    assert [sum(of_step) for of_step in steps] == [pilot + copilot, copilot, copilot]
    assert len(draws) == 3 * 2  # of two micro-batches
    moved = {name for name, value in twice.state_dict().items() if not torch.equal(value, once.state_dict()[name])}
    assert moved
    assert all(name.startswith("copilot.") for name in moved)


def test_gradients_are_clipped_per_model(make_pair, make_trainer):
    pair = make_pair()
    trainer = make_trainer(pair, max_steps=1, max_grad_norm=1e-4)
    kept: dict[str, torch.Tensor] = {}
    trainer.add_callback(KeepGradients(pair, kept))
    trainer.train()
    for part in ("pilot.", "copilot."):
        norm = torch.stack([gradient.norm() for name, gradient in kept.items() if name.startswith(part)]).norm()
        assert norm.item() == pytest.approx(1e-4, rel=1e-2)


def test_the_logged_norm_is_that_of_both_gradients(make_pair, make_trainer):
    pair = make_pair()
    trainer = make_trainer(
        pair, max_steps=1, logging_strategy="steps", logging_steps=1, max_grad_norm=1e9
    )  # too large to clip anything
    kept: dict[str, torch.Tensor] = {}
    trainer.add_callback(KeepGradients(pair, kept))
    trainer.train()
    norms = [
        torch.stack([gradient.norm() for name, gradient in kept.items() if name.startswith(part)]).norm().item()
        for part in ("pilot.", "copilot.")
    ]
    assert min(norms) > 0
    assert trainer.state.log_history[0]["grad_norm"] == pytest.approx(math.hypot(*norms), rel=1e-4)


def test_each_model_has_its_own_learning_rate_and_decay(make_trainer):
    trainer = make_trainer(weight_decay=0.1, copilot_weight_decay=0.2)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (1e-2, 0.1),
        (1e-2, 0.0),
        (2e-2, 0.2),
        (2e-2, 0.0),
    ]
    for group, part in zip(groups, ("pilot.", "pilot.", "copilot.", "copilot."), strict=True):
        assert all(names[id(parameter)].startswith(part) for parameter in group["params"])
        assert all(
            ("norm" in names[id(p)] or "bias" in names[id(p)]) == (group["weight_decay"] == 0) for p in group["params"]
        )
    assert sum(len(group["params"]) for group in groups) == len(names)


def test_bf16_trains_float32_parameters(make_pair, make_trainer):
    pair = make_pair()
    trainer = make_trainer(pair, bf16=True)
    trainer.train()
    assert {parameter.dtype for parameter in pair.parameters()} == {torch.float32}
    assert all(parameter.isfinite().all() for parameter in pair.parameters())


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize(("kind", "targets"), [("llama", None), ("llama", ["q_proj", "v_proj"]), ("t5", ["q", "v"])])
def test_gradient_checkpointing_runs_the_pilot_again_and_changes_no_gradient(
    make_pair, make_trainer, kind, targets, use_reentrant
):
    gradients, runs = [], []
    for checkpointing in (False, True):
        pair = make_pair(kind)
        options = {"gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}} if checkpointing else {}
        options |= {"max_steps": 1, "gradient_accumulation_steps": 1, "gradient_checkpointing": checkpointing}
        trainer = make_trainer(pair, peft_config=targets and LoraConfig(r=4, target_modules=targets), **options)
        runs.append({"pilot": 0, "copilot": 0})
        for part in ("pilot", "copilot"):
            norm = next(
                m for n, m in getattr(pair, part).named_modules() if n.endswith("layernorm") or "layer_norm" in n
            )
            norm.register_forward_pre_hook(lambda *_, of=runs[-1], part=part: of.update({part: of[part] + 1}))
        gradients.append({})
        trainer.add_callback(KeepGradients(pair, gradients[-1]))
        trainer.train()
    assert runs == [{"pilot": 1, "copilot": 1}, {"pilot": 2, "copilot": 1}]
    assert any(name.startswith("pilot.") for name in gradients[0])
    if kind == "llama":
        assert_same(*gradients)
    else:  # the gradients of the encoder's states, which each layer of the decoder reads, add up in another order
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-7)


def test_no_round_of_a_batch_too_large_for_the_memory_is_drawn_again(make_trainer, monkeypatch):
    trainer = make_trainer(per_device_train_batch_size=4, max_steps=3, auto_find_batch_size=True)
    of_batch = trainer.compute_loss

    def exhausted(model, inputs, *args, **kwargs):
        loss = of_batch(model, inputs, *args, **kwargs)
        if len(inputs["labels"]) > 2:
            raise RuntimeError("CUDA out of memory.")
        return loss

    monkeypatch.setattr(trainer, "compute_loss", exhausted)
    trainer.train()
    assert [len(round_.lengths) for round_ in trainer.mistake_log.rounds] == [2] * 6
    assert trainer.mistake_log.rounds_seen == 6  # 3 steps of 2 micro-batches


def test_a_second_training_begins_with_an_empty_log(make_trainer):
    trainer = make_trainer(max_steps=3)
    for _ in range(2):
        trainer.train()
        assert trainer.mistake_log.rounds_seen == 6


def test_a_trained_pair_generates(make_pair, make_trainer, tokenizer):
    pair = make_pair()
    make_trainer(pair).train()
    prompt = tokenizer("w1 w2", return_tensors="pt", return_token_type_ids=False)
    assert pair.generate(**prompt, max_new_tokens=3, min_new_tokens=3, do_sample=False).shape == (1, 6)


# ---- Logs and evaluation ----


def test_a_log_line_has_both_losses_and_both_learning_rates(make_trainer):
    trainer = make_trainer(logging_strategy="steps", logging_steps=2)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert line["loss"] == pytest.approx(line["ce"] + line["rmse"], rel=1e-5)
        assert line["copilot_learning_rate"] == pytest.approx(2 * line["learning_rate"])
    assert lines[0]["ce"] == pytest.approx(math.log(128), rel=0.1)  # the mean over two steps, not their sum


@pytest.mark.parametrize("fails", [False, True])
def test_the_first_log_line_of_a_training_is_of_that_training_alone(make_trainer, fails):
    """The one before stopped between two lines."""
    trainer = make_trainer(logging_strategy="steps", logging_steps=2, max_steps=3)
    if fails:
        stop = Stop()
        trainer.add_callback(stop)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        trainer.remove_callback(stop)
    else:
        trainer.train()
    trainer.train()
    line = next(line for line in trainer.state.log_history if "loss" in line)
    assert line["loss"] == pytest.approx(line["ce"] + line["rmse"], rel=1e-5)


@pytest.mark.parametrize(("loss", "name_of_loss"), [("rmse", "rmse"), ("ce", "copilot_loss"), ("kl", "copilot_loss")])
def test_evaluation_weighs_every_token_equally(make_pair, make_trainer, tokenizer, loss, name_of_loss):
    pair = make_pair(loss=loss)
    trainer = make_trainer(
        pair,
        eval_rows={"some": TEXT_ROWS[:5], "others": TEXT_ROWS[5:]},
        per_device_eval_batch_size=2,
        logging_strategy="steps",
        logging_steps=1,
    )
    trainer.train()
    assert name_of_loss in trainer.state.log_history[0]
    metrics = trainer.evaluate()
    pair.eval()
    for name, rows in (("some", TEXT_ROWS[:5]), ("others", TEXT_ROWS[5:])):
        whole = DataCollator(0)(list(prepare_dataset(rows, tokenizer)))
        with torch.no_grad():
            output = pair(**whole)
        assert metrics[f"eval_{name}_ce"] == pytest.approx(output.pilot_loss.item(), rel=1e-5)
        assert metrics[f"eval_{name}_{name_of_loss}"] == pytest.approx(output.copilot_loss.item(), rel=1e-5)
        assert metrics[f"eval_{name}_loss"] == pytest.approx(output.loss.item(), rel=1e-5)


def test_an_evaluation_without_a_batch_reports_no_loss(make_trainer):
    options = {"dataloader_drop_last": True, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}
    trainer = make_trainer(eval_rows=TEXT_ROWS[:5], per_device_eval_batch_size=8, **options)
    trainer.train()
    assert trainer.state.global_step == 2
    assert not trainer.evaluate().keys() & {"eval_loss", "eval_ce", "eval_rmse"}


def test_rows_to_evaluate_may_be_given_raw_and_by_name(make_trainer, tokenizer):
    trainer = make_trainer(eval_rows=TEXT_ROWS[:5], max_steps=1)
    expected = trainer.evaluate()
    given = {"raw": TEXT_ROWS[:5], "prepared": prepare_dataset(TEXT_ROWS[:5], tokenizer)}
    found = trainer.evaluate(given)
    for name in given:
        assert found[f"eval_{name}_ce"] == expected["eval_ce"]
        assert found[f"eval_{name}_rmse"] == expected["eval_rmse"]
    assert trainer.predict(TEXT_ROWS[:5]).metrics["test_ce"] == expected["eval_ce"]
    with pytest.raises(ValueError, match="columns"):
        trainer.evaluate([{"question": "w1"}])


def test_conversations_are_evaluated_in_training(make_trainer):
    said = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3 w4 w5"}]
    rows = [{"messages": said}] * 4
    options = {"assistant_only_loss": True, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}
    trainer = make_trainer(rows=rows, eval_rows=rows, **options)
    trainer.train()
    logged = [line["eval_ce"] for line in trainer.state.log_history if "eval_ce" in line]
    assert len(logged) == 2
    assert logged[1] == trainer.evaluate(rows)["eval_ce"]


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_predictions_are_log_probabilities(make_pair, make_trainer, tokenizer, kind):
    pair = make_pair(kind)
    trainer = make_trainer(pair, per_device_eval_batch_size=8, max_steps=2)
    trainer.train()
    found = trainer.predict(TEXT_ROWS[:5])
    prepared = prepare_dataset(TEXT_ROWS[:5], tokenizer, is_encoder_decoder=kind == "t5")
    with torch.no_grad():
        expected = pair.eval()(**DataCollator(0, kind == "t5")(list(prepared))).logits
    torch.testing.assert_close(torch.from_numpy(found.predictions), expected)
    assert found.predictions.shape == (*found.label_ids.shape, 128)


def test_predictions_are_log_probabilities_of_the_pilot_alone_too(make_pair, make_trainer):
    pair = make_pair()
    trainer = make_trainer(pair)
    with_a_fresh_copilot = trainer.predict(TEXT_ROWS[:5]).predictions  # which corrects nothing yet
    pair.config.strength = 0.0
    alone = trainer.predict(TEXT_ROWS[:5]).predictions
    torch.testing.assert_close(torch.from_numpy(alone), torch.from_numpy(with_a_fresh_copilot))


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("wanted", [False, True])
def test_logits_of_every_position_are_made_where_they_are_wanted(make_pair, make_trainer, kind, wanted):
    pair = make_pair(kind)
    trainer = make_trainer(pair, prediction_loss_only=not wanted)
    made: list[bool] = []
    pair.register_forward_hook(lambda _pair, _inputs, output: made.append(output.logits is not None))
    trainer.predict(TEXT_ROWS[:5])
    assert set(made) == {wanted}


def test_metrics_are_computed_from_what_predict_gives(make_pair, make_trainer):
    """Without them an evaluation makes no logits of every position."""
    seen = []

    def accuracy(found) -> dict[str, float]:
        seen.append(found)
        said, meant = found.predictions[:, :-1], found.label_ids[:, 1:]
        return {"accuracy": float((said == meant)[meant != -100].mean())}

    metrics = {"compute_metrics": accuracy, "preprocess_logits_for_metrics": lambda logits, _: logits.argmax(-1)}
    pair = make_pair()
    made: list[bool] = []
    pair.register_forward_hook(lambda _pair, _inputs, output: made.append(output.logits is not None))
    plain = make_trainer(pair, eval_rows=TEXT_ROWS[:5])
    without = plain.evaluate()
    trainer = CopilotTrainer(pair, plain.args, eval_dataset=plain.eval_dataset, **metrics)
    found = trainer.evaluate()
    assert made == [False, True]
    assert found["eval_ce"] == without["eval_ce"]
    expected = trainer.predict(trainer.eval_dataset)
    assert (seen[0].predictions == expected.predictions).all()
    assert found["eval_accuracy"] == expected.metrics["test_accuracy"]


def test_evaluation_leaves_no_trace_in_the_log(make_trainer):
    trainer = make_trainer(eval_rows=TEXT_ROWS)
    trainer.train()
    seen, generator = trainer.model.mistake_log.rounds_seen, trainer.model.mistake_log.generator.get_state()
    trainer.evaluate()
    assert trainer.model.mistake_log.rounds_seen == seen > 0
    assert torch.equal(trainer.model.mistake_log.generator.get_state(), generator)


def test_a_second_trainer_that_only_evaluates_leaves_the_log_of_the_first(make_pair, make_trainer):
    pair = make_pair()
    first = make_trainer(pair, max_steps=1)
    first.train()
    make_trainer(pair, rows=None, eval_rows=TEXT_ROWS[:5]).evaluate()
    assert first.mistake_log.rounds_seen == 2


# ---- Checkpoints ----


CASES = {
    "full fine-tuning": ("llama", {}, None),
    "LoRA on the Pilot": ("llama", {}, PILOT_LORA),
    "LoRA on both": (
        "llama",
        {"lora": {"r": 4, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}},
        PILOT_LORA,
    ),
    "encoder-decoder": ("t5", {}, None),
    "two updates": ("llama", {}, PILOT_LORA),
}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_continues_bit_for_bit(make_pair, make_trainer, case):
    kind, config, peft_config = CASES[case]
    # Three steps an epoch, the last of them with one micro-batch: the run stops within its second epoch, the log full.
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "per_device_train_batch_size": 3}
    options["copilot_updates"] = 2 if case == "two updates" else 1
    straight = make_pair(kind, **config)
    make_trainer(straight, peft_config=peft_config, **options).train()

    resumed = make_pair(kind, **config)
    with torch.no_grad():  # whatever is in there is replaced
        for parameter in resumed.copilot.parameters():
            parameter.add_(1.0)
    trainer = make_trainer(resumed, peft_config=peft_config, **options)
    shutil.rmtree(Path(trainer.args.output_dir) / "checkpoint-8")
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 8
    assert_same(copied(straight), copied(resumed))
    assert torch.equal(straight.mistake_log.generator.get_state(), resumed.mistake_log.generator.get_state())
    assert straight.mistake_log.rounds_seen == resumed.mistake_log.rounds_seen


def test_a_resumed_run_rounds_no_weight_of_a_pilot_of_mixed_types(make_pair, make_trainer):
    def pair_with_a_float32_head():
        pair = make_pair()
        pair.pilot.requires_grad_(False).bfloat16()
        pair.pilot.lm_head.float().requires_grad_(True)
        return pair

    options = {"bf16": True, "save_strategy": "steps", "save_steps": 2}
    straight, resumed = pair_with_a_float32_head(), pair_with_a_float32_head()
    make_trainer(straight, **options).train()
    trainer = make_trainer(resumed, **options)
    trainer.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-2")
    assert_same(copied(straight), copied(resumed))
    assert {parameter.dtype for parameter in resumed.pilot.parameters()} == {torch.bfloat16, torch.float32}


def test_the_saved_folder_is_the_pair_with_its_tokenizer_and_card(make_pair, make_trainer, tokenizer):
    pair = make_pair()
    trainer = make_trainer(pair)
    trainer.train()
    trainer.save_model()
    folder = Path(trainer.args.output_dir)
    assert_same(copied(pair), copied(PilotCopilotForCausalLM.from_pretrained(folder)))
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == tokenizer.get_vocab()
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n") and "- transformer-copilot" in card and "PilotCopilotForCausalLM" in card
    assert not (folder / ".unfinished").exists()


def test_the_card_names_a_pilot_of_the_hub_and_no_folder(make_pair, make_trainer, tmp_path):
    pair = make_pair()
    trainer = make_trainer(pair)
    for name, expected in (("some/model", "some/model"), (str(tmp_path), None)):
        pair.config.base_model_name_or_path = name
        assert ModelCard(model_card(trainer)).data.base_model == expected


def test_a_push_during_training_takes_the_pilot_along(make_pair, make_trainer, monkeypatch):
    pushed: list[set[str]] = []
    monkeypatch.setattr(
        Trainer,
        "_push_from_checkpoint",
        lambda trainer, _folder: pushed.append(
            {path.name for path in Path(trainer.args.output_dir, "pilot").iterdir()}
        ),
    )
    pair = make_pair()
    pair.pilot.save_pretrained(Path(make_trainer(pair).args.output_dir) / "pilot")  # of an earlier run
    trainer = make_trainer(pair, peft_config=PILOT_LORA, save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.push_in_progress = None  # as at the start of a training that pushes
    trainer._push_from_checkpoint(str(Path(trainer.args.output_dir) / "checkpoint-2"))
    (names,) = pushed
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert not names & {"config.json", "model.safetensors"}


def test_an_interrupted_save_leaves_the_earlier_one_complete(make_pair, make_trainer, monkeypatch):
    pair = make_pair()
    trainer = make_trainer(pair)
    trainer.save_model()
    saved = copied(pair)
    trainer.train()

    def interrupted(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pair.copilot, "save_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):  # with the Pilot written and the Copilot not
        trainer.save_model()
    assert list(Path(trainer.args.output_dir, ".unfinished", "pilot").glob("*.safetensors"))
    assert_same(saved, copied(PilotCopilotForCausalLM.from_pretrained(trainer.args.output_dir)))
    monkeypatch.undo()
    trainer.save_model()
    assert_same(copied(pair), copied(PilotCopilotForCausalLM.from_pretrained(trainer.args.output_dir)))


class Ruin(TrainerCallback):
    """Makes the second step the worse one."""

    def on_step_begin(self, args, state, control, optimizer, **kwargs):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 if state.global_step == 0 else 100.0


def test_the_seed_decides_the_adapters_whatever_was_drawn_before(make_pair, make_trainer):
    def adapters(drawn: int, **options: Any) -> list[torch.Tensor]:
        pair = make_pair()
        torch.manual_seed(drawn)
        trainer = make_trainer(pair, peft_config=PILOT_LORA, **options)
        return [weight for name, weight in trainer.model.pilot.named_parameters() if "lora_A" in name]

    first, again, other = adapters(1), adapters(2), adapters(1, seed=7)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_copilot_that_fails_stops_the_training(make_pair, make_trainer):
    pair = make_pair()
    torch.nn.init.constant_(next(pair.copilot.parameters()), torch.nan)
    options = {"logging_strategy": "steps", "logging_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(pair, max_steps=4, **options)
    with pytest.raises(FloatingPointError, match="the Copilot's loss is NaN"):
        trainer.train()
    assert trainer.state.global_step == 2
    assert not list(Path(trainer.args.output_dir).glob("checkpoint-*"))


@pytest.mark.parametrize("metric", [None, "ce", "eval_rmse"])
def test_the_best_checkpoint_is_loaded_at_the_end(make_pair, make_trainer, metric):
    pair = make_pair()
    trainer = make_trainer(
        pair,
        eval_rows=TEXT_ROWS,
        max_steps=2,
        lr_scheduler_type="constant",
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
    )
    trainer.add_callback(Ruin())
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    assert_same(copied(PilotCopilotForCausalLM.from_pretrained(trainer.state.best_model_checkpoint)), copied(pair))


DAMAGE = {
    "truncated Copilot": (
        "model.safetensors",
        lambda data: data[: len(data) // 2],
        ".*header|.*incomplete",
    ),
    "truncated Pilot": ("pilot/model.safetensors", lambda data: data[: len(data) // 2], ".*header|.*incomplete"),
    "truncated log": (
        "mistake_log_0.safetensors",
        lambda data: data[: len(data) // 2],
        "path must be a complete file written by MistakeLog",
    ),
    "truncated optimizer": ("optimizer.pt", lambda data: data[: len(data) // 2], "optimizer.pt is truncated"),
    "no optimizer": ("optimizer.pt", None, "no optimizer.pt"),
    "no state": ("trainer_state.json", None, "no trainer_state.json"),
    "no log": ("mistake_log_0.safetensors", None, "it holds the Mistake Logs of 0 processes, this run has 1"),
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    """The checkpoint that all damaged ones are copies of; the first test that needs it makes it."""
    return tmp_path_factory.mktemp("intact") / "checkpoint-1"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_one_error_and_changes_nothing(make_pair, make_trainer, intact, tmp_path, damage):
    name, spoil, message = DAMAGE[damage]
    options = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    if not intact.exists():
        make_trainer(output=intact.parent, **options).train()
    checkpoint = tmp_path / "out" / "checkpoint-1"
    shutil.copytree(intact, checkpoint)
    data = (checkpoint / name).read_bytes()
    (checkpoint / name).unlink()
    if spoil is not None:
        (checkpoint / name).write_bytes(spoil(data))

    pair = make_pair()
    trainer = make_trainer(pair, **options)
    before = copied(pair)
    with pytest.raises(ValueError, match=f"checkpoint-1 cannot be resumed: {message}"):
        trainer.train(resume_from_checkpoint=True)
    assert_same(before, copied(pair))
    assert len(pair.mistake_log) == 0


@pytest.mark.parametrize(
    ("foreign", "message"),
    [
        ({"pair": {"head": "tied"}}, "its Copilot has head='tied', this run's has 'own'"),
        ({"pair": {"rectifier": "linear"}}, "its Copilot has rectifier='linear'"),
        ({"pair": {"candidates": 4}}, "its Copilot has candidates=4, this run's has 8"),
        ({"pair": {"layers": 3}}, "its optimizer has groups of"),
        ({"pair": {"lora": {"r": 2, "target_modules": ["q_proj"]}}}, r"its Copilot has lora=\{'r': 2, "),
        ({"peft_config": LoraConfig(r=2, target_modules=["q_proj", "v_proj"])}, "its Pilot's adapter has the weights"),
        ({"peft_config": replace(PILOT_LORA, lora_alpha=64)}, "its Pilot's adapter has lora_alpha=64, this run's has"),
        (
            {"peft_config": replace(PILOT_LORA, lora_dropout=0.5)},
            "its Pilot's adapter has lora_dropout=0.5, this run's",
        ),
        ({"peft_config": replace(PILOT_LORA, use_rslora=True)}, "its Pilot's adapter has use_rslora=True, this run's"),
        ({"peft_config": replace(PILOT_LORA, alpha_pattern={"q_proj": 2})}, "its Pilot's adapter has alpha_pattern="),
        ({"log_rounds": 5}, "capacity of the saved log is 10"),
    ],
)
def test_a_foreign_checkpoint_is_one_error_and_changes_nothing(make_pair, make_trainer, foreign, message):
    options: dict[str, Any] = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "peft_config": PILOT_LORA}
    theirs = dict(foreign)
    make_trainer(make_pair(**theirs.pop("pair", {})), **options | theirs).train()
    pair = make_pair()
    trainer = make_trainer(pair, **options)
    before = copied(pair)
    with pytest.raises(ValueError, match=f"cannot be resumed: {message}"):
        trainer.train(resume_from_checkpoint=True)
    assert_same(before, copied(pair))


# ---- Refusals ----


@pytest.mark.parametrize(
    "option",
    [
        {"label_smoothing_factor": 0.1},
        {"fsdp": True},
        {"copilot_updates": 0},
        {"use_liger_kernel": True},
        {"neftune_noise_alpha": 5.0},
        {"bf16_full_eval": True},
        {"max_length": None},
        {"log_rounds": 0},
        {"log_hidden_dtype": "fp16"},
    ],
)
def test_options_the_pair_cannot_honour_are_refused(tmp_path, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        CopilotTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **option)


def test_a_model_that_is_no_pair_is_refused(tiny_pilot, make_trainer):
    with pytest.raises(ValueError, match="model is a LlamaForCausalLM, expected a pair"):
        make_trainer(tiny_pilot("llama"))


def test_a_second_adapter_is_refused(make_pair, make_trainer):
    pair = make_pair()
    pair.pilot.add_adapter(PILOT_LORA)
    with pytest.raises(ValueError, match="peft_config is given, but the Pilot has the adapters"):
        make_trainer(pair, peft_config=PILOT_LORA)


def test_adapters_of_the_pair_are_refused(make_pair, make_trainer):
    """They would be in the Copilot too, and what is saved could not be loaded."""
    pair = make_pair()
    pair.add_adapter(PILOT_LORA)
    with pytest.raises(ValueError, match="the pair itself has adapters: make it anew"):
        make_trainer(pair)


def test_adapters_that_transformers_cannot_save_are_refused(make_pair, make_trainer):
    wrapped, refused = make_pair(), make_pair()
    get_peft_model(wrapped.pilot, PILOT_LORA)
    with pytest.raises(ValueError, match="no_such_module"):
        refused.pilot.add_adapter(LoraConfig(target_modules=["no_such_module"]))
    for pair in (wrapped, refused):
        with pytest.raises(ValueError, match="the Pilot's adapters cannot be saved: load it anew"):
            make_trainer(pair)


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        (replace(PILOT_LORA, init_lora_weights="pissa_niter_4"), "loading draws another decomposition"),
        (replace(PILOT_LORA, layer_replication=[(0, 2), (1, 2)]), "layer_replication is not supported"),
        (RandLoraConfig(target_modules=["q_proj"]), "share tensors, which cannot be saved"),
    ],
    ids=["pissa", "replicated layers", "RandLoRA"],
)
def test_adapters_that_do_not_come_back_are_refused_before_they_are_added(make_pair, make_trainer, adapters, message):
    pair = make_pair()
    before = copied(pair)
    with pytest.raises(ValueError, match=message):
        make_trainer(pair, peft_config=adapters)
    assert_same(before, copied(pair))


def test_a_pilot_that_was_resized_since_is_refused(make_pair, make_trainer):
    pair = make_pair()
    pair.pilot.resize_token_embeddings(136)
    with pytest.raises(ValueError, match="the Copilot's vocabulary has 128 tokens; the Pilot's has 136"):
        make_trainer(pair)


def test_special_tokens_are_called_new_only_where_they_are(tiny_pilot, make_trainer, tokenizer, caplog, monkeypatch):
    monkeypatch.setattr(trainer_utils.logger, "propagate", True)
    pilot = tiny_pilot("llama")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for config in (pilot.config, pilot.generation_config):
            setattr(config, name, getattr(tokenizer, name))
    make_trainer(PilotCopilotForCausalLM.from_pilot(pilot, layers=2), max_steps=1).train()
    assert "new PAD/BOS/EOS tokens" not in caplog.text


def test_sharding_that_accelerate_asks_for_is_refused(make_trainer, monkeypatch):
    create = Trainer.create_accelerator_and_postprocess

    def launched_with_fsdp(trainer: Trainer) -> None:
        create(trainer)
        trainer.is_fsdp_enabled = True

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", launched_with_fsdp)
    with pytest.raises(ValueError, match="fsdp and deepspeed are not supported"):
        make_trainer()


def test_a_quantised_pilot_without_adapters_is_refused(make_pair, make_trainer):
    """Trainer's own check, which sees the pair, where there is nothing quantised."""
    pair = make_pair()
    pair.pilot.is_quantized = True
    with pytest.raises(ValueError, match="quantized"):
        make_trainer(pair)


def test_two_active_adapters_are_refused(make_pair, make_trainer):
    """The second one would be neither cast nor saved."""
    pair = make_pair()
    for name in ("first", "second"):
        pair.pilot.add_adapter(PILOT_LORA, adapter_name=name)
    pair.pilot.set_adapter(["first", "second"])
    with pytest.raises(ValueError, match=r"active adapters \['first', 'second'\], expected one"):
        make_trainer(pair)
    pair.pilot.set_adapter("second")
    make_trainer(pair).train()


def test_a_refused_training_leaves_the_pilot_without_adapters(make_pair, make_trainer):
    pair = make_pair()
    with pytest.raises(ValueError, match="eval"):
        make_trainer(pair, peft_config=PILOT_LORA, eval_strategy="steps")
    make_trainer(pair, peft_config=PILOT_LORA)


@pytest.mark.parametrize(
    "refused",
    [
        LoraConfig(target_modules=["no_such_module"]),
        LoraConfig(target_modules=["q_proj", "input_layernorm"]),  # seen when a layer has been wrapped
        LoraConfig(target_modules=["q_proj"], bias="no_such_bias"),  # seen when all weights have been frozen
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ],
)
def test_adapters_that_peft_refuses_leave_the_pilot_as_it_was(make_pair, make_trainer, refused):
    pair = make_pair()
    before = copied(pair.pilot)
    with pytest.raises((ValueError, NotImplementedError)):
        make_trainer(pair, peft_config=refused)
    assert_same(before, copied(pair.pilot))
    assert all(parameter.requires_grad for parameter in pair.pilot.parameters())
    trainer = make_trainer(pair, max_steps=1)
    trainer.train()
    trainer.save_model()
    assert_same(copied(pair), copied(PilotCopilotForCausalLM.from_pretrained(trainer.args.output_dir)))
    make_trainer(pair, peft_config=PILOT_LORA)


@pytest.mark.parametrize("peft_config", [None, PILOT_LORA])
def test_a_pair_is_not_saved_over_its_pilot(make_pair, make_trainer, peft_config):
    """The Copilot's weights and configuration have the names of the Pilot's."""
    folder = Path(make_trainer().args.output_dir)
    make_pair().pilot.save_pretrained(folder)
    files = {path: path.read_bytes() for path in folder.iterdir()}
    pair = PilotCopilotForCausalLM.from_pilot(str(folder), layers=2)
    with pytest.raises(ValueError, match=r"loaded from .*out, where the pair's files would replace it"):
        make_trainer(pair, peft_config=peft_config)
    trainer = make_trainer(pair, peft_config=peft_config, output="elsewhere")
    for save in (trainer.save_model, pair.save_pretrained, lambda into: pair.save_pretrained(into, save_pilot=True)):
        with pytest.raises(ValueError, match=r"loaded from .*out, where the pair's files would replace it"):
            save(str(folder))
    assert {path: path.read_bytes() for path in folder.iterdir()} == files


def test_adapters_are_not_saved_over_the_model_under_them(make_pair, make_trainer):
    """Their folder would lose its weights and its configuration."""
    folder = Path(make_trainer().args.output_dir)
    pair = make_pair()
    pair.save_pretrained(folder, save_pilot=True)
    loaded = PilotCopilotForCausalLM.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"loaded from .*pilot, where the pair's files would replace it"):
        make_trainer(loaded, peft_config=PILOT_LORA)
    trainer = make_trainer(loaded, peft_config=PILOT_LORA, output="elsewhere")
    for save in (trainer.save_model, lambda into: loaded.save_pretrained(into, save_pilot=True)):
        with pytest.raises(ValueError, match=r"loaded from .*pilot, where the pair's files would replace it"):
            save(str(folder))
    assert_same(copied(pair), copied(PilotCopilotForCausalLM.from_pretrained(folder)))


# ---- What is easily overlooked ----


def test_mixed_precision_ends_with_what_it_was_for(make_pair, make_trainer):
    """Training and evaluation compute in bfloat16, again and again; the pair by itself never does."""
    pair = make_pair()
    trainer = make_trainer(pair, bf16=True, eval_rows=TEXT_ROWS, eval_strategy="steps", eval_steps=2, max_steps=2)
    batch = DataCollator(0)([{"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}])
    seen: list[torch.dtype] = []
    projection = pair.pilot.model.layers[0].mlp.up_proj
    projection.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))

    def types(work) -> set[torch.dtype]:
        seen.clear()
        work()
        return set(seen)

    assert types(trainer.evaluate) == {torch.bfloat16}
    assert types(lambda: pair(**batch)) == {torch.float32}
    assert types(trainer.train) == {torch.bfloat16}
    assert types(lambda: pair(**batch)) == {torch.float32}
    during = [line["eval_ce"] for line in trainer.state.log_history if "eval_ce" in line][-1]
    assert trainer.evaluate()["eval_ce"] == during
    assert types(trainer.train) == {torch.bfloat16}
    trainer.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert types(lambda: pair(**batch)) == {torch.float32}


class Stop(TrainerCallback):
    def on_step_end(self, *args, **kwargs):
        raise KeyboardInterrupt


def test_a_readme_of_somebody_elses_is_left_alone(make_trainer):
    trainer = make_trainer()
    trainer.save_model()
    card = Path(trainer.args.output_dir) / "README.md"
    card.write_text(card.read_text().replace("Quick start", "Start"))
    trainer.save_model()
    assert "Quick start" in card.read_text()
    for other in ("# My project", "---\nlicense: mit\n---\nThis uses transformer-copilot."):
        card.write_text(other)
        trainer.save_model()
        trainer.create_model_card()
        assert card.read_text() == other


@pytest.mark.parametrize(("options", "copies"), [({}, True), ({"hub_strategy": "end"}, False)])
def test_the_pilot_is_copied_for_a_push_alone(make_trainer, monkeypatch, options, copies):
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda *_arguments: None)
    trainer = make_trainer(save_strategy="steps", save_steps=2, max_steps=2, **options)
    trainer.train()
    trainer.push_in_progress = None  # as at the start of a training that pushes
    trainer._push_from_checkpoint(str(Path(trainer.args.output_dir) / "checkpoint-2"))
    assert Path(trainer.args.output_dir, "pilot").exists() == copies


def test_a_model_without_adapters_takes_the_place_of_the_adapters_saved_before(make_trainer, make_pair):
    make_trainer(peft_config=PILOT_LORA, max_steps=1).save_model()
    trainer = make_trainer(max_steps=1)
    trainer.save_model()
    folder = Path(trainer.args.output_dir) / "pilot"
    assert (folder / "model.safetensors").exists()
    assert not list(folder.glob("adapter_*"))


@pytest.mark.parametrize(
    ("rows", "options", "warns"),
    [
        (TEXT_ROWS, {}, False),
        (TEXT_ROWS, {"completion_only_loss": False}, True),
        ([{"text": "w1 w2 w3"}], {}, True),
        ([{"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]}], {}, True),
    ],
)
def test_rows_without_a_context_are_told(make_trainer, caplog, monkeypatch, rows, options, warns):
    monkeypatch.setattr(trainer_module.logger, "propagate", True)
    make_trainer(rows=rows, **options)
    assert ("without the context X~" in caplog.text) == warns


@pytest.mark.parametrize(
    ("name", "peft_config", "warns"), [("", PILOT_LORA, True), ("a", PILOT_LORA, False), ("", None, False)]
)
def test_adapters_on_a_pilot_without_a_name_are_told(
    make_pair, make_trainer, caplog, monkeypatch, name, peft_config, warns
):
    monkeypatch.setattr(arguments_module.logger, "propagate", True)
    pair = make_pair()
    pair.pilot.name_or_path = name
    make_trainer(pair, peft_config=peft_config)
    assert ("The Pilot was not loaded by name" in caplog.text) == warns


def test_a_pair_is_attached_to_a_pilot_without_a_name_as_the_warning_says(make_pair, make_trainer, tiny_pilot):
    pair = make_pair()
    trainer = make_trainer(pair, peft_config=PILOT_LORA, max_steps=1)
    trainer.train()
    trainer.save_model()
    base, folder = tiny_pilot("llama"), trainer.args.output_dir
    base.load_adapter(f"{folder}/pilot")
    assert_same(copied(pair), copied(PilotCopilotForCausalLM.from_pretrained(folder, pilot=base)))


def test_arguments_of_another_class_are_refused(make_pair, tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match=r"^args is a TrainingArguments, expected CopilotTrainingArguments"):
        CopilotTrainer(make_pair(), args, TEXT_ROWS)


@pytest.mark.parametrize("peft_config", [PILOT_LORA, None])
def test_adapters_of_a_half_precision_pilot_are_trained_in_float32(make_pair, make_trainer, peft_config):
    pair = make_pair()
    pair.pilot.bfloat16()
    if peft_config is None:
        pair.pilot.add_adapter(PILOT_LORA)
    make_trainer(pair, peft_config=peft_config)
    assert {parameter.dtype for parameter in pair.pilot.parameters() if parameter.requires_grad} == {torch.float32}
    assert pair.pilot.dtype == torch.bfloat16
