"""Both caches of a pair, moved together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, StaticLayer


class CopilotCache(Cache):
    """The Pilot's cache and everything the Copilot carries from one step to the next.

    Every tensor in here has one row per sequence and follows each reordering of the rows (beam search).

    Args:
        pilot: the Pilot's own cache, of any kind.
        attentions: how many attention modules the Copilot has.
        max_length: capacity in tokens of a static Copilot cache; None grows as needed.
        device: of a static Copilot cache.

    Attributes:
        steps: how many tokens the Copilot has corrected so far; () int64 in a static cache.
        context_mask: (B, S_x) bool, which positions of X~ are real; set by the first step.
        feedback: the tensors of the last step that the next one reads; empty before the first.
    """

    def __init__(
        self,
        pilot: Cache,
        attentions: int,
        max_length: int | None = None,
        device: torch.device | str | None = None,
    ):
        self.pilot = pilot
        layers: list[CacheLayerMixin] = [
            DynamicLayer() if max_length is None else StaticLayer(max_length) for _ in range(attentions)
        ]
        super().__init__(layers=layers)
        self.steps: int | Tensor = 0
        if max_length is not None:
            self.steps = torch.zeros((), dtype=torch.int64, device=device)
            torch._dynamo.mark_static_address(self.steps)
        self.context_mask: Tensor | None = None
        self.feedback: dict[str, Tensor] = {}

    def remember(self, feedback: dict[str, Tensor]) -> None:
        """Keep what the next step reads; in a static cache in the same tensors, where compiled steps find it."""
        if not self.is_compileable:
            self.feedback = feedback
        elif self.feedback:
            for name, value in feedback.items():
                self.feedback[name].copy_(value)
        else:
            self.feedback = feedback
            for value in feedback.values():
                torch._dynamo.mark_static_address(value)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.pilot.get_seq_length(layer_idx)

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return self.pilot.get_max_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.pilot.get_mask_sizes(query_length, layer_idx)

    @property
    def is_compileable(self) -> bool:
        return self.pilot.is_compileable and all(layer.is_compileable for layer in self.layers)

    @property
    def is_croppable(self) -> bool:
        return False  # the mistake of an earlier step is gone

    def crop(self, tokens_to_remove: int) -> None:
        raise NotImplementedError("a CopilotCache cannot be cropped: the mistakes of earlier steps are not kept")

    def _map_rows(self, function: Callable[[Tensor], Tensor]) -> None:
        if self.context_mask is not None:
            self.context_mask = function(self.context_mask)
        self.feedback = {name: function(value) for name, value in self.feedback.items()}

    def reset(self) -> None:
        super().reset()
        self.pilot.reset()
        self.steps *= 0  # in place where it is a tensor
        self.context_mask = None
        self.feedback = {}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.pilot.reorder_cache(beam_idx)
        self._map_rows(lambda value: value.index_select(0, beam_idx.to(value.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.pilot.batch_repeat_interleave(repeats)
        self._map_rows(lambda value: torch.repeat_interleave(value, repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.pilot.batch_select_indices(indices)
        self._map_rows(lambda value: value[indices])
