"""README's tables, from the committed results: python benchmarks/report.py [--check]

Rewrites what stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->` in README.md, for every NAME of `SECTIONS`
that README has. --check changes nothing and fails if something would change.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from copilot.tasks import discounted_gains, paired_bootstrap

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"

NOT_MEASURED = "Not measured yet."
BASELINE = "pilot"
ARMS = {
    "pilot": "Pilot",
    "pair": "Pilot + Copilot, λ*",
    "pair_lambda_1": "Pilot + Copilot, λ = 1",
    "literal": "the paper's literal form, λ*",
    "no_context_norm": "without context norm, λ*",
}

Result = dict[str, Any]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, its first column to the left and the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)]


def provenance(results: Sequence[Result], command: str) -> str:
    """One line: on what the results were measured, and how to get them again."""
    measured = []
    for result in results:
        facts = result["environment"]
        device = f"{facts['device']}, {facts['threads']} {'thread' if facts['threads'] == 1 else 'threads'}"
        versions = f"torch {facts['torch']}, transformers {facts['transformers']}"
        measured.append(f"{device}, {versions}, commit {result['commit'][:10]}")
    return f"Measured on {'; '.join(dict.fromkeys(measured))}. Reproduce: `{command}`"


# Costs


def duration(low: float, median: float, high: float) -> str:
    """Seconds in the unit that suits the median: `12.3 ms (11.9–13.0)`."""
    unit, factor = next(
        ((unit, factor) for unit, factor in (("s", 1), ("ms", 1e3)) if median * factor >= 1), ("µs", 1e6)
    )
    digits = 0 if median * factor >= 100 else 1 if median * factor >= 10 else 2
    low, median, high = (f"{value * factor:.{digits}f}" for value in (low, median, high))
    return f"{median} {unit} ({low}–{high})"


def cost(name: str, variant: dict[str, Any]) -> str:
    """The Pilot's time, or the ratio to it and its floor."""
    if name == "Pilot":
        return duration(*variant["seconds"])
    low, median, high = variant["ratio"]
    floor = "" if variant["floor"] is None else f", floor {variant['floor']:.2f}"
    return f"{median:.2f} ({low:.2f}–{high:.2f}){floor}"


def overhead(folder: Path) -> str:
    """One table a device: the Pilot's times, and those of every variant as multiples of them."""
    parts = []
    for path in sorted(folder.glob("*/overhead.json")):
        result = json.loads(path.read_text())
        cases, pilot = result["cases"], result["pilot"]
        names = dict.fromkeys(name for case in cases.values() for name in case["variants"])
        rows = [
            [name, *(cost(name, case["variants"][name]) if name in case["variants"] else "" for case in cases.values())]
            for name in names
        ]
        rounds = ", ".join(str(case["rounds"]) for case in cases.values())
        where = f"benchmarks/results/{path.parent.name}"
        lines = [
            f"Pilot: {pilot['model_type']}, {pilot['layers']} layers, {pilot['parameters'] / 1e6:.0f} M parameters, "
            f"V = {pilot['vocab_size']}. Its times, and those of the pairs as multiples of them: median (p20–p80) of "
            "interleaved rounds.",
            "",
            *table(["", *cases], rows),
            "",
            f"Training: {result['settings']['training']}. Decoding: {result['settings']['decoding']}; prompt is the "
            "time to the first of them, token that of each later one. Floors: the ratio of the floating-point "
            "operations of the matrix products (training), of the bytes of parameters read (token). "
            f"Rounds: {rounds}.",
            "",
            provenance([result], f"python -m pytest benchmarks/bench_overhead.py --benchmark-only --results {where}"),
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or NOT_MEASURED


# The cases that README shows; the results hold more.
KERNEL_CASES = {
    "rectify": [
        *(f"N = {n}, V = 128256, float32, 32 candidates" for n in (1, 8, 64)),
        "N = 64, V = 128256, bfloat16, 32 candidates",
        "N = 64, V = 128256, float32, dense",
        "N = 64, V = 32000, float32, 32 candidates",
    ],
    "rectify_sample": [
        "N = 1, greedy",
        "N = 1, temperature 0.8",
        "N = 64, temperature 0.8",
        "N = 64, temperature 0.8, top-k 50, top-p 0.95",
    ],
    "mistake_cross_entropy": [
        *(f"N = {n}, V = 49152, float32" for n in (64, 512)),
        "N = 512, V = 49152, bfloat16",
        "N = 512, V = 128256, float32",
    ],
    "candidate_loss": ["M = 512, 32 candidates", "M = 512, whole vocabulary of 128256"],
    "pool_layers": ["30 x 2048 x 576, float32", "30 x 2048 x 576, bfloat16"],
}


COPY = "copy of the same bytes"


def multiple(variant: dict[str, Any] | None) -> str:
    """A ratio of times: `4.10 (3.95–4.31)`."""
    if variant is None:
        return ""
    low, median, high = (f"{value:.{0 if variant['ratio'][1] >= 100 else 2}f}" for value in variant["ratio"])
    return f"{median} ({low}–{high})"


def bandwidth(cases: Iterable[dict[str, Any]]) -> str:
    """What the largest copy moves in a second."""
    largest = max(cases, key=lambda case: case["bytes"])
    return f"{largest['bytes'] / largest['variants'][COPY]['seconds'][1] / 1e9:.0f} GB/s"


def kernels(folder: Path) -> str:
    """One table a device: the kernels' times, and those of what they replace as multiples of them."""
    parts = []
    for device in sorted({path.parent for name in KERNEL_CASES for path in folder.glob(f"*/{name}.json")}):
        paths = [device / f"{name}.json" for name in KERNEL_CASES]
        results = {path.stem: json.loads(path.read_text()) for path in paths if path.exists()}
        cases = {
            f"`{name}`, {case}": result["cases"][case]
            for name, result in results.items()
            for case in KERNEL_CASES[name]
        }
        variants = {name: case["variants"] for name, case in cases.items()}
        columns = dict.fromkeys(name for of_case in variants.values() for name in of_case if name != "kernel")
        rows = [
            [name, duration(*of_case["kernel"]["seconds"]), *(multiple(of_case.get(column)) for column in columns)]
            for name, of_case in variants.items()
        ]
        command = f"python -m pytest benchmarks/bench_*.py --benchmark-only --results benchmarks/results/{device.name}"
        lines = [
            "The kernel's time, and those of the others as multiples of it: median (p20–p80) of interleaved rounds. "
            "That of the copy is the share of its bandwidth that the kernel reaches; the largest copy moves "
            f"{bandwidth(cases.values())}.",
            "",
            *table(["", "kernel", *columns], rows),
            "",
            provenance(list(results.values()), command),
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or NOT_MEASURED


# Quality


@dataclass(frozen=True)
class Metric:
    """One column of a quality table.

    Attributes:
        title: of the column.
        values: of an arm, one an example.
        scale: what the values are multiplied by for display.
        digits: after the decimal point.
    """

    title: str
    values: Callable[[dict[str, Any]], ArrayLike]
    scale: float = 1.0
    digits: int = 4

    def of(self, arm: dict[str, Any]) -> NDArray[np.float64]:
        return np.asarray(self.values(arm), dtype=np.float64) * self.scale


def per_token(arm: dict[str, Any], name: str) -> NDArray[np.float64]:
    """Means of the examples' tokens, weighted so that their mean over the examples is the mean over all tokens."""
    tokens = np.asarray(arm["tokens"], dtype=np.float64)
    return np.asarray(arm[name]) * tokens / tokens.mean()


def hit(k: int) -> Metric:
    return Metric(f"Hit@{k} ↑", lambda arm: np.asarray(arm["ranks"]) <= k)


def ndcg(k: int) -> Metric:
    return Metric(f"NDCG@{k} ↑", lambda arm: discounted_gains(arm["ranks"], k))


MAWPS = [
    Metric("exact match, held out, % ↑", lambda arm: arm["exact_match"], scale=100, digits=1),
    Metric("answer accuracy, test, % ↑", lambda arm: arm["answer_accuracy"], scale=100, digits=1),
    Metric("Brier score ↓", lambda arm: per_token(arm, "brier")),
    Metric("NLL ↓", lambda arm: per_token(arm, "nll")),
]
LASTFM = [hit(5), hit(10), ndcg(5), ndcg(10)]


def arm_name(arm: str, results: Sequence[Result]) -> str:
    if arm == "pilot_extra_compute":
        return f"Pilot, trained {np.mean([result['extra_compute'] for result in results]):.0%} longer"
    return ARMS.get(arm, arm)


def quality_cell(metric: Metric, arm: str, results: Sequence[Result]) -> str:
    """Mean over the seeds (lowest–highest), and the difference to the Pilot, bold if its interval excludes 0."""
    seeds = [metric.of(result["arms"][arm]) for result in results]
    means = [values.mean() for values in seeds]
    digits = metric.digits
    cell = f"{np.mean(means):.{digits}f} ({min(means):.{digits}f}–{max(means):.{digits}f})"
    if arm == BASELINE:
        return cell
    baseline = [metric.of(result["arms"][BASELINE]) for result in results]
    found = paired_bootstrap(np.concatenate(baseline), np.concatenate(seeds)).difference
    difference = f"{found.mean:+z.{digits}f} [{found.low:+z.{digits}f}, {found.high:+z.{digits}f}]"
    return f"{cell}<br>{difference if found.low <= 0 <= found.high else f'**{difference}**'}"


def quality(folder: Path, name: str, metrics: Sequence[Metric], command: str) -> str:
    """The table of results/quality/NAME_seed*.json."""
    results = [json.loads(path.read_text()) for path in folder.glob(f"quality/{name}_seed*.json")]
    if not results:
        return NOT_MEASURED
    results.sort(key=lambda result: result["seed"])
    rows = [
        [
            arm_name(arm, results),
            *(quality_cell(metric, arm, results) for metric in metrics),
            ", ".join(f"{result['arms'][arm]['strength']:.2f}" for result in results),
        ]
        for arm in results[0]["arms"]
    ]
    seeds = " ".join(str(result["seed"]) for result in results)
    lines = [
        *table(["", *(metric.title for metric in metrics), "λ, by seed"], rows),
        "",
        f"Mean over {len(results)} seeds (lowest–highest); below it the difference to the Pilot with its 95 % "
        "interval, in bold where it excludes 0. The interval is a paired bootstrap over the examples of all seeds, "
        "taken as independent; it does not cover what another training seed would change.",
        "",
        provenance(results, f"{command} --seeds {seeds}"),
    ]
    return "\n".join(lines)


def mawps(folder: Path) -> str:
    return quality(folder, "mawps", MAWPS, "python benchmarks/quality/mawps.py --data DATA --pilot PILOT")


def lastfm(folder: Path) -> str:
    return quality(folder, "lastfm", LASTFM, "python benchmarks/quality/lastfm.py --data LastFM.txt")


SECTIONS: dict[str, Callable[[Path], str]] = {
    "kernels": kernels,
    "overhead": overhead,
    "mawps": mawps,
    "lastfm": lastfm,
}


def rewrite(text: str, folder: Path) -> str:
    """`text` with the sections it has markers for made anew from the results in `folder`.

    Raises:
        ValueError: a begin without its end, or the reverse.
    """
    for name, section in SECTIONS.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if begin not in text and end not in text:
            continue
        body = f"{begin}\n{section(folder)}\n{end}"
        text, count = re.subn(f"{begin}.*?{end}", lambda _, body=body: body, text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"README must hold {begin} and then {end}, once each; found {count} such sections")
    return text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if README is not up to date")
    check = parser.parse_args(arguments).check
    before = README.read_text(encoding="utf-8")
    after = rewrite(before, RESULTS)
    if check and after != before:
        print("README.md is not up to date with benchmarks/results: run python benchmarks/report.py", file=sys.stderr)
        return 1
    if not check:
        README.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
