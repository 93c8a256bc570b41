"""generate() for a pair: the Copilot's step after each of the Pilot's, and the cache that carries both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, StaticLayer

from copilot.cache import CopilotCache
from copilot.config import CopilotConfig
from copilot.model import CopilotModel
from copilot.ops import mistake_cross_entropy, pool_layers, rectify
from copilot.ops.rectify import check_strength
from copilot.ops.reference import predicted_mistake
from copilot.tap import PilotTap, Tapped

REFUSED = {
    "prefill_chunk_size": "the Copilot's first step needs the whole prompt in one forward",
    "assistant_model": "assisted decoding rolls the cache back, and the mistakes of earlier steps are not kept",
    "assistant_early_exit": "assisted decoding rolls the cache back",
    "prompt_lookup_num_tokens": "prompt-lookup decoding rolls the cache back",
    "use_mtp": "assisted decoding rolls the cache back",
    "guidance_scale": "guidance runs the Pilot a second time, and only the first has a Copilot",
    "output_attentions": "the Pilot's attentions say nothing about p~; call pair.pilot",
    "output_hidden_states": "the Pilot's states say nothing about p~; call pair.pilot",
    "token_healing": "it generates once more, at another strength",
    "custom_generate": "custom generation loops are not known to keep the Copilot's cache",
    "penalty_alpha": "contrastive search is a custom generation loop",
    "dola_layers": "DoLa is a custom generation loop",
    "num_beam_groups": "group beam search is a custom generation loop",
    "constraints": "constrained beam search is a custom generation loop",
    "force_words_ids": "constrained beam search is a custom generation loop",
}


class RectifiedGeneration(GenerationMixin):
    """GenerationMixin over the rectified distribution, for a module with `pilot`, `copilot` and `config`."""

    pilot: PreTrainedModel
    copilot: CopilotModel
    config: CopilotConfig
    tap: PilotTap

    def pilot_tables(self) -> tuple[Tensor, Tensor] | None:
        """The Pilot's embeddings for tied maps, without gradient; None when nothing is tied."""
        if self.config.head == "own" and self.config.error_in == "own":
            return None
        tables = self.pilot.get_input_embeddings().weight, self.pilot.get_output_embeddings().weight
        return tables[0].detach(), tables[1].detach()

    def _rectify(self, logits: Tensor, delta: Tensor, index: Tensor | None, strength: float) -> Tensor:
        config = self.config
        return rectify(logits, delta, strength, index=index, rectifier=config.rectifier, fusion=config.fusion)

    def _resolve_strength(self, strength: float | None) -> float:
        strength = self.config.strength if strength is None else float(strength)
        check_strength(strength, self.config.rectifier, self.config.fusion)
        return strength

    def _corrected_step(
        self,
        logits: Tensor,
        tapped: Tapped,
        token: Tensor,
        context: Tensor | None,
        cache: CopilotCache,
        strength: float,
    ) -> Tensor:
        """log p~ (B, V) of the next token; the cache moves on by one step.

        Args:
            logits: (B, V) the Pilot's.
            tapped: its states at the last position.
            token: (B, 1) the token that was emitted last; unused in the first step.
            context: (B, S_x, d) X~ in the first step, None later.
            cache: of this generation.
            strength: lambda > 0.
        """
        k, config = self.config.candidates, self.config
        # Only p^ is read, which is the same whatever the true token is.
        anything = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        _, mistakes = mistake_cross_entropy(logits, anything, k, ignore_index=None)
        top_prob, top_index = mistakes.top_prob, mistakes.top_index
        if context is not None:
            if torch.isnan(top_prob).any():
                raise FloatingPointError("the Pilot's logits for the prompt are NaN")
            width = context.shape[1]
            if cache.context_mask is None:
                cache.context_mask = torch.ones(logits.shape[0], width, dtype=torch.bool, device=logits.device)
            error_index, error_value = top_index, torch.zeros_like(top_prob)
        else:
            error_index, error_value = cache.feedback.get("index"), cache.feedback["value"]
            if config.feedback == "observed":
                one = torch.ones_like(error_value[:, :1])
                if error_index is None:
                    error_value = error_value.scatter_add(1, token, one)
                else:
                    error_index = torch.cat([error_index, token], dim=1)
                    error_value = torch.cat([error_value, one], dim=1)
        assert cache.context_mask is not None
        delta = self.copilot(
            None if error_index is None else error_index[:, None],
            error_value[:, None],
            context,
            cache.context_mask[:, None],
            pool_layers(tapped.hidden, pooling=config.pooling),
            None if top_index is None else top_index[:, None],
            self.pilot_tables(),
            cache,
        )[:, 0]
        if context is not None and torch.isnan(delta).any():
            raise FloatingPointError("the corrections of the Copilot for the prompt are NaN")
        value = -top_prob
        if config.feedback == "predicted":
            value, _ = predicted_mistake(top_prob, mistakes.rest_mass, delta, config.rectifier)
        cache.remember({"value": value} if top_index is None else {"index": top_index, "value": value})
        return self._rectify(logits, delta, top_index, strength)

    def generate(self, *args: Any, strength: float | None = None, **kwargs: Any) -> Any:
        """`GenerationMixin.generate` over the rectified distribution.

        Logits processors are given log p~, at strength 0 the Pilot's logits: one that depends on their level, as
        repetition_penalty does, acts otherwise on them.

        With a static cache on a GPU a step of both models is compiled, as transformers does it for one.

        Args:
            *args: as for any transformers model.
            strength: lambda; None takes `config.strength`, 0 is exactly `pilot.generate`.
            **kwargs: as for any transformers model.

        Raises:
            ValueError: a strength out of range, or a way of decoding that cannot carry the Copilot's state
                (use_cache=False, also of gradient checkpointing in training mode, chunked prefill, assisted and
                prompt-lookup decoding, a used cache).
            FloatingPointError: logits or corrections for the prompt that are NaN.
        """
        refuse(kwargs)
        if self.pilot.training and getattr(self.pilot, "is_gradient_checkpointing", False):
            raise ValueError("gradient checkpointing keeps no cache in training mode: call pair.eval() first")
        with self.tap.hooks():
            return super().generate(*args, strength=self._resolve_strength(strength), **kwargs)

    def _prepare_generation_config(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """GenerationMixin's: the first place where arguments and every default are together, so the place to refuse."""
        generation_config, model_kwargs = super()._prepare_generation_config(*args, **kwargs)
        refuse(vars(generation_config))
        if generation_config.use_cache is False:
            raise ValueError("use_cache=False is not supported by a pair: the Copilot's state lives in the cache")
        return generation_config, model_kwargs

    def generate_batch(self, *_args: Any, **_kwargs: Any) -> Any:
        raise ValueError("generate_batch is not supported by a pair: continuous batching keeps no Copilot cache")

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """The Pilot prepares its own cache, of whatever kind was asked for; ours wraps it."""
        self.pilot._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )
        cache = model_kwargs.get("past_key_values")
        if not isinstance(cache, Cache) or int(cache.get_seq_length()) > 0:
            raise ValueError("past_key_values must be absent or an empty cache: a pair cannot continue a used one")
        if isinstance(cache, CopilotCache):
            cache.reset()
            return
        own = getattr(cache, "self_attention_cache", cache)
        max_length = None
        if len(own.layers) > 0 and isinstance(own.layers[0], StaticLayer):
            attention = str(self.pilot.config._attn_implementation)
            if "flash" in attention:  # it would need a mask that generate drops for a module of another attention
                raise ValueError(
                    f"a static cache is not supported by a pair whose Pilot has {attention!r}: load it as sdpa"
                )
            # Room for X~ and one state per generated token; the last token is generated but never read.
            max_length = max_cache_length + 1
            if self.config.is_encoder_decoder:
                max_length += model_kwargs["encoder_outputs"][0].shape[1]
        attentions = self.copilot.attention_count()
        model_kwargs["past_key_values"] = CopilotCache(cache, attentions, max_length, self.copilot.device)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: CopilotCache,
        attention_mask: Tensor | None = None,
        strength: float | None = None,
        inputs_embeds: Tensor | None = None,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The Pilot's own, with its own cache; the 2-D mask of X~ is kept apart (static caches make it 4-D).

        `tokenizer`, which transformers hands on to every step with stop_strings, has no use here.
        """
        cache = past_key_values
        if cache.context_mask is None and attention_mask is not None:
            cache.context_mask = attention_mask.to(self.copilot.device).bool()
        inputs = self.pilot.prepare_inputs_for_generation(
            input_ids,
            past_key_values=cache.pilot,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        return inputs | {"past_key_values": cache, "strength": strength}


def refuse(options: Mapping[str, Any]) -> None:
    """Raise ValueError for the first option that is set but cannot carry the Copilot's state."""
    for name, reason in REFUSED.items():
        value = options.get(name)
        if value and not (name in ("guidance_scale", "num_beam_groups") and value == 1):  # which is none
            raise ValueError(f"{name} is not supported by a pair: {reason}")


def check_labelled(cache: Cache | None, return_dict: bool) -> None:
    """Raise ValueError for what a labelled forward would leave unused."""
    if cache is not None:
        raise ValueError("past_key_values cannot be given with labels: a labelled row is a whole text, prompt included")
    if return_dict is False:
        raise ValueError("return_dict must be True; got False")


def check_step(cache: Cache | None, tokens: Tensor | None, name: str) -> tuple[CopilotCache, Tensor]:
    """Cache and tokens (B, n) of a generation; ValueError unless this forward is a step the Copilot can make."""
    if not isinstance(cache, CopilotCache):
        raise ValueError(
            "forward without labels needs past_key_values (a CopilotCache, as generate makes it): which tokens the "
            "Copilot corrects is not known otherwise. Pass labels to score a text, or strength=0 for the Pilot alone"
        )
    if tokens is None:
        raise ValueError(f"a step of generation needs {name}; got None")
    if cache.feedback and tokens.shape[1] != 1:
        raise ValueError(f"after the prompt a pair takes one token at a time; got {tokens.shape[1]}")
    return cache, tokens
