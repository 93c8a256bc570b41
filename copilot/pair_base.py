"""What both kinds of pair share: construction, saving, and the supervised forward."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils import GENERATION_CONFIG_NAME, ModelOutput, logging

from copilot.adapters import (
    check_pilot_survives,
    discard_older_weights,
    discard_other_kind,
    has_adapters,
    restore_adapter,
)
from copilot.building import build_copilot, check_attachable, checksum_of, is_another
from copilot.cache import CopilotCache
from copilot.config import CopilotConfig
from copilot.generation import RectifiedGeneration
from copilot.loss import PilotPass, Supervision, copilot_loss, pilot_loss, predict
from copilot.mistake_log import MistakeLog, Round
from copilot.model import CopilotModel
from copilot.ops import Mistakes
from copilot.tap import HOOKS_SKIPPED, PilotTap, embed, logits_only_at

logger = logging.get_logger(__name__)

HUB = ("token", "cache_dir", "local_files_only", "force_download")


@dataclass
class PairOutput(ModelOutput):
    """Output of a pair.

    Attributes:
        loss: pilot_loss + copilot_loss; the two have no parameter in common.
        logits: (B, S, V) log p~ (float32) where rectified; the Pilot's raw logits when strength is 0.
        past_key_values: both caches.
        pilot_loss: cross-entropy (Eq. 2), the mean over supervised tokens.
        copilot_loss: Eq. 7.
        mistakes, delta: in eval mode, the mistakes of the supervised tokens and the Copilot's output for them.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    pilot_loss: Tensor | None = None
    copilot_loss: Tensor | None = None
    mistakes: Mistakes | None = None
    delta: Tensor | None = None


class PilotCopilotModel(RectifiedGeneration, PreTrainedModel):
    """What both kinds of pair share. Build one with `from_pilot` or `from_pretrained`.

    Attributes:
        pilot: the language model.
        copilot: its Copilot; `config` is the Copilot's configuration.
        mistake_log: where training rounds go and come from; None trains the Copilot on each fresh round.
    """

    config_class = CopilotConfig
    config: CopilotConfig
    base_model_prefix = "pilot"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _pilot_class: Any = AutoModelForCausalLM

    def __init__(self, pilot: PreTrainedModel, copilot: CopilotModel):
        super().__init__(copilot.config)
        if copilot.config.is_encoder_decoder != (self._pilot_class is not AutoModelForCausalLM):
            raise ValueError(f"{type(self).__name__} cannot hold a {pilot.config.model_type!r} Pilot")
        check_attachable(pilot, copilot.config)
        self.pilot = pilot
        self.copilot = copilot
        self.config = copilot.config
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):  # which Trainer compares with the tokenizer's
            setattr(self.config, name, getattr(pilot.config, name, None))
        self.generation_config = pilot.generation_config
        self.tap = PilotTap(pilot, copilot.config.context_layers)
        self.mistake_log: MistakeLog | None = None
        self.train(pilot.training)

    @classmethod
    def from_pilot(
        cls,
        pilot: PreTrainedModel | str | os.PathLike[str],
        *,
        layers: int | str | list[int] = 6,
        copilot_from: PreTrainedModel | str | os.PathLike[str] | None = None,
        **config: Any,
    ) -> Self:
        """A fresh Copilot for a Pilot: layers copied from it, corrections zero until trained.

        Call it before LoRA is injected into the Pilot.

        Args:
            pilot: a supported model, or the id or folder of one.
            layers: how many of the decoder layers to copy, evenly spaced (all of them where there are no more); "all"
                (the paper); or their indices. The copies are float32, whatever the Pilot is.
            copilot_from: another model of the same family to take the layers from, for a Copilot of another width or
                of a quantised Pilot.
            **config: any other field of `CopilotConfig`.

        Raises:
            UnsupportedArchitectureError: a family without a Copilot.
            ValueError: layers out of range, an unknown or contradictory choice, `copilot_from` of another family, a
                Pilot with adapters or of quantised weights without `copilot_from`.
            TypeError: `pilot` is no transformers model, or one wrapped by peft.
        """
        pilot = cls._resolve_pilot(pilot)
        source = pilot if copilot_from is None else cls._resolve_pilot(copilot_from)
        return cls(pilot, build_copilot(pilot, source, layers, config))

    @classmethod
    def _resolve_pilot(cls, pilot: PreTrainedModel | str | os.PathLike[str], **options: Any) -> PreTrainedModel:
        if isinstance(pilot, str | os.PathLike):
            loaded = cls._pilot_class.from_pretrained(pilot, **options)
            if has_adapters(loaded):
                restore_adapter(loaded, str(pilot), **{name: options[name] for name in HUB if name in options})
            return loaded
        if not isinstance(pilot, PreTrainedModel):
            raise TypeError(
                f"pilot must be a transformers PreTrainedModel or the id of one; got {type(pilot).__name__} "
                "(with peft, pass the base model and call pilot.add_adapter(LoraConfig(...)) afterwards)"
            )
        return pilot

    def save_pretrained(self, save_directory: str | os.PathLike[str], save_pilot: bool = False, **kwargs: Any) -> None:
        """Write the Copilot as a directory that loads without its Pilot.

        Args:
            save_directory: where config.json, generation_config.json (the pair's) and model.safetensors go.
            save_pilot: also write the Pilot to `save_directory`/pilot (only its adapter when it carries one), in place
                of one that was saved there before.
            **kwargs: passed on to `PreTrainedModel.save_pretrained`; `state_dict` is the pair's.

        Raises:
            ValueError: push_to_hub, which would upload a part of this. A folder that the Pilot was loaded from, or the
                model under its adapters, which this would replace.
        """
        if kwargs.get("push_to_hub"):
            raise ValueError(
                "push_to_hub is True, expected False: save, then call huggingface_hub.upload_folder("
                'folder_path=save_directory, repo_id=..., ignore_patterns=["*mistake_log*", "checkpoint-*"]), without '
                "the Mistake Logs, which hold training texts; pair.push_to_hub(repo_id) uploads the Copilot alone"
            )
        if not kwargs.get("is_main_process", True):
            return  # transformers 5.10 would write weights all the same
        state_dict = kwargs.pop("state_dict", None)

        def options(part: str) -> dict[str, Any]:
            if state_dict is None:
                return {}
            prefix = f"{part}."
            return {
                "state_dict": {
                    name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)
                }
            }

        check_pilot_survives(Path(save_directory), self.pilot, save_pilot and has_adapters(self.pilot))
        folder = Path(save_directory) / "pilot"
        self.config.pilot_dtype = str(self.pilot.dtype).removeprefix("torch.")
        self.config.pilot_checksum = checksum_of(self.pilot)
        if save_pilot:
            of_pilot = {name: kwargs[name] for name in ("max_shard_size",) if name in kwargs}
            self.pilot.save_pretrained(folder, **of_pilot, **options("pilot"))
            discard_other_kind(folder, self.pilot)
            discard_older_weights(folder)
        elif has_adapters(self.pilot) or any(parameter.requires_grad for parameter in self.pilot.parameters()):
            logger.warning(
                "The Pilot has trainable weights or adapters that are not saved with its Copilot; "
                "save_pretrained(..., save_pilot=True) writes both."
            )
        if not save_pilot and folder.is_dir():
            logger.warning(f"{folder} is of an earlier save, and from_pretrained will attach the Copilot to it.")
        self.generation_config.save_pretrained(save_directory)
        self.copilot.save_pretrained(save_directory, **kwargs, **options("copilot"))
        discard_older_weights(Path(save_directory))

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        pilot: PreTrainedModel | str | os.PathLike[str] | None = None,
        *,
        pilot_dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        **kwargs: Any,
    ) -> Self:
        """A saved Copilot, attached to a Pilot, on that one's device.

        A Pilot that is loaded here gets the generation config that the pair had; a model that is given keeps its own.

        Args:
            path: a folder written by `save_pretrained`, or a hub id.
            pilot: the Pilot to attach to, or its id or folder; None takes the saved one (`path`/pilot; its adapters can
                be trained further), else the one named in the config.
            pilot_dtype: of a Pilot that is loaded; None is the type it had when the Copilot was saved, for which lambda
                was chosen, "auto" that of its files. Adapters are float32 in any case.
            device_map: of a Pilot that is loaded; all of it on one device.
            **kwargs: passed on to `CopilotModel.from_pretrained` (dtype is the Copilot's alone, which needs float32 to
                be trained further); revision, token, cache_dir, local_files_only and force_download to the hub.

        Raises:
            OSError: no folder and no hub repository of that name.
            ValueError: no Copilot at `path`, incomplete weights, or a Pilot of another vocabulary or width.
        """
        hub = {name: kwargs.pop(name) for name in HUB if name in kwargs}
        subfolder = kwargs.get("subfolder", "")
        if not Path(path).is_dir():  # download everything there, so that a Pilot saved beside the Copilot comes with it
            revision = {"revision": kwargs.pop("revision")} if "revision" in kwargs else {}
            # Of a training's checkpoints only what is asked for.
            needed = str(PurePosixPath(subfolder, "*"))
            unneeded = [] if subfolder else ["checkpoint-*", "last-checkpoint/*"]
            unneeded += [] if pilot is None else [str(PurePosixPath(subfolder, "pilot/*"))]
            try:
                path = snapshot_download(str(path), allow_patterns=needed, ignore_patterns=unneeded, **revision, **hub)
            except HFValidationError as error:
                raise FileNotFoundError(f"path must be a folder or a hub id; got {str(path)!r}") from error
        kind = PretrainedConfig.get_config_dict(path, **kwargs)[0].get("model_type")
        if kind != CopilotConfig.model_type:
            raise ValueError(f"path must hold a Copilot (model_type 'copilot'); {path} holds {kind!r}")
        try:
            # Weights of another shape are reported with the missing ones, below.
            copilot, info = CopilotModel.from_pretrained(
                path, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        except SafetensorError as error:
            raise ValueError(f"path must hold complete weights; {path}: {error}") from error
        if info["missing_keys"] or info["mismatched_keys"]:
            wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
            raise ValueError(f"path must hold complete weights; {path} lacks {len(wrong)}, the first is {wrong[0]}")
        saved = Path(path, subfolder, "pilot")
        named = pilot is None and not saved.is_dir()
        if pilot is None:
            pilot = copilot.config.base_model_name_or_path if named else str(saved)
        if pilot is None:
            raise ValueError(f"pilot must be given: {path} neither holds a Pilot nor names one")
        try:
            dtype = pilot_dtype or copilot.config.pilot_dtype or "auto"
            attached = cls._resolve_pilot(pilot, dtype=dtype, device_map=device_map, **hub)
        except SafetensorError as error:
            raise ValueError(f"pilot must have complete weights; {pilot}: {error}") from error
        if named and is_another(attached, copilot.config):
            logger.warning(
                f"The Pilot found as {pilot} has other weights than the one that this Copilot was saved beside, which "
                "was fine-tuned, or had adapters: pass that one as pilot, or save it with save_pilot=True."
            )
        if attached is not pilot and Path(path, subfolder, GENERATION_CONFIG_NAME).is_file():
            attached.generation_config = GenerationConfig.from_pretrained(Path(path, subfolder))
        return cls(attached, copilot.to(attached.device))

    # What generation and the Trainer ask of a model, answered by the Pilot.

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.pilot.get_input_embeddings()

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.pilot.get_output_embeddings()

    def get_encoder(self, *args: Any, **kwargs: Any) -> torch.nn.Module:
        return self.pilot.get_encoder(*args, **kwargs)

    def get_decoder(self) -> torch.nn.Module:
        return self.pilot.get_decoder()

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        self.pilot.activation_checkpointing_enable(*args, **kwargs)

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:  # its name before transformers 5.23
        self.pilot.gradient_checkpointing_enable(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Module's, but that a frozen Pilot stays in eval mode: what it gets wrong in use, it does without dropout."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.pilot.parameters()):
            self.pilot.eval()
        return self

    def can_generate(self) -> bool:
        return True

    def resize_token_embeddings(self, *_args: Any, **_kwargs: Any) -> torch.nn.Module:
        raise ValueError("the vocabulary of a pair is fixed; resize the Pilot's before from_pilot")

    def predict(self, round_: Round) -> Tensor:
        """delta of every supervised token of a round; see `copilot.loss.predict`."""
        return predict(self.copilot, round_, lambda ids: embed(self.pilot, ids), self.pilot_tables())

    def _pilot_alone(self, past_key_values: Cache | None, **inputs: Any) -> PairOutput:
        """The Pilot's own forward, with its own cache or the one in that of a generation."""
        if isinstance(past_key_values, CopilotCache):
            outputs = self.pilot(past_key_values=past_key_values.pilot, **inputs)
            return PairOutput(logits=outputs.logits, past_key_values=past_key_values)
        outputs = self.pilot(past_key_values=past_key_values, **inputs)
        return PairOutput(logits=outputs.logits, past_key_values=outputs.past_key_values)

    # Training and teacher-forced scoring.

    def _run_pilot(self, supervision: Supervision, every_position: bool, **inputs: Any) -> tuple[Any, dict[str, Any]]:
        """The Pilot's output for a labelled batch, and what a `PilotPass` keeps of it.

        Its vocabulary projection, at these sizes a large part of a step, sees the supervised positions only.
        """
        rows = supervision.rows
        with self.tap() as tapped, nullcontext() if every_position else logits_only_at(self.pilot, rows):
            outputs = self.pilot(**inputs, use_cache=False)
        kept: dict[str, Any] = {"supervision": supervision, "tapped": tapped}
        if every_position:
            return outputs, kept | {"logits": outputs.logits.flatten(0, 1)[rows], "every_logits": outputs.logits}
        if outputs.logits.shape[:2] != (1, len(rows)):
            raise RuntimeError(HOOKS_SKIPPED)
        return outputs, kept | {"logits": outputs.logits[0]}

    def round_of(self, passed: PilotPass) -> tuple[Tensor, Round]:
        """What one forward of the Pilot teaches: its losses (M,), with gradient, and the round for the log, without.

        Raises:
            FloatingPointError: the logits give a loss that is not finite.
        """
        supervision = passed.supervision
        losses, mistakes = pilot_loss(passed.logits, supervision, self.config.candidates)
        round_ = Round(
            mistakes=mistakes,
            hidden=passed.pooled(self.config.pooling),
            lengths=supervision.source.sum(1),
            visible=supervision.visible,
            context_lengths=supervision.context.sum(1),
            context_ids=passed.context_ids,
            context=passed.context,
        )
        return losses, round_

    def losses(self, passed: PilotPass, strength: float, num_items_in_batch: Tensor | int | None) -> PairOutput:
        """Both losses of a batch from the Pilot's forward; see `forward`."""
        losses, round_ = self.round_of(passed)
        of_pilot = losses.mean() if num_items_in_batch is None else losses.sum() / num_items_in_batch
        if self.training and self.mistake_log is not None:
            self.mistake_log.append(round_)
            of_copilot = self.replayed_loss()
            return PairOutput(loss=of_pilot + of_copilot, pilot_loss=of_pilot, copilot_loss=of_copilot)
        delta = self.predict(round_)
        of_copilot = copilot_loss(self.copilot, round_.mistakes, delta)
        output = PairOutput(loss=of_pilot + of_copilot, pilot_loss=of_pilot, copilot_loss=of_copilot)
        if passed.every_logits is None:
            return output
        logits = self._scored(passed.every_logits, passed.supervision.rows, round_.mistakes, delta, strength)
        return replace(output, logits=logits, mistakes=round_.mistakes, delta=delta)

    def replayed_loss(self) -> Tensor:
        """The Copilot's loss (Eq. 7) on a round drawn from the Mistake Log."""
        assert self.mistake_log is not None
        round_ = self.mistake_log.draw(self.device)
        return copilot_loss(self.copilot, round_.mistakes, self.predict(round_))

    def _scored(self, logits: Tensor, rows: Tensor, mistakes: Mistakes, delta: Tensor, strength: float) -> Tensor:
        """(B, S, V): log p~ in the supervised rows and the Pilot's log p^ in the others; raw logits at strength 0."""
        if strength == 0:
            return logits
        scored = torch.log_softmax(logits.float(), dim=-1).flatten(0, 1)
        fused = self._rectify(logits.flatten(0, 1)[rows], delta, mistakes.top_index, strength)
        return scored.index_copy(0, rows, fused).view_as(logits)
