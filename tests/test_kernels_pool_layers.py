"""The compiled pool_layers gives the reference's bits, on every shape, stride and type, and its gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_sets import outputs_with
from torch import Tensor

from copilot.ops import extension, pool_layers, reference

pytestmark = pytest.mark.skipif(not extension.LOADED, reason=f"no kernels: {extension.NOT_LOADED_BECAUSE}")

POOLINGS = ["mean", "sum", "max"]
poolings = pytest.mark.parametrize("pooling", POOLINGS)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random_layers(count: int, *shape: int, dtypes: list[torch.dtype] | None = None, seed: int = 0) -> list[Tensor]:
    """Layers of the given types in turn."""
    g = torch.Generator().manual_seed(seed)
    dtypes = dtypes or [torch.float32]
    return [torch.randn(*shape, generator=g).to(dtypes[i % len(dtypes)]) for i in range(count)]


@poolings
@pytest.mark.parametrize("width", [1, 15, 16, 17, 111, 576, 4096, 4097, 32000])
@pytest.mark.parametrize("rows", [None, [2, 0, 0]])
def test_every_width_gives_the_references_bits(pooling, width, rows):
    layers = random_layers(7, 3, width)
    chosen = None if rows is None else torch.tensor(rows)
    assert torch.equal(pool_layers(layers, chosen, pooling=pooling), reference.pool_layers(layers, chosen, pooling))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    pooling=st.sampled_from(POOLINGS),
    shape=st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 40)),
    count=st.integers(1, 20),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=3),
    transposed=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_small_shapes_of_mixed_types_give_the_references_bits(pooling, shape, count, dtypes, transposed, seed):
    layers = random_layers(count, *shape, dtypes=dtypes, seed=seed)
    if transposed:
        layers = [hidden.transpose(0, 1) for hidden in layers]
    assert torch.equal(pool_layers(layers, pooling=pooling), reference.pool_layers(layers, None, pooling))


@poolings
@pytest.mark.parametrize("count", [128, 129, 300])
def test_many_layers_give_the_references_bits(pooling, count):
    layers = random_layers(count, 2, 24, dtypes=DTYPES)
    assert torch.equal(pool_layers(layers, pooling=pooling), reference.pool_layers(layers, None, pooling))


@poolings
def test_rows_of_wider_tensors_give_the_references_bits(pooling):
    layers = [hidden[1::2, 3:40] for hidden in random_layers(8, 9, 50)]
    rows = torch.tensor([3, 1, 3])
    for chosen in (None, rows):
        assert torch.equal(pool_layers(layers, chosen, pooling=pooling), reference.pool_layers(layers, chosen, pooling))


@poolings
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_is_pooled_like_any_other(pooling, value):
    for layer in (0, 3, 7):
        layers = random_layers(8, 4, 20)
        layers[layer][2, 17] = value
        actual, expected = pool_layers(layers, pooling=pooling), reference.pool_layers(layers, None, pooling)
        assert torch.equal(actual.nan_to_num(5.0), expected.nan_to_num(5.0))
        assert actual.isnan().sum() == torch.tensor(value).isnan()


@poolings
def test_negative_zeros_keep_their_sign(pooling):
    layers = [torch.full((2, 17), -0.0)] * 3
    assert reference.pool_layers(layers, None, pooling).signbit().all()
    assert pool_layers(layers, pooling=pooling).signbit().all()


@poolings
@pytest.mark.parametrize("rows", [None, [3, 1, 3, 3]])
def test_the_gradient_is_the_references(pooling, rows):
    chosen = None if rows is None else torch.tensor(rows)

    def gradients(pool) -> tuple[Tensor, ...]:
        layers = [hidden.requires_grad_() for hidden in random_layers(5, 2, 3, 7, dtypes=DTYPES)]
        pooled = pool(layers)
        return torch.autograd.grad(pooled, layers, torch.linspace(-1, 2, pooled.numel()).view_as(pooled))

    mine = gradients(lambda layers: pool_layers(layers, chosen, pooling=pooling))
    theirs = gradients(lambda layers: reference.pool_layers(layers, chosen, pooling))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0 if a.dtype == torch.float32 else 0.01)


def test_of_equal_maxima_the_first_takes_the_gradient():
    layers = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]]), torch.tensor([[3.0, 1.0]])]
    pooled = pool_layers([hidden.requires_grad_() for hidden in layers], pooling="max")
    gradients = torch.autograd.grad(pooled.sum(), layers)
    assert torch.cat(gradients).tolist() == [[0, 1], [1, 0], [0, 0]]


@poolings
@pytest.mark.parametrize("rows", [None, torch.tensor([3, 1, 3])])
def test_the_operator_keeps_torchs_rules(pooling, rows):
    layers = [hidden.requires_grad_() for hidden in random_layers(3, 2, 3, 7)]
    torch.library.opcheck(torch.ops.copilot.pool_layers.default, (layers, rows, pooling))


@poolings
@pytest.mark.parametrize("rows", [None, torch.tensor([3, 1, 3])])
def test_a_compiled_call_is_the_eager_one(pooling, rows):
    compiled = torch.compile(pool_layers, fullgraph=True, backend="aot_eager", dynamic=True)
    layers = [hidden.requires_grad_() for hidden in random_layers(3, 2, 3, 7)]
    outputs = [pool(layers, rows, pooling=pooling) for pool in (compiled, pool_layers)]
    gradients = [torch.autograd.grad(pooled.square().sum(), layers) for pooled in outputs]
    assert torch.equal(*outputs)
    assert all(torch.equal(mine, eager) for mine, eager in zip(*gradients, strict=True))


@poolings
def test_neither_threads_nor_the_other_rows_matter(pooling):
    layers = random_layers(30, 40, 576)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = pool_layers(layers, pooling=pooling)
        torch.set_num_threads(2)
        assert torch.equal(pool_layers(layers, pooling=pooling), expected)
    finally:
        torch.set_num_threads(threads)
    alone = [pool_layers([hidden[i : i + 1] for hidden in layers], pooling=pooling) for i in range(40)]
    assert torch.equal(torch.cat(alone), expected)


@pytest.mark.parametrize("instruction_set", ["avx2", "portable"])
def test_every_instruction_set_gives_the_same_bits(instruction_set, tmp_path):
    layers = random_layers(7, 4, 111, dtypes=DTYPES)
    calls = [("pool_layers", (layers, rows, pooling)) for rows in (None, torch.tensor([2, 2])) for pooling in POOLINGS]
    outputs = outputs_with(instruction_set, calls, tmp_path)
    for (_, arguments), actual in zip(calls, outputs, strict=True):
        assert torch.equal(actual, torch.ops.copilot.pool_layers(*arguments))


@pytest.mark.refuses
@pytest.mark.parametrize("row", [6, -1, 2**62])
def test_a_row_out_of_range_is_refused(row):
    with pytest.raises(RuntimeError, match=rf"rows must lie in \[0, 6\); got {row}"):
        pool_layers(random_layers(2, 2, 3, 7), torch.tensor([0, row]))


def test_contiguous_states_reach_the_operator_as_they_are(monkeypatch):
    """No copy, nor anything of the size of all layers."""
    layers, given_layers = random_layers(3, 2, 3, 7), []

    def spy(states: list[Tensor], rows: Tensor | None, pooling: str) -> Tensor:
        given_layers.extend(states)
        return states[0]

    monkeypatch.setattr(torch.ops.copilot, "pool_layers", spy)
    pool_layers(layers)
    assert [hidden.data_ptr() for hidden in given_layers] == [hidden.data_ptr() for hidden in layers]
