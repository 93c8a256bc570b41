"""The experiments of benchmarks/quality, in small."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from builders import tiny_pilot

QUALITY = Path(__file__).resolve().parents[1] / "benchmarks" / "quality"
MODULES = ("models", "tasks", "equations", "training", "run", "theorem", "ensemble")


@contextmanager
def quality_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The modules of benchmarks/quality, which are scripts and in no package."""
    monkeypatch.syspath_prepend(str(QUALITY))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    for name in MODULES:
        sys.modules.pop(name)


def run_experiment(quality: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, facts: Any, *arguments: str) -> Path:
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(facts))
    out = tmp_path / "results"
    monkeypatch.setattr(sys, "argv", ["run.py", str(path), "--out", str(out), *arguments])
    quality.run.main()
    return out / "toy"


def saved_pilot(folder: Path, tokenizer: Any) -> str:
    """A folder with a tiny Pilot and its tokenizer."""
    tiny_pilot(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
