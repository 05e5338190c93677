"""Programs in C and C++ around the library: their answers, their threads, their memory, and where Python is found."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from native import BUNDLE, PROMPTS, ROOT, build_all, needs_tools, run
from speaking import encode_ids, make_speaking_bundle
from tiny import END

from runtime import Model, load

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs_tools()
    return build_all(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def student() -> Model:
    return load(BUNDLE, threads=1)


def soak(
    built: Path, prompts: list[list[int]], threads: int, requests: int, *, leak: int = 0, bundle: str | Path = BUNDLE,
    under: tuple[str, ...] = (),
) -> Any:  # fmt: skip
    """What soak.c reports: answers that differ, bytes grown, each prompt's answer. under: a command before it."""
    words = [*under, built / "soak", built / "libblockstep.so", bundle, str(threads), str(requests), str(leak)]
    lines = "".join(" ".join(map(str, ids)) + "\n" for ids in prompts)
    done = run(*words, input=lines, cwd="/", env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.smoke
def test_the_c_host_prints_pythons_answer_from_any_folder(built: Path, student: Model, tmp_path: Path) -> None:
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "__init__.py").write_text("raise SystemExit('not ours')\n")
    bare = {"LD_LIBRARY_PATH": "", "PYTHONHOME": "/nowhere", "PYTHONPATH": str(tmp_path)}  # of no concern to it
    done = run(built / "host", BUNDLE, PROMPTS[0], cwd=tmp_path, env=bare)
    answer = student.generate(PROMPTS[0])
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout
        == f"{answer.text}\n-- {len(answer.result.token_ids)} tokens in {answer.result.forwards} forward passes\n"
    )
    assert done.stderr == ""


@pytest.mark.smoke
def test_the_cpp_host_answers_at_its_thresholds(built: Path, student: Model) -> None:
    done = run(built / "hostpp", BUNDLE, PROMPTS[1], cwd="/")
    lines = [f"blocks of {student.contract.block}, its own threshold {student.gate.threshold}"]
    for threshold in (1.0, 0.9, 0.5):
        answer = student.generate(PROMPTS[1], threshold=threshold)
        lines += [f"-- {threshold:g}: {answer.result.forwards} forward passes", answer.text]
    assert (done.returncode, done.stdout) == (0, "\n".join(lines) + "\n"), done.stderr


def test_hosts_end_a_mistake_in_one_line(built: Path, tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.write_text("not a socket")
    none, two = "none.bundle: expected a folder with manifest.json", "expected BUNDLE and "
    for name, words, line in (
        ("host", [tmp_path / "none.bundle", "x"], none), ("host", [BUNDLE], two),
        ("hostpp", [tmp_path / "none.bundle", "x"], none), ("hostpp", [BUNDLE], two),
        ("service", [tmp_path / "none.bundle", tmp_path / "socket"], none), ("service", [BUNDLE], two),
        ("service", [BUNDLE, tmp_path / "socket", "4x"], "AT_ONCE as a whole number"),
        ("service", [BUNDLE, tmp_path / "none" / "socket"], "/none/socket (No such file or directory); give another"),
        ("service", [BUNDLE, folder / ("x" * 108)], "(File name too long); give another path"),
        ("service", [BUNDLE, file], f"cannot listen on {file} (Address already in use); give another path"),
    ):  # fmt: skip
        done = run(built / name, *words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), (name, words, done.stderr)
        assert done.stderr.startswith("error: ") and line in done.stderr
    assert file.read_text() == "not a socket"
    done = run(built / "hostpp", BUNDLE, "")  # it has told of the model by then
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "the prompt is empty" in done.stderr
    for name in ("host", "hostpp"):  # an answer that could not be printed does not look like one
        with open("/dev/full", "w") as full:
            words = [built / name, BUNDLE, PROMPTS[0]]
            done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 2 and done.stderr.startswith("error: the output cannot be written")


def test_hosts_exit_2_for_what_the_user_can_mend_and_1_for_other_failures(built: Path, tmp_path: Path) -> None:
    found = dict(re.findall(r"#define BLOCKSTEP_(\w+) +(\d)", (built / "blockstep.h").read_text(encoding="utf-8")))
    others = ("generate", "decide", "describe", "close", "free", "free_decision")
    source = f"""int atoi(const char *); char *getenv(const char *);
        int blockstep_version(void) {{ return {found["VERSION"]}; }}
        const char *blockstep_last_error(void) {{ return "the reason"; }}
        int blockstep_load(void) {{ return atoi(getenv("CODE")); }}"""
    stub = tmp_path / "libblockstep.c"
    stub.write_text(source + "".join(f"\nint blockstep_{name}(void) {{ return 0; }}" for name in others))
    made = run("cc", "-w", "-shared", "-fPIC", stub, "-o", stub.with_suffix(".so"))
    assert made.returncode == 0, made.stderr
    for name in ("host", "hostpp", "service", "decide"):
        shutil.copy(built / name, tmp_path)  # it takes the library that is next to it
        words = [tmp_path / name, "a.bundle", tmp_path / "socket", *([stub] if name == "decide" else [])]
        for code in ("MISTAKE", "NUMERICAL", "DEVICE", "PYTHON", "INTERNAL"):
            done = run(*words, env={"CODE": found[code]})
            expected = 2 if code in ("MISTAKE", "PYTHON") else 1
            assert (done.returncode, done.stdout, done.stderr) == (expected, "", "error: the reason\n"), (name, code)


def test_four_threads_get_pythons_tokens(built: Path, student: Model) -> None:
    prompts = [student.tokenizer.encode(text).tolist() for text in (*PROMPTS, "How many?", "def f(x):", "Sum 2 and 5.")]
    report = soak(built, prompts, threads=4, requests=80)
    assert (
        report["answers"] == [list(student.generate(ids).result.token_ids) for ids in prompts] and report["differ"] == 0
    )


def test_a_thousand_requests_leave_nothing_behind(built: Path, student: Model) -> None:
    prompts, fair = [student.tokenizer.encode(PROMPTS[1]).tolist()], 2 << 20  # bytes
    assert soak(built, prompts, threads=4, requests=1000)["grown"] < fair
    assert soak(built, prompts, threads=4, requests=80, leak=65536)["grown"] > fair  # the measure sees a leak


def test_valgrind_finds_no_error_of_ours(built: Path, tmp_path: Path) -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("no valgrind here (Debian: apt install valgrind)")
    # A tiny graph: ONNX Runtime takes seconds per forward pass of the student there.
    log, bundle = tmp_path / "errors.xml", make_speaking_bundle(tmp_path, "ask", "hello, world")
    watch = ("valgrind", "--xml=yes", f"--xml-file={log}", "--leak-check=full", "--show-leak-kinds=definite")
    report = soak(built, [encode_ids("ask")], 2, 20, leak=1000, bundle=bundle, under=(*watch, "--num-callers=6"))
    assert report["answers"] == [[*encode_ids("hello, world"), END]]
    # Python and the libraries behind it have findings of their own; whose one is, its first frame outside libc says.
    found = {whose(error) for error in ElementTree.parse(log).getroot().iter("error")}
    ours = {(kind, file, function) for kind, file, function in found if file in ("libblockstep.so", "soak")}
    assert ours == {("Leak_DefinitelyLost", "soak", "work")}, found  # the one that is there on purpose


def whose(error: ElementTree.Element) -> tuple[str, str, str]:
    """Kind, file and function of one of valgrind's errors; files named by their last part."""
    stack = error.find("stack")
    frames = [] if stack is None else list(stack)
    for frame in frames:
        file = Path(frame.findtext("obj", "")).name
        if not file.startswith(("vgpreload", "libc.", "libc-", "ld-linux", "libpthread")):
            return error.findtext("kind", ""), file, frame.findtext("fn", "")
    return error.findtext("kind", ""), "", ""


@contextmanager
def service(built: Path, folder: Path, *options: str) -> Iterator[Path]:
    """samples/c/service.c on a socket."""
    place = folder / "socket"
    running = subprocess.Popen([built / "service", BUNDLE, place, *options], cwd="/", stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None and running.stdout.readline() == f"answering on {place}\n"
        yield place
        assert running.poll() is None
    finally:
        running.terminate()  # its own handler is the default one, so this ends it at once
        assert running.wait(30) == -15
        running.stdout.close()  # type: ignore[union-attr]


def asked(place: Path, prompt: str | bytes) -> tuple[str, str]:
    """The streamed text, and the line behind it."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(place))
        client.sendall(prompt.encode() if isinstance(prompt, str) else prompt)
        client.shutdown(socket.SHUT_WR)
        reply = b"".join(iter(lambda: client.recv(4096), b""))
    text, _, rest = reply.decode().partition("\0")
    return text, rest


@pytest.mark.smoke
def test_four_clients_of_the_service_get_pythons_answers(built: Path, student: Model, tmp_path: Path) -> None:
    prompts = [*PROMPTS, "Sum 2 and 5."] * 4
    with service(built, tmp_path, "4") as place:
        with socket.socket(socket.AF_UNIX) as leaver:
            leaver.connect(str(place))
            leaver.sendall(PROMPTS[0].encode())
            leaver.shutdown(socket.SHUT_WR)
        with ThreadPoolExecutor(4) as clients:
            replies = list(clients.map(lambda prompt: asked(place, prompt), prompts))
        assert asked(place, b"caf\xe9") == ("", "error: prompt is not UTF-8 at byte 3; give UTF-8 text\n")
    for prompt, (text, ids) in zip(prompts, replies, strict=True):
        answer = student.generate(prompt)
        assert (text, ids) == (answer.text, " ".join(map(str, answer.result.token_ids)) + "\n")


def test_the_environment_is_another_one_where_the_variable_says_so(built: Path, tmp_path: Path) -> None:
    def told(python: Path | str) -> str:
        done = run(built / "host", BUNDLE, "x", env={"BLOCKSTEP_PYTHON": str(python)})
        assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
        return done.stderr

    assert f"no python executable at {tmp_path}/none; set BLOCKSTEP_PYTHON" in told(tmp_path / "none")
    assert run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare").returncode == 0
    other = tmp_path / "bare" / "bin" / "python"
    base = run(other, "-c", "import importlib.util as u; print(bool(u.find_spec('_cffi_backend')))").stdout
    assert ("has no cffi" if base == "False\n" else "is not installed") in told(other)
    assert run(built / "host", BUNDLE, PROMPTS[1], env={"BLOCKSTEP_PYTHON": sys.executable}).returncode == 0


def test_the_package_may_have_any_name_and_has_to_be_where_it_was(tmp_path: Path) -> None:
    needs_tools()
    package, out = tmp_path / "of_another_name", tmp_path / "out"
    shutil.copytree(ROOT / "runtime", package, ignore=shutil.ignore_patterns("__pycache__"))
    done = run(sys.executable, "-m", "of_another_name.capi", "--out", out, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert sorted(path.name for path in out.iterdir()) == ["blockstep.h", "libblockstep.so"]
    host = [ROOT / "samples" / "c" / "host.c", f"-I{out}", f"-L{out}", "-lblockstep", f"-Wl,-rpath,{out}"]
    assert report["library"] == str(out / "libblockstep.so") and report["python"] == sys.executable
    assert run("cc", *host, "-o", tmp_path / "host").returncode == 0
    assert run(tmp_path / "host", BUNDLE, PROMPTS[1], cwd="/").returncode == 0
    shutil.rmtree(package)
    done = run(tmp_path / "host", BUNDLE, PROMPTS[1], cwd="/")
    assert done.returncode == 2 and f"{package} does not load" in done.stderr and done.stderr.count("\n") == 1
