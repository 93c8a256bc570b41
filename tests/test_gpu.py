"""What only a GPU can show of the CUDA kernels; see tests/gpu.py for the tests that all kernels share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from copilot.ops import (
    candidate_loss,
    extension,
    mistake_cross_entropy,
    pool_layers,
    rectify,
    rectify_sample,
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not extension.CUDA, reason="no kernels for CUDA")]

Case = Callable[[torch.device | str], Any]


def random(*shape: int, device: torch.device | str, seed: int = 0) -> Tensor:
    """The same numbers on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def rectified(device: torch.device | str) -> Tensor:
    logits = random(5, 1003, device=device)
    index = logits.topk(7).indices
    return rectify(logits, random(5, 7, device=device, seed=1), 0.3, index=index)


def sampled(device: torch.device | str) -> Tensor:
    seed, offset = torch.tensor([[3], [4]], device=device)
    logits = random(300, 1003, device=device)
    return rectify_sample(logits, random(300, 1003, device=device, seed=1), 0.5, top_p=0.9, seed=seed, offset=offset)[0]


def mistakes(device: torch.device | str) -> list[Tensor]:
    logits = (2 * random(6, 1003, device=device)).requires_grad_()
    loss, kept = mistake_cross_entropy(logits, torch.arange(6, device=device), 8)
    delta = random(6, 8, device=device, seed=1).requires_grad_()
    second = candidate_loss(kept, delta)
    (loss.sum() + second.sum()).backward()
    return [loss, second, logits.grad, delta.grad, kept.top_index, kept.top_prob, kept.rest_mass, kept.rest_square]


def pooled(device: torch.device | str) -> Tensor:
    layers = [random(9, 100, device=device, seed=i).bfloat16() for i in range(5)]
    return pool_layers(layers, torch.tensor([8, 0, 3], device=device))


@pytest.mark.parametrize("case", [rectified, mistakes, pooled])
def test_the_gpu_gives_what_the_cpu_gives(case: Case) -> None:
    torch.testing.assert_close(case("cuda"), case("cpu"), check_device=False, rtol=2e-6, atol=2e-7)


def test_the_gpu_draws_the_tokens_that_the_cpu_draws() -> None:
    assert torch.equal(sampled("cuda").cpu(), sampled("cpu"))


@pytest.mark.parametrize("case", [rectified, sampled, mistakes, pooled])
def test_runs_agree_to_the_last_bit(case: Case) -> None:
    torch.testing.assert_close(case("cuda"), case("cuda"), rtol=0, atol=0)


def test_a_graph_replays_a_decoding_step() -> None:
    logits, delta = random(4, 32000, device="cuda"), random(4, 8, device="cuda", seed=1)
    index = torch.arange(32, device="cuda").view(4, 8)
    seed, offset = torch.zeros(2, 1, dtype=torch.int64, device="cuda")

    def step() -> tuple[Tensor, ...]:
        drawn = rectify_sample(logits, delta, 0.4, index=index, seed=seed, offset=offset)
        return rectify(logits, delta, 0.4, index=index), *drawn

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # which makes the inputs
    with torch.cuda.stream(stream):
        step()  # whatever is set up once
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    logits.copy_(random(4, 32000, device="cuda", seed=2))
    offset.add_(1)
    graph.replay()
    for actual, expected in zip(captured, step(), strict=True):
        assert torch.equal(actual, expected)


def test_offsets_beyond_32_bits() -> None:
    vocabulary = 131072
    rows = 2**31 // vocabulary + 2
    logits = torch.zeros(rows, vocabulary, dtype=torch.bfloat16, device="cuda")
    logits[-1] = random(vocabulary, device="cuda")
    index = torch.arange(4, device="cuda").expand(rows, 4).contiguous()
    delta = torch.ones(rows, 4, device="cuda")
    last = rectify(logits, delta, 0.5, index=index)[-1]
    assert torch.equal(last, rectify(logits[-1:], delta[-1:], 0.5, index=index[-1:])[0])
    labels = torch.zeros(rows, dtype=torch.int64, device="cuda")
    assert torch.equal(
        mistake_cross_entropy(logits, labels, 4)[0][-1:], mistake_cross_entropy(logits[-1:], labels[-1:], 4)[0]
    )


def test_tensors_of_two_devices_are_refused() -> None:
    with pytest.raises(RuntimeError, match="index must be on the GPU"):
        rectify(
            random(2, 30, device="cuda"), random(2, 3, device="cuda"), 0.5, index=torch.zeros(2, 3, dtype=torch.int64)
        )


@pytest.mark.parametrize("k", [None, 4])
def test_operators_pass_torchs_checks_on_a_gpu(k: int | None) -> None:
    logits = random(3, 50, device="cuda")
    labels = torch.arange(3, device="cuda")
    torch.library.opcheck(torch.ops.copilot.mistake_cross_entropy.default, (logits, labels, k, None, False))
    torch.library.opcheck(
        torch.ops.copilot.rectify.default, (logits, random(3, 50, device="cuda"), None, 0.3, "simplex", "probability")
    )
