"""Pilot + Copilot as one drop-in Hugging Face module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM
from transformers.cache_utils import Cache

from copilot.generation import check_labelled, check_step
from copilot.loss import PilotPass, Supervision
from copilot.pair_base import PairOutput, PilotCopilotModel
from copilot.tap import embedding_is_frozen

__all__ = ["PairOutput", "PilotCopilotForCausalLM", "PilotCopilotForSeq2SeqLM", "PilotCopilotModel"]


class PilotCopilotForCausalLM(PilotCopilotModel):
    """A decoder-only Pilot and its Copilot."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        strength: float | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_logits: bool = True,
        return_dict: bool = True,
    ) -> PairOutput:
        """One of two things: both losses of a labelled batch, or one step of generation.

        Args:
            input_ids: (B, S) int64.
            attention_mask: (B, S), 0 for padding; 4-D inside `generate` with a static cache, or
                one for each type of layer.
            position_ids: (B, S), as the Pilot takes them; with labels a row must be one text.
            past_key_values: the cache of a generation under way; at lambda = 0 also the Pilot's own.
            inputs_embeds: (B, S, d) in place of input_ids.
            labels: (B, S) int64, unshifted, -100 where not supervised. In train mode the round goes to `mistake_log`
                and the Copilot learns from a round drawn out of it; in eval mode both losses are those of this batch,
                and `logits` are log p~ at the positions that predict a supervised token, log p^ elsewhere.
            use_cache: must not be False in a generation.
            logits_to_keep: accepted for `generate`; a step returns the last position only.
            strength: lambda; None takes `config.strength`.
            num_items_in_batch: divide the Pilot's summed loss by this instead of by this batch's supervised tokens.
            return_logits: False leaves out the logits of labelled rows in eval mode, by far the largest tensors there.
            return_dict: must be True.

        Raises:
            ValueError: neither labels nor a cache: without them the tokens to correct are not known. Labelled rows of
                several texts (position_ids that start again), of which the Copilot would read the earlier in the later.
            FloatingPointError: NaN in the Pilot's logits of a labelled batch or of a prompt.
        """
        strength = self._resolve_strength(strength)
        inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "position_ids": position_ids}
        if labels is not None:
            check_labelled(past_key_values, return_dict)
            passed = self.pilot_pass(
                labels, attention_mask=attention_mask, every_position=return_logits and not self.training, **inputs
            )
            return self.losses(passed, strength, num_items_in_batch)
        if strength == 0:
            options = {"attention_mask": attention_mask, "use_cache": use_cache, "logits_to_keep": logits_to_keep}
            return self._pilot_alone(past_key_values, **inputs, **options)
        given = input_ids if input_ids is not None else inputs_embeds
        cache, tokens = check_step(past_key_values, given, "input_ids or inputs_embeds")
        if cache.context_mask is None and isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
            cache.context_mask = attention_mask.to(self.copilot.device).bool()
        with self.tap(tail=1) as tapped:
            outputs = self.pilot(
                **inputs,
                attention_mask=attention_mask,
                past_key_values=cache.pilot,
                use_cache=True,
                logits_to_keep=1,
            )
        context = None if cache.feedback else tapped.embedding
        logits = self._corrected_step(outputs.logits[:, -1], tapped, tokens, context, cache, strength)
        return PairOutput(logits=logits[:, None], past_key_values=cache)

    def pilot_pass(
        self,
        labels: Tensor,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        every_position: bool = False,
    ) -> PilotPass:
        """The Pilot's forward over a labelled batch.

        Args:
            labels, input_ids, inputs_embeds, attention_mask, position_ids: see `forward`.
            every_position: also keep the logits of positions that are not supervised.
        """
        if position_ids is not None:
            real = torch.ones_like(labels) if attention_mask is None else attention_mask
            within = real[:, 1:].bool() & real[:, :-1].bool()
            if ((position_ids.diff(dim=1) <= 0) & within).any():
                raise ValueError("position_ids must rise from token to token: a labelled row must be one text")
        supervision = Supervision.causal(labels, attention_mask)
        _, kept = self._run_pilot(
            supervision,
            every_position,
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
        )
        if input_ids is not None and embedding_is_frozen(self.pilot):
            return PilotPass(**kept, context_ids=input_ids[supervision.context], context=None)
        return PilotPass(**kept, context_ids=None, context=kept["tapped"].embedding[supervision.context])


class PilotCopilotForSeq2SeqLM(PilotCopilotModel):
    """An encoder-decoder Pilot and its Copilot."""

    _pilot_class = AutoModelForSeq2SeqLM

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        return self.pilot.prepare_decoder_input_ids_from_labels(labels)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        strength: float | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_logits: bool = True,
        return_dict: bool = True,
    ) -> PairOutput:
        """One of two things: both losses of a labelled batch, or one step of generation.

        Args:
            input_ids: (B, S_x) int64 encoder input.
            attention_mask: (B, S_x), 0 for padding.
            decoder_input_ids: (B, n) int64; None derives them from the labels.
            decoder_attention_mask: as the Pilot takes it.
            encoder_outputs: the encoder's output, when already computed.
            inputs_embeds: (B, S_x, d) in place of input_ids.
            labels: (B, S) int64 decoder targets, -100 where not supervised; see `PilotCopilotForCausalLM.forward`.
            past_key_values, use_cache, strength, num_items_in_batch, return_logits, return_dict: likewise.

        Raises:
            ValueError: neither labels nor a cache.
            FloatingPointError: NaN in the Pilot's logits of a labelled batch or of a prompt.
        """
        strength = self._resolve_strength(strength)
        inputs = {
            "input_ids": input_ids if encoder_outputs is None else None,
            "inputs_embeds": inputs_embeds if encoder_outputs is None else None,
            "attention_mask": attention_mask,
            "encoder_outputs": encoder_outputs,
        }
        decoder_inputs = {
            "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": decoder_attention_mask,
        }
        if labels is not None:
            check_labelled(past_key_values, return_dict)
            passed = self.pilot_pass(
                labels, every_position=return_logits and not self.training, **inputs, **decoder_inputs
            )
            return self.losses(passed, strength, num_items_in_batch)
        if strength == 0:
            return self._pilot_alone(past_key_values, **inputs, **decoder_inputs, use_cache=use_cache)
        cache, tokens = check_step(past_key_values, decoder_input_ids, "decoder_input_ids")
        with self.tap(tail=1) as tapped:
            outputs = self.pilot(**inputs, **decoder_inputs, past_key_values=cache.pilot, use_cache=True)
        context = None if cache.feedback else outputs.encoder_last_hidden_state
        if cache.context_mask is None and attention_mask is not None:
            cache.context_mask = attention_mask.to(self.copilot.device).bool()
        logits = self._corrected_step(outputs.logits[:, -1], tapped, tokens, context, cache, strength)
        return PairOutput(logits=logits[:, None], past_key_values=cache)

    def pilot_pass(
        self,
        labels: Tensor,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        every_position: bool = False,
    ) -> PilotPass:
        """The Pilot's forward over a labelled batch.

        Args:
            labels, input_ids, inputs_embeds, attention_mask, encoder_outputs, decoder_input_ids,
                decoder_attention_mask: see `forward`.
            every_position: also keep the logits of positions that are not supervised.
        """
        if decoder_input_ids is None:
            decoder_input_ids = self.pilot.prepare_decoder_input_ids_from_labels(labels)
        if attention_mask is None:
            given = inputs_embeds if input_ids is None else input_ids
            given = encoder_outputs[0] if given is None else given
            attention_mask = torch.ones(given.shape[:2], dtype=torch.int64, device=given.device)
        supervision = Supervision.sequence_to_sequence(labels, attention_mask.bool())
        outputs, kept = self._run_pilot(
            supervision,
            every_position,
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            encoder_outputs=encoder_outputs,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
        )
        context = outputs.encoder_last_hidden_state.detach()
        return PilotPass(**kept, context_ids=None, context=context[supervision.context])
