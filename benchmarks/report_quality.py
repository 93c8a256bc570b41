"""TABLES' tables and figures of quality, from the results of benchmarks/quality/run.py."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from report_parts import NOT_MEASURED, Result, plural, provenance, table

from copilot.tasks import Interval, paired_bootstrap

BASELINE = "pilot"
SAME_TIME = 0.05  # see `about_as_long`
# What an arm is, and the question that it answers.
ARMS = {
    "pilot": ("Pilot", ""),
    "tempered": ("Pilot, softmax(z / T)", "is it more than calibration?"),
    "pair": ("Pilot + Copilot", "does it help?"),
    "by_confidence": ("Pilot + Copilot, λ by p^'s largest entry", "is one λ enough?"),
    "dense": ("corrections of the whole vocabulary", "are 32 candidates too few?"),
    "literal": ("the paper's literal form", "does its text to the letter help?"),
    "fresh": ("without a log: each round once, at once", "does the log help?"),
    "recent": ("recent: the last 16 rounds, two steps", "do recent rounds and more steps help?"),
    "latest": ('"Latest": mistakes of the finished Pilot', "do those made on the way help?"),
    "recent_ce": ("recent, cross-entropy", "does the loss matter?"),
    "recent_ce_all": ("recent, cross-entropy, whole vocabulary", ""),
    "recent_ce_slow": ("recent, cross-entropy, a third of the rate", "do the gains add up?"),
    "recent_ce_slow_all": ("recent, cross-entropy, a third of the rate, whole vocabulary", ""),
    "latest_ce": ('"Latest", cross-entropy', ""),
    "latest_ce_all": ('"Latest", cross-entropy, whole vocabulary', ""),
    "latest_ce_slow": ('"Latest", cross-entropy, a third of the rate', ""),
    "latest_ce_slow_all": ('"Latest", cross-entropy, a third of the rate, whole vocabulary', ""),
    # In these results all arms read the layers that the first one asked for: these three are the default again.
    **dict.fromkeys(["last layer", "first half", "second half"], ("the default once more", "how much is chance?")),
    "even": ("reads all layers (pattern 1)", ""),
    "again": ("the same from another start", "how much is chance?"),
    "every": ("read by each of its layers (pattern 2)", ""),
    "first_half": ("reads the first half (pattern 3)", ""),
    "second_half": ("reads the second half (pattern 4)", ""),
    "finish": ("then mistakes of the finished Pilot, a quarter as long", "is a short second pass enough?"),
    "cross_fitted": ("mistakes on rows a Pilot was not trained on", "do they teach better?"),
    "transferred": ("Copilot of another Pilot", "can it be moved?"),
    "extra_compute": ("Pilot, trained longer", "was the time better spent on it?"),
    "extra_compute_latest": ("Pilot, trained still longer", 'or as long as "Latest"?'),
    "extra_compute_recent": ("Pilot, trained still longer", "or as long as recent?"),
    **dict.fromkeys(
        [f"extra_compute_{arm}" for arm in ("recent_ce_slow", "recent_ce_all", "latest_ce_slow", "latest_ce_all")],
        ("Pilot, trained still longer", ""),
    ),
    "extra_parameters": ("Pilot with new layers", "and the parameters?"),
}


@dataclass(frozen=True)
class Metric:
    """One column of a quality table.

    Attributes:
        title: of the column.
        values: of an arm, one an example; None where it has not been measured.
        scale: what the values are multiplied by for display.
        digits: after the decimal point.
    """

    title: str
    values: Callable[[dict[str, Any]], ArrayLike | None]
    scale: float = 1.0
    digits: int = 4

    def of(self, arm: dict[str, Any]) -> NDArray[np.float64] | None:
        values = self.values(arm)
        return None if values is None else np.asarray(values, dtype=np.float64) * self.scale


def per_token(arm: dict[str, Any], name: str) -> NDArray[np.float64] | None:
    """Means of the examples' tokens, weighted so that their mean over the examples is the mean over all tokens."""
    if name not in arm:
        return None
    tokens = np.asarray(arm["tokens"], dtype=np.float64)
    return np.asarray(arm[name]) * tokens / tokens.mean()


EXACT = Metric("exact match, % ↑", lambda arm: arm.get("exact"), scale=100, digits=1)
BEAMS = Metric("exact match of 4 beams, % ↑", lambda arm: arm.get("exact, 4 beams"), scale=100, digits=1)
ANSWERS = Metric("right answers, % ↑", lambda arm: arm.get("answers, greedy"), scale=100, digits=1)
ANSWERS_OF_BEAMS = Metric("right answers of 4 beams, % ↑", lambda arm: arm.get("answers, 4 beams"), scale=100, digits=1)
LISTED_HIT = Metric("Hit@10 of 10 beams, % ↑", lambda arm: arm.get("listed, hit@10"), scale=100, digits=1)
LISTED_NDCG = Metric("NDCG@10 of 10 beams ↑", lambda arm: arm.get("listed, ndcg@10"))
BRIER = Metric("Brier score ↓", lambda arm: per_token(arm, "brier"))
HIT = Metric("Hit@10 ↑", lambda arm: per_token(arm, "hit@10"))
NDCG = Metric("NDCG@10 ↑", lambda arm: per_token(arm, "ndcg@10"))
NLL = Metric("NLL ↓", lambda arm: per_token(arm, "nll"))
METRICS = {
    "written_answers": [EXACT, ANSWERS, ANSWERS_OF_BEAMS, LISTED_HIT, LISTED_NDCG, BRIER, NLL],
    "next_item": [HIT, NDCG, NLL],
    "equations": [EXACT, BEAMS, BRIER, NLL],
}

Arms = dict[str, list[Result]]  # by name, one a seed


def arms_of(results: Sequence[Result]) -> Arms:
    """The arms of one point's results: the Pilot, its Copilots, its rivals; each with the time of its training."""
    found: Arms = {}
    for result in (r for r in results if r["part"] == "copilots"):
        seconds = result["seconds"]
        pilot = seconds["training"]["pilot"]
        for name, arm in result["arms"].items():
            stages = [stage for stage in seconds if name in seconds[stage]]
            teachers = sum(seconds[stage]["pilot"] for stage in {"training", *stages})
            time = 1.0 if name == BASELINE else (teachers + sum(seconds[stage][name] for stage in stages)) / pilot
            found.setdefault(name, []).append(arm | {"seed": result["seed"], "time": time})
            if name == "pair" and "by_confidence" in arm:
                by = {"brier": arm["by_confidence"]["brier"], "tokens": arm["tokens"], "seed": result["seed"]}
                found.setdefault("by_confidence", []).append(by | {"time": time})
            if name == BASELINE and "tempered" in arm:
                found.setdefault("tempered", []).append(arm["tempered"] | {"seed": result["seed"], "time": time})
    for result in (r for r in results if r["part"] != "copilots"):
        (arm,) = result["arms"].values()
        time = 1 + result.get("extra", np.nan)  # what it was given; what it took in other hours is no measure
        found.setdefault(result["part"], []).append(arm | {"seed": result["seed"], "time": time})
    names = [name for name in ARMS if name in found] + [name for name in found if name not in ARMS]
    return {name: sorted(found[name], key=lambda arm: arm["seed"]) for name in names}


def tempered_of(arms: Arms) -> Arms:
    """The same arms, each with a temperature of its own, where that was measured."""
    found: Arms = {}
    for name, of_seeds in arms.items():
        kept = [arm["tempered"] | {at: arm[at] for at in ("seed", "time")} for arm in of_seeds if "tempered" in arm]
        if kept:
            found[name] = kept
    return found


@dataclass(frozen=True)
class Compared:
    """A metric of an arm: its mean in each seed and, of the mean over the seeds, the difference to the Pilot."""

    means: list[float]
    difference: Interval


def compare(metric: Metric, arm: list[Result], baseline: list[Result]) -> Compared | None:
    """None where the arm was not measured.

    The examples are those of every seed: an example's differences are averaged before examples are resampled.
    """
    values, of_baseline = ({r["seed"]: metric.of(r) for r in results} for results in (arm, baseline))
    seeds = [seed for seed, value in values.items() if value is not None and of_baseline.get(seed) is not None]
    if not seeds:
        return None
    shared, against = ([of[seed] for seed in seeds] for of in (values, of_baseline))
    found = paired_bootstrap(np.mean(against, axis=0), np.mean(shared, axis=0))
    return Compared([float(value.mean()) for value in shared], found.difference)


def quality_cell(metric: Metric, arm: list[Result], baseline: list[Result]) -> str:
    """Mean over the seeds (lowest–highest), and the difference to the Pilot, bold if its interval excludes 0."""
    compared = compare(metric, arm, baseline)
    if compared is None:
        return ""
    means, found, digits = compared.means, compared.difference, metric.digits
    cell = f"{np.mean(means):.{digits}f} ({min(means):.{digits}f}–{max(means):.{digits}f})"
    if arm is baseline:
        return cell
    return f"{cell}<br>{interval_cell(found, metric)}{of_fewer(means, arm)}"


def of_fewer(means: list[float], arm: list[Result]) -> str:
    """How many seeds a figure is of, where these are not all of its arm's."""
    return f" ({plural(len(means), 'seed')})" if len(means) < len(arm) else ""


def interval_cell(found: Interval, metric: Metric) -> str:
    """A difference with its interval, bold if that excludes 0 as it is shown."""
    mean, low, high = (round(value, metric.digits) + 0.0 for value in (found.mean, found.low, found.high))
    text = f"{mean:+.{metric.digits}f} [{low:+.{metric.digits}f}, {high:+.{metric.digits}f}]"
    return text if low <= 0 <= high else f"**{text}**"


def mean_time(arm: list[Result]) -> float:
    """Over the seeds, as a multiple of the Pilot's; NaN where it was not measured beside that."""
    return float(np.mean([result["time"] for result in arm]))


def about_as_long(arm: list[Result], rival: list[Result]) -> bool:
    """Whether two trainings are compared: their times differ by no more than `SAME_TIME` of the rival's."""
    time, of_rival = mean_time(arm), mean_time(rival)
    return abs(time - of_rival) <= SAME_TIME * of_rival


def against_rivals(arms: Arms, metrics: list[Metric]) -> list[list[str]]:
    """A row for each Copilot and the Pilot without one that was trained about as long: its differences to that Pilot.

    Where a rival has been measured in fewer seeds, or its metric has not, these alone are compared.
    """
    rows = []
    rivals = {name: of_seeds for name, of_seeds in arms.items() if name.startswith("extra_compute")}
    for name, of_seeds in arms.items():
        if name in rivals or name in (BASELINE, "tempered", "by_confidence", "extra_parameters"):
            continue
        for rival, of_rival in rivals.items():
            seeds = {result["seed"] for result in of_seeds} & {result["seed"] for result in of_rival}
            if not seeds:
                continue
            shared, against = ([result for result in arm if result["seed"] in seeds] for arm in (of_seeds, of_rival))
            if not about_as_long(shared, against):
                continue
            found = [compare(metric, shared, against) for metric in metrics]
            cells = ["" if c is None else interval_cell(c.difference, m) for c, m in zip(found, metrics, strict=True)]
            title, of_longer = (ARMS.get(arm, (arm, ""))[0] for arm in (name, rival))
            if len(shared) < len(arms[BASELINE]):
                title += f" ({plural(len(shared), 'seed')})"
            rows.append([f"{title} − {of_longer}", *cells, f"{mean_time(shared):.2f} − {mean_time(against):.2f}"])
    return rows


def strengths(arm: list[Result]) -> str:
    """λ* of each seed of a Copilot, T where there is one."""
    facts = []
    for result in arm:
        strength = [f"{result['strength']:.2f}"] if result.get("strength") or "grid" in result else []
        temperature = [f"T = {result['temperature']:.1f}"] if "temperature" in result else []
        facts.append("; ".join(strength + temperature))
    return ", ".join(filter(None, facts))


def rows_of(arms: Arms, metrics: list[Metric]) -> list[list[str]]:
    """A row for each arm: its scores with the differences to the Pilot, λ* and T, and the time of its training."""
    rows, pilot = [], arms[BASELINE]
    for name, of_seeds in arms.items():
        title, question = ARMS.get(name, (name, ""))
        if len(of_seeds) < len(pilot):
            title += f" ({plural(len(of_seeds), 'seed')})"
        cells = [quality_cell(metric, of_seeds, pilot) for metric in metrics]
        if any(cells):
            title += f"<br>*{question}*" if question else ""
            rows.append([title, *cells, strengths(of_seeds), training_time(of_seeds)])
    return rows


def training_time(arm: list[Result]) -> str:
    time = mean_time(arm)
    return "" if np.isnan(time) else f"{time:.2f}"


def read_quality(folder: Path, name: str) -> dict[str, list[Result]]:
    """The results of an experiment by point, in its order, from results/quality/NAME/POINT_seedSEED_PART.json."""
    by_point: dict[str, list[Result]] = {}
    for path in sorted(folder.glob(f"quality/{name}/*.json")):
        point, seed, part = re.fullmatch(r"(.+)_seed(\d+)_(.+)", path.stem).groups()
        by_point.setdefault(point, []).append(
            json.loads(path.read_text()) | {"point": point, "seed": int(seed), "part": part}
        )
    if not by_point:
        return {}
    # A file's points grow in number: its longest list names all.
    everything = [result for results in by_point.values() for result in results if result["part"] == "copilots"]
    order = max((result["settings"]["points"] for result in everything), key=len)
    return {point: by_point[point] for point in sorted(by_point, key=list(order).index)}


def measured(metrics: list[Metric], arm: list[Result]) -> list[Metric]:
    """Those that an arm has been measured by in some seed."""
    return [metric for metric in metrics if any(metric.of(result) is not None for result in arm)]


def compared_tables(title: str, arms: Arms, metrics: list[Metric]) -> list[str]:
    """A table of the arms and, where some took as long as a rival, one of these against it; each with a title."""
    shown = measured(metrics, arms[BASELINE])
    columns = [metric.title for metric in shown]
    lines = [*table([title, *columns, "λ*, by seed", "training time"], rows_of(arms, shown)), ""]
    if versus := against_rivals(arms, shown):
        against = ", ".join(filter(None, [title, "against a Pilot trained as long"]))
        lines += [*table([against, *columns, "times"], versus), ""]
    return lines


def quality(folder: Path, name: str, about: str) -> str:
    """The tables of an experiment, one a point."""
    by_point = read_quality(folder, name)
    if not by_point:
        return NOT_MEASURED
    lines: list[str] = []
    for point, results in by_point.items():
        settings, arms = results[0]["settings"], arms_of(results)
        metrics, pilot = METRICS[settings["kind"]], arms[BASELINE]
        epochs = plural(settings["points"][point]["epochs"], "epoch")
        validation = np.mean([result["validation"][1] for result in pilot])
        lines += [
            f"**{point.capitalize()}: {epochs}** ({plural(len(pilot), 'seed')}; NLL of the Pilot on validation data "
            f"{validation:.4f})",
            "",
            *compared_tables("", arms, metrics),
        ]
        tempered = tempered_of(arms)
        if len(tempered) > 1:
            lines += compared_tables("each with its own T", tempered, metrics)
    everything = [result for results in by_point.values() for result in results]
    command = f"python benchmarks/quality/run.py benchmarks/quality/{name}.yaml {about} --out runs/quality"
    seeds = " ".join(map(str, sorted({result["seed"] for result in everything})))
    lines += [
        "Mean over the seeds (lowest–highest); below it the difference to the Pilot of the same seed with its 95 % "
        "interval, bold where it excludes 0: a paired bootstrap over the examples, the same for all seeds, of the mean "
        "over these seeds; it does not cover what other seeds would change. λ* is of validation data. Training time is "
        "a multiple of the Pilot's, of a longer training what it was given; that of new layers was not measured beside "
        "it.",
        "",
        provenance(everything, f"{command} --seeds {seeds}"),
    ]
    return "\n".join(lines)


def theorem(folder: Path, name: str, about: str) -> str:
    """Theorem 4.1 of results/quality/theorem_NAME.json: its quantities, and where the error really falls."""
    path = folder / "quality" / f"theorem_{name}.json"
    if not path.is_file():
        return NOT_MEASURED
    result = json.loads(path.read_text())
    quantities = result["quantities"]
    symbols = {"e_pilot": "e_P", "s_pilot": "s_P", "e_copilot": "e_C", "s_copilot": "s_C", "lambda_zero": "λ₀"}
    rows = [
        [split, *(f"{found[key]:.4f}" for key in symbols), "yes" if found["holds"] else "no"]
        for split, found in (("validation", quantities["validation"]), ("held out", quantities["held_out"]))
    ]
    brier = dict(zip(result["strengths"], result["brier"], strict=True))
    falls = [strength for strength, value in brier.items() if strength > 0 and value < brier[0.0]]
    best = min(brier, key=brier.__getitem__)
    fallen = f"falls for every λ measured from {min(falls):g} to {max(falls):g}" if falls else "falls for no λ measured"
    seeds = " ".join(map(str, result["seeds"]))
    command = f"python benchmarks/quality/theorem.py benchmarks/quality/{name}.yaml {about} --out runs/quality"
    lines = [
        *table(["", *symbols.values(), "e_C < √(e_P² + s_P²)"], rows),
        "",
        f"{plural(len(result['seeds']), 'seed')}. The held-out Brier score is {brier[0.0]:.4f} at λ = 0, {fallen} "
        f"and is least, {brier[best]:.4f}, at {best:g}; steps of {result['strengths'][1]:g}.",
        "",
        provenance([result], f"{command} --seeds {seeds}"),
    ]
    return "\n".join(lines)


def draw_quality(folder: Path, name: str) -> Any:
    """Differences to the Pilot with their 95 % intervals, a row an arm and point, a column a metric."""
    from matplotlib.figure import Figure

    if not read_quality(folder, name):
        return None
    by_point = {point: arms_of(results) for point, results in read_quality(folder, name).items()}
    settings = next(iter(read_quality(folder, name).values()))[0]["settings"]
    pilots = [result for arms in by_point.values() for result in arms[BASELINE]]
    metrics = measured(METRICS[settings["kind"]], pilots)
    rows = [(point, arm) for point, arms in by_point.items() for arm in arms if arm != BASELINE]
    figure = Figure(figsize=(3.2 + 2.6 * len(metrics), 0.9 + 0.3 * len(rows)), layout="constrained")
    for place, metric in enumerate(metrics):
        axes = figure.add_subplot(1, len(metrics), place + 1)
        axes.axvline(0, color="#6b6b6b", linewidth=0.8)
        for height, (point, arm) in enumerate(rows):
            compared = compare(metric, by_point[point][arm], by_point[point][BASELINE])
            if compared is None:
                continue
            found = compared.difference
            better = (found.mean > 0) == ("↑" in metric.title)
            colour = "#c9c9c9" if found.low <= 0 <= found.high else "#1f5fa8" if better else "#c2571a"
            axes.plot([found.low, found.high], [height, height], color=colour, linewidth=2)
            axes.plot(found.mean, height, "o", color=colour, markersize=5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        labels = [f"{point}: {ARMS.get(arm, (arm,))[0]}" for point, arm in rows] if place == 0 else []
        axes.set_yticks(range(len(rows)) if place == 0 else [], labels)
        axes.set_title(metric.title, fontsize=10)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)
    figure.suptitle("Difference to the Pilot alone, 95 % intervals; blue is better, orange worse", fontsize=10)
    return figure
