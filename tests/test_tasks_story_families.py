"""The grammar of the task math: families on one side each, known words, right steps, one answer, plain English."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from train import tasks
from train.data.bpe import train_tokenizer
from train.tasks import Problem, first_names, story_families, word_problems
from train.tasks.problem import find_sample_split
from train.tasks.story_families import Story, StoryFamily, find_family_split, is_sound
from train.tasks.story_kinds import EVENTS, QUESTIONS, STARTS
from train.tasks.word_problems import find_final_number
from train.tasks.word_templates import NAMES

[MATH] = tasks.choose_tasks("math")
PLAIN = ("train", "valid", "test")
EQUATION = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")
# What each kind does to a quantity, by the numbers that its sentence has, the other way round too if that is the same.
START_VALUES = {
    "has": lambda n: n,
    "bags": lambda a, b: a * b,
    "two_days": lambda a, b: a + b,
    "rows": lambda a, b: a * b,
    "daily": lambda a, b: a * b,
    "share_of": lambda a, b: exact(max(a, b), min(a, b)),
    "trays": lambda a, b: a * b,
    "trees": lambda a, b: a * b,
    "money": lambda n: n,
    "works": lambda a, b: a * b,
    "saves": lambda a, b: a * b,
    "sales": lambda a, b: a * b,
}
EVENT_VALUES = {
    "finds": lambda x, n: x + n,
    "gets": lambda x, n: x + n,
    "gets_each": lambda x, a, b: x + a * b,
    "gives": lambda x, n: x - n,
    "loses": lambda x, n: x - n,
    "gives_each": lambda x, a, b: x - a * b,
    "half": lambda x: exact(x, 2),
    "third": lambda x: x - exact(x, 3),
    "doubles": lambda x: 2 * x,
    "parts": lambda x, n: exact(x, n),
    "buys": lambda x, n: x + n,
    "buys_bags": lambda x, a, b: x + a * b,
    "eats": lambda x, n: x - n,
    "eats_daily": lambda x, a, b: x - a * b,
    "throws_away": lambda x, n: x - n,
    "gives_bags": lambda x, a, b: x - a * b,
    "sells_all": lambda x, n: x * n,
    "packs": lambda x, n: exact(x, n),
    "spends": lambda x, n: x - n,
    "pays_each": lambda x, a, b: x - a * b,
    "earns": lambda x, a, b: x + a * b,
    "rival_more": lambda x, n: x + n,
    "rival_fewer": lambda x, n: x - n,
    "rival_times": lambda x, n: x * n,
    "rival_twice": lambda x: 2 * x,
    "rival_half": lambda x: exact(x, 2),
}
QUESTION_VALUES = {  # of the quantity before the last event, and the last one
    "now": lambda w, x: x,
    "share": lambda w, x, n: exact(x, n),
    "together": lambda w, x, n: x + n,
    "more_than": lambda w, x, n: x - n,
    "needs": lambda w, x, n: n - x,
    "fills": lambda w, x, n: exact(x, n),
    "in_each": lambda w, x, n: exact(x, n),
    "brings": lambda w, x, n: x * n,
    "buys_many": lambda w, x, n: exact(x, n),
    "rival_has": lambda w, x: x,
    "both": lambda w, x: w + x,
    "rival_share": lambda w, x, n: exact(x, n),
}


def exact(value: int, by: int) -> int:
    assert value % by == 0
    return value // by


def stories(split: str, count: int, seed: int) -> list[tuple[Story, Problem]]:
    """The stories of the grammar among the drafts of a split, before any rewriting."""
    drafts = word_problems.sample_rewritable_problems(split, count, seed)
    return [(draft.rewrite.args[0], draft.problem) for draft in drafts if isinstance(draft.rewrite.args[0], Story)]


@pytest.fixture(scope="module")
def samples() -> dict[str, list[tuple[Story, Problem]]]:
    """3,000 stories of the families of each split, whatever their prompts are hashed to."""
    return {split: list(itertools.islice(iterate_stories(split, random.Random(split)), 3000)) for split in PLAIN}


def iterate_stories(split: str, rng: random.Random) -> Iterator[tuple[Story, Problem]]:
    while True:
        family = story_families.sample_family(split, rng)
        if numbers := story_families.sample_numbers(family, rng):
            story = story_families.sample_story(family, numbers, rng)
            yield story, story_families.write_problem(story)


def all_families(events: int) -> list[StoryFamily]:
    chains = itertools.product(STARTS, itertools.permutations(EVENTS, events), QUESTIONS)
    return [family for start, middle, end in chains if is_sound(family := (start, *middle, end))]


def adjacent(family: StoryFamily) -> set[tuple[str, str]]:
    return {(one.name, other.name) for one, other in itertools.pairwise(family)}


def test_there_are_thousands_of_families_and_each_two_kinds_in_a_row_are_in_training_families() -> None:
    families = [*all_families(1), *all_families(2)]
    by_split = {split: [family for family in families if find_family_split(family) == split] for split in PLAIN}
    assert sum(map(len, by_split.values())) == len(families)
    assert len(by_split["train"]) > 10_000 and min(map(len, by_split.values())) > 1_500
    pairs = {split: set().union(*map(adjacent, each)) for split, each in by_split.items()}
    assert pairs["valid"] | pairs["test"] <= pairs["train"]
    assert {name for pair in pairs["train"] for name in pair} == {k.name for k in (*STARTS, *EVENTS, *QUESTIONS)}


def test_events_in_another_order_are_of_the_same_split() -> None:
    for family in random.Random(0).sample(all_families(2), 300):
        start, one, other, question = family
        assert find_family_split((start, other, one, question)) == find_family_split(family)


def test_problems_are_of_their_split_s_families_and_hashed_to_their_split() -> None:
    splits = {"train": ("train", "train")}
    for side in ("valid", "test"):
        splits |= {f"{side}_families": (side, side), f"{side}_seen": ("train", side)}
    prompts = dict[str, set[str]]()
    for split, (families, side) in splits.items():
        found = stories(split, 1500 if split == "train" else 150, 1)
        assert {find_family_split(story.list_kinds()) for story, _ in found} == {families}
        assert {find_sample_split(problem.prompt) for _, problem in found} == {side}
        prompts[split] = {problem.prompt for _, problem in found}
        assert split == "train" or len(prompts[split]) == 150
    assert len(set().union(*prompts.values())) == sum(map(len, prompts.values()))


def test_thousands_of_families_have_numbers_that_keep_the_rules(
    samples: dict[str, list[tuple[Story, Problem]]],
) -> None:
    families = {split: {story.list_kinds() for story, _ in each} for split, each in samples.items()}
    assert {split: {find_family_split(family) for family in each} for split, each in families.items()} == {
        split: {split} for split in PLAIN
    }
    assert len(families["train"]) > 2_000 and min(map(len, families.values())) > 1_500


def test_every_word_of_held_out_prompts_and_answers_is_in_train(
    samples: dict[str, list[tuple[Story, Problem]]],
) -> None:
    words = {
        split: {word for _, each in pairs for word in re.findall(r"[A-Za-z']+", f"{each.prompt} {each.answer}")}
        for split, pairs in samples.items()
    }
    assert len(words["train"]) > 200 and not (words["valid"] | words["test"]) - words["train"]


def replay(family: StoryFamily, prompt: str) -> int:
    """The answer by what the kinds do to the numbers of the prompt, in the prompt's order."""
    numbers = [int(digits) for digits in re.findall(r"\d+", prompt)]

    def take(values: object, *before: int) -> int:
        count = values.__code__.co_argcount - len(before)
        given = [numbers.pop(0) for _ in range(count)]
        result: int = values(*before, *given)
        return result

    start, *events, question = (kind.name for kind in family)
    before, now = 0, take(START_VALUES[start])
    for event in events:
        before, now = now, take(EVENT_VALUES[event], now)
    now = take(QUESTION_VALUES[question], before, now)
    assert not numbers
    return now


def test_the_answer_is_what_a_plain_replay_of_the_story_gives(samples: dict[str, list[tuple[Story, Problem]]]) -> None:
    some = [*samples["train"][:500], *samples["valid"][:200], *samples["test"][:200]]
    for story, problem in some:
        assert replay(story.list_kinds(), problem.prompt) == find_final_number(problem.answer), problem
    assert START_VALUES.keys() == {kind.name for kind in STARTS}
    assert EVENT_VALUES.keys() == {kind.name for kind in EVENTS}
    assert QUESTION_VALUES.keys() == {kind.name for kind in QUESTIONS}


def test_every_equation_holds_and_uses_numbers_of_the_prompt_or_earlier_results(
    samples: dict[str, list[tuple[Story, Problem]]],
) -> None:
    for story, problem in itertools.chain(*samples.values()):
        known = {2, 3, *map(int, re.findall(r"\d+", problem.prompt))}
        equations = EQUATION.findall(problem.answer)
        for left, op, right, result in equations:
            a, b, c = int(left), int(right), int(result)
            assert c == {"+": a + b, "-": a - b, "*": a * b, "/": exact(a, b) if op == "/" else 0}[op], problem
            assert {a, b} <= known and 2 <= c <= 99, problem
            known.add(c)
        steps = sum(len(story_families.STEPS[kind]) for kind in story.list_kinds())
        assert 1 <= len(equations) == steps <= 5
        assert problem.answer.endswith(f"\n#### {result}")


def test_no_phrase_is_of_two_kinds_and_the_phrases_of_a_kind_have_the_same_numbers() -> None:
    for kinds in (STARTS, EVENTS, QUESTIONS):
        phrases = Counter(re.sub(r"\{[nopmt]\}", "#", phrase) for kind in kinds for phrase in kind.phrases)
        assert set(phrases.values()) == {1}
        for kind in kinds:
            assert len({frozenset(re.findall(r"\{([nopmt])\}", phrase)) for phrase in kind.phrases}) == 1, kind.name
            assert 2 <= len(kind.phrases) <= 4 and (kind.answer != "") == (kind.steps != "")


def test_a_story_in_other_phrases_has_the_same_answer() -> None:
    rng = random.Random(3)
    for _ in range(50):
        draft = story_families.sample_rewritable_problem("train", "train", rng)
        story: Story = draft.rewrite.args[0]
        for _ in range(3):
            parts = tuple(
                story_families.StoryPart(part.kind, story_families.sample_sentence(part.kind, rng), part.fields)
                for part in story.parts
            )
            reworded = story_families.write_problem(Story(parts, story.words))
            assert reworded.answer == draft.problem.answer
            assert replay(story.list_kinds(), reworded.prompt) == find_final_number(reworded.answer)


def test_prompts_are_plain_english(samples: dict[str, list[tuple[Story, Problem]]]) -> None:
    for story, problem in itertools.chain(*samples.values()):
        for text in (problem.prompt, problem.answer.partition("\n")[0]):
            assert not re.search(r"  | [.,?]|[{}\[\]]|\.\.|,\.", text), text
            assert not re.search(r"\b(\w+) \1\b", text), text
            assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiouh]", text), text
            assert not re.search(r"(?:^|[.?] )[a-z]", text), text
            assert not re.search(r"(?<!\d)[01] [a-z]", text), text  # every noun is in the plural
        assert problem.prompt.endswith("?") and problem.prompt.count("?") == 1
        names = {name for name, _ in NAMES} & {*re.findall(r"\w+", problem.prompt)}
        others = [name for name in names if name != story.words["name"]]
        assert {dict(NAMES)[name] for name in others} <= {story_families.OTHER_PRONOUN[story.words["he"]]}
        assert not re.search(rf"\b{story_families.OTHER_PRONOUN[story.words['he']]}\b", problem.prompt), problem.prompt


def test_other_names_and_pronouns_keep_all_else() -> None:
    rng, own, swapped = random.Random(4), {name for name, _ in NAMES}, 0
    for split in ("train", "test"):
        pool = first_names.TRAINING if split == "train" else first_names.HELD_OUT
        for _ in range(60):
            draft = story_families.sample_rewritable_problem("train", "train", rng)
            renamed = draft.rewrite(("name",), rng, split)
            words = {*re.findall(r"\w+", f"{renamed.prompt} {renamed.answer}")}
            assert not words & own and words & {name for names in pool.values() for name in names}
            assert find_final_number(renamed.answer) == find_final_number(draft.problem.answer)
            changed_pronoun = draft.rewrite(("pronoun",), rng, split)
            assert changed_pronoun.answer == draft.problem.answer
            before, after = draft.problem.prompt.split(), changed_pronoun.prompt.split()
            changed = {(one, other) for one, other in zip(before, after, strict=True) if one != other}
            story: Story = draft.rewrite.args[0]
            name, he, capital = story.words["name"], story.words["he"], story.words["He"]
            assert changed <= {(name, he), (he, name), (capital, name)}, changed
            swapped += bool(changed)
    assert swapped > 60


def test_half_of_train_is_of_the_grammar_and_its_answers_are_as_short_as_the_templates() -> None:
    # Problems in everyday words have shorter answers than both.
    everything = [*MATH.problems("train", 3000, 0)]
    problems = [problem for problem in everything if problem.group != "everyday"]
    grammar = [problem for problem in problems if problem.group.startswith("events_")]
    assert 0.46 < len(grammar) / len(problems) < 0.54
    assert 0.83 < len(problems) / len(everything) < 0.87
    assert {problem.group for problem in grammar} == {"events_1", "events_2", "events_3"}
    tokenizer = train_tokenizer((text for each in problems for text in (each.prompt, each.answer)), 1280)
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch([each.answer for each in problems])]
    by_grammar = {True: list[int](), False: list[int]()}
    for problem, length in zip(problems, lengths, strict=True):
        by_grammar[problem.group.startswith("events_")].append(length)
    means = {of_grammar: sum(each) / len(each) for of_grammar, each in by_grammar.items()}
    assert means[True] < means[False] and max(by_grammar[True]) <= 88  # the templates' longest one
    assert max(len(encoding.ids) for encoding in tokenizer.encode_batch([each.prompt for each in grammar])) <= 110
