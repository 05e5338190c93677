"""`import runtime` needs numpy and no other library, and works as `blockstep` beside a foreign `runtime`."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "onnx", "onnxruntime", "tokenizers", "jinja2", "safetensors"}
HEAVY |= {"starlette", "uvicorn", "prometheus_client", "cffi"}
HEAVY |= {"tensorrt", "tensorrt_rtx", "polygraphy"}  # a .pth of cuda-bindings loads `cuda` with the interpreter
# Whose purpose is one library, or which is a command that needs it.
MAY_IMPORT = {
    "engines.ort.no_telemetry": {"onnxruntime"},
    "engines.ort.ort_backend": {"onnxruntime"},
    "engines.ort.ort_session": {"onnxruntime"},
    "engines.ort.ort_files": {"onnxruntime"},
    "engines.ort.io_binding": {"onnxruntime"},
    "engines.ort.ort_values": {"onnxruntime"},
    "engines.ort.saturation": {"onnxruntime"},
    "text.tokenizer": {"tokenizers"},
    "text.terminal": {"tokenizers"},
    "generate": {"tokenizers"},
}
ELSEWHERE = ("server", "c")  # rooms of a web framework and of cffi
MODULES = sorted(
    ".".join(path.relative_to(ROOT / "runtime").with_suffix("").parts)
    for path in (ROOT / "runtime").rglob("[!_]*.py")
    if path.relative_to(ROOT / "runtime").parts[0] not in ELSEWHERE
)


def loaded_by(code: str, folder: Path) -> set[str]:
    """The packages that a fresh interpreter has after running `code` in a folder."""
    report = "import sys, json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    line = [sys.executable, "-c", f"{code}\n{report}"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


# Each in a child of its own of a process that has numpy alone: an interpreter for each would take ten times as long.
EACH = """
import importlib, json, os, sys, numpy
for name in sys.argv[1:]:
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, name
        continue
    importlib.import_module(f"runtime.{name}")
    print(json.dumps([name, sorted({name.partition(".")[0] for name in sys.modules})]), flush=True)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """The packages that each module of the runtime brings with it."""
    done = subprocess.run([sys.executable, "-c", EACH, *MODULES], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name: set(packages) for name, packages in map(json.loads, done.stdout.splitlines())}


def test_import_runtime_loads_numpy_and_the_standard_library_alone() -> None:
    bare, full = loaded_by("import numpy", ROOT), loaded_by("import runtime; runtime.load, runtime.Model", ROOT)
    assert full - bare - {"runtime"} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_loads_no_library_that_is_not_its_purpose(module: str, loaded: dict[str, set[str]]) -> None:
    assert "numpy" in loaded[module] and loaded[module] & HEAVY <= MAY_IMPORT.get(module, set())


@pytest.mark.parametrize("folder", ["runtime", "train", "export"])
def test_the_packages_that_are_installed_are_the_folders_there_are(folder: str) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = {name for name in settings["packages"] if name.partition(".")[0] == folder}
    paths = {path.parent for path in (ROOT / folder).rglob("*.py")}
    assert packages == {".".join(path.relative_to(ROOT).parts) for path in paths}
    assert all((path / "__init__.py").is_file() for path in paths)
    assert len([*(ROOT / folder).glob("[!_]*.py")]) <= 18, "too many modules at the top to choose among by name"
    if folder == "runtime":
        twins = {name for name in settings["packages"] if name.partition(".")[0] == "blockstep"}
        assert twins == {name.replace("runtime", "blockstep", 1) for name in packages}


def test_the_package_works_as_blockstep_beside_a_foreign_runtime(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "runtime", tmp_path / "blockstep", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "__init__.py").write_text("theirs = True\n")
    code = "\n".join(
        [
            "import sys; sys.path[:] = [p for p in sys.path if not p.endswith('site-packages')] + sys.path",
            "import runtime, blockstep",
            *(f"import blockstep.{module}" for module in [*MODULES, "server.app", "c.embedded"]),
            "assert runtime.theirs and not any(name.startswith('runtime.') for name in sys.modules)",
            f"assert blockstep.__file__.startswith({str(tmp_path)!r})",
            "assert blockstep.UserError is blockstep.errors.UserError",
        ]
    )
    assert {"blockstep", "runtime"} <= loaded_by(code, tmp_path)


def test_a_command_under_the_other_name_calls_itself_so(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "runtime", tmp_path / "blockstep", ignore=shutil.ignore_patterns("__pycache__"))
    line = [sys.executable, "-m", "blockstep.generate", "--help"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: python -m blockstep.generate")


NEWER_TYPING = {"Never", "NotRequired", "Required", "Self", "TypeVarTuple", "Unpack", "assert_never", "override"}


@pytest.mark.parametrize("path", sorted((ROOT / "runtime").rglob("*.py")), ids=lambda path: path.stem)
def test_the_runtime_is_written_for_python_3_10_which_a_jetson_has(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))
    imported = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "typing"]
    assert not NEWER_TYPING & {alias.name for node in imported for alias in node.names}
