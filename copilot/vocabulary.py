"""The Copilot's two maps between the vocabulary and its own width: mistakes in (V -> c), corrections out (c -> V).

Both touch only the rows of the tokens at hand: an embedding bag in, row gathers out. Only when the whole vocabulary is
kept (`candidates=None`, the paper's form) are they V x c matrix products.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from copilot.config import CopilotConfig


def weighted_rows(index: Tensor | None, value: Tensor, table: Tensor) -> Tensor:
    """sum_j value_j * table[index_j]: index and value (N, j), table (V, w) -> (N, w); index None means all V rows."""
    value = value.to(table.dtype)
    if index is None:
        return value @ table
    return F.embedding_bag(index, table, per_sample_weights=value, mode="sum")


def row_products(hidden: Tensor, index: Tensor | None, table: Tensor) -> Tensor:
    """<hidden_n, table[index_nj]>: hidden (N, w), index (N, k), table (V, w) -> (N, k); index None means all V rows."""
    if index is None:
        return F.linear(hidden.to(table.dtype), table).to(hidden.dtype)  # a cast table would be a second V x w
    return torch.einsum("nw,nkw->nk", hidden, F.embedding(index, table).to(hidden.dtype))


class MistakeInput(nn.Module):
    """l -> c, linear in the mistake (`CopilotConfig.error_in`: own, tied or factored)."""

    def __init__(self, config: CopilotConfig):
        super().__init__()
        width = config.hidden_size
        own_width = {"own": width, "factored": config.rank, "tied": 0}[config.error_in]
        self.weight = nn.Parameter(torch.empty(config.vocab_size, own_width)) if own_width else None
        self.up = nn.Linear(config.rank, width, bias=False) if config.error_in == "factored" else None
        self.tied = nn.Linear(config.pilot_hidden_size, width, bias=False) if config.error_in != "own" else None
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, index: Tensor | None, value: Tensor, pilot_table: Tensor | None) -> Tensor:
        """index and value (N, j) of sparse mistakes, or index None and value (N, V); pilot_table (V, d) -> (N, c)."""
        result = self.bias.expand(value.shape[0], -1)
        if self.weight is not None:
            rows = weighted_rows(index, value, self.weight)
            result = result + (rows if self.up is None else self.up(rows))
        if self.tied is not None:
            result = result + self.tied(weighted_rows(index, value, required(pilot_table)).to(self.bias.dtype))
        return result


class ZeroLinear(nn.Linear):
    """A linear map that `CopilotModel` initialises to zero."""


class CorrectionHead(nn.Module):
    """c -> delta, zero at the start, so that an untrained Copilot changes nothing (`CopilotConfig.head`)."""

    def __init__(self, config: CopilotConfig):
        super().__init__()
        width = config.hidden_size
        own_width = {"own": width, "factored": config.rank, "tied": 0}[config.head]
        self.weight = nn.Parameter(torch.empty(config.vocab_size, own_width)) if own_width else None
        self.down = nn.Linear(width, config.rank, bias=False) if config.head == "factored" else None
        self.tied = ZeroLinear(width, config.pilot_hidden_size, bias=False) if config.head != "own" else None

    def forward(self, hidden: Tensor, index: Tensor | None, pilot_table: Tensor | None) -> Tensor:
        """hidden (N, c), index (N, k) or None for all tokens, pilot_table (V, d) -> delta (N, k) or (N, V)."""
        delta: Tensor | None = None
        if self.weight is not None:
            delta = row_products(hidden if self.down is None else self.down(hidden), index, self.weight)
        if self.tied is not None:
            tied = row_products(self.tied(hidden), index, required(pilot_table))
            delta = tied if delta is None else delta + tied
        return required(delta)


def required(table: Tensor | None) -> Tensor:
    """`table`, or a ValueError when a tied map is used without its Pilot."""
    if table is None:
        raise ValueError("head or error_in is tied to the Pilot: pilot_tables must be given; got None")
    return table
