"""The package builds: facts of the compiled extension, contents of the wheel."""

import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from copilot.environment import build_info

ROOT = Path(__file__).parents[1]
BUILD = build_info()

needs_extension = pytest.mark.skipif(BUILD.get("extension") == "absent", reason=f"no extension: {BUILD.get('reason')}")


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
    assert BUILD["cxx_standard"] >= 201703
    assert BUILD["build_type"] in ("release", "debug")


@needs_extension
def test_extension_without_kernels_for_cuda_lists_no_architecture() -> None:
    assert BUILD["cuda_arch_list"] is None


@needs_extension
def test_extension_is_imported_by_a_process_that_has_not_imported_torch() -> None:
    code = "from copilot.environment import build_info; print(build_info()['torch'])"
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert printed.strip() == BUILD["torch"]


@pytest.mark.slow
def test_wheel_holds_every_python_file_the_extension_and_the_type_marker(tmp_path: Path) -> None:
    pytest.importorskip("pybind11", reason="the extension cannot be built without pybind11")
    source = tmp_path / "source"
    for name in ("copilot", "csrc"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip_wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip_wheel, "--wheel-dir", tmp_path, source], check=True)

    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    python_files = {path.relative_to(source).as_posix() for path in (source / "copilot").rglob("*.py")}
    assert python_files | {"copilot/py.typed"} <= names
    assert any(name.startswith("copilot/_C.") for name in names)
    assert not any(name.startswith(("tests/", "csrc/")) for name in names)
