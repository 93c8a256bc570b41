"""The pages' tables and figures, from the committed results: python benchmarks/report.py [--check]

Rewrites what stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->` in the pages, for every NAME of `SECTIONS`
that they have. --check changes nothing and fails if something would change.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from report_overview import overview
from report_parts import NOT_MEASURED, plural, provenance, table
from report_quality import draw_quality, quality, theorem
from report_summary import draw_summary, summary, verdicts

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
PAGES = [
    *(ROOT / "README.md", BENCHMARKS / "README.md"),
    *(BENCHMARKS / "quality" / name for name in ("FINDINGS.md", "TABLES.md")),
]
RESULTS = ROOT / "benchmarks" / "results"

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


def is_scattered(case: dict[str, Any]) -> bool:
    """Whether the Pilot's own times, p20 to p80, lie further apart than what a Copilot adds to them."""
    low, _, high = case["variants"]["Pilot"]["seconds"]
    return high > 1.5 * low


def heading(results: Iterable[dict[str, Any]]) -> str:
    """The device that results are of."""
    facts = next(iter(results))["environment"]
    return f"{facts['device']}, {plural(facts['threads'], 'thread')}"


def overhead(folder: Path) -> str:
    """One table a device: the Pilot's times, and those of every variant as multiples of them."""
    parts = []
    for path in sorted(folder.glob("*/overhead.json")):
        result = json.loads(path.read_text())
        pilot = result["pilot"]
        cases = {name: case for name, case in result["cases"].items() if not is_scattered(case)}
        scattered = [name for name in result["cases"] if name not in cases]
        names = dict.fromkeys(name for case in cases.values() for name in case["variants"])
        rows = [
            [name, *(cost(name, case["variants"][name]) if name in case["variants"] else "" for case in cases.values())]
            for name in names
        ]
        rounds = ", ".join(str(case["rounds"]) for case in cases.values())
        where = f"benchmarks/results/{path.parent.name}"
        lines = [
            f"**{heading([result])}.** Pilot: {pilot['model_type']}, {pilot['layers']} layers, "
            f"{pilot['parameters'] / 1e6:.0f} M parameters, V = {pilot['vocab_size']}. Its times, and those of the "
            "pairs as multiples of them: median (p20–p80) of interleaved rounds.",
            "",
            *table(["", *cases], rows),
            "",
            f"Training: {result['settings']['training']}. Decoding: {result['settings']['decoding']}; prompt is the "
            "time to the first of them, token that of each later one. Floors: the ratio of the floating-point "
            "operations of the matrix products (training), of the bytes of parameters read (token); a ratio may be "
            "below where the Pilot is further from its own floor. "
            f"Rounds: {rounds}." + (f" Too scattered to be shown: {', '.join(scattered)}." if scattered else ""),
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


KERNEL_TABLES = [("rectify", "rectify_sample"), ("mistake_cross_entropy", "candidate_loss"), ("pool_layers",)]
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
    """One table a device: the kernels' times, and those of what they replace as multiples of them.

    Of the CPUs that of `cpu` alone.
    """
    parts = []
    of_devices = {path.parent for name in KERNEL_CASES for path in folder.glob(f"*/{name}.json")}
    for device in sorted(path for path in of_devices if not path.name.startswith("cpu-")):
        paths = [device / f"{name}.json" for name in KERNEL_CASES]
        results = {path.stem: json.loads(path.read_text()) for path in paths if path.exists()}
        cases = {
            f"`{name}`, {case}": result["cases"][case]
            for name, result in results.items()
            for case in KERNEL_CASES[name]
        }
        command = f"python -m pytest benchmarks/bench_*.py --benchmark-only --results benchmarks/results/{device.name}"
        lines = [
            f"**{heading(results.values())}.** First the kernel's time, then how many times as long the others take: "
            "median (p20–p80) of interleaved rounds. Of the copy it is the share of its bandwidth that the kernel "
            f"reaches; the largest copy moves {bandwidth(cases.values())}.",
            "",
        ]
        for group in KERNEL_TABLES:
            shown = {name: case["variants"] for name, case in cases.items() if name.split("`")[1] in group}
            columns = dict.fromkeys(name for of_case in shown.values() for name in of_case if name != "kernel")
            rows = [
                [name, duration(*of_case["kernel"]["seconds"]), *(multiple(of_case.get(column)) for column in columns)]
                for name, of_case in shown.items()
            ]
            lines += [*table(["", "kernel", *columns], rows), ""] if rows else []
        lines.append(provenance(list(results.values()), command))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or NOT_MEASURED


# Rows of the ranges: an operation, how the names of its cases end, which of its variants, what that is compared with.
REPLACED = ["eager", "torch.compile", "reference", "reference, torch.compile", COPY]
OVERWRITING = "kernel, overwriting the logits"
RANGES = [
    ("rectify", "32 candidates", "kernel", REPLACED),
    ("rectify", "dense", "kernel", REPLACED),
    ("rectify_sample", "greedy", "kernel", REPLACED),
    ("rectify_sample", "temperature 0.8", "kernel", REPLACED),
    ("rectify_sample", "top-p 0.95", "kernel", REPLACED),
    ("mistake_cross_entropy", "", "kernel", REPLACED),
    ("mistake_cross_entropy", "", OVERWRITING, REPLACED[:-1]),  # the copy writes to memory of its own
    ("candidate_loss", "32 candidates", "kernel", REPLACED),
    ("candidate_loss", "whole vocabulary of 128256", "kernel", REPLACED),
    ("pool_layers", "", "kernel", REPLACED),
]


def ranges(folder: Path) -> str:
    """One table a device: where the times of what the kernels replace lie over all cases, as multiples of theirs."""
    parts = []
    for device in sorted(path.parent for path in folder.glob("*/rectify.json")):
        results = {name: json.loads((device / f"{name}.json").read_text()) for name in KERNEL_CASES}
        rows = []
        for name, ending, variant, others in RANGES:
            shown = [case["variants"] for title, case in results[name]["cases"].items() if title.endswith(ending)]
            cells = [
                spread([of[other]["ratio"][1] / of[variant]["ratio"][1] for of in shown if other in of])
                for other in others
            ]
            title = ", ".join(filter(None, [f"`{name}`", ending, variant.removeprefix("kernel").strip(", ")]))
            rows.append([f"{title} ({plural(len(shown), 'case')})", *cells])
        command = f"python -m pytest benchmarks/bench_*.py --benchmark-only --results benchmarks/results/{device.name}"
        found = [f"**{heading(results.values())}**", "", *table(["", *REPLACED], rows), ""]
        parts.append("\n".join([*found, provenance(list(results.values()), command)]))
    return "\n\n".join(parts) or NOT_MEASURED


def spread(ratios: list[float]) -> str:
    """The least and the largest of some ratios."""
    low, high = (f"{bound:.2f}" for bound in (min(ratios), max(ratios))) if ratios else ("", "")
    return low if low == high else f"{low}–{high}"


LASTFM = (
    *("lastfm", "ablation_lastfm", "combined_lastfm", "context_lastfm"),
    *("tuned_lastfm", "tuned_lastfm_ndcg", "tuned_copilot_lastfm"),
)
SECTIONS: dict[str, Callable[[Path], str]] = {
    "kernels": kernels,
    "ranges": ranges,
    "overhead": overhead,
    "summary": summary,
    "verdicts": verdicts,
    "overview": overview,
    "theorem": partial(theorem, name="lastfm", about="--data LastFM.txt"),
    **{name: partial(quality, name=name, about="--data LastFM.txt") for name in LASTFM},
    **{
        name: partial(quality, name=name, about="--data DATA")
        for name in (
            *("equations", "transfer_equations", "ablation_equations"),
            *("combined_equations", "context_equations", "tuned_equations", "tuned_copilot_equations"),
        )
    },
    **{
        name: partial(quality, name=name, about="--data DATA --pilot PILOT")
        for name in (
            *("mawps", "combined_mawps", "tuned_mawps", "tuned_copilot_mawps", "ablation"),
            *("openbookqa", "openbookqa_full", "boolq", "gsm8k", "gsm8k_full"),
        )
    },
}
# results/quality/NAME.png; None where there are no results.
FIGURES: dict[str, Callable[[Path], Any]] = {"summary": draw_summary, "mawps": partial(draw_quality, name="mawps")}


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
            raise ValueError(f"a page must hold {begin} and then {end}, once each; found {count} such sections")
    return text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a page is not up to date")
    check = parser.parse_args(arguments).check
    stale = []
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = rewrite(before, RESULTS)
        if after != before:
            stale.append(page.name)
        if not check:
            page.write_text(after, encoding="utf-8")
    if check and stale:
        names = " and ".join(stale)
        print(f"not up to date with benchmarks/results: {names}; run python benchmarks/report.py", file=sys.stderr)
        return 1
    if not check:
        for name, draw in FIGURES.items():
            if (figure := draw(RESULTS)) is not None:
                figure.savefig(RESULTS / "quality" / f"{name}.png", dpi=150)
    return 0


if __name__ == "__main__":
    sys.exit(main())
