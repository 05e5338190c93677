"""Lists the long training templates, of four and five steps."""

from __future__ import annotations

from .word_templates import FRUIT, GOODS, PEOPLE, PLANTS, SWEETS, TOYS, VEHICLES, Template

FOUR_STEPS = (
    Template(
        "boxes_sold",
        {"boxes": (2, 9), "each": (2, 9), "bad": (2, 12), "size": (2, 9), "price": (2, 9)},
        "total = boxes * each; good = total - bad; bags = good / size; money = bags * price",
        "{name} has {boxes} boxes of {each} {item}, but {bad} {item} are bad. {He} puts the good ones in "
        "bags of {size} and sells each bag for {price} dollars.",
        ("How many dollars does {name} get?", "How much money does {he} get?"),
        "In the {boxes} boxes {name} has [total] {item} in all. Of these, {bad} are bad and [good] {item} "
        "are good. With {size} in a bag, {he} fills [bags] bags. {He} sells the bags for [money] dollars.",
        {"item": FRUIT},
    ),
    Template(
        "saved_shared",
        {"weeks": (2, 9), "save": (2, 9), "gift": (2, 20), "spent": (2, 20), "kids": (2, 6)},
        "saved = weeks * save; total = saved + gift; left = total - spent; share = left / kids",
        "{name} saves {save} dollars a week for {weeks} weeks and gets {gift} dollars from {pal}. {He} "
        "spends {spent} dollars. {kids} {people} share the rest equally.",
        ("How many dollars does each one get?",),
        "{name} saves [saved] dollars in {weeks} weeks. With the gift from {pal}, {he} has [total] "
        "dollars. After {he} spends {spent} of them, [left] dollars are left. So each of the {kids} "
        "{people} gets [share] dollars.",
        {"people": PEOPLE},
    ),
    Template(
        "long_ride",
        {"first": (10, 40), "off": (2, 15), "on": (2, 15), "last": (2, 15)},
        "left = first - off; now = left + on; half = now / 2; end = half + last",
        "There are {first} people on a {ride}. Then {off} get off and {on} get on. Next, half of the "
        "people get off, and {last} people get on.",
        ("How many people are on the {ride} now?", "How many people does the {ride} carry then?"),
        "After {off} get off, [left] people are left. After {on} get on, there are [now] people. Half get "
        "off, so [half] people stay. With {last} more there are [end] people.",
        {"ride": VEHICLES},
    ),
    Template(
        "rabbit_garden",
        {"rows": (2, 9), "each": (2, 9), "eaten": (2, 15), "new": (2, 15)},
        "total = rows * each; left = total - eaten; half = left / 2; now = half + new",
        "{name} plants {rows} rows of {each} {item}. {animal} eat {eaten} of them. {name} picks half of "
        "the rest and then plants {new} new ones.",
        ("How many {item} are in the garden now?", "How many {item} grow there now?"),
        "{name} plants [total] {item} in {rows} rows. After {eaten} are eaten, [left] are left. {He} picks "
        "half, so [half] {item} stay. With the new ones there are [now] {item}.",
        {"item": PLANTS, "animal": ("Rabbits", "Birds", "Goats", "Mice", "Deer")},
    ),
    Template(
        "family_ages",
        {"age": (5, 14), "less": (2, 9), "times": (4, 9), "more": (15, 30)},
        "pal_age = age - less; aunt = pal_age * times; old = aunt + more; gap = old - age",
        "{name} is {age} years old. {pal} is {less} years younger. The aunt of {pal} is {times} times as "
        "old as {pal}. The grandmother is {more} years older than the aunt.",
        ("How many years older than {name} is the grandmother?",),
        "{pal} is [pal_age] years old. The aunt is {times} times as old, so she is [aunt]. The grandmother "
        "is {more} years older, so she is [old]. She is [gap] years older than {name}.",
    ),
    Template(
        "two_day_book",
        {"first": (2, 9), "pages": (20, 40), "daily": (2, 9)},
        "second = first * 2; read = first + second; left = pages - read; days = left / daily",
        "A book has {pages} pages. {name} reads {first} pages on Monday and twice as many on Tuesday. Then "
        "{he} reads {daily} pages a day.",
        ("How many more days does {name} need?", "In how many more days is {he} done?"),
        "On Tuesday {name} reads twice as many, which is [second] pages. On both days {he} reads [read] "
        "pages. So [left] pages of the book are left. At {daily} pages a day, {he} needs [days] more days.",
    ),
    Template(
        "third_eaten",
        {"start": (6, 40), "new": (2, 20), "size": (2, 9)},
        "eaten = start / 3; left = start - eaten; now = left + new; bags = now / size",
        "{name} has {start} {item}. {eaters} eat a third of them. Then {name} {makes} {new} more and packs "
        "all the {item} in bags of {size}.",
        ("How many bags does {name} fill?", "How many bags are there?"),
        "A third of the {item} is [eaten]. So [left] {item} are left. {name} {makes} {new} more and has "
        "[now] {item}. With {size} in each bag, {he} fills [bags] bags.",
        {"item": SWEETS, "makes": ("bakes", "makes", "buys"), "eaters": ("The children", "Some friends")},
    ),
    Template(
        "shells_pair",
        {"first": (2, 9), "times": (2, 6), "broken": (2, 20)},
        "second = first * times; both = second + first; good = both - broken; share = good / 2",
        "{name} finds {first} {item}. {pal} finds {times} times as many. They throw away {broken} old "
        "{item} and share the rest equally.",
        ("How many {item} does each one get?", "How many {item} does {name} get?"),
        "{pal} finds {times} times as many, which is [second] {item}. Together they have [both] {item}. "
        "After they throw away {broken}, there are [good]. Each one gets [share] {item}.",
        {"item": TOYS},
    ),
    Template(
        "pay_and_tip",
        {"hours": (2, 9), "pay": (2, 9), "lunch": (2, 12), "tip": (2, 12)},
        "money = hours * pay; left = money - lunch; now = left + tip; half = now / 2",
        "{name} works {hours} hours in a {place} for {pay} dollars an hour. {He} pays {lunch} dollars for "
        "lunch and gets a tip of {tip} dollars. {He} saves half of what {he} has then.",
        ("How many dollars does {name} save?",),
        "For {hours} hours of work {name} gets [money] dollars. After {he} pays for lunch, {he} has [left] "
        "dollars. With the tip {he} has [now] dollars. {He} saves half of that, which is [half] dollars.",
        {"place": ("shop", "garden", "school", "bakery", "kitchen", "library")},
    ),
)

FIVE_STEPS = (
    Template(
        "hen_eggs",
        {"hens": (2, 9), "eggs": (2, 9), "bad": (2, 12), "size": (2, 9), "price": (2, 9), "food": (2, 12)},
        "total = hens * eggs; good = total - bad; boxes = good / size; money = boxes * price; left = money - food",
        "{name} gets {eggs} eggs from each of {hens} {bird}, but {bad} eggs break. {He} sells the rest in "
        "boxes of {size} for {price} dollars a box. Then {he} spends {food} dollars.",
        ("How many dollars are left?",),
        "{name} gets [total] eggs from the {hens} {bird}. After {bad} of them break, [good] eggs are left. "
        "They fill [boxes] boxes. {He} sells the boxes for [money] dollars. After {he} spends {food}, "
        "[left] dollars are left.",
        {"bird": ("hens", "ducks", "geese")},
    ),
    Template(
        "day_ride",
        {"first": (10, 40), "off": (2, 12), "on": (2, 12), "out": (2, 12), "last": (2, 12)},
        "one = first - off; two = one + on; three = two - out; four = three + last; half = four / 2",
        "A {ride} has {first} people. At one stop {off} get off and {on} get on. At the next stop {out} "
        "get off and {last} get on. Then half of the people get off.",
        ("How many people stay on the {ride}?",),
        "First {off} get off and [one] stay. Then {on} get on and there are [two]. Next {out} get off and "
        "[three] stay. Then there are [four] people. Half get off, so [half] stay.",
        {"ride": VEHICLES},
    ),
    Template(
        "party_tables",
        {"bags": (2, 9), "each": (2, 9), "lost": (2, 12), "more": (2, 12), "tables": (2, 6), "extra": (2, 9)},
        "total = bags * each; left = total - lost; now = left + more; per = now / tables; end = per + extra",
        "{name} has {bags} bags of {each} {item}. {He} loses {lost} and buys {more} more. {He} puts them "
        "equally on {tables} tables. Then {he} adds {extra} {item} to each table.",
        ("How many {item} are on each table?",),
        "The {bags} bags hold [total] {item}. {name} loses {lost} and has [left]. Then {he} buys more and "
        "has [now] {item}. Each of the tables gets [per]. With {extra} more, each table has [end] {item}.",
        {"item": ("cups", "balloons", "forks", "plates", "spoons", "glasses", "napkins")},
    ),
    Template(
        "half_to_pal",
        {"weeks": (2, 9), "save": (2, 9), "start": (2, 20), "toy": (2, 20), "gift": (2, 15)},
        "saved = weeks * save; total = saved + start; left = total - toy; half = left / 2; now = half + gift",
        "{name} has {start} dollars and saves {save} dollars a week for {weeks} weeks. {He} buys a {thing} "
        "for {toy} dollars. {He} gives half of the rest to {pal}. Then {he} finds {gift} dollars.",
        ("How many dollars does {name} have now?",),
        "In {weeks} weeks {name} saves [saved] dollars. In all {he} has [total] dollars. After the {thing} "
        "{he} has [left] dollars. {He} keeps half, so [half] are left. In the end {he} has [now] dollars.",
        {"thing": ("game", "ball", "lamp", "book", "watch", "clock", "scarf")},
    ),
    Template(
        "library_boxes",
        {"shelves": (2, 9), "each": (2, 9), "back": (2, 15), "old": (2, 12), "boxes": (2, 6)},
        "total = shelves * each; half = total / 2; now = half + back; kept = now - old; per = kept / boxes",
        "A {place} has {shelves} shelves of {each} {item}. Half of them are sold, and {back} new ones "
        "come. {name} throws away {old} and packs the rest equally in {boxes} boxes.",
        ("How many {item} are in each box?",),
        "The {shelves} shelves hold [total] {item}. Half are sold, so [half] are left. With {back} new ones "
        "there are [now] {item}. {name} throws away {old} and keeps [kept]. Each box gets [per] {item}.",
        {"item": GOODS, "place": ("shop", "school", "club")},
    ),
    Template(
        "farm_pens",
        {"start": (6, 40), "new": (2, 20), "size": (2, 9), "corn": (2, 9)},
        "sold = start / 3; left = start - sold; now = left + new; pens = now / size; bags = pens * corn",
        "{name} has {start} {animal} and sells a third of them. {He} buys {new} more and puts {size} in "
        "each pen. Each pen needs {corn} bags of corn.",
        ("How many bags of corn does {name} need?", "How many bags are needed in all?"),
        "{name} sells a third, which is [sold] {animal}. So [left] are left. With the {new} new ones {he} "
        "has [now] {animal}. They fill [pens] pens with {size} in each. So {he} needs [bags] bags of corn.",
        {"animal": ("goats", "hens", "ducks", "cows", "pigs", "geese", "horses", "rabbits")},
    ),
    Template(
        "game_points",
        {"first": (2, 9), "times": (2, 5), "lost": (2, 15), "bonus": (2, 15), "worth": (2, 6)},
        "second = first * times; both = second + first; left = both - lost; now = left + bonus; stars = now / worth",
        "{name} gets {first} points in a game, and {times} times as many in the next game. {He} loses "
        "{lost} points and wins {bonus} points. {He} trades every {worth} points for a {thing}.",
        ("How many {thing}s does {name} get?",),
        "In the next game {name} gets [second] points. Together that is [both] points. {He} loses {lost} "
        "and has [left]. With {bonus} more {he} has [now]. So {he} gets [stars] {thing}s in the end.",
        {"thing": ("star", "card", "sticker", "ball")},
    ),
)
