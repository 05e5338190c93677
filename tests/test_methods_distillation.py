"""CD4LM and dParallel: what they mask, what each side sees, and that each method trains each of its students."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from block_alone import block_alone
from pupils import LINES, make_teacher

from export import onnx as export
from runtime import generate, load
from runtime.contract import MODES, Contract
from runtime.decoding import loop
from runtime.errors import UserError
from train import collect, distill, losses, open_checkpoint
from train.data.batches import Example
from train.data.trajectories import read_shards
from train.huggingface import peft_train
from train.masking import noise, predictions
from train.masking.all_blocks import FILLER
from train.masking.noise import AnswerBlocks
from train.methods import cd4lm, dparallel
from train.methods.setup import MethodInputs, Teacher
from train.methods.table import DEFAULTS, METHODS, choose_method
from train.storage import student_pt
from train.torch_backend import TorchBackend, derive_contract
from train.trainer.training_loop import Loss

SIZES = ((5, 7), (9, 14), (3, 2), (1, 4))  # tokens of prompt and answer


def laid_out(
    seed: int, sizes: Sequence[tuple[int, int]] = SIZES, least: int = 0, contract: Contract | None = None
) -> AnswerBlocks:
    """Prompts and answers of those sizes in tokens, filled to whole blocks of 4."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [(torch.randint(3, tiny.VOCAB, (n,), generator=generator).tolist() for n in pair) for pair in sizes]
    examples = [Example(tuple(prompt), tuple(answer)) for prompt, answer in drawn]
    return noise.lay_out(examples, contract or tiny.contract(), least, generator)


def units_of(laid: AnswerBlocks, blocks: bool) -> noise.Units:
    """Its blocks of 4, or its whole canvases."""
    return cd4lm.choose_units(laid, tiny.contract(attention="block_causal" if blocks else "full"))


@pytest.mark.parametrize(
    ("size", "chance", "masked"),
    [
        (100, (0.0, 0.0), (40, 12)),
        (100, (1.0, 1.0), (90, 60)),  # 0.9 × 0.7 is above the teacher's bound
        (100, (0.5, 0.5), (65, 32)),
        (19, (1.0, 0.5), (9, 8)),  # below 20: at most half; the teacher's share is of the ratio drawn before
        (11, (0.0, 0.0), (4, 1)),
        (10, (1.0, 1.0), (2, 1)),
        (1, (0.5, 0.5), (1, 1)),
    ],
)
def test_masked_counts_are_those_of_the_authors(
    size: int, chance: tuple[float, float], masked: tuple[int, int]
) -> None:
    assert cd4lm.sample_masked_counts(size, chance) == masked


def test_the_teachers_masks_are_some_of_the_students_and_all_lie_on_the_canvas() -> None:
    seed = tiny.choose_seed()
    generator, laid = torch.Generator().manual_seed(seed), laid_out(seed, ((5, 30), (40, 9), (3, 2)))
    seen = torch.zeros(laid.ids.shape, dtype=torch.bool)
    for _ in range(200):
        student, teacher = cd4lm.sample_nested_masks(laid, units_of(laid, True), 0, generator)
        assert not (teacher & ~student).any() and not (student & ~laid.find_inside()).any(), f"seed {seed}"
        share = student.sum(1) / (laid.length - laid.start)
        assert 0.4 - 1 / 32 <= share[0] <= 0.9 and 1 <= teacher[0].sum() < student[0].sum(), f"seed {seed}"
        seen |= student
    assert torch.equal(seen, laid.find_inside()), f"seed {seed}"


@pytest.mark.parametrize("unit", [tiny.BLOCK, None])
def test_a_share_of_the_units_is_masked_from_a_drawn_place_to_its_end(unit: int | None) -> None:
    laid, generator, met = laid_out(0, ((5, 30), (40, 9), (3, 2))), torch.Generator().manual_seed(4), Counter[int]()
    here = laid.compute_offsets() // (unit or int(laid.length.max()))
    taken = []
    for _ in range(300):
        drawn, masked = noise.sample_ends(laid, units_of(laid, bool(unit)), 0.5, generator)
        assert not (drawn & ~laid.find_inside()).any() and not (masked & ~drawn).any()
        taken.append(drawn.sum() / laid.find_inside().sum())
        for row, block in {(row, int(here[row, place])) for row, place in laid.find_inside().nonzero().tolist()}:
            places = (here[row] == block) & laid.find_inside()[row]
            if drawn[row][places].any():
                flags = masked[row][places].tolist()
                assert drawn[row][places].all() and flags[-1] and flags == sorted(flags)
                met[flags.count(False)] += len(flags) == tiny.BLOCK
    assert 0.4 < sum(taken) / len(taken) < 0.6
    if unit:  # u ** 2 below 1/4, 2/4, 3/4: nothing left to see for half of them
        kept = [met[n] / met.total() for n in range(tiny.BLOCK)]
        assert kept == pytest.approx([0.5, 0.5**0.5 - 0.5, 0.75**0.5 - 0.5**0.5, 1 - 0.75**0.5], abs=0.05)


def test_in_a_drawn_unit_the_student_has_its_end_masked_alone_and_the_teacher_some_of_that() -> None:
    laid = laid_out(0, ((5, 30), (40, 9), (3, 2)))
    plain, mixed = (
        cd4lm.sample_nested_masks(laid, units_of(laid, True), share, torch.Generator().manual_seed(3))
        for share in (0.0, 0.5)
    )
    changed = (plain[0] != mixed[0]).any(1)
    assert changed[:2].all() and torch.equal(mixed[1], plain[1] & mixed[0])
    student, teacher = cd4lm.sample_nested_masks(laid, units_of(laid, False), 1, torch.Generator().manual_seed(5))
    for row in range(len(student)):
        flags = student[row][laid.find_inside()[row]].tolist()
        assert flags[-1] and flags == sorted(flags)
    assert teacher.any() and not (teacher & ~student).any()


def test_the_kls_share_is_held_then_falls_along_a_cosine() -> None:
    shares = cd4lm.parse_shares("0.9,0.5")
    assert [shares.compute(step, 1000) for step in (0, 99, 100, 550, 1000)] == pytest.approx([0.9, 0.9, 0.9, 0.7, 0.5])
    assert shares.compute(325, 1000) == pytest.approx(0.5 + 0.4 * 0.5 * (1 + np.cos(np.pi / 4)))
    for wrong in ("0.9", "0.9,1.5", "x,1"):
        with pytest.raises(UserError, match="--shares"):
            cd4lm.parse_shares(wrong)


def test_halves_of_a_full_students_block_are_complementary_and_all_behind_is_masked() -> None:
    seed = tiny.choose_seed()
    generator, laid, blocks_met = torch.Generator().manual_seed(seed), laid_out(seed), set()
    for _ in range(100):
        (first, second), behind = dparallel.sample_halves(laid, tiny.contract(attention="full"), 0, generator)
        assert not (first & second).any(), f"seed {seed}"
        for row, (start, end, stop) in enumerate(zip(laid.start, laid.answer_end, laid.length, strict=True)):
            whole = (first | second)[row]
            (places,) = whole.nonzero(as_tuple=True)
            block = int(places[0] - start) // tiny.BLOCK
            blocks_met.add((row, block))
            expected = range(start + block * tiny.BLOCK, start + (block + 1) * tiny.BLOCK)
            assert places.tolist() == list(expected) and expected[0] < end, f"seed {seed}"
            assert behind[row].nonzero().flatten().tolist() == list(range(expected[-1] + 1, int(stop))), f"seed {seed}"
    assert blocks_met == {(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (3, 0)}, f"seed {seed}"


def test_a_block_causal_student_is_asked_for_all_blocks_at_once() -> None:
    laid, generator = laid_out(0), torch.Generator().manual_seed(1)
    (first, second), behind = dparallel.sample_halves(laid, tiny.contract(), 0, generator)
    assert torch.equal(first ^ second, laid.find_inside()) and not (first & second).any() and not behind.any()
    assert 0.3 < first.sum() / laid.find_inside().sum() < 0.7


@pytest.mark.parametrize("attention", ["full", "block_causal"])
def test_a_share_of_the_rows_has_ends_in_the_first_half_and_nothing_in_the_second(attention: str) -> None:
    laid, generator, sizes = laid_out(0), torch.Generator().manual_seed(2), Counter[int]()
    here = torch.div(laid.compute_offsets(), tiny.BLOCK, rounding_mode="floor")
    for _ in range(50):
        (first, second), _ = dparallel.sample_halves(laid, tiny.contract(attention=attention), 0.75, generator)
        assert not (first & second).any() and not second[1:].any()
        for row in range(1, 4):
            for block in here[row][first[row]].unique().tolist():
                flags = first[row][(here[row] == block) & laid.find_inside()[row]].tolist()
                assert flags[-1] and flags == sorted(flags)
                sizes[sum(flags)] += 1
        whole = (first | second)[0]
        assert all(whole[here[0] == block].all() for block in here[0][whole].unique())
    assert sizes.keys() == {1, 2, 3, 4} and sizes[4] > sizes[1]  # a whole block more often than its last position
    (first, second), _ = dparallel.sample_halves(laid, tiny.contract(attention=attention), 1, generator)
    assert first.any() and not second.any()


def test_a_share_of_rows_is_spread_among_them() -> None:
    assert noise.spread(10, 0.7).int().tolist() == [0, 1, 1, 0, 1, 1, 0, 1, 1, 1]
    assert not noise.spread(5, 0).any() and noise.spread(5, 1).all()
    assert noise.spread(4, 0.75).int().tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize(
    ("attention", "alignment"),
    [("full", "prompt"), ("block_causal", "prompt"), ("block_causal", "absolute"), ("causal_context", "prompt")],
)
def test_positions_are_asked_as_they_are_decoded(attention: str, alignment: str, shift: bool) -> None:
    """Against a forward for each row, and over a KV cache for each block with clean tokens before it."""
    seed = tiny.choose_seed()
    contract, model = tiny.contract(shift=shift, attention=attention, alignment=alignment), tiny.model(seed)
    generator, laid = torch.Generator().manual_seed(seed), laid_out(seed, contract=contract)
    masked = (torch.rand(laid.ids.shape, generator=generator) < 0.6) & laid.find_inside()
    asked = masked & (torch.rand(laid.ids.shape, generator=generator) < 0.7)
    with torch.no_grad():
        found = iter(predictions.compute_hidden(model, laid, masked, asked, contract))
        for row, (start, end) in enumerate(zip(laid.start.tolist(), laid.length.tolist(), strict=True)):
            noisy = laid.ids[row].masked_fill(masked[row], tiny.MASK)
            for place in asked[row].nonzero().flatten().tolist():
                border = 0 if alignment == "absolute" else start
                first = border + (place - border) // tiny.BLOCK * tiny.BLOCK
                if contract.has_cache:
                    ids = torch.cat((laid.ids[row, :first], noisy[first : first + tiny.BLOCK]))
                    alone = block_alone(model, contract, ids, start, first)[place - first]
                else:
                    alone = model(noisy[None, :end], torch.full((1, end), end))[0, place - shift]
                assert torch.allclose(alone, next(found), atol=1e-4), f"seed {seed}"
    assert next(found, None) is None


def test_a_teacher_that_shares_the_students_weights_speaks_without_the_adapter() -> None:
    model, plain = tiny.model(0), tiny.model(0)
    peft_train.inject(model, peft_train.LowRank(2, 4.0), 0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    ids, seen = torch.arange(3, 9)[None], torch.full((1, 6), 6)
    with Teacher(model, tiny.contract(), has_adapter=True).activate() as frozen:
        said = frozen(ids, seen)
        assert torch.equal(said, plain(ids, seen))
    after = model(ids, seen)
    assert (after - said).abs().max() > 1e-2 and after.requires_grad and not said.requires_grad
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == learned


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with own data, a teacher, its trajectories, and two smaller students."""
    folder = tmp_path_factory.mktemp("school")
    (folder / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    student_pt.save(make_teacher(32, 0), folder / "teacher.pt")
    student_pt.save(make_teacher(16, 1), folder / "small.pt")
    student_pt.save(make_teacher(16, 1, vocab=262), folder / "stranger.pt")
    student_pt.save(make_teacher(16, 1, block=6), folder / "longer.pt")
    student_pt.save(make_teacher(16, 1, shift=False), folder / "own_rows.pt")
    student_pt.save(make_teacher(16, 1, alignment="end"), folder / "ending.pt")
    student_pt.save(make_teacher(16, 1, attention="causal_context", shift=False), folder / "seeded.pt")
    alone = {"alignment": "absolute", "attention": "block_causal", "block": 1}
    student_pt.save(make_teacher(16, 1, **alone), folder / "rival.pt")
    student_pt.save(make_teacher(16, 1, attention="causal", modes=("speculative", "causal")), folder / "causal.pt")
    words = f"--ckpt {folder}/teacher.pt --out {folder}/trajectories --data {folder}/own.jsonl --count 6 --batch 6"
    assert collect.main([*words.split(), "--temperatures", "0", "--no-bf16"]) == 0
    return folder


def words_for(folder: Path, method: str, out: Path, *extra: str) -> list[str]:
    words = f"--method {method} --teacher {folder}/teacher.pt --data {folder}/own.jsonl --steps 3 --batch 4 --no-bf16"
    if METHODS[method].from_trajectories:
        words += f" --trajectories {folder}/trajectories --no-only-right"
    return [*words.split(), "--out", str(out), "--learning-rate", "0.1", *extra]


def lecture(school: Path, words: str) -> tuple[MethodInputs, Teacher, Loss]:
    """A student in training, its teacher, sharper than it or they would agree, and the loss of a step."""
    method, *extra = words.split()
    args = distill.make_parser().parse_args(words_for(school, method, school / "s.pt", *extra))
    saved = open_checkpoint.load(school / "teacher.pt")
    student = replace(saved, decoding=replace(saved.decoding, attention=args.attention))
    found = read_shards(school / "trajectories") if METHODS[method].from_trajectories else []
    inputs = distill.make_method_inputs(args, saved, student, found)
    teacher = inputs.teacher()
    with torch.no_grad():
        for parameter in teacher.model.parameters():
            parameter *= 4
    _, values = choose_method(args.method, args.attention, {name: getattr(args, name) for name in DEFAULTS})
    return inputs, teacher, METHODS[method].plan(values)(replace(inputs, teacher=lambda: teacher))


@pytest.mark.parametrize(
    ("method", "attention"), [(name, attention) for name, each in METHODS.items() for attention in each.attentions]
)
def test_a_loss_is_the_sum_of_its_terms_depends_on_the_step_alone_and_teaches_the_student_alone(
    method: str, attention: str, school: Path
) -> None:
    inputs, teacher, loss_of = lecture(school, f"{method} --attention {attention}")
    total, terms = loss_of(1)
    total.backward()
    shares = {
        "cdlm": {"distil": 1.0, "cons": 0.5, "dlm": 1.0},
        "cd4lm": {"agree": cd4lm.Shares(0.9, 0.5).compute(1, 3), "rebuild": 1 - cd4lm.Shares(0.9, 0.5).compute(1, 3)},
        "dparallel": {"wrong": 1.0, "doubt": 2.0},
        "tad": {"near": 1.0, "distant": 1.0},
    }[method]
    assert total.item() == pytest.approx(sum(share * terms[name] for name, share in shares.items()), rel=1e-5)
    assert all(terms[name] > 0 for name in shares if name not in ("cons", "doubt"))  # which may have no position
    assert all(p.grad is None for p in teacher.model.parameters())
    gradients = [p.grad for p in inputs.model.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients) and any(
        g.abs().max() > 0 for g in gradients if g is not None
    )
    assert loss_of(1)[0].item() == pytest.approx(total.item()) and loss_of(2)[0].item() != pytest.approx(total.item())


@pytest.mark.parametrize(
    "words",
    [
        "cdlm --weights 1,0,0",
        "cdlm --weights 0,1,0 --target completed",
        "cdlm --weights 0,0,1",
        "cd4lm --shares 1,1",
        "cd4lm --shares 0,0",
        "cd4lm --shares 1,1 --attention full",
        "dparallel --certainty 0",
        "tad --distant 0",
        "tad --near 0 --attention full",
        "tad --near 1",
    ],
)
def test_each_term_alone_teaches_the_student(words: str, school: Path) -> None:
    """A teacher in the student's place would have no gradient."""
    inputs, _, loss_of = lecture(school, words)
    total, _ = loss_of(1)
    total.backward()
    norms = {name: 0.0 if p.grad is None else p.grad.norm().item() for name, p in inputs.model.named_parameters()}
    matrices = [name for name, p in inputs.model.named_parameters() if p.dim() == 2]
    assert matrices and min(norms[name] for name in matrices) > 0 and total.item() > 0


@pytest.mark.parametrize("attention", ["full", "block_causal"])
def test_rows_without_another_half_are_left_out_of_its_forward_alone(attention: str, school: Path) -> None:
    """The slow way: every row in both forward passes."""
    inputs, _, loss_of = lecture(school, f"dparallel --attention {attention} --ordered 0.5")
    learning = torch.optim.Adam(inputs.model.parameters(), 1e-2)
    for _ in range(8):  # until some position is right, where alone certainty is asked for
        learning.zero_grad()
        loss_of(3)[0].backward()
        learning.step()
    contract, generator, slow = inputs.contract, inputs.make_generator(3), torch.zeros(())
    answers = dparallel.take_answers(inputs.trajectories, contract)
    picked = torch.randint(len(answers), (inputs.stream.batch,), generator=generator).tolist()
    laid = noise.lay_out([answers[i] for i in picked], contract, inputs.compute_least_length(), generator)
    both, behind = dparallel.sample_halves(laid, contract, 0.5, generator)
    for half in both:
        scores = predictions.compute_scores(
            inputs.model, predictions.compute_hidden(inputs.run, laid, half | behind, half, contract), contract
        )
        weight, target = noise.make_weights(laid, half, FILLER)[half], laid.ids[half]
        slow = slow + losses.denoising(scores.log_softmax(-1), target, weight)
        slow = slow + 2 * losses.uncertainty(scores, target, weight)
    total, terms = loss_of(3)
    assert not both[1].any(dim=1).all() and terms["doubt"] > 0 and total.item() == pytest.approx(slow.item(), rel=1e-5)


@pytest.mark.parametrize("attention", ["full", "block_causal"])
def test_the_teacher_sees_the_less_noisy_answer_and_the_student_the_noisy_one(attention: str, school: Path) -> None:
    """DSCD the slow way: each side alone, with the masks that are its own, asked where the student has masks."""
    inputs, teacher, loss_of = lecture(school, f"cd4lm --attention {attention} --ordered 0.5")
    contract, generator = inputs.contract, inputs.make_generator(1)
    laid = noise.lay_out(
        inputs.stream.select_examples(1), contract, inputs.compute_least_length(), generator
    )  # fmt: skip
    noisy, less = cd4lm.sample_nested_masks(laid, units_of(laid, attention == "block_causal"), 0.5, generator)
    assert (noisy & ~less).any() and not (less & ~noisy).any()
    weight, target = noise.make_weights(laid, noisy, FILLER)[noisy], laid.ids[noisy]
    with torch.no_grad():
        hidden = predictions.compute_hidden(teacher.model, laid, less, noisy, teacher.contract)
        taught = predictions.compute_scores(teacher.model, hidden, contract)
    said = predictions.compute_scores(
        inputs.model, predictions.compute_hidden(inputs.run, laid, noisy, noisy, contract), contract
    )
    soft, softer = (scores.double().div(2).softmax(-1) for scores in (taught, said))
    apart = (soft * (soft.clamp_min(1e-300).log() - softer.clamp_min(1e-300).log())).sum(-1)
    wrong = -said.double().softmax(-1)[torch.arange(len(target)), target].log()
    agree, rebuild = (4 * (apart * weight).sum() / weight.sum(), (wrong * weight).sum() / weight.sum())
    share = cd4lm.Shares(0.9, 0.5).compute(1, 3)
    total, terms = loss_of(1)
    assert terms["agree"] == pytest.approx(agree.item(), rel=1e-4) and agree > 0
    assert terms["rebuild"] == pytest.approx(rebuild.item(), rel=1e-4)
    assert total.item() == pytest.approx((share * agree + (1 - share) * rebuild).item(), rel=1e-4)


@pytest.mark.parametrize("words", ["cdlm --weights 1,1,0 --target completed", "tad"])
def test_a_gradient_through_bf16_is_that_of_fp32(words: str, school: Path) -> None:
    """CDLM runs the student without gradients first, and older torch then kept weights cast without any."""
    gradients = []
    for bf16 in (False, True):
        inputs, _, loss_of = lecture(school, words)
        with torch.autocast("cpu", torch.bfloat16, bf16):
            total, _ = loss_of(1)
        total.backward()
        found = {name: p.grad for name, p in inputs.model.named_parameters() if p.dim() == 2}
        gradients.append({name: gradient for name, gradient in found.items() if gradient is not None})
    exact, rounded = gradients
    assert exact.keys() == rounded.keys()
    for name, gradient in exact.items():
        assert torch.cosine_similarity(gradient.flatten(), rounded[name].flatten(), dim=0) > 0.9, name


def test_states_of_several_tokens_a_step_are_no_trajectory_for_methods_that_learn_from_states(
    school: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"--ckpt {school}/teacher.pt --out {tmp_path}/answers --data {school}/own.jsonl --count 6 --batch 6"
    assert collect.main([*words.split(), "--temperatures", "0", "--no-bf16", "--threshold", "0.5"]) == 0
    capsys.readouterr()
    given = ["--trajectories", f"{tmp_path}/answers", "--no-only-right"]
    for method in ("cdlm", "tad"):
        assert distill.main(words_for(school, method, tmp_path / "s.pt", *given)) == 2
        err = capsys.readouterr().err
        assert "collected with --threshold 0.5, several tokens per step" in err and err.count("\n") == 1
    assert distill.main(words_for(school, "dparallel", tmp_path / "s.pt", *given)) == 0


@pytest.mark.parametrize("extra", ["", "--lora-rank 2", "--student small.pt", "--student small.pt --lora-rank 2"])
@pytest.mark.parametrize(
    ("method", "attention"), [(name, attention) for name, each in METHODS.items() for attention in each.attentions]
)
def test_every_method_trains_every_student_it_makes(
    method: str, attention: str, extra: str, school: Path, tmp_path: Path
) -> None:
    out, start = tmp_path / "student.pt", school / ("small.pt" if "--student" in extra else "teacher.pt")
    given = [str(school / word) if word.endswith(".pt") else word for word in extra.split()]
    assert distill.main(words_for(school, method, out, "--attention", attention, *given)) == 0
    made, before = open_checkpoint.load(out), open_checkpoint.load(start)
    assert made.decoding == replace(before.decoding, attention=attention, gate=dict(METHODS[method].gate))
    assert made.decoding.modes == ("block",)  # its causal answers were not taught
    changed = {name for name, weight in made.weights.items() if not torch.equal(weight, before.weights[name])}
    linear = {name for name in before.weights if name.split(".")[-2] in peft_train.LINEARS}
    assert changed == (linear if "--lora-rank" in extra else set(before.weights))
    assert all(weight.isfinite().all() for weight in made.weights.values())
    assert made.model == before.model


@pytest.mark.parametrize("method", METHODS)
def test_a_student_that_starts_from_an_autoregressive_model_takes_the_teachers_blocks(
    method: str, school: Path, tmp_path: Path
) -> None:
    given = f"--attention causal_context --next-token 1 --student {school}/rival.pt"
    assert distill.main(words_for(school, method, tmp_path / "student.pt", *given.split())) == 0
    made, before = open_checkpoint.load(tmp_path / "student.pt"), open_checkpoint.load(school / "rival.pt")
    layout = {"alignment": "prompt", "block": 4, "canvas": open_checkpoint.load(school / "teacher.pt").decoding.canvas}
    assert before.decoding.block == 1 and made.decoding == replace(
        before.decoding, **layout, attention="causal_context", gate=dict(METHODS[method].gate), modes=MODES
    )
    assert made.model == before.model


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("cdlm --attention full", "makes block_causal or causal_context students; got --attention full"),
        ("cd4lm --trajectories x", "--trajectories was given with --method cd4lm; it is of cdlm or dparallel"),
        ("cd4lm --no-only-right", "--only-right was given with --method cd4lm"),
        ("dparallel --target partial", "--target was given with --method dparallel; it is of cdlm"),
        ("cdlm --certainty 1", "--certainty was given with --method cdlm; it is of dparallel"),
        ("cdlm --near 0.5", "--near was given with --method cdlm; it is of tad: leave it out"),
        ("tad --near 1.5", "--near is 1.5; expected a share from 0 to 1"),
        ("tad --distant -1", "--distant is -1; expected a number of at least 0"),
        ("tad --distant inf", "--distant: got 'inf'; expected a finite number"),
        ("cd4lm --temperature 0", "--temperature is 0"),
        ("cd4lm --shares 1", "--shares is 1; expected two numbers"),
        ("dparallel --certainty -1", "--certainty is -1"),
        ("dparallel --ordered 1.5", "--ordered is 1.5; expected a share from 0 to 1"),
        ("cdlm --teacher {}/own_rows.pt --attention causal_context", "has no shift: students whose rows predict their"),
        ("cd4lm --teacher {}/ending.pt --attention causal_context", "is aligned end; expected prompt"),
        ("cd4lm --teacher {}/seeded.pt", "is here the last committed row's (causal_context"),
        ("dparallel --teacher {}/causal.pt", "the teacher decodes token by token and fills no blocks"),
        ("cd4lm --teacher {}/rival.pt", "the teacher decodes token by token and fills no blocks"),
        ("cd4lm --student {}/stranger.pt", "differ in vocabulary"),
        ("cd4lm --student {}/longer.pt", "differ in block"),
        ("cd4lm --student {}/small.pt --out {}/teacher.pt", "is the teacher"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    words: str, said: str, school: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method, *extra = words.replace("{}", str(school)).split()
    assert distill.main(words_for(school, method, tmp_path / "out.pt", *extra)) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.startswith("error: ") and err.count("\n") == 1
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize(("method", "told"), [("cdlm", True), ("cd4lm", True), ("dparallel", False), ("tad", False)])
def test_examples_that_are_too_long_are_counted_by_methods_that_learn_from_examples(
    method: str, told: bool, school: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = {"prompt": "Say all.\n", "answer": "yes " * 40}
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*LINES, long]), encoding="utf-8")
    words = words_for(school, method, tmp_path / "student.pt")
    words[words.index("--data") + 1] = str(tmp_path / "own.jsonl")
    assert distill.main(words) == 0
    assert ("training examples" in capsys.readouterr().err) == told


def test_trajectories_of_another_teacher_are_refused(
    school: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student_pt.save(make_teacher(32, 5), tmp_path / "teacher.pt")
    words = words_for(school, "dparallel", tmp_path / "student.pt", "--teacher", str(tmp_path / "teacher.pt"))
    assert distill.main(words) == 2 and "are of another teacher" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["dparallel", "tad"])
def test_a_method_that_needs_trajectories_says_so(
    method: str, school: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--method", method, "--teacher", str(school / "teacher.pt"), "--out", str(school / "out.pt")]
    assert distill.main(words) == 2 and f"--method {method} needs --trajectories" in capsys.readouterr().err


def test_a_full_student_is_exported_and_answers_as_in_pytorch_and_says_that_no_cache_was_used(
    school: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "student.pt"
    assert distill.main(words_for(school, "dparallel", out, "--attention", "full")) == 0
    assert export.main(["--ckpt", str(out)]) == 0
    folder, saved = tmp_path / "student.bundle", open_checkpoint.load(out)
    capsys.readouterr()
    assert generate.main([str(folder), "Say 3.\n", "--max-new-tokens", "10", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cached"] is False and told["commits"] == 0
    model = load(folder)
    request = model.request("Say 3.\n", max_new_tokens=10)
    result = loop.generate(TorchBackend(saved.build(), derive_contract(saved)), request)
    assert tuple(told["token_ids"]) == result.token_ids and told["forwards"] == result.forwards
    assert model.gate.metric == "entropy" and model.contract.cache == "none"
