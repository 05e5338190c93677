"""The sample tasks and users' own data: disjoint splits, right answers, honest grading, programs under limits."""

from __future__ import annotations

import json
import operator
import re
from pathlib import Path
from typing import Any

import pytest

from train import open_checkpoint, tasks
from train.tasks import Problem, function_families, sandbox, word_problems
from train.tasks.jsonl import read
from train.tasks.problem import find_split
from train.tasks.word_problems import find_final_number

EQUATION = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")
CALCULATE = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
SAMPLES = Path(__file__).parent.parent / "samples"
MATH, CODE = tasks.choose_tasks("math, code")
OWN = ("valid", "test", "test_templates")


@pytest.mark.parametrize("task", [MATH, CODE], ids=lambda task: task.name)
def test_splits_share_no_prompt_and_problems_depend_on_split_and_seed_alone(task: tasks.Task) -> None:
    by_split = {split: [*task.problems(split, 150, 1)] for split in ("train", *OWN)}
    prompts = {split: {problem.prompt for problem in problems} for split, problems in by_split.items()}
    for split, own in prompts.items():
        others = set().union(*(prompts[other] for other in prompts if other != split))
        assert not own & others and len(by_split[split]) == 150
        assert split == "train" or len(own) == 150
    assert [*task.problems("test", 150, 1)] == by_split["test"] != [*task.problems("test", 150, 2)]
    held_out = {problem.group for problem in by_split["test_templates"]}
    assert len(held_out) > 3 and not held_out & {
        problem.group for split in ("train", "valid", "test") for problem in by_split[split]
    }
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        task.problems("dev", 1, 0)


@pytest.mark.parametrize("split", ["train", "test_templates"])
def test_every_equation_is_right_and_the_last_one_is_the_answer(split: str) -> None:
    for problem in MATH.problems(split, 300, 2):
        equations = EQUATION.findall(problem.answer)
        assert (1 if split == "train" else 2) <= len(equations) <= 5, problem.answer
        for left, op, right, result in equations:
            assert CALCULATE[op](int(left), int(right)) == int(result), problem.answer
        assert problem.answer.endswith(f"\n#### {equations[-1][3]}") and "[" not in problem.prompt + problem.answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so\n#### 72", 72), ("####72.", 72), ("#### 1,234", 1234), ("#### -5", -5), ("#### 3\n#### 4", 4),
        ("72", None), ("", None), ("####", None), ("#### x", None), ("#### 7.5", None), ("#### 12,34", None),
    ],
)  # fmt: skip
def test_the_number_behind_the_last_marker_counts(text: str, number: int | None) -> None:
    assert find_final_number(text) == number


def test_math_is_graded_on_its_final_number() -> None:
    problems = [*MATH.problems("test", 20, 3)]
    right = [problem.answer for problem in problems]
    number = [int(answer.rsplit("#### ", 1)[1]) for answer in right]
    assert all(MATH.grade_many(problems, right))
    assert all(MATH.grade_many(problems, [f"#### {n}" for n in number]))
    for wrong in (
        [f"#### {n + 1}" for n in number],
        [f"{n}" for n in number],
        [f"#### {n}0" for n in number],
        [""] * 20,
    ):
        assert not any(MATH.grade_many(problems, wrong))


def test_code_is_graded_by_hidden_cases() -> None:
    problems = [*CODE.problems("test", 25, 4), *CODE.problems("test_templates", 15, 4)]
    assert all(5 <= len(problem.tests) <= 8 for problem in problems)
    assert all(test not in problem.prompt for problem in problems for test in problem.tests)
    assert all(CODE.grade_many(problems, [problem.answer for problem in problems]))
    heads = [problem.answer.splitlines()[0] for problem in problems]
    given = [problem.prompt.splitlines()[-1].rsplit(" == ", 1)[1] for problem in problems]
    bodies = {"pass": ["pass"] * 40, "broken": ["return ("] * 40, "example": [f"return {result}" for result in given]}
    texts = {name: [f"{h}\n    {b}" for h, b in zip(heads, body, strict=True)] for name, body in bodies.items()}
    passed = {name: sum(CODE.grade_many(problems, text)) for name, text in texts.items()}
    # Of 400 problems, one has the same result in all its hidden cases, so that the example's result passes.
    assert passed["pass"] == passed["broken"] == 0 and passed["example"] <= 1, passed


def test_programs_that_loop_leave_or_grow_are_wrong_and_the_next_one_is_still_judged() -> None:
    good = "def f():\n    return 1"
    bad = [
        "while True: pass", "import os; os._exit(0)", "raise SystemExit", "x = bytearray(10**9)", "open('x', 'w')",
        "import os; os.fork()", "import os; os.kill(os.getppid(), 9)", "def f(): return f()\nf()", "f(", "\0",
        "import time; time.sleep(60)",
    ]  # fmt: skip
    programs = [(text, ("assert f() == 1",)) for program in bad for text in (f"{program}\n{good}", good)]
    assert sandbox.run(programs, seconds=0.7) == [False, True] * len(bad)
    assert sandbox.run([(good, ("assert f() == 2",)), (good, ("assert f() == 1", "assert f() == 2"))]) == [False, False]


def lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def test_the_layout_of_gsm8k_loads_and_grades(tmp_path: Path) -> None:
    records = [
        {"question": f"Ann has {n} eggs. How many?", "answer": f"She has <<{n}*1={n}>>{n}.\n#### {n},000"}
        for n in range(80)
    ]
    task = tasks.from_file(lines(tmp_path / "gsm.jsonl", *records))
    by_split = {split: [*task.problems(split, 1000, 0)] for split in ("train", "valid", "test")}
    assert len(by_split["train"]) == 1000 and by_split["valid"] and by_split["test"]
    assert len({problem.prompt for split in by_split.values() for problem in split}) == 80
    assert all(find_split(problem.prompt) == split for split, problems in by_split.items() for problem in problems)
    some = by_split["test"]
    numbers = [problem.answer.rsplit("#### ", 1)[1].replace(",", "") for problem in some]
    assert all(task.grade_many(some, [f"so #### {number}" for number in numbers]))
    assert not any(task.grade_many(some, [f"so #### {number}1" for number in numbers]))


def test_what_follows_the_marks_and_is_no_whole_number_is_compared_as_text(tmp_path: Path) -> None:
    answers = ["5/2\n#### 2.5", "## Result\n#### Summary\nfine", "#### $18", "so #### 7"]
    path = lines(tmp_path / "own.jsonl", *({"prompt": text, "answer": text} for text in answers))
    task, problems = tasks.from_file(path), read(path)
    assert task.grade_many(problems, answers) == [True] * 4
    assert task.grade_many(problems, ["#### 2.5", "#### Summary", "#### 18", "#### 7"]) == [False] * 3 + [True]


def test_the_layout_of_mbpp_loads_and_grades(tmp_path: Path) -> None:
    record = {
        "task_id": 1, "text": "Write a function to double a number.", "code": "def twice(n):\r\n  return 2 * n\r\n",
        "test_setup_code": "ONE = 1", "test_list": ["assert twice(ONE) == 2", "assert twice(3) == 6"],
        "challenge_test_list": [],
    }  # fmt: skip
    path = lines(tmp_path / "mbpp.jsonl", record, {**record, "test_setup_code": ""})
    problem, plain = read(path)
    assert problem.answer == "def twice(n):\n  return 2 * n" and problem.prompt.endswith("\nassert twice(ONE) == 2")
    answers = [problem.answer, "def twice(n):\n  return n + 1", "def twice(n):\n  return", ""]
    assert tasks.from_file(path).grade_many([problem] * 4, answers) == [True, False, False, False]
    assert tasks.from_file(path).grade_many([plain], ["ONE = 1\n" + problem.answer]) == [True]


def test_the_layout_of_sanitized_mbpp_loads_and_grades(tmp_path: Path) -> None:
    record = {
        "source_file": "x", "task_id": 2, "prompt": "Write a function to halve a number.\n",
        "code": "def half(n):\n  return n / 2", "test_imports": ["import math"],
        "test_list": ["assert half(math.sqrt(16)) == 2", "assert half(1) == 0.5"],
    }  # fmt: skip
    (problem,) = read(lines(tmp_path / "mbpp.jsonl", record))
    assert problem.prompt == "Write a function to halve a number.\nimport math\nassert half(math.sqrt(16)) == 2"
    task = tasks.from_file(tmp_path / "mbpp.jsonl")
    assert task.grade_many([problem] * 2, [problem.answer, "def half(n):\n  return n // 2"]) == [True, False]
    (bare,) = read(lines(tmp_path / "bare.jsonl", {**record, "test_list": []}))
    assert bare.prompt == "Write a function to halve a number."


def test_prompts_of_the_published_layouts_end_without_a_newline(tmp_path: Path) -> None:
    gsm8k = {"question": "How many eggs?\n", "answer": "#### 2"}
    mbpp = {"text": "Write f.", "code": "def f(): pass", "test_list": ["assert f() is None\n"]}
    found = read(lines(tmp_path / "both.jsonl", gsm8k, mbpp))
    assert [problem.prompt for problem in found] == ["How many eggs?", "Write f.\nassert f() is None"]


def test_the_split_all_is_every_line_once_in_the_files_order(tmp_path: Path) -> None:
    records = [{"prompt": f"say {n % 7}", "answer": str(n)} for n in range(40)]
    task = tasks.from_file(lines(tmp_path / "own.jsonl", *records))
    assert [problem.answer for problem in task.problems("all", 100, 5)] == [str(n) for n in range(40)]
    assert [problem.answer for problem in task.problems("all", 3, 0)] == ["0", "1", "2"]
    with pytest.raises(
        ValueError, match="unknown split 'test_templates'; the splits of one's own data are train, valid"
    ):
        task.problems("test_templates", 1, 0)
    with pytest.raises(ValueError, match="unknown split 'all'; "):
        MATH.problems("all", 1, 0)


def test_the_tasks_are_as_large_and_varied_as_promised() -> None:
    saved = open_checkpoint.load(SAMPLES / "teacher.pt")
    tokenizer = saved.read_tokenizer()
    assert len({template.name for template in word_problems.TRAINING}) >= 40
    assert not {t.name for t in word_problems.TRAINING} & {t.name for t in word_problems.HELD_OUT}
    assert len({family.group for family in function_families.TRAINING}) >= 60
    answers = [problem.answer for problem in MATH.problems("test", 300, 6)]
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(answers, add_special_tokens=False)]
    assert sum(lengths) / len(lengths) >= 60 and max(lengths) - min(lengths) > 30
    assert tokenizer.encode("a 2026 b", add_special_tokens=False).tokens[1:-1] == ["Ġ", "2", "0", "2", "6"]


def test_no_token_is_longer_than_a_word_and_digits_are_single_tokens() -> None:
    saved = open_checkpoint.load(SAMPLES / "teacher.pt")
    tokenizer, decoding = saved.read_tokenizer(), saved.decoding
    special = {decoding.mask_id, decoding.pad_id, *decoding.eos_ids}
    texts = [tokenizer.decode([token]) for token in range(tokenizer.get_vocab_size()) if token not in special]
    for text in texts:
        assert len(re.findall(r"[A-Za-z]+|\d", text)) <= 1, text  # a word, or a digit, with what joins it at most
        assert not re.search(r"\d", text) or text.strip() in "0123456789", text
    assert {"0", "9", " apples"} <= {*texts}


def test_own_lines_are_graded_by_tests_number_or_text(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "own.jsonl",
        {"prompt": "Write f, which adds one.", "answer": "def f(x): return x + 1", "tests": ["assert f(1) == 2"]},
        {"prompt": "1 + 1?", "answer": "It is 2.\n#### 2"},
        {"prompt": "The capital of France, in one word?\u2028Say:", "answer": "Paris"},
    )
    problems, task = read(path), tasks.from_file(path)
    assert task.name == "own" and len(problems) == 3
    assert task.grade_many(problems, ["def f(x): return 1 + x", "#### 2", " Paris\n"]) == [True, True, True]
    assert task.grade_many(problems, ["def f(x): return x", "2", "paris"]) == [False, False, False]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 3: Expecting"),
        ("[1]", "line 3"),
        ("5", "line 3"),
        ('{"prompt": "a"}', "line 3: got the keys prompt; expected"),
        ('{"prompt": "a", "answer": 4}', "line 3: got the keys answer, prompt"),
        ('{"prompt": "a", "answer": "b", "tests": "assert"}', 'line 3: tests is "assert"; expected a list'),
        ('{"text": "a", "code": "b", "test_list": [1]}', "line 3: test_list is [1]; expected a list of strings"),
        (
            '{"text": "a", "code": "b", "test_list": [], "test_imports": "import math"}',
            'line 3: test_imports is "import math"; expected a list of strings',
        ),
        ('{"prompt": "a\\ud83d", "answer": "b"}', "line 3: the prompt has half a surrogate pair at character 2"),
    ],
)
def test_a_wrong_line_is_named(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(f'{{"prompt": "a", "answer": "b"}}\n\n{line}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        tasks.from_file(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_files_and_names_without_problems_are_refused(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no problems"):
        tasks.from_file(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="unknown task 'maths'"):
        tasks.choose_tasks("math,maths")
    one = tasks.from_file(lines(tmp_path / "one.jsonl", {"prompt": "a", "answer": "b"}))
    here = find_split("a")
    assert [*one.problems(here, 1, 0)] == [Problem("a", "b", "file")]
    with pytest.raises(ValueError, match="falls into the split"):
        one.problems("valid" if here != "valid" else "test", 1, 0)
