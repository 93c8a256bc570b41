"""The overview in TABLES: what a Copilot and its rivals add to the Pilot, in all experiments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from report_parts import NOT_MEASURED, Result, places, plural, table
from report_quality import (
    ANSWERS,
    BASELINE,
    BRIER,
    EXACT,
    NDCG,
    NLL,
    Metric,
    arms_of,
    compare,
    interval_cell,
    of_fewer,
    read_quality,
    training_time,
)

# The overview's rows, by experiment, and its columns: the first of these arms that there is.
OVERVIEW = {
    "mawps": ("MAWPS", [EXACT, ANSWERS, BRIER]),
    "combined_mawps": ("MAWPS, second run", [EXACT, ANSWERS, BRIER]),
    "tuned_mawps": ("MAWPS, tuned", [EXACT, ANSWERS, BRIER]),
    "openbookqa": ("OpenBookQA", [EXACT, BRIER]),
    "openbookqa_full": ("OpenBookQA, all of it", [EXACT, BRIER]),
    "boolq": ("BoolQ", [EXACT, BRIER]),
    "gsm8k": ("GSM8K", [BRIER, NLL]),
    "gsm8k_full": ("GSM8K, all of it", [BRIER, NLL]),
    "equations": ("MAWPS, a small T5", [EXACT, BRIER]),
    "combined_equations": ("MAWPS, a small T5, second run", [EXACT, BRIER]),
    "tuned_equations": ("MAWPS, a small T5, tuned", [EXACT, BRIER]),
    "lastfm": ("LastFM", [NDCG, NLL]),
    "combined_lastfm": ("LastFM, second run", [NDCG, NLL]),
    "tuned_lastfm": ("LastFM, tuned", [NDCG, NLL]),
}
COLUMNS = {
    "temperature": ["tempered"],
    "+ Copilot": ["pair"],
    "+ Copilot, recent": ["recent"],
    "+ Copilot, cross-entropy": ["latest_ce_all", "latest_ce_slow"],
    "trained longer": ["extra_compute"],
    "trained still longer": [
        f"extra_compute_{arm}" for arm in ("recent", "latest", "latest_ce_all", "latest_ce_slow", "recent_ce_all")
    ],
    "new layers": ["extra_parameters"],
}


def overview(folder: Path) -> str:
    """One table of all experiments: for each point and metric the Pilot, and what the columns add to it."""
    rows: list[list[str]] = []
    everything: list[Result] = []
    for name, (title, metrics) in OVERVIEW.items():
        for point, results in read_quality(folder, name).items():
            everything += results
            arms = arms_of(results)
            pilot = arms[BASELINE]
            shown = [next((arms[arm] for arm in choice if arm in arms), []) for choice in COLUMNS.values()]
            epochs = plural(results[0]["settings"]["points"][point]["epochs"], "epoch")
            times = [overview_time(of_seeds, pilot) for of_seeds in shown]
            rows.append([f"**{title}, {epochs}** ({plural(len(pilot), 'seed')})", "", *times])
            for metric in metrics:
                cells = [overview_cell(metric, of_seeds, pilot) for of_seeds in shown]
                rows.append([metric.title, overview_cell(metric, pilot, pilot), *cells])
    if not rows:
        return NOT_MEASURED
    return "\n".join([*table(["", "Pilot", *COLUMNS], rows), "", places(everything)])


def overview_time(arm: list[Result], pilot: list[Result]) -> str:
    """The time of a training, as a multiple of the Pilot's, and the number of its seeds where these are fewer."""
    if not arm:
        return ""
    seeds = f", {plural(len(arm), 'seed')}" if len(arm) < len(pilot) else ""
    time = training_time(arm)
    return (f"{time} ×" if time else "not measured") + seeds


def overview_cell(metric: Metric, arm: list[Result], pilot: list[Result]) -> str:
    """The Pilot's mean over the seeds, or an arm's difference to it with its interval."""
    compared = compare(metric, arm, pilot) if arm else None
    if compared is None:
        return ""
    if arm is pilot:
        return f"{np.mean(compared.means):.{metric.digits}f}"
    return interval_cell(compared.difference, metric) + of_fewer(compared.means, arm)
