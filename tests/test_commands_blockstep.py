"""The command `blockstep`: its sub-commands, in a project with modules of the same names, and what it refuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import subcommands
from runtime.subcommands import COMMANDS, main

ROOT = Path(__file__).parent.parent


def test_each_module_with_a_main_is_a_sub_command() -> None:
    paths = [path for folder in subcommands.OWN for path in (ROOT / folder).glob("*.py")]
    found = {f"{path.parent.name}.{path.stem}" for path in paths if "\ndef main(argv" in path.read_text()}
    assert found - {"runtime.subcommands"} == {module for module, _ in COMMANDS.values()}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_sub_command_tells_its_options_under_the_name_it_was_called_by(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/local/bin/blockstep"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as stopped:
        main([*name.split(), "--help"])
    assert stopped.value.code == 0 and capsys.readouterr().out.startswith(f"usage: blockstep {name} [")


def test_without_a_command_all_of_them_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in COMMANDS)
    assert main(["--version"]) == 0 and capsys.readouterr().out.startswith("blockstep ")


@pytest.mark.parametrize("group", ["train", "export"])
@pytest.mark.parametrize("option", [[], ["-h"], ["--help"]])
def test_a_group_alone_lists_its_commands(group: str, option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([group, *option]) == 0
    listed = capsys.readouterr().out
    assert listed.startswith(f"usage: blockstep {group} COMMAND [options]\n")
    lines = [line.strip() for line in listed.splitlines() if line.startswith("  ")]
    expected = [(name, what) for name, (_, what) in COMMANDS.items() if name.split()[0] == group]
    assert [re.split(" {2,}", line) for line in lines] == [list(pair) for pair in expected]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["student.bundle", "a prompt"], "'student.bundle' is not a command; expected one of generate, serve"),
        (["train", "distil"], "'train distil' is not a command; expected one of train teacher, train collect"),
        (["export", "onxx", "--ckpt"], "'export onxx' is not a command; expected one of export onnx"),
        (["--ckpt"], "'--ckpt' is not a command"),
    ],
)
def test_what_is_no_command_is_one_line(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    got = capsys.readouterr().err
    assert got.startswith(f"error: {expected}") and got.count("\n") == 1


@pytest.mark.parametrize("name", ["generate", "train collect", pytest.param("export onnx", marks=pytest.mark.long)])
def test_a_project_with_modules_of_the_same_names_is_left_alone(name: str, tmp_path: Path) -> None:
    """Its folder first on the path, as PYTHONPATH=. has it; the user's modules would print and end."""
    if name != "generate":
        pytest.importorskip("torch")
    for mine in ("train.py", "export.py", "runtime/__init__.py"):
        (tmp_path / mine).parent.mkdir(exist_ok=True)
        (tmp_path / mine).write_text("raise SystemExit('the user\\'s own code ran')\n")
    script = "import importlib.util, sys\n"
    script += f"spec = importlib.util.spec_from_file_location('blockstep', {str(ROOT / 'runtime' / '__init__.py')!r})\n"
    script += "sys.modules['blockstep'] = package = importlib.util.module_from_spec(spec)\n"
    script += "spec.loader.exec_module(package)\n"
    script += "from blockstep.subcommands import main\nsys.argv[0] = 'blockstep'\nsys.exit(main())\n"
    line = [sys.executable, "-c", script, *name.split(), "--help"]
    done = subprocess.run(
        line, cwd=tmp_path, env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.startswith(f"usage: blockstep {name} ["), done.stderr


def test_a_library_that_is_missing_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COMMANDS, "train collect", ("train.lacking", ""))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(
        subcommands, "import_module", lambda name: (_ for _ in ()).throw(ModuleNotFoundError(name=name and "torch"))
    )
    assert main(["train", "collect"]) == 2
    assert capsys.readouterr().err == (
        "error: blockstep train collect needs torch, which is not installed; pip install 'blockstep[cpu,train]'\n"
    )
