"""Lists what the stories of `story_families` are made of: starts, events and questions.

A story counts one quantity: things, boxes of things or dollars. `x` is its value before an event, `y` after it, and `w`
the one before `x`. `n` and `o` are any numbers, `p` and `m` factors, `t` a factor of three or more. `{who}` is the name
or the pronoun, `{unit}` what is counted ("shells", "dollars"), `{the}` all of it ("the shells", "the money").

The phrases of a kind mean the same, and no phrase belongs to two kinds of one list, so a prompt determines its answer.
Append a new kind to its list: the places in the lists decide which families are held out.
"""

# one entry is a few lines here; one argument per line would make it three times as long
# fmt: off
# ruff: noqa: E501
from __future__ import annotations

from dataclasses import dataclass

from .word_templates import FRUIT, SWEETS
from .word_templates_simple import FOOD, THINGS

ANY = "ibd"  # things (items), boxes, dollars
RIVAL = "rival"  # then the quantity is another person's, which only a question can follow


@dataclass(frozen=True, slots=True, eq=False)  # compared and hashed as objects, which is faster
class Kind:
    """Describes a kind of start, event or question.

    Attributes:
        units: letters of the quantities that it can be about, as in `ANY`; in capitals, those of another person.
        steps: the calculations; none if nothing changes, or if a start gives `n`.
        answer: one clause of the right answer, in which `[y]` is replaced by the equation of y.
        makes: the letter of the quantity after it; empty: the one before; `RIVAL`: another person's.
        items: the things that it can be about.
    """

    name: str
    units: str
    steps: str
    phrases: tuple[str, ...]
    answer: str = ""
    makes: str = ""
    items: tuple[str, ...] = THINGS


STARTS = (
    Kind("has", "", "", ("{name} has {n} {unit}", "At first {name} has {n} {unit}", "{name} starts with {n} {unit}"), makes="i"),
    Kind("bags", "", "y = p * m",
        ("{name} has {p} {bag} with {m} {unit} each", "{name} has {p} {bag} of {unit}. There are {m} {unit} in each of them", "{name} has {p} {bag} with {m} {unit} in each of them"),
        "{He} has [y] {unit}.", "i"),
    Kind("two_days", "", "y = n + o",
        ("{name} gets {n} {unit} on {day} and {o} {unit} the next day", "On {day} {name} gets {n} {unit}, and the next day {he} gets another {o}"),
        "{He} gets [y] {unit}.", "i"),
    Kind("rows", "", "y = p * m",
        ("{name} has {p} rows of {m} {unit}", "{name} lays out {p} rows of {m} {unit}", "{name} puts {unit} in {p} rows, {m} in each row"),
        "The rows have [y] {unit}.", "i"),
    Kind("daily", "", "y = p * m",
        ("{name} gets {m} {unit} a day for {p} days", "For {p} days {name} gets {m} {unit} every day"),
        "In these days {he} gets [y] {unit}.", "i"),
    Kind("share_of", "", "y = n / p",
        ("{p} children share {n} {unit} equally, and {name} is one of them", "{n} {unit} are shared equally among {p} friends. {name} is one of them", "{name} is one of {p} friends who share {n} {unit} equally"),
        "A share is [y] {unit}.", "i"),
    Kind("trays", "", "y = p * m",
        ("{name} bakes {p} trays of {m} {unit}", "{name} bakes {p} trays of {unit} with {m} {unit} on each tray"),
        "{He} bakes [y] {unit}.", "i", SWEETS),
    Kind("trees", "", "y = p * m",
        ("{name} picks {m} {unit} from each of {p} trees", "There are {p} trees, and {name} picks {m} {unit} from each of them"),
        "{He} picks [y] {unit}.", "i", FRUIT),
    Kind("money", "", "", ("{name} has {n} dollars", "At first {name} has {n} dollars", "There are {n} dollars in the jar of {name}"), makes="d"),
    Kind("works", "", "y = p * m",
        ("{name} works {p} hours for {m} dollars an hour", "{name} gets {m} dollars an hour for {p} hours of work"),
        "{He} earns [y] dollars.", "d"),
    Kind("saves", "", "y = p * m",
        ("{name} saves {m} dollars a week for {p} weeks", "For {p} weeks {name} saves {m} dollars every week"),
        "{He} saves [y] dollars.", "d"),
    Kind("sales", "", "y = p * m",
        ("{name} sells {p} {wares} for {m} dollars each", "{name} sells {p} {wares} and gets {m} dollars for each of them"),
        "The {wares} bring [y] dollars.", "d"),
)

EVENTS = (
    Kind("finds", ANY, "y = x + n",
        ("{who} finds {n} more {unit}", "{who} finds another {n} {unit}", "{who} finds {n} {unit} and keeps them"),
        "{He} finds {n} and has [y]."),
    Kind("gets", ANY, "y = x + n",
        ("{pal} gives {him} {n} {unit}", "{pal} gives {him} {n} more {unit}", "{who} gets {n} {unit} from {pal}"),
        "{He} gets {n} and has [y]."),
    Kind("gets_each", ANY, "k = p * m; y = x + k",
        ("{p} {people} give {him} {m} {unit} each", "each of {p} {people} gives {him} {m} {unit}", "{who} gets {m} {unit} from each of {p} {people}"),
        "{He} gets [k] and has [y]."),
    Kind("gives", ANY, "y = x - n",
        ("{who} gives {n} {unit} to {pal}", "{who} gives {pal} {n} {unit}", "{pal} gets {n} {unit} from {him}"),
        "{He} gives {n} and keeps [y]."),
    Kind("loses", ANY, "y = x - n",
        ("{who} loses {n} {unit}", "{n} {unit} get lost", "{n} {unit} get stolen"),
        "{He} loses {n} and keeps [y]."),
    Kind("gives_each", ANY, "k = p * m; y = x - k",
        ("{who} gives {p} {people} {m} {unit} each", "{who} gives {m} {unit} to each of {p} {people}", "{p} {people} get {m} {unit} each from {him}"),
        "{He} gives [k] and keeps [y]."),
    Kind("half", ANY, "y = x / 2",
        ("{who} gives half of {the} to {pal}", "{pal} gets half of {the} from {him}", "{who} keeps half of {the} and gives the other half to {pal}"),
        "Half is [y]."),
    Kind("third", ANY, "k = x / 3; y = x - k",
        ("{who} gives a third of {the} to {pal}", "{pal} gets a third of {the} from {him}"),
        "A third is [k], so {he} keeps [y]."),
    Kind("doubles", ANY, "y = x + x",
        ("{pal} gives {him} as many {unit} as {he} already has", "{pal} doubles what {he} has", "the number of {his} {unit} doubles"),
        "Twice that is [y]."),
    Kind("parts", ANY, "y = x / p",
        ("{who} splits {the} into {p} equal parts and keeps one part", "{who} makes {p} equal parts of {the} and keeps only one part", "{who} splits {the} into {p} equal parts and gives away all but one"),
        "One part is [y]."),
    Kind("buys", "i", "y = x + n",
        ("{who} buys {n} more {unit}", "{who} buys {n} {unit}", "{who} goes to a shop and buys {n} {unit}"),
        "{He} buys {n} and has [y]."),
    Kind("buys_bags", "i", "k = p * m; y = x + k",
        ("{who} buys {p} {bag} of {m} {unit}", "{who} buys {p} {bag} with {m} {unit} each", "{who} buys {p} {bag} with {m} {unit} in each of them"),
        "{He} buys [k] and has [y]."),
    Kind("eats", "i", "y = x - n",
        ("{who} eats {n} {unit}", "{who} eats {n} of {the}", "{who} is hungry and eats {n} {unit}"),
        "{He} eats {n} and keeps [y].", items=FOOD),
    Kind("eats_daily", "i", "k = p * m; y = x - k",
        ("{who} eats {m} {unit} a day for {p} days", "{who} eats {m} {unit} every day for {p} days"),
        "{He} eats [k] and keeps [y].", items=FOOD),
    Kind("throws_away", "i", "y = x - n",
        ("{who} throws away {n} {unit}", "{who} throws away {n} of {the}", "{who} sees that {n} {unit} are old and throws them away"),
        "{He} throws away {n} and keeps [y]."),
    Kind("gives_bags", "i", "k = p * m; y = x - k",
        ("{who} brings {p} {bag} of {m} {unit} to a party", "{who} takes {p} {bag} with {m} {unit} in each of them to school and gives them away", "{who} fills {p} {bag} with {m} {unit} each and gives them away"),
        "{He} brings [k] and keeps [y]."),
    Kind("sells_all", "ib", "y = x * m",
        ("{who} sells {the} for {m} dollars each", "{who} sells all of {the} for {m} dollars each", "{who} sells all of {the} and gets {m} dollars for each of them"),
        "{He} gets [y] dollars.", "d"),
    Kind("packs", "i", "y = x / m",
        ("{who} packs {the} in {box} of {m}", "{who} packs all of {the} in {box} with {m} in each of them", "{who} puts {m} {unit} in each of {his} {box} until all {unit} are packed"),
        "{He} fills [y] {box}.", "b"),
    Kind("spends", "d", "y = x - n",
        ("{who} spends {n} dollars on {thing}", "{who} pays {n} dollars for {thing}", "{who} buys {thing} for {n} dollars"),
        "{He} spends {n} and keeps [y]."),
    Kind("pays_each", "d", "k = p * m; y = x - k",
        ("{who} buys {p} {goods} for {m} dollars each", "{who} pays {m} dollars each for {p} {goods}"),
        "{He} pays [k] and keeps [y]."),
    Kind("earns", "d", "k = p * m; y = x + k",
        ("{who} works {p} hours for {m} dollars an hour", "{who} gets {m} dollars an hour for {p} hours of work"),
        "{He} earns [k] and has [y]."),
    # Another person's quantity; nothing but a question follows.
    Kind("rival_more", ANY, "y = x + n",
        ("{rival} has {n} more {unit} than {name}", "{rival} has {n} {unit} more than {name}", "{name} has {n} fewer {unit} than {rival}"),
        "{rival} has [y].", RIVAL),
    Kind("rival_fewer", ANY, "y = x - n",
        ("{rival} has {n} fewer {unit} than {name}", "{name} has {n} more {unit} than {rival}", "{name} has {n} {unit} more than {rival}"),
        "{rival} has [y].", RIVAL),
    Kind("rival_times", ANY, "y = x * t",
        ("{rival} has {t} times as many {unit} as {name}", "{rival} has {t} times the number of {unit} that {name} has"),
        "{rival} has [y].", RIVAL),
    Kind("rival_twice", ANY, "y = x + x",
        ("{rival} has twice as many {unit} as {name}", "{name} has half as many {unit} as {rival}"),
        "{rival} has [y].", RIVAL),
    Kind("rival_half", ANY, "y = x / 2",
        ("{rival} has half as many {unit} as {name}", "{name} has twice as many {unit} as {rival}"),
        "{rival} has [y].", RIVAL),
)

QUESTIONS = (
    Kind("now", ANY, "",
        ("How many {unit} does {name} have now?", "How many {unit} does {he} have now?", "How many {unit} does {name} have in the end?")),
    Kind("share", ANY, "y = x / p",
        ("If {p} {crowd} share {the} equally, how many {unit} does each one get?", "{who} shares {the} equally among {p} {crowd}. How many {unit} does each one get?"),
        "Each one gets [y]."),
    Kind("together", ANY, "y = x + n",
        ("{rival} has {n} {unit}. How many {unit} do {name} and {rival} have together?", "If {rival} has {n} {unit}, how many {unit} do {name} and {rival} have together?"),
        "Together they have [y]."),
    Kind("more_than", ANY, "y = x - n",
        ("{rival} has {n} {unit}. How many more {unit} does {name} have than {rival}?", "{rival} has {n} {unit}. How many {unit} more than {rival} does {name} have?", "If {rival} has {n} {unit}, how many more {unit} does {name} have than {rival}?"),
        "{He} has [y] more."),
    Kind("needs", ANY, "y = n - x",
        ("{who} wants to have {n} {unit}. How many more {unit} does {he} need?", "How many more {unit} does {name} need to have {n}?"),
        "{He} needs [y] more."),
    Kind("fills", "i", "y = x / m",
        ("How many {sack} of {m} {unit} can {he} fill?", "How many {sack} can {name} fill with {m} {unit} in each of them?"),
        "{He} fills [y] {sack}."),
    Kind("in_each", "i", "y = x / p",
        ("If {he} puts {the} equally in {p} {sack}, how many {unit} are in each of them?", "{who} puts {the} equally in {p} {sack}. How many {unit} are in each of them?"),
        "Each one holds [y]."),
    Kind("brings", "ib", "y = x * m",
        ("If {he} sells {the} for {m} dollars each, how many dollars does {he} get?", "How many dollars does {name} get if {he} sells {the} for {m} dollars each?"),
        "{He} gets [y] dollars."),
    Kind("buys_many", "d", "y = x / m",
        ("How many {extra} for {m} dollars each can {he} buy?", "How many {extra} can {name} buy if they cost {m} dollars each?"),
        "{He} can buy [y]."),
    Kind("rival_has", ANY.upper(), "", ("How many {unit} does {rival} have?", "How many {unit} does {rival} have now?")),
    Kind("both", ANY.upper(), "y = w + x",
        ("How many {unit} do {name} and {rival} have together?", "How many {unit} do they have together?"),
        "Together they have [y]."),
    Kind("rival_share", ANY.upper(), "y = x / p",
        ("If {p} {crowd} share the {unit} of {rival} equally, how many {unit} does each one get?", "How many {unit} does each one get if {p} {crowd} share the {unit} of {rival} equally?"),
        "Each one gets [y]."),
)
