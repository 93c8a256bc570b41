"""CopilotTrainer: Hugging Face's Trainer for a Pilot and its Copilot (Algorithm 1)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from datasets import Dataset
from peft import PeftConfig
from peft.tuners.tuners_utils import cast_adapter_dtype
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainerState
from transformers.trainer_utils import (
    EvalLoopOutput,
    EvalPrediction,
    HubStrategy,
    PredictionOutput,
    TrainOutput,
    validate_quantization_for_training,
)
from transformers.utils import logging

from copilot.adapters import check_pilot_survives, discard_other_kind, has_adapters, inject_adapter
from copilot.checkpoints import check_resumable, read_weights, write_weights
from copilot.data import DataCollator, prepare_dataset
from copilot.loop import parameter_groups
from copilot.loss import IGNORE_INDEX, check_copilot_loss
from copilot.mistake_log import MistakeLog
from copilot.model_card import write_model_card
from copilot.pair import PilotCopilotModel
from copilot.training_arguments import CopilotTrainingArguments, check_training

logger = logging.get_logger(__name__)

Rows: TypeAlias = Dataset | list[dict[str, Any]]


class CopilotCallback(TrainerCallback):
    """What Trainer's loop does not know of: where log and sums begin, and the Copilot's steps between its own."""

    def __init__(self, trainer: CopilotTrainer):
        self.trainer = trainer

    def on_train_begin(self, _args: Any, state: TrainerState, *_others: Any, **_options: Any) -> None:
        if state.global_step == 0:  # not resumed: what is there is of an earlier training, or of a try that failed
            self.trainer.mistake_log.clear()
        self.trainer.train_sums.zero_()

    def on_optimizer_step(self, args: CopilotTrainingArguments, *_others: Any, **_options: Any) -> None:
        for _ in range(args.copilot_updates - 1):
            self.trainer.update_copilot()


class CopilotTrainer(Trainer):
    """Trains a Pilot and its Copilot side by side.

    A *round* is what one micro-batch leaves in the Mistake Log: inputs, states and mistakes. With each micro-batch the
    Pilot is run, its round is appended to the log, and the Copilot learns from a round drawn out of the log. One AdamW
    updates both with their own learning rates; gradients are clipped per model. With `copilot_updates` above 1 the
    Copilot takes further steps, alone, on rounds drawn anew. Logged: `ce` (Pilot, per token), `rmse` (Copilot, Eq. 7),
    `learning_rate`, `copilot_learning_rate`.

    Args:
        model: the pair.
        args: defaults to `CopilotTrainingArguments("trainer_output")`.
        train_dataset: raw or tokenised rows, see `prepare_dataset`.
        eval_dataset: the same, or several by name.
        processing_class: the tokenizer; None is fine for tokenised rows.
        callbacks: more callbacks for the training loop.
        peft_config: adapters to inject into the Pilot; the Copilot keeps the Pilot's original layers.
        compute_metrics, preprocess_logits_for_metrics: Trainer's. Logits are log p~ (rows, tokens, V) where the next
            token is supervised, log p^ elsewhere; labels are unshifted.

    Raises:
        ValueError: what `check_training` refuses, unusable data, or FSDP or DeepSpeed. The model stays as it was.
    """

    model: PilotCopilotModel
    args: CopilotTrainingArguments
    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: PilotCopilotModel,
        args: CopilotTrainingArguments | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | dict[str, Rows] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        peft_config: PeftConfig | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
    ):
        args = CopilotTrainingArguments("trainer_output") if args is None else args
        check_training(model, args, peft_config)
        self._prepare = partial(
            prepare_dataset,
            processing_class=processing_class,
            max_length=args.max_length,
            is_encoder_decoder=model.config.is_encoder_decoder,
            completion_only_loss=args.completion_only_loss,
            assistant_only_loss=args.assistant_only_loss,
        )
        if train_dataset is not None:
            train_dataset = self._prepare(train_dataset)
            if not model.config.is_encoder_decoder and IGNORE_INDEX not in train_dataset[0]["labels"][1:]:
                logger.warning(
                    "Every token of the first training row is supervised, so that the Copilot learns without the "
                    "context X~ (what is not supervised) that it reads in generation: the prompt. Better are rows "
                    "of prompt and completion, or assistant_only_loss=True for messages."
                )
        if isinstance(eval_dataset, Mapping):
            eval_dataset = {name: self._prepare(rows) for name, rows in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = self._prepare(eval_dataset)
        # Padding is masked everywhere, so any token will do where the tokenizer names none.
        pad_token_id = getattr(processing_class, "pad_token_id", None) or 0
        super().__init__(
            model=model,
            args=args,
            data_collator=DataCollator(pad_token_id, model.config.is_encoder_decoder),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            compute_metrics=compute_metrics,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # also by `accelerate launch`, past the arguments
            raise ValueError("fsdp and deepspeed are not supported: start one process for each GPU with torchrun")
        if peft_config is not None:
            torch.manual_seed(args.seed)  # the same adapters in every process and every run
            inject_adapter(model.pilot, peft_config)
        if has_adapters(model.pilot):
            cast_adapter_dtype(model.pilot, model.pilot.active_adapters()[0])  # half precision loses small steps
        if any(parameter.requires_grad for parameter in model.pilot.parameters()):
            validate_quantization_for_training(model.pilot)  # Trainer looks at the pair alone
        # The pair's forward takes num_items_in_batch: tokens of all micro-batches and processes of one step.
        self.model_accepts_loss_kwargs = True
        self._training = False
        if train_dataset is not None or model.mistake_log is None:  # else it is another trainer's
            rounds = args.log_rounds * args.gradient_accumulation_steps
            model.mistake_log = MistakeLog(rounds, seed=args.seed, hidden_dtype=args.log_hidden_dtype)
        self.add_callback(CopilotCallback(self))
        # A mean of squares is what adds up over batches; an RMSE is squared first.
        self._copilot_metric, self._power = {"rmse": ("rmse", 2)}.get(model.config.loss, ("copilot_loss", 1))
        # On the device. Since the last log line: Pilot's loss, Copilot's loss, steps.
        self.train_sums = torch.zeros(3, device=args.device)
        # Over an evaluation: Pilot's loss and Copilot's loss to that power, summed over tokens; tokens.
        self._eval_sums = torch.zeros(3, device=args.device)

    @property
    def mistake_log(self) -> MistakeLog:
        """The pair's; an AssertionError where it was taken away."""
        assert self.model.mistake_log is not None
        return self.model.mistake_log

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trainer's. Afterwards the pair computes as it did before, without the training's autocast.

        Raises:
            FloatingPointError: a Pilot's loss that is not finite, or, with the next line of the log, a Copilot's NaN.
        """
        self._training = True
        try:
            return super().train(*args, **kwargs)
        finally:
            self._training = False
            self._release()

    def _release(self) -> None:
        """Undo what `accelerator.prepare` did to the pair: the next training or evaluation prepares it anew."""
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.model.__dict__.pop("_is_accelerate_prepared", None)
        self.accelerator.free_memory()
        self.model_wrapped = self.model

    def evaluate(
        self, eval_dataset: str | Rows | dict[str, Rows] | None = None, *args: Any, **kwargs: Any
    ) -> dict[str, float]:
        """Trainer's. Rows that are given here may be raw, like those of the constructor."""
        if eval_dataset is not None and not isinstance(eval_dataset, str | dict):  # those of a dict come one by one
            eval_dataset = self._prepare(eval_dataset)
        return super().evaluate(eval_dataset, *args, **kwargs)

    def predict(self, test_dataset: Rows, *args: Any, **kwargs: Any) -> PredictionOutput:
        """Trainer's. Rows may be raw; `predictions` are log p~ (rows, tokens, V)."""
        return super().predict(self._prepare(test_dataset), *args, **kwargs)

    # ---- Optimisation ----

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """One optimizer, with parameter groups for the Pilot and for the Copilot."""
        if self.optimizer is None:
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = optimizer_class(self._parameter_groups(), **options)
        return self.optimizer

    def _parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(
            self.model,
            learning_rate=self.args.learning_rate,
            copilot_learning_rate=self.args.copilot_learning_rate,
            weight_decay=self.args.weight_decay,
            copilot_weight_decay=self.args.copilot_weight_decay,
        )

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        # Clipped together, a large gradient of one model would slow the other.
        self.accelerator.unscale_gradients()
        parts, limit = (self.model.pilot, self.model.copilot), self.args.max_grad_norm
        norms = [nn.utils.clip_grad_norm_(part.parameters(), limit) for part in parts]
        # Of a frozen Pilot it is a 0 on the CPU, wherever the Pilot is.
        return torch.linalg.vector_norm(torch.stack([norm.to(self.args.device) for norm in norms]))

    def _get_learning_rate(self) -> float:
        # Trainer asks once per step, before the schedule moves on: the rates this step used.
        self._copilot_learning_rate = self.lr_scheduler.get_last_lr()[-1]
        return super()._get_learning_rate()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The sum of both losses, scaled so that accumulated and distributed gradients equal one large batch's.

        Logits among the outputs are log p~ at any strength.
        """
        labels = inputs["labels"]
        own = len(labels) if model.training else self._rows_of_its_own(len(labels))
        if 0 < own < len(labels):
            inputs = inputs | {"labels": torch.cat([labels[:own], torch.full_like(labels[own:], IGNORE_INDEX)])}
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        pilot_loss, copilot_loss = outputs.pilot_loss, outputs.copilot_loss
        if model.training:
            if self.args.average_tokens_across_devices:
                # The tokens of all processes were counted, and DDP averages over processes.
                pilot_loss = pilot_loss * self.accelerator.num_processes
            copilot_loss = copilot_loss / self.current_gradient_accumulation_steps
            step = pilot_loss.new_tensor(1 / self.current_gradient_accumulation_steps)
            self.train_sums += torch.stack([pilot_loss, copilot_loss, step]).detach()
        elif own > 0:
            tokens = inputs["labels"].ne(IGNORE_INDEX).sum()
            sums = pilot_loss * num_items_in_batch, copilot_loss**self._power * tokens, tokens
            self._eval_sums += torch.stack(sums).detach()
        loss = pilot_loss + copilot_loss
        if not return_outputs:
            return loss
        if outputs.logits is not None and self.model.config.strength == 0:  # the Pilot's own, which are raw
            outputs.logits = torch.log_softmax(outputs.logits.float(), dim=-1)
        return loss, outputs

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Trainer's. Where the losses alone are wanted, no logits of every position are made."""
        inputs = inputs | {"return_logits": not prediction_loss_only}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def _rows_of_its_own(self, rows: int) -> int:
        """Of an evaluation's batch: the others repeat rows, behind these, so that all processes have a full batch."""
        loader = self.accelerator.gradient_state
        if not loader.end_of_dataloader or loader.remainder <= 0:
            return rows
        return min(rows, max(0, loader.remainder - self.args.process_index * rows))

    def update_copilot(self) -> None:
        """One optimizer step of the Copilot alone, on rounds drawn from the Mistake Log."""
        copilot, rounds = self.model.copilot, self.current_gradient_accumulation_steps
        self.model.zero_grad()  # without a gradient the Pilot stays as it is
        for _ in range(rounds):
            with self.accelerator.autocast():
                loss = self.model.replayed_loss() / rounds
            self.accelerator.backward(loss)
        if self.accelerator.num_processes > 1:  # DDP averages only what its own forward has computed
            for parameter in copilot.parameters():
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        if self.args.max_grad_norm > 0:
            self.accelerator.unscale_gradients()
            nn.utils.clip_grad_norm_(copilot.parameters(), self.args.max_grad_norm)
        assert self.optimizer is not None
        self.optimizer.step()

    # ---- Logs ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add `ce`, `rmse` (means over the steps since the last line) and the Copilot's learning rate."""
        if "learning_rate" in logs:
            cross_entropy, copilot_loss, steps = self.accelerator.reduce(self.train_sums, "sum").tolist()
            self.train_sums.zero_()
            check_copilot_loss(copilot_loss)
            logs |= {
                "ce": cross_entropy / steps,
                self._copilot_metric: copilot_loss / steps,
                "copilot_learning_rate": self._copilot_learning_rate,
            }
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Trainer's, reporting `ce` and `rmse` over all tokens, and their sum as the loss."""
        self._eval_sums.zero_()
        try:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        finally:
            if not self._training:
                self._release()
        pilot_sum, copilot_sum, tokens = self.accelerator.reduce(self._eval_sums, "sum").tolist()
        if tokens == 0:  # dataloader_drop_last left no batch: like Trainer, report no loss
            return output
        cross_entropy, copilot_loss = pilot_sum / tokens, (copilot_sum / tokens) ** (1 / self._power)
        losses = {"loss": cross_entropy + copilot_loss, "ce": cross_entropy, self._copilot_metric: copilot_loss}
        output.metrics.update({f"{metric_key_prefix}_{name}": loss for name, loss in losses.items()})
        return output

    # ---- Checkpoints ----

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write pair, tokenizer, arguments and model card; a file appears when it is complete."""
        if not self.args.should_save:
            return
        target = Path(output_dir or self.args.output_dir)
        check_pilot_survives(target, self.model.pilot, has_adapters(self.model.pilot))
        unfinished = target / ".unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
        unfinished.mkdir(parents=True)
        self.model.save_pretrained(unfinished, save_pilot=True)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(unfinished)
        torch.save(self.args, unfinished / "training_args.bin")
        for file in [path for path in unfinished.rglob("*") if path.is_file()]:
            finished = target / file.relative_to(unfinished)
            finished.parent.mkdir(parents=True, exist_ok=True)
            file.replace(finished)
        discard_other_kind(target / "pilot", self.model.pilot)
        shutil.rmtree(unfinished)
        write_model_card(self, target)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        pushes = self.args.hub_strategy != HubStrategy.END and (self.args.hub_always_push or not busy)
        if self.is_world_process_zero() and pushes:  # Trainer takes along the files of the checkpoint alone
            target = Path(self.args.output_dir, "pilot")
            shutil.copytree(Path(checkpoint_folder, "pilot"), target, dirs_exist_ok=True)
            discard_other_kind(target, self.model.pilot)
        super()._push_from_checkpoint(checkpoint_folder)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.mistake_log.save(self._log_path(output_dir))

    def _log_path(self, checkpoint: str | os.PathLike[str]) -> Path:
        return Path(checkpoint) / f"mistake_log_{self.args.process_index}.safetensors"

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Restore weights and Mistake Log. Everything is read and checked before anything is changed."""
        checkpoint = Path(resume_from_checkpoint)
        try:
            groups = [len(group["params"]) for group in self._parameter_groups()]
            check_resumable(checkpoint, self.model.config, groups, self.args.process_index, self.args.world_size)
            weights = read_weights(self.model, checkpoint)
            self.mistake_log.load(self._log_path(checkpoint))  # changes nothing when it fails
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"checkpoint {checkpoint} cannot be resumed: {error}") from error
        write_weights(self.model, *weights)

    def _load_best_model(self) -> None:
        write_weights(self.model, *read_weights(self.model, Path(self.state.best_model_checkpoint)))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write README.md to the output folder."""
        if self.is_world_process_zero():
            write_model_card(self, Path(self.args.output_dir))
