"""The command `python -m runtime.serve`: its mistakes, its signal, its log; and the sample that calls it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from serving import served, until
from speaking import every_other, make_speaker

from runtime.errors import UserError
from runtime.serve import main, read_api_keys
from runtime.server.sockets import is_local

pytestmark = pytest.mark.process

ROOT = Path(__file__).parent.parent
BUNDLE = str(ROOT / "samples" / "student.bundle")
PROMPT = (ROOT / "samples" / "prompt_math.txt").read_text(encoding="utf-8").rstrip()


def test_sigterm_finishes_the_stream_that_was_begun(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "runtime.serve", BUNDLE, "--port", "0", "--json", "--threads", "1", "--name", "it"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert server.stdout is not None
        told = json.loads(server.stdout.readline())
        assert told["model"] == "it"
        body = {"prompt": PROMPT, "stream": True, "threshold": 1.0}
        with httpx.stream("POST", f"{told['url']}/v1/completions", json=body, timeout=60) as stream:
            lines = (line.removeprefix("data: ") for line in stream.iter_lines() if line)
            first = json.loads(next(lines))["choices"][0]["text"]
            server.send_signal(signal.SIGTERM)
            rest = list(lines)
        text = first + "".join(json.loads(line)["choices"][0]["text"] for line in rest[:-1])
        assert rest[-1] == "[DONE]" and "####" in text
        assert server.wait(30) == 0 and server.stdout.read() == ""
    finally:
        server.kill()
        server.stdout.close()  # type: ignore[union-attr]
    written = (tmp_path / "log").read_text(encoding="utf-8")
    assert "/v1/completions eos: 50 prompt tokens" in written and PROMPT[:20] not in written


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--adaptive-threshold", "0.9"], "LOW:HIGH"), (["--adaptive-threshold", "0.5:7"], "outside [0, 1]"),
        (["--api-key-file", "nowhere"], "cannot be read"), (["--host", "no.such.host.invalid"], "cannot listen"),
        (["--port", "99999"], "0 to 65535"), (["--port", "abc"], "'abc' is not a port; expected 0 to 65535"),
        (["--queue", "0"], "from 1 to 999999999"), (["--workers", "x"], "workers"),
        (["--slots", "2"], "--slots is 2, but engine ort-fp32 takes one sequence; give --slots 1, or export"),
        (["--slots", "2", "--workers", "2"], "leave --workers 2 out"),
        (["--allow-host", "http://box/"], "not a host name"), (["--allow-host", "*"], "not a host name"),
    ],
)  # fmt: skip
def test_a_mistake_ends_in_one_line(given: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([BUNDLE, "--port", "0", *given]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and told in err


def test_the_engines_of_the_bundle_that_take_batches_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = shutil.copytree(BUNDLE, tmp_path / "both.bundle")
    values = json.loads((both / "manifest.json").read_text())
    for precision in ("fp32", "bf16"):  # which the CPU has no kernels for
        own = {"name": f"standard-{precision}", "dialect": "standard", "precision": precision}
        values["engines"].append({**values["engines"][0], **own})
    (both / "manifest.json").write_text(json.dumps(values))
    assert main([str(both), "--port", "0", "--slots", "4"]) == 2
    told = "--slots is 4, but engine ort-fp32 takes one sequence; give --engine standard-fp32, or --slots 1"
    assert told in capsys.readouterr().err


def test_a_port_that_is_taken_and_an_empty_key_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keys").write_text("\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main([BUNDLE, "--port", str(taken.getsockname()[1])]) == 2
    assert main([BUNDLE, "--port", "0", "--api-key-file", str(tmp_path / "keys")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "give another --host or --port" in lines[0] and "has no key" in lines[1]


def test_a_line_of_the_key_file_is_a_key_and_no_more(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(" sk-1\n\nsk-2 \n")
    assert read_api_keys(str(file)) == ("sk-1", "sk-2") and read_api_keys(None) == ()
    file.write_text("sk-1\n# team A\nsk-2\n")
    with pytest.raises(UserError, match="has a space in line 2; expected one key per line"):
        read_api_keys(str(file))
    file.write_text("\ufeffsecret\r\n")
    assert read_api_keys(str(file)) == ("secret",)
    file.write_text("sk-1\nkl\u00e9\n")
    with pytest.raises(UserError, match="not ASCII in line 2"):
        read_api_keys(str(file))


def test_a_missing_library_is_told_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main([BUNDLE]) == 2
    assert capsys.readouterr().err == "error: uvicorn is not installed; pip install 'blockstep[serve]'\n"


def test_only_loopback_addresses_are_local() -> None:
    assert all(map(is_local, ("127.0.0.1", "localhost", "LocalHost", "::1", "127.9.9.9")))
    assert not any(map(is_local, ("0.0.0.0", "::", "192.168.1.5", "example.org")))


@pytest.mark.parametrize("log_prompts", [False, True])
def test_prompts_are_logged_where_it_is_asked_for(
    log_prompts: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "runtime.server.handler")
    with served(make_speaker(tmp_path, "secret\n", "abcd", every_other), log_prompts=log_prompts) as server:
        assert server.post({"prompt": "secret\n"}).status_code == 200
        until(lambda: "/v1/completions eos: 7 prompt tokens" in caplog.text)
    assert ('"secret\\n"' in caplog.text) == log_prompts


def test_the_sample_that_serves_and_calls() -> None:
    line = [sys.executable, "samples/4_serve.py"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    whole, streamed = done.stdout.split("tokens in")
    assert "####" in whole and "####" in streamed.replace("|", "") and streamed.count("|") > 3


def test_a_load_of_several_clients_gets_solo_answers_and_drains() -> None:
    line = [sys.executable, "-m", "samples.bench.load", BUNDLE, "--clients", "2", "3", "--seconds", "1"]
    line += ["--alone", "0.5", "--engine", "ort"]
    line += ["--prompts", "4", "--", "--queue", "1", "--workers", "1"]
    paths = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=ROOT, env=paths, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["answered"] == sum(report["ended_by_the_server"].values()) > 0 and report["exit_code"] == 0
    alone, more, most = report["rounds"]
    assert [each["clients"] for each in (alone, more, most)] == [1, 2, 3] and alone["throughput_ratio"] == 1
    assert most["refused_429"] > 0 == most["differ_from_solo"] == more["differ_from_solo"]
