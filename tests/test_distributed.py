"""Two processes with half a batch each do what one process with the whole batch does."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from copilot import MistakeLog, PilotCopilotForCausalLM
from copilot import trainer as trainer_module
from copilot.data import DataCollator
from copilot.trainer import CopilotTrainer
from copilot.training_arguments import CopilotTrainingArguments

ROUNDS = 4
RANKS = 2
CAPACITY = 2  # below ROUNDS, so that rounds are evicted too


def make_pair() -> PilotCopilotForCausalLM:
    torch.manual_seed(0)
    pilot = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )
    pair = PilotCopilotForCausalLM.from_pilot(pilot, layers=2, candidates=8)
    with torch.no_grad():  # a fresh head is zero, and most of the Copilot's gradient with it
        pair.copilot.head.weight.normal_(std=0.5)
    return pair


def make_rows(count: int) -> list[dict[str, list[int]]]:
    """Rows with 1 to 5 supervised tokens, so that the halves of a batch differ in their number."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for supervised in torch.randint(1, 6, (count,), generator=generator).tolist():
        tokens = torch.randint(3, 128, (3 + supervised,), generator=generator).tolist()
        rows.append({"input_ids": tokens, "labels": [-100] * 3 + tokens[3:]})
    return rows


def run_rounds(rank: int, ranks: int) -> tuple[list[dict[str, torch.Tensor]], list[float]]:
    """Gradients and Copilot losses of each round; the parameters move in between."""
    pair = make_pair()
    pair.train()
    pair.mistake_log = MistakeLog(CAPACITY, seed=7, hidden_dtype="float32")
    model = DistributedDataParallel(pair) if ranks > 1 else pair
    optimizer = torch.optim.SGD(pair.parameters(), lr=0.1)
    gradients, losses = [], []
    for index in range(ROUNDS):
        rows = make_rows(4 * ROUNDS)[4 * index : 4 * index + 4]
        tokens = sum(label != -100 for row in rows for label in row["labels"])
        share = slice(rank * 4 // ranks, (rank + 1) * 4 // ranks)
        output = model(**DataCollator(0)(rows[share]), num_items_in_batch=tokens)
        (output.pilot_loss * ranks + output.copilot_loss).backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in pair.named_parameters()})
        losses.append(output.copilot_loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return gradients, losses


def run_trainer(folder: Path, batch_size: int) -> None:
    """Four steps, then four more from the checkpoint of the second one; both end states are written to the folder."""
    for name, resume in (("straight", False), ("resumed", True)):
        pair = make_pair()
        args = CopilotTrainingArguments(
            str(folder / "out"),
            max_steps=4,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=4,
            gradient_accumulation_steps=2,
            copilot_learning_rate=1e-2,
            learning_rate=1e-2,
            optim="sgd",  # Adam would turn rounding of tiny gradients into steps of full length
            max_grad_norm=0.5,
            train_sampling_strategy="sequential",
            save_steps=2,
            logging_steps=1,
            log_rounds=1,
            copilot_updates=2,
            log_hidden_dtype="float32",
            report_to="none",
            use_cpu=True,
            ddp_backend="gloo" if torch.distributed.is_initialized() else None,
            disable_tqdm=True,
        )
        trainer = CopilotTrainer(pair, args, make_rows(16), make_rows(8))
        trainer.evaluate()  # which must not keep the processes from training together
        trainer.train(resume_from_checkpoint=str(folder / "out" / "checkpoint-2") if resume else None)
        metrics = trainer.evaluate() | trainer.evaluate(make_rows(7), metric_key_prefix="seven")
        metrics |= trainer.evaluate(make_rows(3), metric_key_prefix="three")  # of two processes, one has none of them
        if args.process_index == 0:
            logs = [line for line in trainer.state.log_history if "loss" in line]
            torch.save({"state": pair.state_dict(), "logs": logs, "metrics": metrics}, folder / f"{name}.pt")


def prepare_together(folder: Path) -> None:
    """Each process prepares the same file once the other is about to; what it made of it is written to the folder."""
    args = CopilotTrainingArguments(str(folder), use_cpu=True, ddp_backend="gloo", report_to="none")
    prepare, other = trainer_module.prepare_dataset, folder / f"begun{1 - args.process_index}"

    def once_both_have_begun(*arguments, **options):
        (folder / f"begun{args.process_index}").touch()
        deadline = time.monotonic() + 60
        while not other.exists():
            assert time.monotonic() < deadline, "the other process does not prepare its rows"
            time.sleep(0.01)
        return prepare(*arguments, **options)

    trainer_module.prepare_dataset = once_both_have_begun
    trainer = CopilotTrainer(make_pair(), args, Dataset.load_from_disk(str(folder / "rows")))
    torch.save(list(trainer.train_dataset), folder / f"rows{args.process_index}.pt")


def work(rank: int, task: str, folder: Path, port: int) -> None:
    """One spawned process."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.distributed.init_process_group("gloo")
    if task == "rounds":
        torch.save(run_rounds(rank, RANKS), folder / f"rank{rank}.pt")
    elif task == "prepare":
        prepare_together(folder)
    else:
        run_trainer(folder, batch_size=2)
    torch.distributed.destroy_process_group()


def spawn(task: str, folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(work, (task, folder, port), nprocs=RANKS)


def test_two_processes_compute_the_gradients_of_one(tmp_path):
    expected, expected_losses = run_rounds(0, 1)
    spawn("rounds", tmp_path)
    for rank in range(RANKS):
        gradients, losses = torch.load(tmp_path / f"rank{rank}.pt")
        assert losses == pytest.approx(expected_losses, rel=1e-5)
        for index in range(ROUNDS):
            for name, gradient in expected[index].items():
                scale = gradient.abs().max().item()
                assert scale > 0, f"{name} has no gradient to compare"
                torch.testing.assert_close(gradients[index][name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name)


def test_two_trainer_processes_train_as_one_does_and_resume(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    run_trainer(one, batch_size=4)
    spawn("trainer", two)
    expected, straight, resumed = (
        torch.load(path) for path in (one / "straight.pt", two / "straight.pt", two / "resumed.pt")
    )
    for name, tensor in expected["state"].items():
        torch.testing.assert_close(straight["state"][name], tensor, rtol=1e-4, atol=1e-6, msg=name)
        assert torch.equal(straight["state"][name], resumed["state"][name]), name
    for key in ("loss", "ce", "rmse", "copilot_learning_rate"):
        assert [line[key] for line in straight["logs"]] == pytest.approx(
            [line[key] for line in expected["logs"]], rel=1e-4
        )
    for rows in ("eval", "seven", "three"):
        for key in (f"{rows}_loss", f"{rows}_ce", f"{rows}_rmse"):
            assert straight["metrics"][key] == pytest.approx(expected["metrics"][key], rel=1e-4)


def test_the_processes_prepare_their_rows_at_the_same_time(tmp_path):
    """Nothing that one makes is read by another, so that waiting would take twice as long."""
    Dataset.from_list(make_rows(200)).save_to_disk(tmp_path / "rows")
    spawn("prepare", tmp_path)
    for rank in range(RANKS):
        assert torch.load(tmp_path / f"rows{rank}.pt") == make_rows(200)
