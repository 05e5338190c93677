"""Lists the values of the slots of the task `intents`, and samples words that people say for them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .surface import spell_number

WORDED_SHARE = 0.4  # share of the numbers that are written as words
MY_SHARE = 0.15  # share of the devices that have "my" before them instead of "the"

# Each value of a slot, and its names.
DEVICES = {
    "lamp": ("lamp", "floor lamp"),
    "fan": ("fan", "ceiling fan"),
    "heater": ("heater", "space heater"),
    "tv": ("tv", "television"),
    "radio": ("radio",),
    "oven": ("oven",),
    "coffee_maker": ("coffee maker", "coffee machine"),
    "dishwasher": ("dishwasher",),
    "air_purifier": ("air purifier", "air cleaner"),
    "charger": ("charger", "car charger"),
    "humidifier": ("humidifier",),
    "sprinkler": ("sprinkler", "lawn sprinkler"),
}
ROOMS = {
    "kitchen": ("kitchen",),
    "living_room": ("living room", "lounge"),
    "bedroom": ("bedroom",),
    "bathroom": ("bathroom", "washroom"),
    "office": ("office", "study"),
    "hallway": ("hallway", "corridor"),
    "garage": ("garage",),
    "basement": ("basement", "cellar"),
    "nursery": ("nursery", "baby's room"),
    "attic": ("attic", "loft"),
}
PEOPLE = {
    "mom": ("mom", "my mother"),
    "dad": ("dad", "my father"),
    "anna": ("Anna",),
    "ben": ("Ben",),
    "clara": ("Clara",),
    "david": ("David",),
    "omar": ("Omar",),
    "priya": ("Priya",),
    "lucas": ("Lucas",),
    "doctor": ("the doctor", "my doctor"),
    "neighbor": ("the neighbor", "my neighbor"),
    "landlord": ("the landlord", "my landlord"),
}
ITEMS = {
    name: (name,)
    for name in (
        "milk", "eggs", "bread", "butter", "coffee", "rice", "apples", "bananas", "cheese", "soap", "batteries", "salt",
        "tomatoes", "flour",
    )
}  # fmt: skip
MUSIC = {
    name: (name, f"some {name}")
    for name in ("jazz", "rock", "pop", "blues", "folk", "techno", "reggae", "opera", "metal", "soul")
}
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DAYS = {"today": ("today",), "tomorrow": ("tomorrow",)} | {day.lower(): (f"on {day}",) for day in WEEKDAYS}
HOURS, MINUTES, AMOUNTS = range(24), range(60), range(101)
# Words for minutes after an hour, and before the next one.
MINUTES_PAST = {5: "five past", 10: "ten past", 15: "quarter past", 20: "twenty past", 30: "half past"}
MINUTES_TO = {40: "twenty to", 45: "quarter to", 50: "ten to", 55: "five to"}
PERIODS = {10: "ten minutes", 15: "a quarter of an hour", 30: "half an hour", 60: "an hour", 90: "an hour and a half"}

Slots = dict[str, str | int]


@dataclass(frozen=True, slots=True)
class SpokenField:
    """Holds the words of a phrase's field, and the values that they give to slots."""

    slots: Slots
    words: str


def choose_from(
    slot: str, values: Mapping[str, tuple[str, ...]], before: str = ""
) -> Callable[[random.Random], SpokenField]:
    """Returns a function that samples one of the values and one of its names, with the words `before` the name."""
    names = [(value, before + name) for value, each in values.items() for name in each]

    def sample(rng: random.Random) -> SpokenField:
        value, words = rng.choice(names)
        return SpokenField({slot: value}, words)

    return sample


def sample_device(rng: random.Random) -> SpokenField:
    """Samples a device."""
    value = rng.choice([*DEVICES])
    return SpokenField({"device": value}, f"{'my' if rng.random() < MY_SHARE else 'the'} {rng.choice(DEVICES[value])}")


def write_number(number: int, rng: random.Random) -> str:
    """Returns a number from 0 to 99 in digits or words, 100 in digits."""
    return spell_number(number) if number < 100 and rng.random() < WORDED_SHARE else str(number)


def sample_time(rng: random.Random) -> SpokenField:
    """Samples a time of day, in steps of five minutes, and one of the ways to say it."""
    hour, minute = rng.choice(HOURS), rng.choice((0, 0, 0, 15, 30, 30, 45, rng.randrange(0, 60, 5)))
    return SpokenField({"hour": hour, "minute": minute}, rng.choice(list_ways_to_say_time(hour, minute)))


def list_ways_to_say_time(hour: int, minute: int) -> list[str]:
    """Returns the ways to say a time. An hour from 1 to 11 without more words is in the morning."""
    ways, hour12 = [f"{hour}:{minute:02}"], hour % 12
    if hour12 == 0:
        return ways if minute else [*ways, "midnight" if hour == 0 else "noon"]
    number, word = str(hour12), spell_number(hour12)
    after_noon = hour > 12
    time_of_day = "in the morning" if not after_noon else "in the afternoon" if hour < 18 else "in the evening"
    exact = f":{minute:02}" if minute else ""
    ways += [f"{number}{exact} {'pm' if after_noon else 'am'}", f"{number}{exact} {time_of_day}"]
    if minute == 0:
        ways += [f"{word} {time_of_day}", f"{word} o'clock {time_of_day}"]
        ways += [] if after_noon else [word, number, f"{word} o'clock"]
    elif minute in MINUTES_PAST:
        ways += [f"{MINUTES_PAST[minute]} {word}" + (f" {time_of_day}" if after_noon else "")]
    elif minute in MINUTES_TO and hour12 < 11:  # these name the next hour, which must be in the same part of the day
        ways += [f"{MINUTES_TO[minute]} {spell_number(hour12 + 1)} {time_of_day}"] if hour != 17 else []
    return ways


def sample_percent(rng: random.Random) -> SpokenField:
    """Samples a percentage in steps of five."""
    amount = rng.randrange(5, 101, 5)
    return SpokenField({"amount": amount}, rng.choice((f"{amount}%", *2 * (f"{write_number(amount, rng)} percent",))))


def sample_degrees(rng: random.Random) -> SpokenField:
    """Samples a temperature of a room."""
    amount = rng.randrange(12, 30)
    return SpokenField({"amount": amount}, f"{write_number(amount, rng)} degrees")


def sample_minutes(rng: random.Random) -> SpokenField:
    """Samples a period in minutes."""
    amount = rng.choice((*PERIODS, *range(2, 60)))
    if amount in PERIODS and rng.random() < 0.5:
        return SpokenField({"amount": amount}, PERIODS[amount])
    return SpokenField({"amount": amount}, f"{write_number(amount, rng)} minutes")


# By field of a phrase. `where` and `when` are optional and include the space before them.
FIELDS: Mapping[str, Callable[[random.Random], SpokenField]] = {
    "device": sample_device,
    "room": choose_from("room", ROOMS, "the "),
    "where": choose_from("room", ROOMS, "in the "),
    "person": choose_from("person", PEOPLE),
    "item": choose_from("item", ITEMS),
    "music": choose_from("music", MUSIC),
    "day": choose_from("day", DAYS),
    "when": choose_from("day", DAYS),
    "time": sample_time,
    "percent": sample_percent,
    "degrees": sample_degrees,
    "minutes": sample_minutes,
}
OPTIONAL = ("where", "when")
SLOTS: Mapping[str, tuple[str, ...] | range] = {
    "device": tuple(DEVICES),
    "room": tuple(ROOMS),
    "person": tuple(PEOPLE),
    "item": tuple(ITEMS),
    "music": tuple(MUSIC),
    "day": tuple(DAYS),
    "hour": HOURS,
    "minute": MINUTES,
    "amount": AMOUNTS,
}
