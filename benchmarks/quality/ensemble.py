"""Pilots in place of a Copilot: python benchmarks/quality/ensemble.py EXPERIMENT.yaml --data LastFM.txt

The mean of the distributions of two and of three Pilots, each trained as long as the experiment's last point says, from
another start. The result holds the scores of each held-out user and, by metric, how far these means are from the first
Pilot of each seed and from the Copilots of the same point in the experiment's committed results: differences of the
means over users' tokens and seeds, with the interval of a paired bootstrap over users.
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
from tasks import ranking
from torch import Tensor
from training import Teacher

from copilot.pair import PilotCopilotModel
from copilot.tasks import paired_bootstrap

MOST = 3  # Pilots
METRICS = ("nll", "ndcg@10", "hit@10")
COMMITTED = Path(__file__).resolve().parents[1] / "results" / "quality"

Scores = dict[str, list[Any]]  # of each user, as a results file keeps an arm's


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


def scores(members: list[list[tuple[Tensor, Tensor, list[int]]]]) -> Scores:
    """Of the members' mean."""
    found: Scores = {name: [] for name in (*METRICS, "tokens")}
    for parts in zip(*members, strict=True):
        _, target, lengths = parts[0]
        p = torch.stack([part[0] for part in parts]).mean(0)
        nll = -p.gather(1, target[:, None])[:, 0].log()
        found["nll"] += [round(of_user.mean().item(), 5) for of_user in nll.split(lengths)]
        for name, values in ranking(p, target, lengths).items():
            found[name] += values
        found["tokens"] += lengths
    return found


def committed(experiment: str, point: str, seeds: list[int]) -> dict[str, dict[int, Scores]]:
    """The Copilots of a point in the committed results, by name and seed."""
    found: dict[str, dict[int, Scores]] = {}
    for seed in seeds:
        path = COMMITTED / experiment / f"{point}_seed{seed}_copilots.json"
        arms = json.loads(path.read_text(encoding="utf-8"))["arms"] if path.is_file() else {}
        for name in arms.keys() - {"pilot"}:
            found.setdefault(name, {})[seed] = arms[name]
    return dict(sorted(found.items()))


def over_seeds(of_seeds: list[Scores], metric: str) -> NDArray[np.float64]:
    """Each user's mean over the seeds, weighted so that the mean over users is that over all tokens."""
    tokens = np.asarray(of_seeds[0]["tokens"])
    return np.mean([found[metric] for found in of_seeds], axis=0) * tokens / tokens.mean()


def differences(ensembles: dict[int, Scores], others: dict[int, Scores]) -> dict[str, dict[str, float]]:
    """By metric the gain of the ensembles over others, both by seed, in the seeds that others have.

    Raises:
        ValueError: they were not measured on the same users.
    """
    pairs = [(ensembles[seed], others[seed]) for seed in others]
    if any(ours["tokens"] != theirs["tokens"] for ours, theirs in pairs):
        raise ValueError("an ensemble and the results it is compared with must be of the same users, by their tokens")
    ours, theirs = map(list, zip(*pairs, strict=True))
    return {
        name: asdict(paired_bootstrap(over_seeds(theirs, name), over_seeds(ours, name)).difference) for name in METRICS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="a YAML file of kind next_item")
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", default="benchmarks/results/quality")
    arguments = parser.parse_args()
    experiment = Experiment.read(arguments.experiment)
    facts = provenance(experiment)
    task = task_of(experiment, arguments.data, None, parser)
    name = Path(arguments.experiment).stem
    point_name, point = list(experiment.points.items())[-1]
    by_size: dict[int, dict[int, Scores]] = {size: {} for size in range(1, MOST + 1)}
    for seed in arguments.seeds:
        run = Run(experiment, task, point, seed)
        members = [distributions(trained(run, seed + other * ANOTHER), task) for other in range(MOST)]
        for size, of_seeds in by_size.items():
            of_seeds[seed] = scores(members[:size])
    others = {"pilot": by_size[1], **committed(name, point_name, arguments.seeds)}
    found = {
        size: {other: differences(by_size[size], of_other) for other, of_other in others.items()}
        for size in range(2, MOST + 1)
    }
    for size, by_other in found.items():
        for other, by_metric in by_other.items():
            cells = [f"{m} {d['mean']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]" for m, d in by_metric.items()]
            print(f"{size} Pilots - {other} ({len(others[other])} seeds): {', '.join(cells)}")
    result = {
        "epochs": point.epochs,
        "seeds": arguments.seeds,
        "pilot": {metric: float(over_seeds(list(by_size[1].values()), metric).mean()) for metric in METRICS},
        "scores": by_size,
        "differences": found,
    }
    path = Path(arguments.out) / f"ensemble_{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result | facts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
