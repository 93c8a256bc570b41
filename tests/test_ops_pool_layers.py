"""pool_layers is the Pool of Eq. 6."""

from __future__ import annotations

import pytest
import torch

from copilot.ops import pool_layers, reference


def layers(count: int = 3, *shape: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(*(shape or (4, 5, 6)), generator=g).to(dtype) for _ in range(count)]


def truth(hidden: list[torch.Tensor], pooling: str) -> torch.Tensor:
    stacked = torch.stack([state.double() for state in hidden])
    return {"mean": stacked.mean(0), "sum": stacked.sum(0), "max": stacked.amax(0)}[pooling]


def in_reference(hidden: list[torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    return reference.pool_layers(hidden, rows, "mean")


poolings = pytest.mark.parametrize("pooling", ["mean", "sum", "max"])


@poolings
@pytest.mark.parametrize("count", [1, 2, 30])
def test_layers_are_pooled_elementwise(pooling, count):
    hidden = layers(count)
    torch.testing.assert_close(
        pool_layers(hidden, pooling=pooling).double(), truth(hidden, pooling), atol=2e-6, rtol=1e-6
    )


def test_the_mean_is_the_default():
    hidden = layers()
    torch.testing.assert_close(pool_layers(hidden).double(), truth(hidden, "mean"), atol=1e-6, rtol=1e-6)


@poolings
def test_rows_pick_from_the_flattened_leading_dimensions(pooling):
    hidden = layers(3, 4, 5, 6)
    rows = torch.tensor([19, 0, 7, 7])
    expected = truth(hidden, pooling).flatten(0, 1)[rows]
    torch.testing.assert_close(pool_layers(hidden, rows, pooling=pooling).double(), expected, atol=1e-6, rtol=1e-6)


@poolings
def test_no_rows_give_no_states(pooling):
    assert pool_layers(layers(), torch.zeros(0, dtype=torch.long), pooling=pooling).shape == (0, 6)


@poolings
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_states_are_pooled_in_float32(pooling, dtype):
    hidden = layers(30, dtype=dtype)
    pooled = pool_layers(hidden, pooling=pooling)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled.double(), truth(hidden, pooling), atol=1e-5, rtol=1e-6)


@poolings
@pytest.mark.parametrize("count", [1, 3])
def test_the_states_are_left_as_they_were(pooling, count):
    hidden = layers(count)
    before = [state.clone() for state in hidden]
    pool_layers(hidden, pooling=pooling).zero_()
    assert all(torch.equal(now, then) for now, then in zip(hidden, before, strict=True))


@poolings
def test_strided_states_are_pooled_like_contiguous_ones(pooling):
    hidden = [state.transpose(0, 1).contiguous().transpose(0, 1) for state in layers()]
    assert not hidden[0].is_contiguous()
    rows = torch.tensor([3, 11])
    expected = truth(hidden, pooling).flatten(0, 1)[rows]
    torch.testing.assert_close(pool_layers(hidden, rows, pooling=pooling).double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("hidden", "pooling", "named"),
    [
        ([], "mean", "hidden_states"),
        ([torch.zeros(2, 3), torch.zeros(2, 4)], "mean", "hidden_states"),
        ([torch.zeros(2, 3)], "median", "pooling"),
    ],
)
def test_a_wrong_argument_is_named(hidden, pooling, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        pool_layers(hidden, pooling=pooling)


@pytest.mark.parametrize("rows", [torch.zeros(1, 1, dtype=torch.long), torch.zeros(1), torch.ones(2, dtype=torch.bool)])
def test_rows_that_are_no_vector_of_int64_are_refused(rows):
    with pytest.raises(ValueError, match=r"^rows"):
        pool_layers([torch.zeros(2, 3)], rows)


@pytest.mark.refuses
@pytest.mark.parametrize("row", [2, 2**40, -1])
@pytest.mark.parametrize("implementation", [pool_layers, in_reference])
def test_a_row_that_is_not_there_is_refused(implementation, row):
    with pytest.raises((IndexError, RuntimeError)):
        implementation([torch.zeros(2, 3)], torch.tensor([row]))


@poolings
def test_the_pooled_states_are_differentiable(pooling):
    hidden = [state.requires_grad_() for state in layers(3)]
    pool_layers(hidden, torch.tensor([3, 7, 7]), pooling=pooling).sum().backward()
    total = torch.stack([state.grad for state in hidden]).sum(0).flatten(0, 1).sum(1)
    each = 6.0 if pooling != "sum" else 18.0
    torch.testing.assert_close(total[[0, 3, 7]], torch.tensor([0.0, each, 2 * each]))
