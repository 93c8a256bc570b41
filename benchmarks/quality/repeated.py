"""MAWPS's repetitions: python benchmarks/quality/repeated.py --data DATA --pilot PILOT

Held-out problems that repeat a training problem but for its numbers, and what the committed results say without them:
every difference to the Pilot, and to one trained about as long, with all problems and without those that repeat one of
any seed. Results hold the problems by their length in tokens, so that PILOT's tokenizer is needed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from itertools import compress
from pathlib import Path
from typing import Any

from run import Experiment, task_of

sys.path.append(str(Path(__file__).parents[1]))
import report_quality as report  # of the folder above

EXPERIMENTS = ("mawps", "ablation")
METRICS = [report.EXACT, report.BRIER, report.NLL]


def wording(example: Any) -> str:
    return re.sub(r"\d+(?:\.\d+)?", "#", example.prompt)


def pairs_of(arms: report.Arms) -> Iterator[tuple[str, str]]:
    """What the tables compare: each arm with the Pilot, each Copilot with the Pilots trained about as long."""
    rivals = [name for name in arms if name.startswith("extra_compute")]
    for name in sorted(arms.keys() - {report.BASELINE}):
        yield name, report.BASELINE
        if name not in (*rivals, "tempered", "by_confidence", "extra_parameters"):
            yield from ((name, rival) for rival in rivals if report.about_as_long(arms[name], arms[rival]))


def without(arms: report.Arms, kept: list[bool]) -> report.Arms:
    """The same arms of fewer problems."""
    lists = ("exact", "brier", "nll", "tokens")
    return {
        name: [arm | {of: list(compress(arm[of], kept)) for of in lists if of in arm} for arm in of_seeds]
        for name, of_seeds in arms.items()
    }


def show(title: str, arms: report.Arms, kept: list[bool]) -> None:
    """A line for each difference: as it is, and without the problems that are not kept."""
    fewer = without(arms, kept)
    for name, against in pairs_of(arms):
        for metric in METRICS:
            found = [report.compare(metric, of[name], of[against]) for of in (arms, fewer)]
            cells = [report.interval_cell(of.difference, metric) for of in found if of is not None]
            changed = len({cell.startswith("**") for cell in cells}) > 1
            if cells:
                print(f"{title}: {name} - {against}, {metric.title[:-2]}:", *cells, *["<- verdict"] * changed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--pilot", help="replaces the one of mawps.yaml")
    arguments = parser.parse_args()
    experiment = Experiment.read(Path(__file__).parent / "mawps.yaml")
    task: Any = task_of(experiment, arguments.data, arguments.pilot, parser)
    learned = [{wording(example) for example in task.examples(seed)} for seed in range(3)]
    for split, examples in task.splits.items():
        counts = [sum(wording(example) in of_seed for example in examples) for of_seed in learned]
        print(f"{split}: of {len(examples)} problems {counts} repeat one that seed 0, 1, 2 learns from")
    rows = [(row["input_ids"], row["labels"]) for row in task.held_out_rows("held_out")]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index][0]))  # as `tasks.HeldOut` sorts
    tokens = [sum(label != -100 for label in rows[index][1]) for index in order]
    kept = [wording(task.splits["held_out"][index]) not in set.union(*learned) for index in order]
    print(f"held_out: {kept.count(False)} repeat one of any seed")
    for name in EXPERIMENTS:
        for point, results in report.read_quality(Path(__file__).parents[1] / "results", name).items():
            arms = report.arms_of(results)
            if any(arm["tokens"] != tokens for arm in arms[report.BASELINE]):
                raise ValueError(f"the problems of {name}, {point}, have other tokens than with this PILOT and DATA")
            show(f"{name}, {point}", arms, kept)
            show(f"{name}, {point}, each with its own T", report.tempered_of(arms), kept)


if __name__ == "__main__":
    main()
