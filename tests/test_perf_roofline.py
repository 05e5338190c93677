"""runtime.roofline: which side of the ridge a step is on, which block is free, this machine, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import product_models
import pytest

from runtime import roofline
from runtime.engines.ort.no_telemetry import ort
from runtime.engines.ort.product_models import PRODUCT_MODELS, make_product
from runtime.perf import local_cpu
from runtime.perf.block_costs import Question, analyze, choose_trained_block, compute_points
from runtime.perf.data_sheets import DEVICES, Device, choose_devices
from runtime.perf.op_counts import SHAPES, PassSize

BUNDLE = str(Path(__file__).parent.parent / "samples" / "student.bundle")
QWEN = SHAPES["qwen3-0.6b"]
ASKED = Question(QWEN, "fp16", 256, 256, (1, 8), (4, 16, 32), 2.3)
TOY = Device("toy", 2, {"fp16": 0.004, "int8": 0.008, "int4": 0.004}, "fp16", "made up: a ridge of 2 operations a byte")


def test_the_figures_are_dense_and_their_ridges_follow() -> None:
    assert DEVICES["h200"].compute_ridge("fp16") == pytest.approx(989.5e12 / 4800e9)
    for device in DEVICES.values():
        assert 1.9 < device.rates["int8"] / device.rates["fp16"] < 4.1, device.name
        assert device.rates["int4"] == device.rates["fp16"] and "fp32" not in device.rates
    # tensor cores x multiply-adds a clock x 2 x GHz, of the architectures' data sheets
    for key, cores, adds, clock in (
        ("orin-nano", 32, 256, 1.02),
        ("orin-nx", 32, 256, 1.173),
        ("agx-orin", 64, 256, 1.3),
    ):
        assert DEVICES[key].rates["fp16"] == pytest.approx(cores * adds * 2 * clock / 1000, rel=0.02), key
    for key, cores, adds, clock in (
        ("rtx-4090", 512, 64, 2.52),
        ("rtx-5090", 680, 64, 2.407),
        ("h200", 528, 512, 1.83),
    ):
        assert DEVICES[key].rates["fp16"] == pytest.approx(cores * adds * 2 * clock / 1000, rel=0.02), key


def test_a_step_takes_the_longer_of_moving_and_computing() -> None:
    load = TOY.count_work(QWEN, "fp16", PassSize(1, 4, 256, 4))
    assert TOY.estimate_memory_ms(load) == pytest.approx((load.weights + load.cache) / 2e9 * 1000)
    assert TOY.estimate_compute_ms(load, "fp16") == pytest.approx((load.linear + load.attention) / 4e9 * 1000)
    assert TOY.estimate_ms(load, "fp16") == TOY.estimate_compute_ms(load, "fp16") > TOY.estimate_memory_ms(load)


def test_attention_is_not_as_fast_as_quantized_products() -> None:
    load = TOY.count_work(QWEN, "int8", PassSize(1, 4, 256, 4))
    assert TOY.estimate_compute_ms(load, "int8") == pytest.approx((load.linear / 8e9 + load.attention / 4e9) * 1000)
    assert load.cache == 2 * QWEN.cached * (260 + 4)  # keys and values stay fp16
    at_home = replace(TOY, wide="fp32").count_work(QWEN, "int8", PassSize(1, 4, 256, 4))
    assert at_home.cache == 2 * load.cache


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("key", sorted(DEVICES))
def test_the_widest_memory_bound_block_is_the_one_a_search_through_all_finds(key: str, batch: int) -> None:
    device = DEVICES[key]

    def memory_bound(block: int) -> bool:
        load = device.count_work(QWEN, "fp16", PassSize(batch, block, 256, block))
        return device.estimate_compute_ms(load, "fp16") <= device.estimate_memory_ms(load)

    expected = next(block for block in range(1, 2000) if not memory_bound(block)) - 1
    assert device.find_widest_block(QWEN, "fp16", batch, 256) == expected


def test_the_block_to_train_is_the_largest_usual_one_that_is_free() -> None:
    assert [choose_trained_block(widest) for widest in (0, 4, 15, 16, 31, 32, 500)] == [4, 4, 8, 16, 16, 32, 64]
    told = analyze(DEVICES["h200"], ASKED)
    assert told["block_to_train"] == choose_trained_block(told["widest_memory_bound_block"][0]["block"])
    assert [entry["batch"] for entry in told["widest_memory_bound_block"]] == [1, 8]


def test_the_analysis_says_what_the_paper_says_of_a_gpu() -> None:
    """arXiv 2511.19269: at batch 1 an autoregressive step has an intensity near 1, a block of 32 about 31."""
    llama = replace(ASKED, shape=SHAPES["llada-8b"])
    found = {(p.mode, p.batch): p for p in compute_points(DEVICES["h200"], llama)}
    assert found["autoregressive", 1].intensity == pytest.approx(1, rel=0.05)
    assert found["block of 32", 1].intensity == pytest.approx(31, rel=0.05)
    assert found["block of 32", 1].bound == "memory" and found["block of 32", 1].cost == pytest.approx(1, rel=0.02)
    assert found["full, 512 positions", 1].bound == "compute"
    speeds = [found[mode, 1].tokens_per_second for mode in ("full, 512 positions", "autoregressive", "block of 32")]
    assert speeds == sorted(speeds)


def test_cost_is_in_autoregressive_forwards_and_speed_follows_from_it() -> None:
    found = {(p.mode, p.batch): p for p in compute_points(TOY, ASKED)}
    for batch in (1, 8):
        single, block = found["autoregressive", batch], found["block of 16", batch]
        assert single.cost == 1 and block.cost == pytest.approx(block.ms / single.ms)
        assert block.tokens_per_second == pytest.approx(2.3 * single.tokens_per_second / block.cost)
    narrow = next(p for p in compute_points(TOY, replace(ASKED, accepted=9.0)) if p.mode == "block of 4")
    assert narrow.tokens_per_second == pytest.approx(4000 / narrow.ms)  # no more than the block has


def test_the_models_of_products_are_those_that_onnx_writes() -> None:
    assert PRODUCT_MODELS.keys() == product_models.WANTED.keys() == {"probe", *local_cpu.PRODUCTS}
    for name, wanted in product_models.WANTED.items():
        written = product_models.product_model(*wanted)
        assert onnx.load_model_from_string(PRODUCT_MODELS[name]) == onnx.load_model_from_string(written)


@pytest.mark.parametrize("precision", sorted(local_cpu.PRODUCTS))
def test_the_product_that_is_timed_is_that_product(precision: str) -> None:
    rng = np.random.default_rng(1)
    taken, weight = local_cpu.PRODUCTS[precision]
    shape = local_cpu.INNER, local_cpu.COLUMNS
    left, right = rng.integers(0, 2, (3, shape[0])).astype(taken), rng.integers(-1, 2, shape).astype(weight)
    out = make_product(precision, right, ort.SessionOptions())(left)
    assert np.array_equal(out.astype(np.int64), left.astype(np.int64) @ right.astype(np.int64))


def test_caches_are_read_as_the_system_tells_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_cpu, "CACHES", tmp_path)
    assert local_cpu.read_last_cache() == local_cpu.UNKNOWN_CACHE
    for name, text in {"index0": "48K", "index2": "2048K", "index3": "32M", "index4": "?"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(text + "\n")
    assert local_cpu.read_last_cache() == 32 << 20
    assert local_cpu.choose_buffer_size() <= 4 * 32 << 20


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine measured in a moment, and so wrongly."""
    monkeypatch.setattr(local_cpu, "SECONDS", 0.0)
    monkeypatch.setattr(local_cpu, "ROWS", 2)
    monkeypatch.setattr(local_cpu, "choose_buffer_size", lambda: 1 << 20)


@pytest.mark.usefixtures("quick")
def test_a_bundle_is_asked_predicted_and_measured(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = [BUNDLE, "--devices", "orin-nano,local", "--threads", "1", "--repeat", "2", "--past", "64"]
    assert roofline.main([*options, "--json"]) == 0
    captured = capsys.readouterr()
    values = json.loads(captured.out)
    assert captured.out.count("\n") == 1
    assert values["model"]["parameters"] == 2_656_704 and values["model"]["hidden"] == 192
    assert len(values["devices"]) == 1 and len(values["devices"][0]["points"]) == 15  # no fp32 on the data sheet
    assert [step["past"] for step in values["steps"]] == [0, 64] and all(s["block"] == 16 for s in values["steps"])
    for step in values["steps"]:
        assert step["predicted_ms"] == max(step["memory_ms"], step["compute_ms"])
        assert step["measured_over_predicted"] == step["measured_ms"]["median"] / step["predicted_ms"]
    plot = tmp_path / "new" / "roof.png"
    assert roofline.main([*options, "--precision", "int8", "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    assert "student.bundle, 2.7 M parameters in int8" in out and "Orin Nano" in out and plot.stat().st_size > 9999
    assert "measured" in out.splitlines()[-8] and "behind" not in out  # the engine is fp32


def test_a_shape_in_numbers_needs_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    words = "hidden=4,layers=2,heads=2,kv_heads=1,head_dim=3,ffn=5,vocab=7,tied=false"
    assert roofline.main(["--shape", words, "--devices", "h200", "--batches", "1", "--blocks", "4", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["model"]["parameters"] == 340 and len(values["devices"][0]["points"]) == 3


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--devices", "h100"], "h100"), (["--batches", "0"], "expected counts such as"), (["--blocks", "x"], "sizes"),
        (["--shape", "hidden=x"], "hidden=1024"), (["--shape", "hidden=4"], "layers"), (["--past", "-1"], "--past -1"),
        (["--tokens-per-forward", "0.5"], "--tokens-per-forward 0.5"),
        ([BUNDLE, "--devices", "h200"], "no rate for fp32"),
        ([BUNDLE, "--device", "cuda"], "CUDA has no kernels"),
        ([BUNDLE, "--model", "dream-7b"], "not allowed"),
        (["--devices", "h200", "--plot", "/proc/roof.png"], "/proc/roof.png cannot be written"),
    ],
)  # fmt: skip
def test_wrong_options_are_told_in_one_line(words: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert roofline.main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and reason in err and err.count("\n") == 1


def test_a_bundle_from_before_shapes_were_kept_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "old.bundle"
    copy.mkdir()
    for file in Path(BUNDLE).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["provenance"]["shape"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert roofline.main([str(copy), "--devices", "h200"]) == 2
    assert "has no shape of the model; export it again" in capsys.readouterr().err


def test_devices_are_named_once_each() -> None:
    assert choose_devices("local, h200,local") == ["local", "h200"]
