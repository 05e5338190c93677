"""Decisions on the host: nothing outside the form whatever an engine says, how many forward passes, what is refused."""

from __future__ import annotations

import random
import re
from typing import Any, ClassVar

import numpy as np
import pytest
import tiny
from letters import LETTERS, Letters

from runtime.backend import Forward, Proposal, check_candidates
from runtime.decisions import canvas
from runtime.decisions.decide import DecisionOptions, decide
from runtime.decisions.form import Decision, Field, Form, FreeText
from runtime.decisions.free_text import find_finished_text
from runtime.decoding.loop import generate
from runtime.decoding.options import Request
from runtime.errors import NumericalError, UserError
from train.torch_backend import TorchBackend

KINDS: list[dict[str, Any]] = [
    {}, {"shift": True, "alignment": "absolute"}, {"alignment": "end"}, {"attention": "full"},
    {"attention": "causal_context"}, {"attention": "causal", "shift": True, "modes": ["causal"]},
]  # fmt: skip
CONTRACTS = [tiny.contract(**{"candidates": 8, "canvas": 16 * tiny.BLOCK, "capacity": 96, **kind}) for kind in KINDS]


class AnyScores:
    """An engine that gives random scores, extreme and equal ones among them, and looks at what it is asked."""

    name = "any scores"

    def __init__(self, contract: Any, seed: int) -> None:
        self.contract, self.rng, self.passes = contract, np.random.default_rng(seed), 0

    def open(self, batch: int, capacity: int) -> None:
        self.capacity = capacity

    def keep(self, rows: Any) -> None:
        raise AssertionError("it has one sequence")

    def forward(self, forward: Forward) -> Proposal:
        check_candidates(forward, self.contract)
        width = forward.input_ids.shape[1]
        assert forward.past_length[0] + width <= self.capacity and forward.rows.max() < width
        self.passes += 1
        shape = forward.rows.shape
        token = self.rng.integers(3, self.contract.vocab, shape)
        out = Proposal(token, self.rng.random(shape, np.float32), self.rng.random(shape, np.float32))
        if forward.candidates is None:
            return out
        scores = -(10.0 ** self.rng.integers(-3, 25, forward.candidates.shape)) * self.rng.integers(0, 3)
        return Proposal(*out.list_arrays(), candidate_logprob=scores.astype(np.float32))


def random_form(rng: random.Random) -> Form:
    """One to four fields, sometimes a free text, and words."""
    parts: list[str | Field | FreeText] = [word(rng, 0, 4)]
    for number in range(rng.randint(1, 4)):
        if rng.random() < 0.1:
            parts += [FreeText((number,), rng.randint(1, 6)), word(rng, 1, 3)]
            continue
        ends = word(rng, 0, 2), word(rng, 0, 1)
        values = {ends[0] + word(rng, 1, 3) + ends[1] for _ in range(rng.randint(1, 6))}
        parts += [Field((number,), tuple(sorted(values))), word(rng, 0, 3)]
    return Form(tuple(parts))


def word(rng: random.Random, least: int, most: int) -> str:
    return "".join(rng.choices(LETTERS, k=rng.randint(least, most)))


def decide_at_random(seed: int) -> Decision:
    rng = random.Random(seed)
    contract = rng.choice(CONTRACTS)
    prompt, form = tiny.prompt(rng, rng.randint(1, 9)), random_form(rng)
    options = DecisionOptions(
        rng.choice(("parallel", "ordered")), rng.choice((None, None, 1, 2)), rng.choice((0.1, 1.0, 7.0))
    )
    backend = AnyScores(contract, seed)
    decision = decide(backend, Letters(), contract.gate, prompt, form, options)  # type: ignore[arg-type]
    fields = {part.path: part for part in form.parts if not isinstance(part, str)}
    assert len({made.path for made in decision.fields}) == len(decision.fields) <= len(fields)
    assert decision.partial == (len(decision.fields) < len(fields))
    assert options.max_forwards is None or decision.forwards <= options.max_forwards
    assert options.max_forwards is not None or not decision.partial
    for made in decision.fields:
        field = fields[made.path]
        if isinstance(field, Field):
            assert field.values[made.index] == made.value and len(made.probabilities) == len(field.values)
            assert abs(sum(made.probabilities) - 1) < 1e-9 and made.confidence == max(made.probabilities)
        else:
            assert made.index == -1 and made.probabilities == () and made.confidence != made.confidence
            assert len(made.value) <= field.max_tokens and set(made.value) <= set(LETTERS)
    values = iter(made.value for made in decision.fields)
    if not decision.partial:
        assert decision.text == "".join(part if isinstance(part, str) else next(values) for part in form.parts)
    return decision


def test_nothing_outside_the_form_whatever_the_scores() -> None:
    made = [decide_at_random(seed) for seed in range(800)]
    assert any(each.partial for each in made) and any(len(each.fields) == 4 for each in made)


@pytest.mark.long
def test_nothing_outside_the_form_in_a_hundred_thousand_forms_and_scores() -> None:
    partial = sum(decide_at_random(1_000_000 + seed).partial for seed in range(100_000))
    print(f"100000 forms, {partial} of them ended by max_forwards")
    assert partial > 1000


class OneByOne(TorchBackend):
    """An engine without batches."""

    most_copies = 1


def fill(form: Form, together: bool = True, changes: dict[str, Any] | None = None, **options: Any) -> Decision:
    contract = tiny.contract(**{"candidates": 8, "block": 16, "canvas": 32, **(changes or {})})
    backend = (TorchBackend if together else OneByOne)(tiny.model(3), contract)
    asked = DecisionOptions(**options)
    return decide(backend, Letters(), contract.gate, np.array([5, 9, 4]), form, asked)  # type: ignore[arg-type]


THREE = Form(("ab", *(Field((n,), ("c", "d", "e")) for n in range(3)), "f"))
DEEP = Form(("ab", Field((0,), ("cde", "cfg", "hij")), Field((1,), ("k", "l")), "f"))


def test_fields_of_one_token_take_one_forward_pass_or_one_each() -> None:
    assert fill(THREE).forwards == 1 and fill(THREE, probability="ordered").forwards == 3


def test_a_level_takes_one_forward_pass_or_one_for_each_prefix() -> None:
    assert fill(DEEP).forwards == 3  # the first has both fields in it
    assert fill(DEEP, together=False).forwards == 1 + 2 + 3  # c, h; cd, cf, hi
    np.testing.assert_allclose(
        fill(DEEP).fields[0].probabilities, fill(DEEP, together=False).fields[0].probabilities, atol=1e-6
    )


class Forks(TorchBackend):
    """Remembers the capacity that it was opened with, and how many copies were made each time."""

    made: ClassVar[list[int]] = []
    capacity = 0

    def open(self, batch: int, capacity: int) -> None:
        Forks.capacity = capacity
        super().open(batch, capacity)

    def fork(self, count: int) -> None:
        Forks.made.append(count)
        super().fork(count)


def test_copies_are_bounded_by_the_bytes_of_their_kv_caches_and_the_scores_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    contract, found = tiny.contract(candidates=8, block=16, canvas=32), []
    backend = Forks(tiny.model(3), contract)
    for bound, forks, forwards in ((None, [2, 1, 3, 1], 3), (3, [2, 1, 3, 1], 3), (2, [2, 1, 2, 1], 4), (1, [], 6)):
        if bound is not None:  # how many KV caches of fp32 fit, as long as a power of two
            positions = next(1 << n for n in range(20) if 1 << n >= Forks.capacity)
            each = 2 * contract.layers * contract.kv_heads * contract.head_dim * positions * 4
            monkeypatch.setattr(canvas, "MAX_COPY_BYTES", (bound + 1) * each - 1)
        Forks.made = []
        found.append(decide(backend, Letters(), contract.gate, np.array([5, 9, 4]), DEEP, DecisionOptions()))  # type: ignore[arg-type]
        assert (Forks.made, found[-1].forwards) == (forks, forwards), f"{bound} copies"
    for each_found in found[1:]:
        assert each_found.text == found[0].text
        for own, first in zip(each_found.fields, found[0].fields, strict=True):
            np.testing.assert_allclose(own.probabilities, first.probabilities, atol=1e-6)


def test_a_field_whose_values_differ_in_length_has_canvases_of_its_own() -> None:
    form = Form(("ab", Field((0,), ("c", "de", "fgh")), Field((1,), ("k", "l")), "m"))
    assert fill(form, together=False).forwards == 3 + 2 + 1 and fill(form).forwards == 3 + 1 - 1


def test_max_forwards_ends_with_what_is_decided() -> None:
    whole, cut = fill(DEEP), fill(DEEP, max_forwards=1)
    assert cut.partial and not whole.partial and cut.forwards == 1
    assert [made.path for made in cut.fields] == [(1,)] and cut.text == "ab"  # the other one is not through
    assert cut.fields[0] == whole.fields[1]
    ordered = fill(THREE, probability="ordered", max_forwards=2)
    assert ordered.partial and [made.path for made in ordered.fields] == [(0,), (1,)]
    assert ordered.text == "ab" + ordered.fields[0].value + ordered.fields[1].value


def test_a_temperature_changes_no_choice() -> None:
    sharp, plain, flat = (fill(THREE, temperature=each) for each in (0.5, 1.0, 4.0))
    assert sharp.text == plain.text == flat.text
    for a, b, c in zip(sharp.fields, plain.fields, flat.fields, strict=True):
        assert a.confidence > b.confidence > c.confidence
        ratios = [np.log(each.probabilities[0] / each.probabilities[1]) for each in (b, c)]
        np.testing.assert_allclose(ratios[0], 4 * ratios[1], atol=1e-6)


def test_a_field_of_one_value_is_certain_and_costs_nothing() -> None:
    decision = fill(Form((Field((0,), ("abc",)), "d", Field((1,), ("e", "f")))))
    assert decision.fields[0].probabilities == (1.0,) and decision.forwards == 1
    assert fill(Form((Field((0,), ("abc",)),))).forwards == 0


WRONG: list[tuple[tuple[Any, ...], str]] = [
    (("abc",), "the form has no field"),
    ((Field(("a", 0), ()),), "the field a.0 has no values"),
    ((Field((), ("a", "")),), "the value '' of the field has no tokens"),
    ((Field(("a",), ("b", "b")),), "the values 'b' and 'b' of the field a have the same tokens"),
    ((Field((), ("b", "b")),), "the values 'b' and 'b' of the field have the same tokens"),
    ((Field((), ()),), "the field has no values; expected at least one"),
    (
        (Field((), tuple(LETTERS[:9])),),
        "the values of the field continue the same beginning with 9 different tokens, but this bundle takes 8",
    ),
    ((FreeText((), 0),), "the free text has max_tokens 0; expected at least 1"),
    ((FreeText((), 3), Field((), ("a", "b"))), "nothing ends the free text; expected words"),
    ((FreeText((), 999), "a"), "leaves room for"),
]


@pytest.mark.parametrize(("parts", "told"), WRONG)
def test_a_form_that_cannot_be_is_refused_in_one_line(parts: tuple[Any, ...], told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)) as error:
        fill(Form(parts))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"probability": "joint"}, "probability is 'joint'; expected parallel or ordered"),
        ({"max_forwards": 0}, "max_forwards is 0; expected at least 1"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a number above 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_options_out_of_bounds_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        fill(THREE, **options)


def test_an_engine_without_candidates_is_refused_with_what_to_do() -> None:
    with pytest.raises(UserError, match="which decisions are made of; export it with --candidates 64"):
        fill(THREE, changes={"candidates": 0})


@pytest.mark.parametrize(("score", "error"), [(np.nan, NumericalError), (np.inf, NumericalError), (-1e30, UserError)])
def test_scores_that_are_none_are_refused(score: float, error: type[Exception]) -> None:
    class Odd(AnyScores):
        def forward(self, forward: Forward) -> Proposal:
            out = super().forward(forward)
            assert out.candidate_logprob is not None
            out.candidate_logprob[..., 1] = score
            return out

    contract = tiny.contract(candidates=8)
    with pytest.raises(error):
        decide(Odd(contract, 1), Letters(), contract.gate, np.array([5]), THREE, DecisionOptions())  # type: ignore[arg-type]


def test_a_token_that_the_model_never_gives_is_named() -> None:
    contract = tiny.contract(candidates=8)
    backend = TorchBackend(tiny.model(3), contract, barred=[LETTERS.index("d") + 3])
    with pytest.raises(UserError, match="holds the token 6, which this model never gives"):
        decide(backend, Letters(), contract.gate, np.array([5]), THREE, DecisionOptions())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [k for k in KINDS if k.get("attention") != "full"], ids=str)
def test_values_of_several_lengths_have_their_prompt_computed_once(kind: dict[str, Any]) -> None:
    widths: list[int] = []

    class Wide(AnyScores):
        def forward(self, forward: Forward) -> Proposal:
            widths.append(forward.input_ids.shape[1])
            return super().forward(forward)

    contract, prompt = tiny.contract(**{"candidates": 8, "capacity": 96, **kind}), np.full(40, 5)
    form = Form(("ab", Field((), ("c", "dd", "eee", "fffff")), "g"))
    decide(Wide(contract, 1), Letters(), contract.gate, prompt, form, DecisionOptions())  # type: ignore[arg-type]
    assert sum(width >= 40 - tiny.BLOCK for width in widths) == 1 and len(widths) > 4


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())) or "plain")
def test_a_free_text_is_what_ordinary_decoding_writes(kind: dict[str, Any]) -> None:
    contract = tiny.contract(**{"candidates": 8, "canvas": 12, **kind})
    texts = set()
    for seed in range(1, 9):
        model, prompt = tiny.model(seed), tiny.prompt(random.Random(seed), 2 * tiny.BLOCK)
        prompt[prompt < 3] = 5
        backend = TorchBackend(model, contract)
        plain = generate(
            backend, Request(prompt), max_new_tokens=12, threshold=0.4 if contract.modes[0] == "block" else None
        )
        options = DecisionOptions(threshold=0.4)
        form = Form((FreeText(("text",), 12),))
        decision = decide(backend, Letters(), contract.gate, prompt, form, options)  # type: ignore[arg-type]
        assert decision.text == decision.fields[0].value == Letters().decode(plain.token_ids)
        texts.add(decision.text)
    assert len(texts) > 4


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())) or "plain")
def test_a_field_behind_a_free_text_is_decided_with_that_in_place(kind: dict[str, Any]) -> None:
    contract = tiny.contract(**{"candidates": 8, "canvas": 40, **kind})
    ended = 0
    for seed in range(1, 6):
        backend, prompt = TorchBackend(tiny.model(seed), contract), np.array([5, 9, 4, 8, 7, 7])

        def run(form: Form, backend: TorchBackend = backend, prompt: Any = prompt) -> Decision:
            options = DecisionOptions("ordered", threshold=0.4)
            return decide(backend, Letters(), contract.gate, prompt, form, options)  # type: ignore[arg-type]

        written = run(Form(("ab", FreeText((0,), 9)))).fields[0].value
        closing = written[3] if len(written) > 3 else "u"
        fields = Field((1,), ("e", "fg", "h")), Field((2,), ("k", "l"))
        first = run(Form(("ab", FreeText((0,), 9), closing + "dc", *fields)))
        text = first.fields[0].value
        assert text == written.split(closing)[0] and first.text.startswith(f"ab{text}{closing}dc") and not first.partial
        again = run(Form((f"ab{text}{closing}dc", *fields)))
        assert again.text == first.text
        for mine, other in zip(again.fields, first.fields[1:], strict=True):
            np.testing.assert_allclose(mine.probabilities, other.probabilities, atol=1e-6)
        ended += len(text) < len(written)
    assert ended > 0


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())) or "plain")
def test_a_text_of_too_many_characters_is_cut_before_what_follows_is_decided(kind: dict[str, Any]) -> None:
    contract, prompt = tiny.contract(**{"candidates": 8, "canvas": 40, **kind}), np.array([5, 9, 4, 8, 7, 7])
    fields, cut = (Field((1,), ("e", "fg", "h")), Field((2,), ("k", "l"))), 0
    for seed in range(1, 6):
        backend = TorchBackend(tiny.model(seed), contract)

        def run(form: Form, backend: TorchBackend = backend) -> Decision:
            options = DecisionOptions("ordered", threshold=0.4)
            return decide(backend, Letters(), contract.gate, prompt, form, options)  # type: ignore[arg-type]

        whole = run(Form(("ab", FreeText((0,), 9), "udc", *fields))).fields[0].value
        first = run(Form(("ab", FreeText((0,), 9, 3), "udc", *fields)))
        assert first.text.startswith(f"ab{whole[:3]}udc") and first.fields[0].value == whole[:3]
        again = run(Form((f"ab{whole[:3]}udc", *fields)))
        for mine, other in zip(again.fields, first.fields[1:], strict=True):
            np.testing.assert_allclose(mine.probabilities, other.probabilities, atol=1e-6)
        cut += len(whole) > 3
    assert cut > 0


@pytest.mark.parametrize(
    ("ids", "closing", "text"),
    [([3, 4, 5], "c", "ab"), ([3, 4, 5], "z", None), ([3, 1, 5], "c", "a"), ([5], "c", ""), ([3, 4], "", None)],
)
def test_a_text_ends_at_its_closing_character_or_an_end_token(ids: list[int], closing: str, text: str | None) -> None:
    assert find_finished_text(ids, closing, Letters().decode, (1,)) == text


def test_a_closing_character_behind_a_backslash_is_text() -> None:
    spelled = {3: "a \\", 4: '" b\\\\', 5: '" c'}
    assert find_finished_text([3, 4, 5], '"', lambda ids: "".join(spelled[i] for i in ids), (1,)) == 'a \\" b\\\\'
