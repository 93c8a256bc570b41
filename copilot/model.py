"""CopilotModel: the decoder that predicts the Pilot's mistakes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, initialization
from transformers.cache_utils import CacheLayerMixin, StaticLayer

from copilot.attention import CopilotAttention
from copilot.cache import CopilotCache
from copilot.config import CopilotConfig
from copilot.vocabulary import CorrectionHead, MistakeInput, ZeroLinear


def build_layers(config: CopilotConfig) -> tuple[nn.ModuleList, nn.Module]:
    """Decoder layers and final norm of the Pilot's own family, without embedding, head or positions."""
    decoder_config = config.build_decoder_config()
    decoder_config.vocab_size = 1  # the embedding is dropped
    decoder_config.pad_token_id = None
    if config.is_encoder_decoder:
        decoder_config.num_layers = 0  # and so is the encoder
        stack = AutoModel.from_config(decoder_config).decoder
        layers, norm = stack.block, stack.final_layer_norm
        for index, block in enumerate(layers):
            block.layer[0].SelfAttention = CopilotAttention(block.layer[0].SelfAttention, 2 * index)
            block.layer[1].EncDecAttention = CopilotAttention(block.layer[1].EncDecAttention, 2 * index + 1)
    else:
        stack = AutoModel.from_config(decoder_config)
        layers, norm = stack.layers, stack.norm
        for index, layer in enumerate(layers):
            layer.self_attn = CopilotAttention(layer.self_attn, index)
    return layers, norm


class CopilotModel(PreTrainedModel):
    """The Copilot f^C: reads mistakes, looks at the Pilot's states, predicts the next mistake.

    Decoder-only: even layers (2nd, 4th, ...) cross-attend Concat(X~, Pool(h)) (Eq. 6), odd layers self-attend.
    Encoder-decoder: every layer self-attends, then cross-attends Concat(X~, Pool(h)).
    """

    config_class = CopilotConfig
    config: CopilotConfig
    base_model_prefix = "copilot"
    supports_gradient_checkpointing = False
    _supports_sdpa = True

    def __init__(self, config: CopilotConfig):
        super().__init__(config)
        if not config.is_encoder_decoder and config.context_layers != "every" and config.num_hidden_layers < 2:
            raise ValueError(
                f"layers must be at least 2, so that one of them reads the Pilot's states (context_layers="
                f"{config.context_layers!r}); got {config.num_hidden_layers}"
            )
        width, pilot_width = config.hidden_size, config.pilot_hidden_size
        self.error_in = MistakeInput(config)
        self.embedding_norm = nn.RMSNorm(pilot_width, eps=1e-6) if config.context_norm else nn.Identity()
        self.hidden_norm = nn.RMSNorm(pilot_width, eps=1e-6) if config.context_norm else nn.Identity()
        self.context_projection = nn.Identity() if width == pilot_width else nn.Linear(pilot_width, width, bias=False)
        self.layers, self.norm = build_layers(config)
        self.head = CorrectionHead(config)
        self.post_init()
        if config.lora is not None:
            self.inject_lora(config.lora)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:  # by functions that leave loaded weights alone
        if isinstance(module, ZeroLinear):
            initialization.zeros_(module.weight)
        elif isinstance(module, MistakeInput):
            initialization.normal_(module.bias, std=0.02)
            if module.weight is not None:
                initialization.normal_(module.weight, std=0.02)
        elif isinstance(module, CorrectionHead):
            if module.weight is not None:
                initialization.zeros_(module.weight)
        elif isinstance(module, nn.Linear):
            initialization.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                initialization.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """`PreTrainedModel.from_pretrained`; the layers under adapters come back frozen."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.config.lora is not None:
            for name, parameter in model.layers.named_parameters():
                parameter.requires_grad_(name in model.trained_in_layers)
        return loaded

    def inject_lora(self, lora: dict[str, Any]) -> None:
        """Freeze the decoder layers and train low-rank adapters instead (peft); the new maps stay fully trained.

        Args:
            lora: fields of a `peft.LoraConfig`, kept in the configuration.
        """
        from peft import LoraConfig, inject_adapter_in_model

        inject_adapter_in_model(LoraConfig(**lora), self.layers)
        self.config.lora = lora
        # Loading weights makes every parameter trainable; what peft chose is restored from here.
        self.trained_in_layers = {name for name, parameter in self.layers.named_parameters() if parameter.requires_grad}

    def attention_count(self) -> int:
        """How many attention modules have a cache layer."""
        return len(self.layers) * (2 if self.config.is_encoder_decoder else 1)

    def cross_attends(self, index: int) -> bool:
        """Whether the decoder-only layer `index` (from 0) reads the context instead of the Copilot's own sequence."""
        return self.config.context_layers == "every" or index % 2 == 1

    def forward(
        self,
        error_index: Tensor | None,
        error_value: Tensor,
        context: Tensor | None,
        context_mask: Tensor,
        hidden: Tensor,
        candidate_index: Tensor | None = None,
        pilot_tables: tuple[Tensor, Tensor] | None = None,
        cache: CopilotCache | None = None,
    ) -> Tensor:
        """delta for n steps of B sequences.

        Args:
            error_index: (B, n, j) int64 tokens of the mistake before each step, or None with a dense mistake.
            error_value: (B, n, j) their values, or (B, n, V); zeros where there is no mistake yet.
            context: (B, m, d) X~; None once it is in the cache.
            context_mask: (B, 1 | n, m) bool, which entries of X~ each step sees.
            hidden: (B, n, d) h, the pooled state that produced p^ of each step.
            candidate_index: (B, n, k) int64 tokens to correct; None is the whole vocabulary.
            pilot_tables: (V, d) input and output embedding of the Pilot, for tied maps.
            cache: keys, values and the step count so far; grown by n steps.

        Returns:
            (B, n, k) or (B, n, V), float32.
        """
        input_table, output_table = pilot_tables or (None, None)
        batch, steps = hidden.shape[:2]
        flat_index = None if error_index is None else error_index.flatten(0, 1)
        states = self.error_in(flat_index, error_value.flatten(0, 1), input_table).unflatten(0, (batch, steps))
        source = self.hidden_norm(hidden.to(self.dtype))
        if context is not None:
            source = torch.cat([self.embedding_norm(context.to(self.dtype)), source], dim=1)
        source = self.context_projection(source)

        layers = None if cache is None else cache.layers
        position = torch.arange(steps, device=hidden.device) + (0 if cache is None else cache.steps)
        self_mask = self._self_mask(position, layers)
        source_mask = self._source_mask(position, context_mask, source.shape[1], layers)
        for index, layer in enumerate(self.layers):
            if self.config.is_encoder_decoder:
                states = encoder_decoder_layer(layer, states, self_mask, source, source_mask, layers)
            elif self.cross_attends(index):
                states = layer(states, attention_mask=source_mask, source=source, cache_layers=layers)
            else:
                states = layer(states, attention_mask=self_mask, cache_layers=layers)
        if cache is not None:
            cache.steps += steps
        flat_candidates = None if candidate_index is None else candidate_index.flatten(0, 1)
        return (
            self.head(self.norm(states).flatten(0, 1), flat_candidates, output_table)
            .float()
            .unflatten(0, (batch, steps))
        )

    def _key_length(self, new: int, layers: list[CacheLayerMixin] | None, index: int) -> int:
        if layers is None:
            return new
        layer = layers[index]
        return layer.max_cache_len if isinstance(layer, StaticLayer) else layer.get_seq_length() + new

    def _self_mask(self, position: Tensor, layers: list[CacheLayerMixin] | None) -> Tensor | None:
        """(1, 1, n, keys): a step sees itself and the steps before it; None where all keys are of these."""
        keys = self._key_length(len(position), layers, 0)
        if len(position) == 1 and layers is not None and not isinstance(layers[0], StaticLayer):
            return None
        return (torch.arange(keys, device=position.device) <= position[:, None])[None, None]

    def _source_mask(
        self, position: Tensor, context_mask: Tensor, new: int, layers: list[CacheLayerMixin] | None
    ) -> Tensor:
        """(B, 1, n, keys): X~ where context_mask says so, then h_1..h_i (`current`) or h_1..h_{i-1} (`previous`)."""
        cross_layer = 1 if len(self.layers) > 1 or self.config.is_encoder_decoder else 0
        keys = self._key_length(new, layers, cross_layer)
        batch, _, width = context_mask.shape
        order = torch.arange(keys - width, device=position.device)
        last = position if self.config.visibility == "current" else position - 1
        seen = (order <= last[:, None]).expand(batch, -1, -1)
        return torch.cat([context_mask.expand(-1, len(position), -1), seen], dim=2)[:, None]


def encoder_decoder_layer(
    block: Any,
    states: Tensor,
    self_mask: Tensor | None,
    source: Tensor,
    source_mask: Tensor,
    layers: list[CacheLayerMixin] | None,
) -> Tensor:
    """A T5 decoder block without relative positions: self-attention, cross-attention of Eq. 6, feed-forward."""
    own, cross, feed_forward = block.layer
    attended, _ = own.SelfAttention(own.layer_norm(states), attention_mask=self_mask, cache_layers=layers)
    states = states + own.dropout(attended)
    attended, _ = cross.EncDecAttention(
        cross.layer_norm(states), attention_mask=source_mask, source=source, cache_layers=layers
    )
    return feed_forward(states + cross.dropout(attended))
