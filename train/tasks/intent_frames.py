"""Lists the texts around a request in the task `intents`: forms of a request alone, and frames that mention others too.

Fields in braces are replaced. `{do}` is the request as a phrase, `{doing}` and `{done}` are the phrase with a gerund and
a participle, `{say}` is the request in any form. Fields that end in 2 or 3 are requests that the speaker does not want.
`{m}` is a marker, such as "no wait", `{M}` the marker with a capital, `{who}` somebody.

A family is a pair: a marker and an arrangement of a frame, or a phrase and a form of a request. Training families have
each marker and each arrangement, but not each pair (`find_pair_split`), so a held-out prompt has known words in a new
combination.
"""

# one entry is one sentence here
# fmt: off
# ruff: noqa: E501
from __future__ import annotations

from dataclasses import dataclass

from .intent_phrases import split_at_bars

FOLDS = 8  # diagonals of each grid of families; one is test, one is valid

FORMS = split_at_bars("{do} | please {do} | can you {do}? | could you {do} for me? | I want you to {do} | I need you to {do} | go ahead and {do} | would you mind {doing}? | how about {doing}? | it is time to {do} | what you should do is {do} | make sure to {do} | do not forget to {do} | why do you not {do}? | you may {do} now | I would be glad if you could {do} | be so kind as to {do} | I am asking you to {do} | no more waiting, {do} | the thing to do is to {do}")
OPENINGS = split_at_bars("{say} | hey, {say} | listen, {say} | well, {say} | I mean it, {say} | you know, {say} | one thing, {say} | so, {say}")
SPEAKERS = ("mom", "dad", "Anna", "Ben", "Clara", "David", "Omar", "Priya", "Lucas", "the neighbor", "the landlord", "my boss", "my sister", "the babysitter", "grandma", "somebody")


@dataclass(frozen=True, slots=True)
class FrameGroup:
    """Holds frames of one kind; `weight` is their relative frequency among the prompts."""

    name: str
    weight: int
    markers: tuple[str, ...]
    arrangements: tuple[str, ...]


RETRACTIONS = split_at_bars("no wait | no, sorry | actually, no | scratch that | hold on | I mean | oops | on second thought | strike that | my mistake | wait, no | that was wrong | sorry, I misspoke | hang on a second | forget that | no, no")
NOTHING = split_at_bars("forget it | never mind | leave everything as it is | do nothing | do not do anything | no need to do anything | it is fine as it is | you can forget what I said")

GROUPS = (
    FrameGroup("plain", 22, ("",), FORMS),
    FrameGroup("context", 6, split_at_bars("the guests are here | I am running late | my hands are full | it has been a long day | the baby is asleep | we are about to eat | I just got home | there is somebody at the gate"),
        split_at_bars("{m}, {say} | {m}, so {say} | {say}, {m} | {say}, {m}, you know | now that {m}, {say} | since {m}, {say}")),
    # The last request is wanted.
    FrameGroup("corrected", 14, RETRACTIONS,
        split_at_bars("{say2}, {m}, {do} | {say2}. {M}, {say} | {do2} - {m} - {do} | {say2}, {m}, {do} instead | {do2}, {m}, what I want is to {do} | {say2}... {m}, {say} | I said to {do2}, {m}, I want you to {do} | {do2}, {m}, not that, {do}")),
    # The first request is wanted.
    FrameGroup("kept", 14, RETRACTIONS,
        split_at_bars("{do}, and {do2} too, {m}, just the first thing | {say}. And {do2}. {M}, do only what I said first | {do}, or {do2}, {m}, keep to the first | {do} - and {do2} - {m}, not the second thing | {say}, or should you {do2}? {M}, stay with what I said before | {do}, also {do2}, {m}, leave out the last part | {do}, then {do2}, {m}, skip the second part | {do} instead of {doing3}, and {do2}, {m}, the last thing is not needed")),
    FrameGroup("not_this", 12, split_at_bars("instead of | rather than | in place of | and not | but without | as opposed to"),
        split_at_bars("{do} {m} {doing2} | I want you to {do} {m} {doing2} | {doing} {m} {doing2} is what I want | what I asked for was {doing} {m} {doing2} | please {do}, {m} {doing2} | it should be {doing} {m} {doing2} now")),
    FrameGroup("refused", 12, split_at_bars("do not | you should not | never | I do not want you to | nobody asked you to | by no means | there is no reason to | you need not"),
        split_at_bars("{m} {do2}, {do} | {do}, {m} {do2} | {m} {do2} but {do} | {say}, but {m} {do2} | {m} {do2}. {do} | {do}. {m} {do2} | first of all, {m} {do2}, only {do} | {m} {do2} or {do3}, just {do}")),
    FrameGroup("second", 8, split_at_bars("the second one | the latter | the last one | option two | what I said last | the second of the two"),
        split_at_bars("{do2} or {do}? {M} | you can {do2} or {do}, I take {m} | either {do2} or {do}, {m} please | should you {do2} or {do}? I prefer {m} | {do2}, or {do}, and I mean {m} | of {doing2} and {doing} I choose {m}")),
    FrameGroup("first", 8, split_at_bars("the first one | the former | option one | what I said first | the first of the two | the one I said before the other"),
        split_at_bars("{do} or {do2}? {M} | you can {do} or {do2}, I take {m} | either {do} or {do2}, {m} please | should you {do} or {do2}? I prefer {m} | {do}, or {do2}, and I mean {m} | of {doing} and {doing2} I choose {m}")),
    FrameGroup("quoted", 10, split_at_bars("said | told you | keeps saying | wrote to me | shouted | asked"),
        split_at_bars("{who} {m}: \"{do2}\", but I want you to {do} | {who} {m} \"{do2}\", do not listen and {do} | \"{do2}\", {who} {m}, but please {do} | {do}, no matter that {who} {m} \"{do2}\" | when {who} {m} \"{do2}\", that was wrong, {do} | {do}. {who} {m} \"{do2}\", ignore it")),
    FrameGroup("done", 8, split_at_bars("I have already | I have just | somebody has already | I have | my sister has | we have just"),
        split_at_bars("{m} {done2}, now {do} | {m} {done2}, so just {do} | since {m} {done2}, {do} | {do}, {m} {done2} | {say}. {m} {done2} | now that {m} {done2}, {do}")),
    FrameGroup("later", 6, split_at_bars("later | tonight | some other time | another day | next time | in a while"),
        split_at_bars("I will ask you to {do2} {m}, now {do} | {m} I will want you to {do2}, now {say} | {do} now, I will tell you {m} whether to {do2} | {doing2} can wait until {m}, {do} | for now {do}, {m} we will talk about {doing2} | not now but {m} I may ask you to {do2}, at this moment {do}")),
    # A slot is corrected: {w} is its wrong value, {r} the right one, {wrong} the request with the wrong value.
    FrameGroup("slot_within", 14, RETRACTIONS, split_at_bars("{w}, {m}, {r}, | {w} - {m} - {r} | {w}... {m}, {r}, | {w} or, {m}, {r}, | {w}, {m}, rather {r}, | {w}, {m}, {m}, {r},")),
    FrameGroup("slot_not", 12, split_at_bars("not | and not | rather than | instead of | certainly not | never"), split_at_bars("{r}, {m} {w}, | {r} ({m} {w}) | {r} - {m} {w} - | {r}, please, {m} {w}, | {r}, I repeat, {r}, {m} {w}, | {r}, yes, {r}, {m} {w},")),
    FrameGroup("slot_after", 14, RETRACTIONS, split_at_bars("{wrong}, {m}, {r} | {wrong}. {M}, {r} | {wrong}, {m}, make that {r} | {wrong}. {M}, I meant {r} | {wrong}... {m}, {r} is what I meant | {wrong}, {m}, not {w}, {r} | {wrong}. {M}, it is not {w} but {r} | {wrong} - {m}, {r}, not {w}")),
    FrameGroup("slot_kept", 10, RETRACTIONS, split_at_bars("{say}, or {w}, {m}, {r} was right | {say}. {w}? {M}, {r} | {say}, no, {w}, {m}, leave it at {r} | {say}. Or {w}, {m}, back to {r} | {say} - or is it {w}? {M}, {r} as I said | {say}, or {w} instead, {m}, {r} is what I want")),
    # No request is wanted.
    FrameGroup("retracted", 8, NOTHING,
        split_at_bars("{say2}, no, {m} | {say2}. {M} | {do2} - wait, {m} | {do2} or {do3}, no, {m} | {say2}, actually, {m} | {do2}, and {do3}, sorry, {m} | I said to {do2}, but {m} | {who} told you to {do2}, {m} | {do2}? No, {m}")),
    FrameGroup("nothing", 5, split_at_bars("do not | never | nobody wants you to | I do not want you to | I did not ask you to | there is no reason to"),
        split_at_bars("{m} {do2} | please, {m} {do2} | {m} {do2} or {do3} | {m} {do2}, and {m} {do3} | as I said, {m} {do2} | {who} is wrong, {m} {do2}")),
    FrameGroup("told", 5, split_at_bars("I have already | I have just | somebody has | we have | my sister has | you have already"),
        split_at_bars("{m} {done2}, so there is nothing to do | {m} {done2}, that is all | {m} {done2} and {done3}, it is fine | just so you know, {m} {done2} | thanks, {m} {done2} | no need to {do2}, {m} {done2}")),
)


def find_pair_split(row: int, column: int, offset: int = 0) -> str:
    """Returns the split of a family by its place in a grid: one of FOLDS diagonals is test, one is valid."""
    return {0: "test", 1: "valid"}.get((row + column + offset) % FOLDS, "train")
