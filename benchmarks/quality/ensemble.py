"""Pilots in place of a Copilot: python benchmarks/quality/ensemble.py EXPERIMENT.yaml --data LastFM.txt

The mean of the distributions of two and of three Pilots, each trained as long as the experiment's last point says, from
another start. Scores are means over the held-out users' tokens; intervals a paired bootstrap over users, of the mean
over the seeds, against the first Pilot of each.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from run import ANOTHER, Experiment, Run, provenance, task_of
from torch import Tensor
from training import Teacher

from copilot.pair import PilotCopilotModel
from copilot.tasks import hit_at_k, ndcg_at_k, paired_bootstrap

MOST = 3  # Pilots
METRICS = ("nll", "ndcg@10", "hit@10")


def trained(run: Run, seed: int) -> PilotCopilotModel:
    """A pair whose Pilot has been trained, from this seed on."""
    pair = run.task.pairs({"pilot": {"layers": 2}}, seed)["pilot"]
    Run(run.experiment, run.task, run.point, seed).train([Teacher(pair, learns=run.rows)], {}, run.steps)
    return pair.eval()


@torch.no_grad()
def distributions(pair: PilotCopilotModel, task: Any) -> list[tuple[Tensor, Tensor, list[int]]]:
    """By batch of the held-out users: p^ (M, V), targets (M,), and how many tokens each user has."""
    passes = [pair.pilot_pass(**batch) for batch in task.held_out("held_out").batches]
    return [(p.logits.float().softmax(-1), p.supervision.target, p.supervision.source.sum(1).tolist()) for p in passes]


def scores(members: list[list[tuple[Tensor, Tensor, list[int]]]]) -> dict[str, NDArray[np.float64]]:
    """Of the members' mean: each user's scores, weighted so that their mean is that over all tokens."""
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    tokens: list[int] = []
    for parts in zip(*members, strict=True):
        _, target, lengths = parts[0]
        p = torch.stack([part[0] for part in parts]).mean(0)
        of_target = p.gather(1, target[:, None])
        p[:, 0] = 0.0  # padding is no item
        rank = 1 + (p > of_target).sum(1)
        for nll, ranks in zip((-of_target[:, 0].log()).split(lengths), rank.split(lengths), strict=True):
            found["nll"].append(nll.mean().item())
            found["ndcg@10"].append(ndcg_at_k(ranks, 10))
            found["hit@10"].append(hit_at_k(ranks, 10))
        tokens += lengths
    weights = np.asarray(tokens) / np.mean(tokens)
    return {name: np.asarray(values) * weights for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="a YAML file of kind next_item")
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", default="benchmarks/results/quality")
    arguments = parser.parse_args()
    experiment = Experiment.read(arguments.experiment)
    facts = provenance(experiment)
    task = task_of(experiment, arguments.data, None)
    point = list(experiment.points.values())[-1]
    by_size: dict[int, list[dict[str, NDArray[np.float64]]]] = {size: [] for size in range(1, MOST + 1)}
    for seed in arguments.seeds:
        run = Run(experiment, task, point, seed)
        members = [distributions(trained(run, seed + other * ANOTHER), task) for other in range(MOST)]
        for size, of_seeds in by_size.items():
            of_seeds.append(scores(members[:size]))
    means = {
        size: {name: np.mean([found[name] for found in of_seeds], axis=0) for name in METRICS}
        for size, of_seeds in by_size.items()
    }
    result = {
        "epochs": point.epochs,
        "seeds": arguments.seeds,
        "pilot": {name: float(means[1][name].mean()) for name in METRICS},
        "differences": {
            size: {name: asdict(paired_bootstrap(means[1][name], means[size][name]).difference) for name in METRICS}
            for size in range(2, MOST + 1)
        },
    }
    path = Path(arguments.out) / f"ensemble_{Path(arguments.experiment).stem}.json"
    path.write_text(json.dumps(result | facts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
