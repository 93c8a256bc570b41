"""PilotTap: what we read out of a Hugging Face decoder while it runs, and nothing more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PretrainedConfig, PreTrainedModel

from copilot.config import DECODER_ONLY, ENCODER_DECODER, UnsupportedArchitectureError


@dataclass
class Tapped:
    """What one forward of the Pilot left behind, detached.

    Attributes:
        embedding: (B, S, d) the input of the first decoder layer; for a decoder-only Pilot this is X~.
        hidden: per tapped layer (B, S or `tail`, d), its output before any final norm.
        tail: how many of the last positions are kept; None keeps all.
    """

    embedding: Tensor | None = None
    hidden: list[Tensor] = field(default_factory=list)
    tail: int | None = None


def text_config(pilot: PreTrainedModel) -> PretrainedConfig:
    """The configuration of the Pilot's decoder; UnsupportedArchitectureError for a family without a Copilot."""
    config = pilot.config.get_text_config(decoder=True)
    family = pilot.config.model_type  # of a model that also takes images another one than its decoder's
    if config.model_type not in DECODER_ONLY + ENCODER_DECODER or config.model_type != family:
        raise UnsupportedArchitectureError(family)
    return config


def decoder_layers(pilot: PreTrainedModel) -> nn.ModuleList:
    """The list of the Pilot's decoder layers."""
    config = text_config(pilot)
    decoder = pilot.get_decoder()
    return decoder.block if config.model_type in ENCODER_DECODER else decoder.layers


class PilotTap:
    """Reads the decoder's first input and its layers' outputs through forward hooks.

    Args:
        pilot: a supported model.
        context_layers: "first_half" and "second_half" tap that half of the layers, "last" the last of them, everything
            else all.
    """

    def __init__(self, pilot: PreTrainedModel, context_layers: str):
        layers = list(decoder_layers(pilot))
        half = len(layers) // 2
        self.first = layers[0]
        parts = {"first_half": layers[: max(half, 1)], "second_half": layers[half:], "last": layers[-1:]}
        self.layers = parts.get(context_layers, layers)
        self.hooked = 0  # how many contexts need the hooks
        self.handles: list[RemovableHandle] = []
        self.tapped: dict[int, Tapped] = {}  # by thread: hooks see the forwards of all

    def _tapped(self) -> Tapped | None:
        """What this forward leaves behind, if it is recorded."""
        if not self.tapped:
            return None
        traced = torch.compiler.is_compiling() and _TRACED in self.tapped
        return self.tapped.get(_TRACED if traced else threading.get_ident())

    def _take_embedding(self, _module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        tapped = self._tapped()
        if tapped is not None:
            tapped.embedding = (args[0] if args else kwargs["hidden_states"]).detach()

    def _take_hidden(self, _module: nn.Module, _args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        tapped = self._tapped()
        if tapped is None:
            return
        hidden = (output[0] if isinstance(output, tuple) else output).detach()
        if tapped.tail is not None and tapped.tail < hidden.shape[1]:
            hidden = hidden[:, -tapped.tail :].clone()  # a view would keep the whole tensor alive
        tapped.hidden.append(hidden)

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Keep the hooks in place. A compiled forward cannot put them there, and finds the same in each generation."""
        with _REGISTERING:
            if self.hooked == 0:
                self.handles = [self.first.register_forward_pre_hook(self._take_embedding, with_kwargs=True)]
                self.handles += [layer.register_forward_hook(self._take_hidden) for layer in self.layers]
            self.hooked += 1
        try:
            yield
        finally:
            with _REGISTERING:
                self.hooked -= 1
                if self.hooked == 0:
                    for handle in self.handles:
                        handle.remove()

    @contextmanager
    def __call__(self, tail: int | None = None) -> Iterator[Tapped]:
        """Record the forwards of this thread that run inside the context.

        Args:
            tail: keep only the last `tail` positions of each layer, so that a long prefill keeps no full states.

        Raises:
            RuntimeError: the layers ran without their hooks.
        """
        traced = torch.compiler.is_compiling() and self.hooked > 0
        tapped, thread = Tapped(tail=tail), _TRACED if traced else threading.get_ident()
        with nullcontext() if traced else self.hooks():
            self.tapped[thread] = tapped
            try:
                yield tapped
            finally:
                del self.tapped[thread]
        if len(tapped.hidden) < len(self.layers):
            raise RuntimeError(HOOKS_SKIPPED)


HOOKS_SKIPPED = (
    "the Pilot ran without the hooks that read it, as one does that was compiled as a whole and has run alone, or with "
    "the logits of every position; compile its layers one by one"
)
_REGISTERING = threading.Lock()
_TRACED = 0  # no thread's number: of a forward that is traced as a whole


@contextmanager
def logits_only_at(pilot: PreTrainedModel, rows: Tensor) -> Iterator[None]:
    """Restrict the Pilot's vocabulary projection to some positions: its logits come out as (1, M, V).

    Args:
        rows: (M,) int64, where those positions are among the flattened B * S of the batch.
    """

    thread = threading.get_ident()

    def pick(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if threading.get_ident() != thread:
            return args
        states, *others = args
        return states.flatten(0, 1).index_select(0, rows)[None], *others

    handle = pilot.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def embedding_is_frozen(pilot: PreTrainedModel) -> bool:
    """Whether X~ of a decoder-only Pilot can be recomputed from its input ids at any later time."""
    return not any(parameter.requires_grad for parameter in pilot.get_input_embeddings().parameters())


@torch.no_grad()
def embed(pilot: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """X~ of a decoder-only Pilot from its input ids: (B, S) -> (B, S, d)."""
    return pilot.get_input_embeddings()(input_ids)
