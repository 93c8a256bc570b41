"""What README's generated sections share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

NOT_MEASURED = "Not measured yet."

Result = dict[str, Any]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, its first column to the left and the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)]


def plural(count: float, name: str) -> str:
    return f"{count:g} {name}" if count == 1 else f"{count:g} {name}s"


def provenance(results: Sequence[Result], command: str) -> str:
    """One line: on what the results were measured, at which commits, and how to get them again."""
    commits: dict[str, list[str]] = {}  # by where they were measured
    for result in results:
        facts = result["environment"]
        device = f"{facts['device']}, {facts['threads']} {'thread' if facts['threads'] == 1 else 'threads'}"
        place = f"{device}, torch {facts['torch']}, transformers {facts['transformers']}"
        if "pilot_dtype" in result:
            place += f", Pilot in {result['pilot_dtype']}"
        commits.setdefault(place, []).append(result["commit"][:10])
    found = [f"{place}, commit {', '.join(dict.fromkeys(of_place))}" for place, of_place in commits.items()]
    return f"Measured on {'; '.join(found)}. Reproduce: `{command}`"


def places(results: Sequence[Result]) -> str:
    """The same in short, where the results of many experiments stand together."""
    devices = ", ".join(dict.fromkeys(result["environment"]["device"] for result in results))
    command = "python benchmarks/quality/run.py benchmarks/quality/TASK.yaml --data DATA --out runs/quality"
    return f"Measured on {devices}; versions and commits are in each result. Reproduce: `{command}`"
