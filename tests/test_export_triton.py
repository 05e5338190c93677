"""The Triton model repository: whole or absent, valid by Triton's own schema, and its model.py over a stand-in."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_triton
import numpy as np
import pytest
from fake_triton import Request, TritonError
from speaking import ANSWER, PROMPT, encode_ids, every_other, make_speaking_bundle

from export import triton
from export.triton import main
from runtime import load

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speaking_bundle(tmp_path_factory.mktemp("speaking"), PROMPT, ANSWER, every_other)


@pytest.fixture(scope="module")
def written(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder in a repository."""
    out = tmp_path_factory.mktemp("models")
    assert main([str(bundle), "--out", str(out), "--threads", "1", "--workers", "1"]) == 0
    return out / "student"


@pytest.fixture(scope="module")
def module(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The written model.py, run beside an installed blockstep and the stand-in; under the name of the source that it is
    a copy of, where coverage looks."""
    path = written / "1" / "model.py"
    assert path.read_bytes() == triton.MODEL.read_bytes()
    place = tmp_path_factory.mktemp("installed")
    (place / "blockstep").symlink_to(ROOT / "runtime")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        patch.setitem(sys.modules, "triton_python_backend_utils", fake_triton)
        made = ModuleType("1.model")
        made.__file__ = str(path)
        patch.setitem(sys.modules, "1.model", made)
        exec(compile(path.read_bytes(), triton.MODEL, "exec"), vars(made))
        yield made
    for name in [name for name in sys.modules if name.partition(".")[0] == "blockstep"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def model(module: ModuleType, written: Path) -> Iterator[Any]:
    told = re.findall(r'key: "(\w+)" value { string_value: "([^"]*)"', (written / "config.pbtxt").read_text())
    config = {"parameters": {key: {"string_value": value} for key, value in told}}
    made = module.TritonPythonModel()
    made.initialize({"model_config": json.dumps(config)})
    yield made
    made.finalize()


def test_spinning_is_told_to_the_model(written: Path, bundle: Path, tmp_path: Path) -> None:
    line = 'parameters { key: "allow_spinning" value { string_value: "%s" } }'
    assert line % "true" in (written / "config.pbtxt").read_text()
    assert main([str(bundle), "--out", str(tmp_path), "--no-allow-spinning"]) == 0
    [config] = tmp_path.glob("*/config.pbtxt")
    assert line % "false" in config.read_text()


def asked(model: Any, **tensors: Any) -> fake_triton.Sender:
    """The end of one request."""
    request = Request(**tensors)
    assert model.execute([request]) is None
    assert request.sender.ended.wait(30)
    return request.sender


def text(words: str) -> np.ndarray:
    return np.array([words.encode()], np.object_)


def test_an_answer_is_the_runtimes_whole_and_in_blocks(model: Any, bundle: Path) -> None:
    blocks = [block.text for block in load(bundle, threads=1).stream(PROMPT, raw=True)]
    whole = asked(model, text_input=text(PROMPT))
    assert whole.texts == [ANSWER] and whole.finish == ["eos"] and whole.failure is None
    streamed = asked(model, text_input=text(PROMPT), stream=[True])
    assert streamed.texts == blocks and len(blocks) > 5 and "".join(blocks) == ANSWER
    assert streamed.finish == [""] * (len(blocks) - 1) + ["eos"]


def test_ids_a_limit_and_a_threshold(model: Any) -> None:
    ids = np.array(encode_ids(PROMPT), np.int64)
    assert asked(model, input_ids=ids).texts == [ANSWER]
    cut = asked(model, input_ids=ids, max_tokens=np.array([2], np.int32))
    assert cut.texts == [ANSWER[:2]] and cut.finish == ["length"]
    assert asked(model, input_ids=ids, max_tokens=np.array([-1], np.int32)).texts == [ANSWER]  # as over HTTP: no limit
    asking_nothing = {"temperature": 0, "stop": "", "logprobs": False, "x-request-id": "7"}
    assert asked(model, input_ids=ids, given=asking_nothing).texts == [ANSWER]
    usual, loose = (asked(model, input_ids=ids, **more) for more in ({}, {"threshold": np.array([0.2])}))
    assert usual.texts == loose.texts and usual.looks > loose.looks


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({}, "either text_input or input_ids"),
        ({"text_input": text(PROMPT), "input_ids": [5]}, "either text_input or input_ids"),
        ({"text_input": np.array([b"a", b"b"], np.object_)}, "text_input has 2 elements"),
        ({"text_input": np.array([b"\xff"], np.object_)}, "not UTF-8"),
        ({"text_input": text("")}, "the prompt is empty"),
        ({"input_ids": np.array([10**6])}, "1000000"),
        ({"input_ids": np.full(100, 5)}, "leaves room for"),
        ({"text_input": text(PROMPT), "threshold": [1.5]}, "outside [0, 1]"),
        ({"text_input": text(PROMPT), "max_tokens": [1, 2]}, "max_tokens has 2 elements"),
        ({"text_input": text(PROMPT), "max_tokens": [0]}, "max_tokens is 0; expected at least 1"),
        ({"text_input": text(PROMPT), "given": {"temperature": 0.7}}, "temperature is not supported here; leave"),
        ({"text_input": text(PROMPT), "given": {"mode": "causal"}}, "mode is not supported here; leave"),
        ({"text_input": text(PROMPT), "given": {"max_new_tokens": 5}}, "the inputs are text_input, input_ids, max_tok"),
    ],
)
def test_a_request_that_cannot_be_answered_fails_alone(model: Any, tensors: dict[str, Any], told: str) -> None:
    bad, good = Request(**tensors), Request(text_input=text(PROMPT))
    model.execute([bad, good])
    assert bad.sender.ended.wait(30) and good.sender.ended.wait(30)
    failure = bad.sender.failure
    assert failure is not None and failure.code() == TritonError.INVALID_ARG
    assert told in failure.message() and "\n" not in failure.message() and bad.sender.texts == []
    assert good.sender.texts == [ANSWER]


def test_a_cancelled_request_ends_after_the_forward_in_work(model: Any) -> None:
    request = Request(cancelled=lambda looks: looks == 4, text_input=text(PROMPT), stream=[True])
    model.execute([request])
    assert request.sender.ended.wait(30)
    failure = request.sender.failure
    assert failure is not None and failure.code() == TritonError.CANCELLED
    assert request.sender.looks == 5 and 0 < len("".join(request.sender.texts)) < len(ANSWER)
    assert asked(model, text_input=text(PROMPT)).texts == [ANSWER]


def test_a_failure_of_the_program_ends_its_request_and_is_logged(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_triton.Logger, "lines", [])
    broken = asked(model, cancelled=lambda looks: bool(looks == 2 and 1 // 0), text_input=text(PROMPT))
    assert broken.failure is not None and broken.failure.code() == TritonError.INTERNAL
    assert "log has the reason" in broken.failure.message() and "ZeroDivisionError" in fake_triton.Logger.lines[0]
    assert asked(model, text_input=text(PROMPT)).texts == [ANSWER]


def test_a_request_waits_for_an_idle_worker(model: Any) -> None:
    held, begun, order = threading.Event(), threading.Event(), list[str]()

    def hold(looks: int) -> bool:
        begun.set()
        assert held.wait(30)
        order.append("first")
        return False

    first = Request(cancelled=hold, text_input=text(PROMPT))
    second = Request(cancelled=lambda looks: bool(order.append("second")), text_input=text(PROMPT))
    model.execute([first])
    assert begun.wait(30)
    waiting = threading.Thread(target=model.execute, args=([second],))
    waiting.start()
    held.set()
    waiting.join(30)
    assert second.sender.ended.wait(30) and first.sender.texts == second.sender.texts == [ANSWER]
    assert order == sorted(order) and {"first", "second"} == set(order)


def test_the_repository_has_the_whole_bundle_and_the_model_as_it_stands(written: Path, bundle: Path) -> None:
    names = sorted(str(file.relative_to(written)) for file in written.rglob("*") if file.is_file())
    own = [f"1/bundle/{file.name}" for file in bundle.iterdir() if not file.name.startswith(".")]
    assert names == sorted([*own, "1/model.py", "config.pbtxt"])
    assert all((written / "1" / "bundle" / file.name).read_bytes() == file.read_bytes() for file in bundle.iterdir())
    assert (written / "1" / "model.py").read_bytes() == triton.MODEL.read_bytes()
    assert list(written.parent.iterdir()) == [written]


def test_the_model_names_the_inputs_that_the_config_has(module: ModuleType) -> None:
    assert tuple(triton.INPUTS) == module.INPUTS


def test_writing_needs_no_torch() -> None:
    code = "import sys, export.triton; assert not {'torch', 'onnx', 'onnxruntime', 'starlette'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_model_that_is_there_is_replaced_only_when_asked(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [str(bundle), "--out", str(tmp_path)]
    assert main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"repository": str(tmp_path), "model": "student", "replaced": False}
    (tmp_path / "student" / "1" / "theirs").touch()
    assert main(line) == 2 and "--replace" in capsys.readouterr().err
    assert (tmp_path / "student" / "1" / "theirs").exists()
    assert main([*line, "--replace", "--engine", "ort-fp32"]) == 0 and "replaced" in capsys.readouterr().out
    assert not (tmp_path / "student" / "1" / "theirs").exists()
    assert '"ort-fp32"' in (tmp_path / "student" / "config.pbtxt").read_text()
    assert main([*line, "--name", "another"]) == 0
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["another", "student"]


@pytest.mark.parametrize("there", [False, True])
def test_a_copy_that_fails_leaves_what_was_there(
    there: bool, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [str(bundle), "--out", str(tmp_path)]
    assert not there or main(line) == 0
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    copy = shutil.copyfile

    def full(source: Path, target: Path) -> None:
        if Path(target).suffix == ".py":
            raise OSError(28, "No space left on device")
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", full)
    capsys.readouterr()
    assert main([*line, "--replace"]) == 2 and "No space left" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_damaged_bundle_is_not_written(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = shutil.copytree(bundle, tmp_path / "damaged.bundle")
    graph = next(damaged.glob("*.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1] + b"\x00")
    assert main([str(damaged), "--out", str(tmp_path / "models")]) == 2
    assert "is damaged" in capsys.readouterr().err and list((tmp_path / "models").iterdir()) == []


def test_mistakes_end_in_one_line(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "student").mkdir()
    lines = [
        ([str(bundle), "--name", "a/b"], "--name is 'a/b'"), ([str(bundle), "--engine", 'a"b'], "--engine is"),
        ([str(bundle), "--engine", "none"], "has no engine"),
        ([str(bundle), "--device", "cuda"], "CUDA has no kernels"),
        ([str(tmp_path / "none.bundle")], "no bundle at"), ([str(bundle)], "is not a Triton model"),
    ]  # fmt: skip
    for line, told in lines:
        assert main([*line, "--out", str(tmp_path)]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and told in err
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def tritons_schema() -> Any:
    """The generated module alone: the client around it wants an older protobuf than this environment is pinned to."""
    try:
        file = distribution("tritonclient").locate_file("tritonclient/grpc/model_config_pb2.py")
    except PackageNotFoundError:
        pytest.skip("Triton's schema is not installed: pip install 'blockstep[triton]'")
    spec = importlib.util.spec_from_file_location("model_config_pb2", str(file))
    assert spec is not None and spec.loader is not None
    schema = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(schema)
    return schema


@pytest.mark.smoke
@pytest.mark.long
def test_the_config_is_what_tritons_own_schema_reads(written: Path, module: ModuleType) -> None:
    from google.protobuf import json_format, text_format

    schema = tritons_schema()
    config = text_format.Parse((written / "config.pbtxt").read_text(), schema.ModelConfig())
    assert config.name == written.name and config.backend == "python" and config.max_batch_size == 0
    assert (
        config.model_transaction_policy.decoupled
        and config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_MODEL
    )
    assert {i.name: schema.DataType.Name(i.data_type) for i in config.input} == {
        "text_input": "TYPE_STRING", "input_ids": "TYPE_INT64", "max_tokens": "TYPE_INT32", "threshold": "TYPE_FP64",
        "stream": "TYPE_BOOL",
    }  # fmt: skip
    assert all(i.optional for i in config.input) and [list(i.dims) for i in config.input] == [[1], [-1], [1], [1], [1]]
    assert [(o.name, o.data_type, list(o.dims)) for o in config.output] == [
        ("text_output", schema.TYPE_STRING, [1]), ("finish_reason", schema.TYPE_STRING, [1]),
    ]  # fmt: skip
    again = module.TritonPythonModel()
    again.initialize({"model_config": json_format.MessageToJson(config, preserving_proto_field_name=True)})
    assert asked(again, text_input=text(PROMPT)).texts == [ANSWER]
    again.finalize()
    with pytest.raises(text_format.ParseError, match="no field named"):
        text_format.Parse("decoupled: true", schema.ModelConfig())
