"""The package builds: facts of the compiled extension, what is said when it cannot be used, contents of the wheel."""

import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import setuptools
import torch
from instruction_sets import kernels_of
from torch.utils import cpp_extension

import copilot
from copilot import build_info
from copilot.ops import extension

ROOT = Path(__file__).parents[1]
BUILD = build_info()

needs_extension = pytest.mark.skipif("version" not in BUILD, reason=f"no extension: {BUILD.get('reason')}")


@needs_extension
def test_extension_has_the_version_of_the_installed_package() -> None:
    assert BUILD["version"] == importlib.metadata.version("transformer-copilot")


@needs_extension
def test_extension_was_built_with_a_supported_torch() -> None:
    major, minor, *_ = BUILD["torch"].split(".")
    assert (2, 11) <= (int(major), int(minor)) < (2, 14)


@needs_extension
def test_extension_names_its_compiler_standard_and_build_type() -> None:
    assert BUILD["compiler"].split()[0] in ("GCC", "Clang")
    assert int(BUILD["cxx_standard"].rstrip("L")) >= 201703
    assert BUILD["build_type"] in ("release", "debug")


@needs_extension
def test_extension_lists_the_gpus_that_it_was_built_for() -> None:
    assert (BUILD["cuda_arch_list"] == "none") == (BUILD["cuda"] == "none")


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is a build for CUDA")
@pytest.mark.parametrize(
    ("choice", "message"),
    [("1", r"COPILOT_CUDA=1, but .*build without CUDA: install one"), ("yes", "must be 'auto', '0' or '1'; got 'yes'")],
)
def test_cuda_kernels_that_cannot_be_built_are_an_error_where_they_are_wanted(choice: str, message: str) -> None:
    environment = os.environ | {"COPILOT_CUDA": choice}
    command = [sys.executable, "setup.py", "--version"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert re.search(message, ended.stderr)


@pytest.fixture
def run_setup(monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[dict[str, Any], dict[str, Any]]]:
    """Runs setup.py, for the CPU; gives what it defines, and what it hands to setuptools instead of building it."""

    def run() -> tuple[dict[str, Any], dict[str, Any]]:
        handed: dict[str, Any] = {}
        monkeypatch.setattr(setuptools, "setup", lambda **arguments: handed.update(arguments))
        monkeypatch.setenv("COPILOT_CUDA", "0")
        monkeypatch.chdir(ROOT)
        return runpy.run_path("setup.py"), handed

    return run


@pytest.mark.parametrize(
    ("listed", "expected"),
    [(None, "8.0;9.0+PTX"), ("", "8.0;9.0+PTX"), ("8.6", "8.6"), ("Hopper", "Hopper"), ("native", "8.9;12.0")],
)
def test_the_gpus_to_build_for_are_known_when_they_are_recorded(
    run_setup: Any, monkeypatch: pytest.MonkeyPatch, listed: str | None, expected: str
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed or "")
    if listed is None:
        monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", [(12, 0), (8, 9), (12, 0)].__getitem__)
    architectures = run_setup()[0]["architectures"]
    monkeypatch.setitem(architectures.__globals__, "nvcc", lambda _: "compute_75\ncompute_80\ncompute_90\n")
    assert architectures() == os.environ["TORCH_CUDA_ARCH_LIST"] == expected


def test_a_binary_is_built_anew_also_without_ninja(run_setup: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp_extension, "is_ninja_available", lambda: False)
    command = setuptools.Distribution(run_setup()[1]).get_command_obj("build_ext")
    command.ensure_finalized()
    assert command.force


def test_on_windows_the_package_is_built_without_kernels(
    run_setup: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(run_setup()[1]["ext_modules"]) == 1
    monkeypatch.setattr(sys, "platform", "win32")
    assert run_setup()[1]["ext_modules"] == []
    assert "need GCC or Clang" in capsys.readouterr().out


@needs_extension
def test_the_reference_passes_the_tests_of_the_operations() -> None:
    """Of all but the frequencies of a million draws."""
    tests = sorted(ROOT.glob("tests/test_ops_*.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "-k", "not million"]
    environment = os.environ | {"COPILOT_KERNELS": "reference"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_kernels_in_use_are_named() -> None:
    if extension.LOADED:
        assert BUILD["kernels"] == "compiled"
        assert BUILD["cpu_kernels"] == kernels_of(os.environ.get("COPILOT_CPU"))
    else:
        assert BUILD["kernels"] == "reference"
        assert BUILD["reason"]


@needs_extension
def test_a_binary_tells_what_it_was_built_with_though_it_cannot_be_loaded(tmp_path: Path) -> None:
    (binary, *_) = Path(copilot.__file__).parent.glob("_C.*")
    (tmp_path / "_C.of-another-python.so").write_bytes(b"no ELF file" + binary.read_bytes()[16:])
    facts = extension.built_with(tmp_path)
    assert facts["torch"] == BUILD["torch"]
    assert facts["python"] == BUILD["python"]
    assert set(facts) == {
        "version",
        "torch",
        "python",
        "compiler",
        "cxx_standard",
        "build_type",
        "cuda",
        "cuda_arch_list",
    }


def test_without_a_binary_nothing_was_built(tmp_path: Path) -> None:
    assert extension.built_with(tmp_path) == {}


def test_a_binary_without_facts_is_one_of_an_unknown_build(tmp_path: Path) -> None:
    (tmp_path / "_C.so").write_bytes(b"anything")
    assert extension.built_with(tmp_path) == {}


def load_with_message(monkeypatch: pytest.MonkeyPatch) -> tuple[str | None, str]:
    """Why loading failed, and the text of its only warning."""
    monkeypatch.delenv("COPILOT_KERNELS", raising=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        problem = extension._load()
    (warning,) = caught
    return problem, str(warning.message)


@needs_extension
def test_a_failed_import_says_once_what_was_built_what_was_found_and_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "copilot._C", None)
    problem, message = load_with_message(monkeypatch)
    assert problem is not None
    assert problem in message
    assert f"Built with: version {BUILD['version']}, torch {BUILD['torch']}, python {BUILD['python']}" in message
    assert f"Found: torch {torch.__version__}, Python {sys.version.split()[0]}" in message
    assert re.search(r"Fix: pip install .*\bpybind11 ninja && pip install ", message)
    assert "COPILOT_KERNELS=reference" in message


def test_a_missing_binary_is_an_unknown_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "copilot._C", None)
    monkeypatch.setattr(extension, "built_with", dict)
    assert "Built with: unknown. Found: torch" in load_with_message(monkeypatch)[1]


def test_a_binary_that_tells_less_than_this_version_does_is_named_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "copilot._C", None)
    monkeypatch.setattr(extension, "built_with", lambda: {"version": "0.0.1"})
    assert "Built with: version 0.0.1. Found: torch" in load_with_message(monkeypatch)[1]


@pytest.mark.skipif(not extension.LOADED, reason="needs the kernels")
def test_a_binary_that_lacks_an_operator_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "OPERATORS", (*extension.OPERATORS, "of_the_next_version"))
    problem, message = load_with_message(monkeypatch)
    assert problem == "the binary is of another version, without of_the_next_version"
    assert problem in message


def test_the_reference_is_chosen_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPILOT_KERNELS", "reference")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert extension._load() == "COPILOT_KERNELS=reference"


@pytest.mark.parametrize(
    ("architectures", "runs_on", "does_not_run_on"),
    [
        ("none", [], [(8, 0), (9, 0)]),
        ("", [], [(8, 0), (9, 0)]),
        ("9.0", [(9, 0)], [(8, 0), (8, 9), (10, 0)]),
        ("9.0a", [(9, 0)], [(10, 0)]),
        ("9.0a+PTX", [(9, 0)], [(10, 0)]),
        ("10.0a;12.0a", [(10, 0), (12, 0)], [(10, 3), (12, 1)]),
        ("10.0f", [(10, 0), (10, 3)], [(9, 0), (12, 0)]),
        ("8.0;9.0", [(8, 0), (8, 6), (8, 9), (9, 0)], [(7, 5), (10, 0)]),
        ("8.6 9.0+PTX", [(8, 6), (8, 9), (9, 0), (10, 0), (12, 1)], [(8, 0), (7, 5)]),
        ("8.0;8.6;8.9;9.0;10.0;12.0+PTX", [(8, 7), (10, 3), (12, 1)], [(7, 5), (11, 0)]),
        ("Hopper", [(9, 0)], []),
    ],
)
def test_a_build_runs_on_the_gpus_it_has_code_for(
    architectures: str, runs_on: list[tuple[int, int]], does_not_run_on: list[tuple[int, int]]
) -> None:
    assert all(extension.has_code_for(architectures, *gpu) for gpu in runs_on)
    assert not any(extension.has_code_for(architectures, *gpu) for gpu in does_not_run_on)


def test_a_gpu_without_kernels_costs_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "CUDA", False)
    extension._look_up_gpu.cache_clear()
    with pytest.warns(UserWarning, match=r"compute capability 9\.0 needs a build for it.*plain torch"):
        assert not extension._run_on_gpu(9, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not extension._run_on_gpu(9, 0)
        assert not extension._run_on_gpu(7, 5)  # for which no build helps
    extension._look_up_gpu.cache_clear()


@pytest.mark.parametrize("name", ["COPILOT_KERNELS", "COPILOT_CPU"])
def test_an_unknown_choice_of_kernels_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "fastest")
    with pytest.raises(ValueError, match=rf"^{name} must be one of .*'fastest'"):
        extension._load()


@needs_extension
def test_extension_is_imported_by_a_process_that_has_not_imported_torch() -> None:
    code = "from copilot.environment import build_info; print(build_info()['torch'])"
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert printed.strip() == BUILD["torch"]


@pytest.mark.slow
def test_wheel_of_a_source_distribution_holds_every_python_file_and_the_extension(tmp_path: Path) -> None:
    pytest.importorskip("pybind11", reason="the extension cannot be built without pybind11")
    source = tmp_path / "source"
    for name in ("copilot", "csrc"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip_wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", tmp_path], cwd=source, check=True)
    (distribution,) = tmp_path.glob("*.tar.gz")
    subprocess.run([*pip_wheel, "--wheel-dir", tmp_path, distribution], check=True)

    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    python_files = {path.relative_to(source).as_posix() for path in (source / "copilot").rglob("*.py")}
    assert python_files | {"copilot/py.typed"} <= names
    assert any(name.startswith("copilot/_C.") for name in names)
    assert not any(name.startswith(("tests/", "csrc/")) for name in names)
