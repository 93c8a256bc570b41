"""What the benchmarks share: writing figures down together with what they were measured on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from copilot.environment import environment


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, metavar="DIR", help="write the figures to DIR; without it nothing is kept")


@pytest.fixture(scope="session")
def write_results(pytestconfig: pytest.Config) -> Callable[[str, dict[str, Any]], None]:
    """`write_results(name, figures)` writes DIR/name.json with date, commit and environment, if --results names DIR."""
    folder: Path | None = pytestconfig.getoption("--results")

    def write(name: str, figures: dict[str, Any]) -> None:
        if folder is None:
            return
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        date = datetime.now(UTC).date().isoformat()
        facts = {"date": date, "commit": head.stdout.strip(), "environment": environment()}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(facts | figures, indent=1) + "\n")

    return write
