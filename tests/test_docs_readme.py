"""What README and pages tell a reader to type, to open or to look at exists. test_docs_commands.py runs them."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pages import PAGES, ROOT, WALKED, blocks, find_missing_lines, make_slug, read

from runtime.subcommands import COMMANDS

RUN = {
    "README.md": 1, "samples/README.md": 0, "docs/bundle-format.md": 1, "docs/checkpoints.md": 0, "docs/concepts.md": 2,
    "docs/decision-probabilities.md": 2, "docs/decisions.md": 6,
    "docs/distil.md": 4, "docs/embed.md": 2, "docs/glossary.md": 0, "docs/jetson.md": 1, "docs/parity.md": 3,
    "docs/performance.md": 2, "docs/scale.md": 0, "docs/serve.md": 4, "docs/study.md": 0,
}  # fmt: skip
FOLDERS = "runtime|train|export|samples|tests|docs"
MODULES = re.compile(r"(?:runtime|train|export)\.\w+")


def commands(page: str) -> list[list[str]]:
    """The project's commands in a page's blocks, each as its module's name and its words."""
    found = []
    for block in blocks(page):
        for line in block.text.replace("\\\n", " ").splitlines() if block.language == "sh" else ():
            words = shlex.split(line, comments=True)
            if words[:2] == ["python", "-m"] and MODULES.fullmatch(words[2]):
                found.append(words[2:])
            elif words[:1] == ["blockstep"]:
                name = next(name for name in COMMANDS if words[1 : 1 + len(name.split())] == name.split())
                found.append([COMMANDS[name][0], *words[1 + len(name.split()) :]])
    return found


@pytest.mark.parametrize("page", [page for page in WALKED if commands(page)])
def test_every_command_has_the_options_that_are_shown(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    for module, *words in commands(page):
        with pytest.raises(SystemExit) as end:
            importlib.import_module(module).main(["--help"])
        out, err = capsys.readouterr()
        assert end.value.code in (0, None) and err == ""
        for option in (word for word in words if word.startswith("--")):
            assert re.search(rf"(?<![\w-]){option}\b", out), f"{module} has no {option}"


def test_the_pages_show_every_command() -> None:
    shown = {module for page in WALKED for module, *_ in commands(page)}
    assert {module for module, _ in COMMANDS.values()} - shown == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_exists(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", read(page), re.M))
    assert [name for name in sorted(named) if not re.search(rf"^{name}:", makefile, re.M)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_picture_leads_somewhere(page: str) -> None:
    """Headings, too: page.md#heading."""
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M) if anchor else []
        if not target.exists() or (anchor and anchor not in map(make_slug, headings)):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", read(page))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_contributing_leads_from_tasks_to_files() -> None:
    rows = re.findall(r"^\| (?!task)[a-z].* \| .*`.* \|$", read("CONTRIBUTING.md"), re.M)
    assert len(rows) == 16


def test_the_readme_is_short_and_leads_on() -> None:
    text = read("README.md")
    links = re.findall(r"\]\((?!\w+://)[^)]+\)", text)
    assert text.count("\n") <= 90 and len(links) >= 12 and text.count("![") >= 2
    assert {f"({page})" for page in WALKED if page.startswith("docs/")} <= {link[1:] for link in links}


def test_the_readme_s_table_is_the_study_s() -> None:
    part = read("README.md").split("## What it gives")[1].split("\n## ")[0]
    rows = [line for line in part.splitlines() if line.startswith("|")]
    page = (ROOT / "samples" / "results" / "study.md").read_text(encoding="utf-8")
    assert len(rows) >= 5 and [row for row in rows if row not in page.split("\n## ")[0].splitlines()] == []


def test_the_page_on_performance_has_the_study_s_times() -> None:
    page = read("docs/performance.md").split("## A student that drafts for itself")[1].split("\n## ")[0]
    tables = json.loads((ROOT / "samples" / "results" / "study.json").read_text(encoding="utf-8"))["tables"]
    shown = {cells[1]: cells for line in page.splitlines() if len(cells := [c.strip() for c in line.split("|")]) == 9}
    for title, name in (
        ("baseline, fp32", "baseline"),
        ("`speculative`, fp32", "cdlm-speculative"),
        ("`block`, threshold 0.995, fp32", "cdlm"),
        ("`speculative`, int8", "ort-int8"),
    ):
        for task, place in (("math", 2), ("code", 5)):
            row = next(row for row in tables[task] if row["name"] == name)
            assert shown[title][place] == f"{row['milliseconds']:.1f}", (title, task)


def test_the_page_on_performance_has_the_bench_s_figures() -> None:
    page = read("docs/performance.md").split("## Whole answers")[1].split("## The server under load")[0]
    bench = (ROOT / "samples" / "results" / "bench.md").read_text(encoding="utf-8")
    figures = re.findall(r"(?<![\d.])\d+\.\d+", "\n".join(line for line in page.splitlines() if line.startswith("|")))
    assert len(figures) == 23 and [figure for figure in figures if f" {figure} " not in bench] == []


def test_how_many_blocks_of_each_page_are_run() -> None:
    assert {page: sum(not block.reason for block in blocks(page)) for page in WALKED} == RUN


@pytest.mark.parametrize("page", WALKED)
def test_a_block_that_is_not_run_says_why(page: str) -> None:
    assert page.startswith("docs/") or "<!-- server -->" not in read(page)
    for marker in re.findall(r"^<!-- (.*) -->$", read(page), re.M):
        assert marker == "server" or re.fullmatch(r"not run: (needs|takes|installs) \w.*", marker), marker
        assert [name for name in re.findall(r"tests/\w+\.py", marker) if not (ROOT / name).exists()] == []


def test_expected_lines_are_found_in_order_and_dots_stand_for_anything() -> None:
    assert find_missing_lines("a … c\n…\nd", "x\na b c\nb\nd\n") == []
    assert find_missing_lines("d\na", "a\nd") == ["a"]


def test_the_moving_picture_is_what_its_script_makes_of_the_record(tmp_path: Path) -> None:
    script, out = ROOT / "docs" / "pictures" / "show.py", tmp_path / "show.svg"
    assert subprocess.run([sys.executable, script, out], check=False).returncode == 0
    assert out.read_bytes() == script.with_suffix(".svg").read_bytes()
