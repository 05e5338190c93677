"""What the README tells a reader to type or to look at exists."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = "\n".join(re.findall(r"^```sh\n(.*?)^```", README, re.S | re.M))
COMMANDS = [shlex.split(line, comments=True) for line in SHELL.splitlines() if line.startswith("python -m ")]


def section(title: str) -> str:
    """The text between a heading and the next."""
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[2])
def test_every_command_has_help_and_the_options_that_are_shown(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(words[2])
    monkeypatch.setattr(sys, "argv", [words[2], "--help"])
    with pytest.raises(SystemExit) as end:
        module.main()
    out, err = capsys.readouterr()
    assert end.value.code in (0, None) and err == "" and out.startswith(f"usage: python -m {words[2]}")
    for option in (word for word in words[3:] if word.startswith("--")):
        assert re.search(rf"^ +{option}\b", out, re.M), f"{words[2]} has no {option}"


def test_the_readme_shows_every_stage() -> None:
    shown = {words[2] for words in COMMANDS}
    assert {"train.collect", "train.distill", "export.onnx", "export.verify", "runtime.generate"} <= shown


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.M))
    assert {"demo", "try", "test"} <= named
    assert [name for name in sorted(named) if not re.search(rf"^{name}:", makefile, re.M)] == []


def files_named() -> list[str]:
    """What the Files section names: folders, and in them modules and packages, these with a slash at the end."""
    folder, names = "", []
    for line in section("Files").split("```")[1].strip("\n").splitlines():
        head, *rest = re.split(r" {2,}", line)
        if head:
            folder = head
            names.append(folder)
        modules = folder in ("runtime/", "train/", "export/")
        inside = rest[0].split() if modules else re.findall(r"(\w+)\.py\b", line)
        names += [folder + name + ("" if name.endswith("/") else ".py") for name in inside]
    return names


def test_the_files_section_names_what_exists_and_every_module_once() -> None:
    named = files_named()
    assert [name for name in named if not (ROOT / name).exists()] == []
    modules = {
        f"{folder}/{path.name}" + ("/" if path.is_dir() else "")
        for folder in ("runtime", "train", "export")
        for path in (ROOT / folder).iterdir()
        if (path.is_dir() and (path / "__init__.py").exists()) or (path.suffix == ".py" and path.stem != "__init__")
    }
    assert len(modules) > 60 and sorted(name for name in named if name in modules) == sorted(modules)


def test_links_and_pages_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", README) if "://" not in link]
    pages = re.findall(r"`([\w./-]+\.md)`", README)
    assert pages and [name for name in (*links, *pages) if not (ROOT / name).exists()] == []


def test_the_table_of_methods_is_the_study_s() -> None:
    page = (ROOT / "samples" / "results" / "study.md").read_text(encoding="utf-8")
    table = next(part for part in page.split("\n\n") if part.startswith("|"))
    assert "| threshold |" in table and table.count("\n") > 10 and table in section("Numbers")
