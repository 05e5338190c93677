"""The TensorRT backend over a scripted fake of CUDA and TensorRT: whole decodes, what crosses, what is held."""

from __future__ import annotations

import gc
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from fake_tensorrt import FakeTensorRT
from letters import Letters
from trt_bundle import BLOCK, make_fake_backend

from runtime.backend import Forward
from runtime.decisions.decide import PROBABILITY_KINDS, DecisionOptions, decide
from runtime.decisions.form import Field, Form
from runtime.decoding.loop import generate, generate_batch
from runtime.decoding.options import DecodeOptions, Request
from runtime.decoding.request_state import Result
from runtime.engines.trt.profile import OptimizationProfile, choose_profile
from runtime.errors import UserError
from runtime.perf.latency import make_canvas_step, make_commit, make_fused, time_forwards
from train.torch_backend import TorchBackend

LENGTHS = (1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 2, 35)  # 35: more than the widest profile takes at once
RUNNING = {"cudaMemsetAsync", "cudaMemcpyAsync", "cudaGraphLaunch", "cudaStreamSynchronize"}


def told(result: Result) -> tuple[Any, ...]:
    return result.token_ids, result.finish, result.steps, result.commits, result.forwards


def ask(length: int, wanted: int, seed: int = 0) -> Request:
    """A prompt without mask tokens: of these alone, every position would be as good as every other."""
    return Request(
        np.random.default_rng(seed + length).integers(tiny.MASK + 1, tiny.VOCAB, length), DecodeOptions(wanted)
    )


@pytest.mark.parametrize(
    ("width", "room", "padding", "profile", "padded"),
    [
        (4, 300, True, 0, 4), (3, 300, True, 0, 4), (5, 300, True, 1, 64), (70, 300, True, 1, 100),
        (110, 300, True, 2, 128), (5, 30, True, 1, 30), (90, 95, True, 1, 95), (5, 300, False, 1, 5),
    ],
)  # fmt: skip
def test_a_forward_is_padded_as_far_as_its_profile_and_the_kv_cache_reach(
    width: int, room: int, padding: bool, profile: int, padded: int
) -> None:
    profiles = [OptimizationProfile(*each) for each in ((0, 4, 4, 4), (1, 1, 100, 4), (2, 101, 300, 4))]
    assert choose_profile(profiles, width, room, padding) == (profiles[profile], padded)
    with pytest.raises(UserError, match="no profile of this engine takes 301 tokens"):
        choose_profile(profiles, 301, 400, padding)


def test_a_model_that_nobody_holds_any_more_holds_nothing_on_the_gpu(tmp_path: Path) -> None:
    backend, cuda, _ = make_fake_backend(tmp_path, tiny.model(20), tiny.contract())
    generate(backend, ask(4, 5))
    assert cuda.leaks() != {}
    del backend
    gc.collect()
    assert cuda.leaks() == {}


@pytest.mark.parametrize("fused_commits", [True, False])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("alignment", ["prompt", "absolute", "end"])
@pytest.mark.parametrize("dialect", ["trt", "plain"])
def test_whole_answers_are_those_of_pytorch(
    dialect: str, alignment: str, shift: bool, fused_commits: bool, tmp_path: Path
) -> None:
    contract, model = tiny.contract(alignment=alignment, shift=shift), tiny.model(20)
    backend, cuda, _ = make_fake_backend(tmp_path, model, contract, dialect=dialect)
    reference = TorchBackend(model, contract)
    for length in LENGTHS if alignment != "prompt" else LENGTHS[:-1]:
        ours = generate(backend, ask(length, 9), fused=fused_commits)
        assert told(ours) == told(generate(reference, ask(length, 9), fused=fused_commits)), f"prompt of {length}"
    backend.close()
    assert cuda.leaks() == {}


@pytest.mark.parametrize("shift", [False, True])
def test_a_model_without_a_cache_is_run_whole(shift: bool, tmp_path: Path) -> None:
    contract, model = tiny.contract(attention="full", shift=shift), tiny.model(21)
    backend, _, fake = make_fake_backend(tmp_path, model, contract, profiles=((1, 40),))
    assert backend.contract.capacity == 40 and "visible" not in fake.contexts[0].addresses
    for length in (1, 5, 28):
        assert told(generate(backend, ask(length, 9))) == told(generate(TorchBackend(model, contract), ask(length, 9)))
    with pytest.raises(UserError, match="leaves room for 0 new ones in a KV-cache capacity of 40"):
        generate(backend, ask(29, 9))


@pytest.mark.parametrize("dialect", ["trt", "plain"])
def test_a_ragged_batch_is_its_rows_each_alone(dialect: str, tmp_path: Path) -> None:
    contract, model = tiny.contract(alignment="absolute"), tiny.model(22)
    backend, _, _ = make_fake_backend(
        tmp_path, model, contract, dialect=dialect, batch=3, profiles=((4, 4), (8, 8), (1, 30))
    )
    assert (backend.contract.batch, backend.contract.capacity) == (3, 64 - 2 * BLOCK)
    batch = [ask(3, 20), ask(22, 5), ask(9, 12)]
    solo = TorchBackend(model, contract)
    for part in (batch, batch[:2], batch[2:]):
        found = [told(result) for result in generate_batch(backend, part)]
        assert found == [told(generate(solo, request)) for request in part]
    with pytest.raises(UserError, match="4 sequences were given at once; this engine runs 3"):
        generate_batch(backend, [*batch, batch[0]])


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("dialect", ["trt", "plain"])
def test_answers_at_a_temperature_are_those_of_pytorch(dialect: str, shift: bool, tmp_path: Path) -> None:
    contract, model = tiny.contract(alignment="absolute", shift=shift, top_k=6), tiny.model(24)
    backend, cuda, _ = make_fake_backend(
        tmp_path, model, contract, dialect=dialect, batch=3, profiles=((4, 4), (8, 8), (1, 16))
    )
    solo, different = TorchBackend(model, contract), 0
    sampled = [(n, DecodeOptions(12, temperature=t, seed=n)) for n, t in ((3, 2.0), (22, 0.0), (35, 0.9))]
    batch = [Request(ask(n, 12).prompt, options) for n, options in sampled]
    for part, fused_commits in itertools.product((batch, batch[:2], batch[2:]), (True, False)):
        found = [told(result) for result in generate_batch(backend, part, fused=fused_commits)]
        assert found == [told(generate(solo, request, fused=fused_commits)) for request in part]
        greedy = [told(generate(solo, each, temperature=0.0, fused=fused_commits)) for each in part]
        different += sum(a != b for a, b in zip(found, greedy, strict=True))
    assert different > 3
    backend.close()
    assert cuda.leaks() == {}


def test_an_engine_with_other_top_tokens_than_its_manifest_says_is_refused(tmp_path: Path) -> None:
    for shape in (("OUTPUT", "INT64", (1, -1, 5)), None):
        with pytest.raises(UserError, match="the engine is not that of its manifest: top_token differs"):
            make_fake_backend(
                tmp_path, tiny.model(1), tiny.contract(top_k=6),
                library=lambda fake, shape=shape: fake.changes.update(top_token=shape),
            )  # fmt: skip


def test_the_smallest_engine_that_holds_the_request_answers_and_stays(tmp_path: Path) -> None:
    contract, model = tiny.contract(), tiny.model(1)
    backend, cuda, _ = make_fake_backend(tmp_path, model, contract, capacities=(64, 32))
    assert backend.contract.capacity == 64
    held = len(cuda.memory)
    backend.open(1, 32)
    assert len(cuda.memory) == held and backend.cache.shape[3] == 32
    backend.open(1, 33)
    assert len(cuda.memory) == 2 * held and backend.cache.shape[3] == 64
    cuda.log.clear()
    for capacity in (20, 64, 32):
        backend.open(1, capacity)
    assert set(cuda.called()) == {"cudaMemsetAsync"}
    backend.close()
    assert cuda.leaks() == {}


def test_a_cache_in_place_is_one_address_bound_once(tmp_path: Path) -> None:
    backend, cuda, fake = make_fake_backend(tmp_path, tiny.model(1), tiny.contract())
    generate(backend, ask(7, 20))
    parts = []
    for context in fake.contexts:
        names = context.log.count("set_tensor_address")
        assert names == len(context.addresses) == 4 + 3 + 2 * 4
        for layer in range(2):
            for kv in ("key", "value"):
                past, present = (context.addresses[f"{side}.{layer}.{kv}"] for side in ("past_key_values", "present"))
                assert past == present
                parts.append(past)
    assert len(set(parts)) == 4, "all profiles have the same cache"
    assert len({context.scratch for context in fake.contexts}) == 1, "profiles run in turn and share their scratch"
    size = 2 * 64 * 8 * 4  # kv_heads, capacity, head_dim, bytes
    assert sorted(part - min(parts) for part in set(parts)) == [0, size, 2 * size, 3 * size]
    assert len(cuda.at(min(parts), 4 * size)) == 4 * size


def test_nothing_is_allocated_or_bound_after_loading(tmp_path: Path) -> None:
    contract = tiny.contract(alignment="absolute")
    backend, cuda, fake = make_fake_backend(tmp_path, tiny.model(2), contract)
    bound = [list(context.log) for context in fake.contexts]
    cuda.log.clear()
    for length in LENGTHS:
        generate(backend, ask(length, 9))
    assert set(cuda.called()) == RUNNING
    assert [list(context.log) for context in fake.contexts][:2] == bound[:2], "fixed widths are replays alone"
    assert set(fake.contexts[2].log[len(bound[2]) :]) == {"set_input_shape", "execute_async_v3"}


def test_a_step_is_one_launch_and_a_few_hundred_bytes(tmp_path: Path) -> None:
    backend, cuda, _ = make_fake_backend(tmp_path, tiny.model(3), tiny.contract())
    backend.open(1, 64)
    cuda.log.clear()
    backend.forward(make_canvas_step(backend.contract, 8))
    assert cuda.called() == ["cudaGraphLaunch", "cudaStreamSynchronize"]
    plain, cuda, fake = make_fake_backend(tmp_path, tiny.model(3), tiny.contract(), graphs=False)
    assert plain.name.endswith("without CUDA graphs") and not backend.name.endswith("graphs")
    plain.open(1, 64)
    cuda.log.clear()
    plain.forward(make_canvas_step(plain.contract, 8))
    assert cuda.called() == ["cudaMemcpyAsync", "cudaMemcpyAsync", "cudaStreamSynchronize"]
    (_, to, source, sent, kind, _), (_, target, back, received, other, _), _ = cuda.log
    assert (kind, other) == (1, 2) and sent <= 1024 and received <= 768
    assert source in cuda.pinned and target in cuda.pinned, "pinned, or the copies would not be asynchronous"
    context = fake.contexts[0]
    assert (to, back) == (context.addresses["input_ids"], context.addresses["token"])


def test_a_replayed_graph_says_what_plain_launches_say(tmp_path: Path) -> None:
    model, contract = tiny.model(4), tiny.contract(shift=True)
    replayed, _, _ = make_fake_backend(tmp_path, model, contract)
    plain, _, _ = make_fake_backend(tmp_path, model, contract, graphs=False)
    for backend in (replayed, plain):
        backend.open(1, 64)
    for make in (make_canvas_step, make_commit, make_fused):
        for past in (0, 8, 20):
            one, other = replayed.forward(make(contract, past)), plain.forward(make(contract, past))
            assert np.array_equal(one.token, other.token) and np.array_equal(one.confidence, other.confidence)


def test_where_a_context_cannot_be_captured_it_is_launched(tmp_path: Path) -> None:
    contract, model = tiny.contract(), tiny.model(5)
    request = ask(6, 12)
    expected = told(generate(TorchBackend(model, contract), request))
    for capturable in (True, False):

        def answer(fake: FakeTensorRT, capturable: bool = capturable) -> None:
            fake.capturable = capturable

        backend, cuda, _ = make_fake_backend(tmp_path, model, contract, library=answer)
        assert ("cudaStreamBeginCapture" in cuda.called()) == capturable
        assert backend.name == "TensorRT 10.16.1.11 on Fake 4090 (sm89)" + (
            "" if capturable else ", without CUDA graphs"
        )
        assert told(generate(backend, request)) == expected


def test_a_commit_of_a_delta_engine_costs_copies_on_the_device_and_a_step_none(tmp_path: Path) -> None:
    backend, cuda, _ = make_fake_backend(tmp_path, tiny.model(6), tiny.contract(), dialect="plain")
    backend.open(1, 64)
    backend.forward(make_commit(backend.contract, 0))
    cuda.log.clear()
    backend.forward(make_canvas_step(backend.contract, BLOCK))
    assert cuda.called().count("cudaMemcpy2DAsync") == 4, "keys and values of two layers"
    sizes = {entry[2:7:2] for entry in cuda.log if entry[0] == "cudaMemcpy2DAsync"}
    assert sizes == {(64 * 32, BLOCK * 32, 2)}, "pitch, bytes a head, heads"
    cuda.log.clear()
    backend.forward(make_canvas_step(backend.contract, BLOCK))
    assert "cudaMemcpy2DAsync" not in cuda.called()


@pytest.mark.parametrize("dialect", ["trt", "plain"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_cache_that_is_read_back_is_pytorchs(dialect: str, dtype: str, tmp_path: Path) -> None:
    contract, model = tiny.contract(), tiny.model(7)
    backend, _, _ = make_fake_backend(tmp_path, model, contract, dialect=dialect, dtype=dtype)
    reference = TorchBackend(model, contract)
    rng = np.random.default_rng(7)
    backend.open(1, 64)
    reference.open(1, 64)
    for past, width in ((0, 6), (6, 8), (14, 4), (14, 4)):
        ids = rng.integers(3, 24, (1, width))
        forward = Forward(ids, np.array([past]), np.full((1, width), past + width), np.array([[0]]))
        backend.forward(forward)
        reference.forward(forward)
    assert reference.cache is not None
    theirs = np.stack([half[i].numpy() for i in range(2) for half in (reference.cache.keys, reference.cache.values)])
    bound = 1e-5 if dtype == "float32" else 0.05
    assert np.abs(backend.cache[..., :18, :] - theirs[..., :18, :]).max() < bound
    assert np.isfinite(backend.cache).all(), "what nobody wrote is 0, not what the allocator left"


def test_every_request_finds_a_cache_of_zeros(tmp_path: Path) -> None:
    backend, _, _ = make_fake_backend(tmp_path, tiny.model(8), tiny.contract())
    generate(backend, ask(9, 16))
    assert backend.cache.any()
    backend.open(1, 64)
    assert not backend.cache.any()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"past_length": np.array([61])}, "tokens after"),
        ({"past_length": np.array([-1])}, "tokens after"),
        ({"visible": np.zeros((1, 4), np.int64)}, "visible"),
        ({"visible": np.full((1, 4), 13)}, "visible"),
        ({"rows": np.array([[4]])}, "rows"),
        ({"rows": np.array([[-1]])}, "rows"),
        ({"input_ids": np.zeros((2, 4), np.int64)}, "tokens after"),
    ],
)
def test_what_is_out_of_bounds_is_refused_on_the_host(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    backend, cuda, _ = make_fake_backend(tmp_path, tiny.model(9), tiny.contract())
    backend.open(1, 64)
    cuda.log.clear()
    with pytest.raises(ValueError, match=told):
        backend.forward(replace(make_canvas_step(backend.contract, 8), **change))
    assert cuda.log == []
    with pytest.raises(ValueError, match="outside"):
        backend.open(1, 65)


def test_a_prompt_that_is_one_span_and_too_long_is_refused_before_any_forward(tmp_path: Path) -> None:
    backend, cuda, _ = make_fake_backend(tmp_path, tiny.model(10), tiny.contract())
    cuda.log.clear()
    with pytest.raises(UserError, match=r"has 17 tokens, but this engine takes one of at most 16; .*--max-prompt"):
        generate(backend, ask(17, 4))
    assert cuda.log == []
    assert {row.width for row in time_forwards(backend, 1, 0) if row.forward == "prefill"} == {4, 8, 16}


@pytest.mark.parametrize("alignment", ["prompt", "absolute", "end"])
def test_a_batched_engine_too_short_for_its_padding_is_opened_and_refuses_requests_in_one_line(
    alignment: str, tmp_path: Path
) -> None:
    contract, model = tiny.contract(alignment=alignment), tiny.model(22)
    backend, _, _ = make_fake_backend(
        tmp_path, model, contract, capacities=(2 * BLOCK,), batch=2, profiles=((4, 4), (1, 8))
    )
    with pytest.raises(UserError, match="leaves room for 0 new ones in a KV-cache capacity of 0"):
        generate(backend, ask(1, 1))


@pytest.mark.parametrize("attention", ["block_causal", "full"])
@pytest.mark.parametrize("dialect", ["trt", "plain"])
def test_decisions_are_those_of_pytorch(dialect: str, attention: str, tmp_path: Path) -> None:
    contract = tiny.contract(attention=attention, top_k=3, candidates=6, canvas=6 * tiny.BLOCK)
    profiles = ((4, 4), (8, 8), (1, 16)) if attention == "block_causal" else ((25, 64),)
    backend, cuda, _ = make_fake_backend(tmp_path, tiny.model(7), contract, dialect=dialect, profiles=profiles)
    solo = TorchBackend(tiny.model(7), contract)
    form = Form(
        ("ab", Field((0,), ("c", "de", "fgh")), "k", *(Field((n,), ("a", "b", "q")) for n in range(1, 7)), "ut")
    )
    for probability, length in itertools.product(PROBABILITY_KINDS, (2, 9)):
        prompt = ask(length, 12).prompt
        ours, theirs = (
            decide(each, Letters(), contract.gate, prompt, form, DecisionOptions(probability))  # type: ignore[arg-type]
            for each in (backend, solo)
        )
        assert ours.text == theirs.text and len(ours.fields) == 7
        for mine, other in zip(ours.fields, theirs.fields, strict=True):
            np.testing.assert_allclose(mine.probabilities, other.probabilities, atol=1e-5)
    request = ask(5, 12)  # and answers next to them are what they were
    assert told(generate(backend, request)) == told(generate(solo, request))
    backend.close()
    assert cuda.leaks() == {}


def test_an_engine_without_its_manifests_candidates_is_refused(tmp_path: Path) -> None:
    for name in ("candidates", "candidate_logprob"):
        with pytest.raises(UserError, match=f"the engine is not that of its manifest: {name} differs"):
            make_fake_backend(
                tmp_path, tiny.model(1), tiny.contract(candidates=6),
                library=lambda fake, name=name: fake.changes.update({name: None}),
            )  # fmt: skip
