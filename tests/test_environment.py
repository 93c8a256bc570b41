"""The environment report holds what a bug report needs, with the extension and without it."""

import importlib
import platform

import pytest
import torch

import copilot
from copilot.environment import build_info, environment, environment_text
from copilot.ops import extension


@pytest.fixture
def without_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "NOT_LOADED_BECAUSE", "No module named 'copilot._C'")


def test_versions_are_those_of_the_running_process() -> None:
    facts = environment()
    assert facts["python"] == platform.python_version()
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    for package in ("datasets", "tokenizers", "safetensors"):
        assert facts[package] == importlib.import_module(package).__version__
    assert facts["transformer-copilot"] == copilot.__version__
    assert "lm-eval" in facts


def test_a_package_that_is_not_installed_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("copilot.environment._REPORTED_PACKAGES", ("no-such-package-of-ours",))
    assert environment()["no-such-package-of-ours"] == "not installed"


def test_device_names_the_gpu_or_the_instruction_set_of_the_cpu() -> None:
    expected = torch.cuda.get_device_name(0) if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    assert expected in environment()["device"]


def test_an_absent_extension_is_reported_with_its_reason(without_extension: None) -> None:
    info = build_info()
    assert info["kernels"] == "reference"
    assert "_C" in info["reason"]


def test_text_has_one_line_a_fact() -> None:
    facts = environment()
    text = environment_text()
    assert len(text.splitlines()) == len(facts) - 1 + len(facts["build"])
    assert f"torch {torch.__version__}" in " ".join(text.split())


def test_text_is_written_without_the_extension_too(without_extension: None) -> None:
    assert "build: reason" in environment_text()
