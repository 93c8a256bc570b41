"""Theorem 4.1, measured: python benchmarks/quality/theorem.py benchmarks/quality/lastfm.yaml --data LastFM.txt

Trains the first arm of the experiment's first point with several seeds. Bias and spread of Pilots and Copilots and the
predicted lambda_0 come from validation data; where the squared error really falls, from the held-out data.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from run import Experiment, Run, provenance, task_of
from training import precision

from copilot.calibration import collect, scores, theorem_quantities

STRENGTHS = [step / 20 for step in range(21)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="a YAML file of a task with a small Pilot")
    parser.add_argument("--data", required=True)
    parser.add_argument("--pilot", help="of experiments with a pretrained Pilot")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", default="benchmarks/results/quality")
    arguments = parser.parse_args()
    started = time.time()
    experiment = Experiment.read(arguments.experiment)
    facts = provenance(experiment)
    task = task_of(experiment, arguments.data, arguments.pilot, parser)
    point = next(iter(experiment.points.values()))
    pairs = [Run(experiment, task, point, seed).first_pair() for seed in arguments.seeds]
    quantities = {split: theorem_quantities(pairs, task.held_out_rows(split)) for split in ("validation", "held_out")}
    config = pairs[0].config
    errors = []
    for pair in pairs:
        held = collect(pair, task.held_out_rows("held_out"))
        errors.append([scores(held, s, config.rectifier, config.fusion).per_token()[0] for s in STRENGTHS])
    result = {
        "quantities": {split: asdict(found) | {"holds": found.holds} for split, found in quantities.items()},
        "strengths": STRENGTHS,
        "brier": np.mean(errors, axis=0).tolist(),
        "seeds": arguments.seeds,
        "pilot_dtype": precision(pairs[0]),
        "wall_seconds": time.time() - started,
    }
    name = Path(arguments.experiment).stem
    path = Path(arguments.out) / f"theorem_{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result | facts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
