"""The benchmarks give all the same job; FlashInfer and Liger-Kernel, which need a GPU, are stood in for."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from builders import tiny_pilot
from torch import Tensor
from torch.nn import functional as F

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def benchmark_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`benchmark_of("rectify")` is the module benchmarks/bench_rectify.py, as on a GPU, without torch.compile."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    rounds = importlib.import_module("kernel_rounds")
    monkeypatch.setattr(rounds, "DEVICE", torch.device("cuda"))
    return lambda operation: importlib.import_module(f"bench_{operation}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [5, None])
def test_every_way_to_rectify_gives_the_kernels_numbers(benchmark_of: Any, k: int | None, dtype: torch.dtype) -> None:
    bench = benchmark_of("rectify")
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(4, 50, generator=generator)).to(dtype)
    index = None if k is None else logits.topk(k).indices
    delta = torch.randn(4, k or 50, generator=generator).to(dtype)
    runs = bench.variants(logits, delta, index)
    expected = runs.pop("kernel")()
    assert runs.pop("copy of the same bytes")().shape == expected.shape
    assert list(runs) == ["eager", "torch.compile", "reference"]
    for run in runs.values():
        torch.testing.assert_close(run(), expected)


class OverwritingCrossEntropy(torch.autograd.Function):
    """As Liger's: the forward writes the gradient over the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, labels)
        gradient = (logits.softmax(-1) - F.one_hot(labels, logits.shape[1])) / len(labels)
        ctx.save_for_backward(logits.detach().copy_(gradient))
        return loss

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0], None


def test_liger_does_the_job_of_the_others_on_logits_that_it_overwrites(
    benchmark_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = SimpleNamespace(liger_cross_entropy=OverwritingCrossEntropy.apply)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.functional", module)
    logits, labels = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    steps = benchmark_of("mistake_cross_entropy").variants(labels)
    expected = steps["eager"](logits.clone())
    torch.testing.assert_close(steps["Liger, softmax and topk"](logits.clone()), expected)
    losses, mistakes, gradient = steps["kernel, overwriting the logits, ignore_index=-100"](logits.clone())
    torch.testing.assert_close((losses.mean(), mistakes.top_prob, gradient), (expected[0], expected[1][0], expected[2]))
    loss, mistakes, gradient = steps["Liger"](logits.clone())
    torch.testing.assert_close((loss, gradient), (expected[0], expected[2]))
    assert mistakes is None


def sampled_rows() -> tuple[Tensor, Tensor, Tensor]:
    """Logits, delta and index of four rows."""
    generator = torch.Generator().manual_seed(0)
    logits, delta = torch.randn(4, 50, generator=generator), torch.randn(4, 3, generator=generator)
    return logits, delta, logits.topk(3).indices


@pytest.fixture
def drawn_from(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The probabilities that torch.multinomial is given; it draws the likeliest."""
    given: list[Tensor] = []
    monkeypatch.setattr(Tensor, "multinomial", lambda prob, _: given.append(prob) or prob.argmax(-1, keepdim=True))
    return given


@pytest.mark.parametrize("warpers", [(0.8,), (0.8, 7, 0.6)])
def test_the_chain_draws_from_what_the_references_does(
    benchmark_of: Any, drawn_from: list[Tensor], warpers: tuple[Any, ...]
) -> None:
    bench = benchmark_of("rectify_sample")
    tokens = [chain(*warpers)(*sampled_rows()) for chain in (bench.chain, bench.reference_chain)]
    assert torch.equal(*tokens)
    ours, theirs = (prob / prob.sum(-1, keepdim=True) for prob in drawn_from)
    torch.testing.assert_close(ours.sort(descending=True).values, theirs.topk(ours.shape[1]).values)
    assert ((theirs == 0).any(-1) == (len(warpers) > 1)).all()


def test_flashinfer_draws_from_what_the_chain_draws_from(benchmark_of: Any, drawn_from: list[Tensor]) -> None:
    bench = benchmark_of("rectify_sample")
    rows = sampled_rows()
    sampling = SimpleNamespace(
        sampling_from_logits=lambda scores: scores.softmax(-1),
        top_k_top_p_sampling_from_logits=lambda scores, top_k, top_p: (scores.softmax(-1), top_k, top_p),
    )
    bench.chain(0.8)(*rows)
    torch.testing.assert_close(bench.flashinfer_chain(sampling, 0.8)(*rows), drawn_from[0])
    prob, top_k, top_p = bench.flashinfer_chain(sampling, 0.8, top_k=5, top_p=0.9)(*rows)
    torch.testing.assert_close(prob, drawn_from[0])
    assert (top_k, top_p) == (5, 0.9)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_public_kernels_are_left_out_on_a_cpu_and_where_they_cannot_be_imported(
    benchmark_of: Any, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    missing = "liger_kernel.transformers.functional"
    monkeypatch.setitem(sys.modules, missing, SimpleNamespace() if device == "cpu" else None)
    bench = benchmark_of("mistake_cross_entropy")
    monkeypatch.setattr(sys.modules["kernel_rounds"], "DEVICE", torch.device(device))
    assert not [name for name in bench.variants(torch.arange(4)) if "Liger" in name]


def test_overheads_need_no_cache_of_pytest(
    benchmark_of: Any, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bench = benchmark_of("overhead")
    monkeypatch.delenv("PILOT", raising=False)
    monkeypatch.setattr(bench, "packaged_smollm2", str)
    assert Path(inspect.unwrap(bench.pilot_name)(tmp_path_factory)).parent.is_dir()


def test_a_training_step_of_every_variant_is_timed_and_has_a_floor(
    benchmark_of: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bench = benchmark_of("overhead")
    tiny_pilot().save_pretrained(tmp_path)
    for name, value in {"DEVICE": torch.device("cpu"), "LENGTH": 12, "SUPERVISED": 4, "KEPT": 5, "BUDGET": 0}.items():
        monkeypatch.setattr(bench, name, value)
    figures: dict[str, Any] = {"cases": {}}
    once = SimpleNamespace(pedantic=lambda run, rounds: run(), extra_info={})
    bench.test_training_step(once, figures, str(tmp_path))
    variants = figures["cases"]["training step"]["variants"]
    assert list(variants) == ["Pilot", "Pilot, logits of every position", "Pilot, the pairs' loss", *bench.PAIRS]
    floors = {name: variant["floor"] for name, variant in variants.items()}
    assert floors["Pilot, the pairs' loss"] < floors["Pilot"] == 1 < min(floors[name] for name in bench.PAIRS)
