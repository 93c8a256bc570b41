"""The maps between vocabulary and Copilot touch only the tokens at hand, and mean the same as dense products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import VOCAB_SIZE, WIDTH, dense, random_pair
from torch import Tensor

from copilot import CopilotConfig
from copilot.vocabulary import CorrectionHead, MistakeInput

N, K = 6, 5
tables = pytest.mark.parametrize("table", ["own", "tied", "factored"])


def config_of(table: str) -> CopilotConfig:
    return random_pair("llama", head=table, error_in=table, rank=7).config


def random_tokens(count: int = K) -> Tensor:
    """(N, count), distinct in each row."""
    return torch.rand(N, VOCAB_SIZE, generator=torch.Generator().manual_seed(0)).argsort(-1)[:, :count]


def random_states(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


PILOT_TABLE = random_states(VOCAB_SIZE, WIDTH)


def randomized(module: torch.nn.Module) -> Any:
    torch.manual_seed(2)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


@tables
def test_corrections_of_some_tokens_are_columns_of_the_full_correction(table):
    head = randomized(CorrectionHead(config_of(table)))
    hidden, index = random_states(N, WIDTH), random_tokens()
    full = head(hidden, None, PILOT_TABLE)
    assert full.shape == (N, VOCAB_SIZE)
    torch.testing.assert_close(head(hidden, index, PILOT_TABLE), full.gather(1, index), atol=1e-4, rtol=1e-5)


@tables
def test_a_sparse_mistake_is_read_as_its_dense_form(table):
    error_in = randomized(MistakeInput(config_of(table)))
    index, value = random_tokens(), random_states(N, K)
    expected = error_in(None, dense(value, index, VOCAB_SIZE), PILOT_TABLE)
    torch.testing.assert_close(error_in(index, value, PILOT_TABLE), expected, atol=1e-4, rtol=1e-5)


@tables
def test_a_token_named_twice_counts_twice(table):
    error_in = randomized(MistakeInput(config_of(table)))
    index, value = random_tokens(1), random_states(N, 2)
    once = error_in(index, value.sum(1, keepdim=True), PILOT_TABLE)
    torch.testing.assert_close(error_in(index.expand(-1, 2), value, PILOT_TABLE), once, atol=1e-4, rtol=1e-5)


@tables
def test_no_mistake_is_read_as_the_bias_alone(table):
    error_in = randomized(MistakeInput(config_of(table)))
    actual = error_in(random_tokens(), torch.zeros(N, K), PILOT_TABLE)
    assert torch.equal(actual, error_in.bias.expand(N, -1))


@pytest.mark.parametrize("table", ["own", "factored"])
def test_only_the_rows_of_the_tokens_at_hand_get_a_gradient(table):
    index = random_tokens()
    touched = torch.zeros(VOCAB_SIZE, dtype=torch.bool).index_fill(0, index.flatten(), True)
    head, error_in = randomized(CorrectionHead(config_of(table))), randomized(MistakeInput(config_of(table)))
    head(random_states(N, WIDTH), index, PILOT_TABLE).sum().backward()
    error_in(index, random_states(N, K), PILOT_TABLE).sum().backward()
    for module in (head, error_in):
        assert torch.equal((module.weight.grad != 0).any(1), touched)


def test_a_tied_map_has_no_parameter_per_token():
    config = config_of("tied")
    for module in (CorrectionHead(config), MistakeInput(config)):
        assert all(VOCAB_SIZE not in parameter.shape for parameter in module.parameters())


@pytest.mark.parametrize("table", ["tied", "factored"])
def test_a_tied_map_without_its_pilots_table_says_so(table):
    config = config_of(table)
    with pytest.raises(ValueError, match="pilot_tables must be given"):
        CorrectionHead(config)(random_states(N, WIDTH), random_tokens(), None)
    with pytest.raises(ValueError, match="pilot_tables must be given"):
        MistakeInput(config)(random_tokens(), random_states(N, K), None)
