"""What the benchmarks share: writing figures down together with what they were measured on."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from copilot.environment import environment


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, metavar="DIR", help="write the figures to DIR; without it nothing is kept")


def pytest_configure() -> None:
    """Lets the process keep the memory that it frees, for all variants alike, as the allocator of a GPU does.

    Otherwise glibc gives large tensors back to the system, in some runs and not in others, and zeroing the pages of new
    ones takes longer than what is measured.
    """
    if sys.platform == "linux":
        trim_threshold, mmap_max = -1, -4  # malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


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
