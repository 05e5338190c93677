"""Lists the kinds of parts that stories of `story_families` consist of: starts, events and questions.

A story counts one quantity: things, boxes of things or dollars. A kind's `steps` calculate with these variables:

* `x`: the quantity before the part; `w`: the quantity before the previous part; `y`: the quantity after the part;
* `n`, `o`: any numbers in the phrase; `p`, `m`: factors; `t`: a factor of three or more;
* `k`: a result in between.

The phrases have fields for these numbers. `{who}` is the name or the pronoun of the main person, `{unit}` is what is
counted ("shells", "dollars"), `{the}` is all of it ("the shells", "the money"), `{rival}` is another person.

All phrases of a kind mean the same, and no phrase belongs to two kinds of one list, so a prompt determines its answer.
A family's split depends on the kinds' places in their lists, so append a new kind to the end of its list.
"""

# one entry is a few lines here; one argument per line would make it three times as long
# fmt: off
# ruff: noqa: E501
from __future__ import annotations

from dataclasses import dataclass

from .word_templates import FRUIT, SWEETS
from .word_templates_simple import FOOD, THINGS

THING_UNIT, BOX_UNIT, DOLLAR_UNIT = "things", "boxes", "dollars"
ANY_UNIT = (THING_UNIT, BOX_UNIT, DOLLAR_UNIT)
# What another person has. Only a question can follow such a quantity.
RIVAL_UNITS: dict[str, str] = {unit: f"rival's {unit}" for unit in ANY_UNIT}
ANY_RIVAL_UNIT = tuple(RIVAL_UNITS.values())


@dataclass(frozen=True, slots=True, eq=False)  # compared and hashed as objects, which is faster
class PartKind:
    """Describes a kind of start, event or question.

    Attributes:
        units: what the quantity before it can be; none for a start.
        steps: the calculations; empty if nothing changes, or if a start gives `n`.
        answer: the sentence that the right answer has for it; `[y]` is replaced by the equation of `y`.
        unit_after: what the quantity after it is; empty if it stays the same.
        of_rival: whether the quantity after it is what another person has.
        items: the things that it can be about.
    """

    name: str
    units: tuple[str, ...]
    steps: str
    phrases: tuple[str, ...]
    answer: str = ""
    unit_after: str = ""
    of_rival: bool = False
    items: tuple[str, ...] = THINGS


STARTS = (
    PartKind("has", (), "", ("{name} has {n} {unit}", "At first {name} has {n} {unit}", "{name} starts with {n} {unit}"), unit_after=THING_UNIT),
    PartKind("bags", (), "y = p * m",
        ("{name} has {p} {bag} with {m} {unit} each", "{name} has {p} {bag} of {unit}. There are {m} {unit} in each of them", "{name} has {p} {bag} with {m} {unit} in each of them"),
        "{He} has [y] {unit}.", THING_UNIT),
    PartKind("two_days", (), "y = n + o",
        ("{name} gets {n} {unit} on {day} and {o} {unit} the next day", "On {day} {name} gets {n} {unit}, and the next day {he} gets another {o}"),
        "{He} gets [y] {unit}.", THING_UNIT),
    PartKind("rows", (), "y = p * m",
        ("{name} has {p} rows of {m} {unit}", "{name} lays out {p} rows of {m} {unit}", "{name} puts {unit} in {p} rows, {m} in each row"),
        "The rows have [y] {unit}.", THING_UNIT),
    PartKind("daily", (), "y = p * m",
        ("{name} gets {m} {unit} a day for {p} days", "For {p} days {name} gets {m} {unit} every day"),
        "In these days {he} gets [y] {unit}.", THING_UNIT),
    PartKind("share_of", (), "y = n / p",
        ("{p} children share {n} {unit} equally, and {name} is one of them", "{n} {unit} are shared equally among {p} friends. {name} is one of them", "{name} is one of {p} friends who share {n} {unit} equally"),
        "A share is [y] {unit}.", THING_UNIT),
    PartKind("trays", (), "y = p * m",
        ("{name} bakes {p} trays of {m} {unit}", "{name} bakes {p} trays of {unit} with {m} {unit} on each tray"),
        "{He} bakes [y] {unit}.", THING_UNIT, items=SWEETS),
    PartKind("trees", (), "y = p * m",
        ("{name} picks {m} {unit} from each of {p} trees", "There are {p} trees, and {name} picks {m} {unit} from each of them"),
        "{He} picks [y] {unit}.", THING_UNIT, items=FRUIT),
    PartKind("money", (), "", ("{name} has {n} dollars", "At first {name} has {n} dollars", "There are {n} dollars in the jar of {name}"), unit_after=DOLLAR_UNIT),
    PartKind("works", (), "y = p * m",
        ("{name} works {p} hours for {m} dollars an hour", "{name} gets {m} dollars an hour for {p} hours of work"),
        "{He} earns [y] dollars.", DOLLAR_UNIT),
    PartKind("saves", (), "y = p * m",
        ("{name} saves {m} dollars a week for {p} weeks", "For {p} weeks {name} saves {m} dollars every week"),
        "{He} saves [y] dollars.", DOLLAR_UNIT),
    PartKind("sales", (), "y = p * m",
        ("{name} sells {p} {wares} for {m} dollars each", "{name} sells {p} {wares} and gets {m} dollars for each of them"),
        "The {wares} bring [y] dollars.", DOLLAR_UNIT),
)

EVENTS = (
    PartKind("finds", ANY_UNIT, "y = x + n",
        ("{who} finds {n} more {unit}", "{who} finds another {n} {unit}", "{who} finds {n} {unit} and keeps them"),
        "{He} finds {n} and has [y]."),
    PartKind("gets", ANY_UNIT, "y = x + n",
        ("{pal} gives {him} {n} {unit}", "{pal} gives {him} {n} more {unit}", "{who} gets {n} {unit} from {pal}"),
        "{He} gets {n} and has [y]."),
    PartKind("gets_each", ANY_UNIT, "k = p * m; y = x + k",
        ("{p} {people} give {him} {m} {unit} each", "each of {p} {people} gives {him} {m} {unit}", "{who} gets {m} {unit} from each of {p} {people}"),
        "{He} gets [k] and has [y]."),
    PartKind("gives", ANY_UNIT, "y = x - n",
        ("{who} gives {n} {unit} to {pal}", "{who} gives {pal} {n} {unit}", "{pal} gets {n} {unit} from {him}"),
        "{He} gives {n} and keeps [y]."),
    PartKind("loses", ANY_UNIT, "y = x - n",
        ("{who} loses {n} {unit}", "{n} {unit} get lost", "{n} {unit} get stolen"),
        "{He} loses {n} and keeps [y]."),
    PartKind("gives_each", ANY_UNIT, "k = p * m; y = x - k",
        ("{who} gives {p} {people} {m} {unit} each", "{who} gives {m} {unit} to each of {p} {people}", "{p} {people} get {m} {unit} each from {him}"),
        "{He} gives [k] and keeps [y]."),
    PartKind("half", ANY_UNIT, "y = x / 2",
        ("{who} gives half of {the} to {pal}", "{pal} gets half of {the} from {him}", "{who} keeps half of {the} and gives the other half to {pal}"),
        "Half is [y]."),
    PartKind("third", ANY_UNIT, "k = x / 3; y = x - k",
        ("{who} gives a third of {the} to {pal}", "{pal} gets a third of {the} from {him}"),
        "A third is [k], so {he} keeps [y]."),
    PartKind("doubles", ANY_UNIT, "y = x + x",
        ("{pal} gives {him} as many {unit} as {he} already has", "{pal} doubles what {he} has", "the number of {his} {unit} doubles"),
        "Twice that is [y]."),
    PartKind("parts", ANY_UNIT, "y = x / p",
        ("{who} splits {the} into {p} equal parts and keeps one part", "{who} makes {p} equal parts of {the} and keeps only one part", "{who} splits {the} into {p} equal parts and gives away all but one"),
        "One part is [y]."),
    PartKind("buys", (THING_UNIT,), "y = x + n",
        ("{who} buys {n} more {unit}", "{who} buys {n} {unit}", "{who} goes to a shop and buys {n} {unit}"),
        "{He} buys {n} and has [y]."),
    PartKind("buys_bags", (THING_UNIT,), "k = p * m; y = x + k",
        ("{who} buys {p} {bag} of {m} {unit}", "{who} buys {p} {bag} with {m} {unit} each", "{who} buys {p} {bag} with {m} {unit} in each of them"),
        "{He} buys [k] and has [y]."),
    PartKind("eats", (THING_UNIT,), "y = x - n",
        ("{who} eats {n} {unit}", "{who} eats {n} of {the}", "{who} is hungry and eats {n} {unit}"),
        "{He} eats {n} and keeps [y].", items=FOOD),
    PartKind("eats_daily", (THING_UNIT,), "k = p * m; y = x - k",
        ("{who} eats {m} {unit} a day for {p} days", "{who} eats {m} {unit} every day for {p} days"),
        "{He} eats [k] and keeps [y].", items=FOOD),
    PartKind("throws_away", (THING_UNIT,), "y = x - n",
        ("{who} throws away {n} {unit}", "{who} throws away {n} of {the}", "{who} sees that {n} {unit} are old and throws them away"),
        "{He} throws away {n} and keeps [y]."),
    PartKind("gives_bags", (THING_UNIT,), "k = p * m; y = x - k",
        ("{who} brings {p} {bag} of {m} {unit} to a party", "{who} takes {p} {bag} with {m} {unit} in each of them to school and gives them away", "{who} fills {p} {bag} with {m} {unit} each and gives them away"),
        "{He} brings [k] and keeps [y]."),
    PartKind("sells_all", (THING_UNIT, BOX_UNIT), "y = x * m",
        ("{who} sells {the} for {m} dollars each", "{who} sells all of {the} for {m} dollars each", "{who} sells all of {the} and gets {m} dollars for each of them"),
        "{He} gets [y] dollars.", DOLLAR_UNIT),
    PartKind("packs", (THING_UNIT,), "y = x / m",
        ("{who} packs {the} in {box} of {m}", "{who} packs all of {the} in {box} with {m} in each of them", "{who} puts {m} {unit} in each of {his} {box} until all {unit} are packed"),
        "{He} fills [y] {box}.", BOX_UNIT),
    PartKind("spends", (DOLLAR_UNIT,), "y = x - n",
        ("{who} spends {n} dollars on {thing}", "{who} pays {n} dollars for {thing}", "{who} buys {thing} for {n} dollars"),
        "{He} spends {n} and keeps [y]."),
    PartKind("pays_each", (DOLLAR_UNIT,), "k = p * m; y = x - k",
        ("{who} buys {p} {goods} for {m} dollars each", "{who} pays {m} dollars each for {p} {goods}"),
        "{He} pays [k] and keeps [y]."),
    PartKind("earns", (DOLLAR_UNIT,), "k = p * m; y = x + k",
        ("{who} works {p} hours for {m} dollars an hour", "{who} gets {m} dollars an hour for {p} hours of work"),
        "{He} earns [k] and has [y]."),
    # What another person has; only a question follows.
    PartKind("rival_more", ANY_UNIT, "y = x + n",
        ("{rival} has {n} more {unit} than {name}", "{rival} has {n} {unit} more than {name}", "{name} has {n} fewer {unit} than {rival}"),
        "{rival} has [y].", of_rival=True),
    PartKind("rival_fewer", ANY_UNIT, "y = x - n",
        ("{rival} has {n} fewer {unit} than {name}", "{name} has {n} more {unit} than {rival}", "{name} has {n} {unit} more than {rival}"),
        "{rival} has [y].", of_rival=True),
    PartKind("rival_times", ANY_UNIT, "y = x * t",
        ("{rival} has {t} times as many {unit} as {name}", "{rival} has {t} times the number of {unit} that {name} has"),
        "{rival} has [y].", of_rival=True),
    PartKind("rival_twice", ANY_UNIT, "y = x + x",
        ("{rival} has twice as many {unit} as {name}", "{name} has half as many {unit} as {rival}"),
        "{rival} has [y].", of_rival=True),
    PartKind("rival_half", ANY_UNIT, "y = x / 2",
        ("{rival} has half as many {unit} as {name}", "{name} has twice as many {unit} as {rival}"),
        "{rival} has [y].", of_rival=True),
)

QUESTIONS = (
    PartKind("now", ANY_UNIT, "",
        ("How many {unit} does {name} have now?", "How many {unit} does {he} have now?", "How many {unit} does {name} have in the end?")),
    PartKind("share", ANY_UNIT, "y = x / p",
        ("If {p} {crowd} share {the} equally, how many {unit} does each one get?", "{who} shares {the} equally among {p} {crowd}. How many {unit} does each one get?"),
        "Each one gets [y]."),
    PartKind("together", ANY_UNIT, "y = x + n",
        ("{rival} has {n} {unit}. How many {unit} do {name} and {rival} have together?", "If {rival} has {n} {unit}, how many {unit} do {name} and {rival} have together?"),
        "Together they have [y]."),
    PartKind("more_than", ANY_UNIT, "y = x - n",
        ("{rival} has {n} {unit}. How many more {unit} does {name} have than {rival}?", "{rival} has {n} {unit}. How many {unit} more than {rival} does {name} have?", "If {rival} has {n} {unit}, how many more {unit} does {name} have than {rival}?"),
        "{He} has [y] more."),
    PartKind("needs", ANY_UNIT, "y = n - x",
        ("{who} wants to have {n} {unit}. How many more {unit} does {he} need?", "How many more {unit} does {name} need to have {n}?"),
        "{He} needs [y] more."),
    PartKind("fills", (THING_UNIT,), "y = x / m",
        ("How many {sack} of {m} {unit} can {he} fill?", "How many {sack} can {name} fill with {m} {unit} in each of them?"),
        "{He} fills [y] {sack}."),
    PartKind("in_each", (THING_UNIT,), "y = x / p",
        ("If {he} puts {the} equally in {p} {sack}, how many {unit} are in each of them?", "{who} puts {the} equally in {p} {sack}. How many {unit} are in each of them?"),
        "Each one holds [y]."),
    PartKind("brings", (THING_UNIT, BOX_UNIT), "y = x * m",
        ("If {he} sells {the} for {m} dollars each, how many dollars does {he} get?", "How many dollars does {name} get if {he} sells {the} for {m} dollars each?"),
        "{He} gets [y] dollars."),
    PartKind("buys_many", (DOLLAR_UNIT,), "y = x / m",
        ("How many {extra} for {m} dollars each can {he} buy?", "How many {extra} can {name} buy if they cost {m} dollars each?"),
        "{He} can buy [y]."),
    PartKind("rival_has", ANY_RIVAL_UNIT, "", ("How many {unit} does {rival} have?", "How many {unit} does {rival} have now?")),
    PartKind("both", ANY_RIVAL_UNIT, "y = w + x",
        ("How many {unit} do {name} and {rival} have together?", "How many {unit} do they have together?"),
        "Together they have [y]."),
    PartKind("rival_share", ANY_RIVAL_UNIT, "y = x / p",
        ("If {p} {crowd} share the {unit} of {rival} equally, how many {unit} does each one get?", "How many {unit} does each one get if {p} {crowd} share the {unit} of {rival} equally?"),
        "Each one gets [y]."),
)
