"""README's summary of quality, Copilots beside their rivals, and FINDINGS' verdicts, Copilots against them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from report_overview import overview_time
from report_parts import NOT_MEASURED, Result, places, plural, table
from report_quality import (
    ARMS,
    BASELINE,
    BRIER,
    EXACT,
    NDCG,
    NLL,
    Arms,
    Compared,
    Metric,
    about_as_long,
    arms_of,
    compare,
    interval_cell,
    mean_time,
    of_fewer,
    read_quality,
)

# A row: its title, its score, that of its answers where they were judged, and the experiments and points that it is of.
# An arm is of the first of these that has it.
ROWS: list[tuple[str, Metric, Metric | None, list[tuple[str, str]]]] = [
    ("MAWPS", BRIER, EXACT, [("mawps", "short")]),
    ("MAWPS", BRIER, EXACT, [("mawps", "medium")]),
    ("MAWPS", BRIER, EXACT, [("mawps", "long")]),
    (
        "MAWPS, tuned",
        BRIER,
        EXACT,
        [("tuned_mawps", "medium"), ("tuned_copilot_mawps", "combined"), ("tuned_copilot_mawps", "search")],
    ),
    ("GSM8K", BRIER, None, [("gsm8k", "short")]),
    ("GSM8K, all of it", BRIER, None, [("gsm8k_full", "short")]),
    ("OpenBookQA", BRIER, EXACT, [("openbookqa", "short")]),
    ("OpenBookQA, all of it", BRIER, EXACT, [("openbookqa_full", "short")]),
    ("BoolQ", BRIER, EXACT, [("boolq", "short")]),
    ("BoolQ", BRIER, EXACT, [("boolq", "medium")]),
    ("MAWPS, small T5", BRIER, EXACT, [("combined_equations", "short"), ("equations", "short")]),
    ("MAWPS, small T5", BRIER, EXACT, [("equations", "medium")]),
    ("MAWPS, small T5", BRIER, EXACT, [("combined_equations", "long"), ("equations", "long")]),
    ("MAWPS, small T5, tuned", BRIER, EXACT, [("tuned_equations", "short")]),
    ("MAWPS, small T5, tuned", BRIER, EXACT, [("tuned_equations", "medium")]),
    ("LastFM", NLL, NDCG, [("combined_lastfm", "under-trained"), ("lastfm", "under-trained")]),
    ("LastFM", NLL, NDCG, [("combined_lastfm", "best"), ("lastfm", "best")]),
    ("LastFM", NLL, NDCG, [("lastfm", "over-trained")]),
    ("LastFM, tuned", NLL, NDCG, [("tuned_lastfm", "best")]),
]
COLUMNS = [
    "temperature",
    "+ Copilot",
    "trained as long",
    "+ Copilot, best other form",
    "trained as long as that",
    "new layers",
]
COLOURS = ["#9a9a9a", "#7fb0de", "#f0a868", "#1f5fa8", "#c2571a", "#4c9a5a"]
MARKERS = ["D" if column.startswith("+ Copilot") else "o" for column in COLUMNS]
RIVALS = ("extra_compute", "extra_parameters")  # beginnings of their names


@dataclass(frozen=True)
class Shown:
    """An arm, and the Pilot of its own run, which it is compared with."""

    name: str
    arm: list[Result]
    pilot: list[Result]

    def compared(self, metric: Metric) -> Compared | None:
        return compare(metric, self.arm, self.pilot)

    def shares_pilot(self, other: Shown) -> bool:
        """Whether both are of one run, or of two in which the Pilot came out the same, example for example."""
        own, others = ({result["seed"]: result["nll"] for result in shown.pilot} for shown in (self, other))
        shared = own.keys() & others.keys()
        return bool(shared) and all(own[seed] == others[seed] for seed in shared)


@dataclass(frozen=True)
class Row:
    """A task and a length of training."""

    title: str
    metric: Metric
    answers: Metric | None
    runs: list[Arms]

    @cached_property
    def arms(self) -> dict[str, Shown]:
        """By name, of the first run that has them; the default of the first where a Pilot was trained as long."""
        runs = sorted(self.runs, key=lambda arms: not {"pair", "extra_compute"} <= arms.keys())
        found = {name: Shown(name, runs[0][name], runs[0][BASELINE]) for name in runs[0].keys() & {"pair"}}
        for arms in self.runs:
            for name, arm in arms.items():
                found.setdefault(name, Shown(name, arm, arms[BASELINE]))
        return found

    def best(self, candidates: list[Shown]) -> Shown | None:
        """The arm that adds the most to its Pilot's score on validation data, in the seeds that all of them have."""
        place = (BRIER, NLL).index(self.metric)
        gains = []
        for shown in candidates:
            pilot = {result["seed"]: result["validation"][place] for result in shown.pilot}
            gains.append({r["seed"]: r["validation"][place] - pilot[r["seed"]] for r in shown.arm})
        shared = set.intersection(*map(set, gains)) if gains else set()
        order = sorted(range(len(candidates)), key=lambda at: np.mean([gains[at][seed] for seed in shared]))
        return candidates[order[0]] if order else None

    def columns(self) -> list[Shown | None]:
        """What stands in `COLUMNS`."""
        others = (BASELINE, "tempered", "pair", "by_confidence", "transferred")
        copilots = [of for name, of in self.arms.items() if not name.startswith(RIVALS) and name not in others]
        best, pair = self.best([of for of in copilots if self.as_long_as(of) is not None]), self.arms.get("pair")
        return [
            self.arms.get("tempered"),
            pair,
            None if pair is None else self.as_long_as(pair),
            best,
            None if best is None else self.as_long_as(best),
            self.arms.get("extra_parameters"),
        ]

    def as_long_as(self, shown: Shown) -> Shown | None:
        """Of the Pilots trained about as long as an arm the one that was given its time, else the nearest to it."""
        rivals = {name: of for name, of in self.arms.items() if name.startswith("extra_compute")}
        near = {name: of for name, of in rivals.items() if about_as_long(shown.arm, of.arm)}
        own = "extra_compute" if shown.name == "pair" else f"extra_compute_{shown.name}"
        time = mean_time(shown.arm)
        return near.get(own) or min(near.values(), key=lambda of: abs(mean_time(of.arm) - time), default=None)


def read(folder: Path) -> tuple[list[Row], list[Result]]:
    """The rows that there are results for, and all of these."""
    rows, everything = [], []
    for title, metric, answers, runs in ROWS:
        found = [read_quality(folder, name).get(point, []) for name, point in runs]
        results = [of_point for of_point in found if of_point]
        if results:
            point, first = next((point, of) for (_, point), of in zip(runs, found, strict=True) if of)
            epochs = plural(first[0]["settings"]["points"][point]["epochs"], "epoch")
            rows.append(Row(f"{title}, {epochs}", metric, answers, [arms_of(of_point) for of_point in results]))
            everything += [result for of_point in results for result in of_point]
    return rows, everything


def cell(row: Row, shown: Shown | None, names: bool) -> str:
    """An arm's difference to its Pilot, the time of its training and, if `names`, what it is."""
    compared = None if shown is None else shown.compared(row.metric)
    if shown is None or compared is None:
        return ""
    name = f"<br>{ARMS.get(shown.name, (shown.name,))[0]}" if names else ""
    difference = interval_cell(compared.difference, row.metric) + of_fewer(compared.means, shown.arm)
    return f"{difference}<br>{overview_time(shown.arm, row.arms[BASELINE].arm)}{name}"


def by_row(folder: Path, columns: list[str], line: Callable[[Row], list[str]]) -> str:
    """One table of all tasks, and where they were measured."""
    rows, everything = read(folder)
    if not rows:
        return NOT_MEASURED
    return "\n".join([*table(["", *columns], [line(row) for row in rows]), "", places(everything)])


def summary(folder: Path) -> str:
    """One table of all tasks: the Pilot's score, and what the columns add to it."""

    def line(row: Row) -> list[str]:
        pilot = row.arms[BASELINE]
        compared = pilot.compared(row.metric)
        assert compared is not None
        cells = [
            cell(row, shown, names=column == "+ Copilot, best other form")
            for column, shown in zip(COLUMNS, row.columns(), strict=True)
        ]
        score = f"{np.mean(compared.means):.{row.metric.digits}f}"
        return [f"**{row.title}**<br>{row.metric.title}, {plural(len(pilot.arm), 'seed')}", score, *cells]

    return by_row(folder, ["Pilot", *COLUMNS], line)


def verdict(metric: Metric | None, shown: Shown | None, rival: Shown | None, seeds: int) -> str:
    """Whether a Copilot is ahead of its Pilot trained as long, in the seeds that both have.

    These are named where they are fewer than `seeds`.
    """
    if metric is None or shown is None or rival is None or not shown.shares_pilot(rival):
        return ""
    compared = compare(metric, shown.arm, rival.arm)
    if compared is None:
        return ""
    text = interval_cell(compared.difference, metric)
    fewer = f" ({plural(len(compared.means), 'seed')})" if len(compared.means) < seeds else ""
    better = (compared.difference.mean > 0) == ("↑" in metric.title)
    return f"{('ahead' if better else 'behind') if text.startswith('**') else 'level'} {text}{fewer}"


def verdicts(folder: Path) -> str:
    """One table of all tasks: the differences between Copilots and the Pilots that were trained as long."""

    def line(row: Row) -> list[str]:
        _, pair, as_long, best, as_long_as_best, _ = row.columns()
        rivals = ((pair, as_long), (best, as_long_as_best))
        seeds = len(row.arms[BASELINE].arm)
        cells = [verdict(metric, *of, seeds) for of in rivals for metric in (row.metric, row.answers)]
        answers = f", {row.answers.title}" if row.answers else ""
        return [f"**{row.title}**<br>{row.metric.title}{answers}, {plural(seeds, 'seed')}", *cells]

    columns = ["default, score", "default, answers", "best other form, score", "best other form, answers"]
    return by_row(folder, columns, line)


def draw_summary(folder: Path) -> Any:
    """The same as a picture: differences in per cent of the Pilot's score, with their intervals."""
    from matplotlib.figure import Figure

    rows, _ = read(folder)
    if not rows:
        return None
    figure = Figure(figsize=(9, 0.8 + 0.55 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="#6b6b6b", linewidth=0.8)
    for height, row in enumerate(rows):
        if height % 2:
            axes.axhspan(height - 0.5, height + 0.5, color="#f4f4f4", zorder=0)
        for place, (colour, marker, shown) in enumerate(zip(COLOURS, MARKERS, row.columns(), strict=True)):
            compared = None if shown is None else shown.compared(row.metric)
            if shown is None or compared is None:
                continue
            pilot = 100 / np.mean([float(np.mean(row.metric.of(result))) for result in shown.pilot])
            found, at = compared.difference, height + (place - 2.5) * 0.14
            axes.plot([found.low * pilot, found.high * pilot], [at, at], color=colour, linewidth=2)
            axes.plot(found.mean * pilot, at, marker, color=colour, markersize=4.5)
    for colour, marker, column in zip(COLOURS, MARKERS, COLUMNS, strict=True):
        axes.plot([], [], marker, color=colour, label=column)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [f"{row.title}\n({row.metric.title.split()[0]})" for row in rows], fontsize=8)
    axes.set_xlabel("change of the Pilot's score in %, 95 % intervals; to the left is better")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, 1.1), ncols=3, frameon=False, fontsize=9)
    return figure
