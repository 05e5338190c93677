"""Lists the word-problem templates of the split `test_templates`; no other split has them."""

from __future__ import annotations

from .word_templates import FRUIT, GOODS, PEOPLE, PLANTS, SWEETS, TOYS, Template

HELD_OUT_TEMPLATES = (
    Template(
        "two_baskets",
        {"red": (2, 25), "green": (2, 25), "given": (2, 20)},
        "total = red + green; left = total - given",
        "{name} picks {red} {item} in the morning and {green} {item} after lunch. {He} gives {given} of them to {pal}.",
        ("How many {item} does {name} have left?", "How many {item} are left?"),
        "{name} picks {red} and then {green} more, so {he} has [total] {item}. After {he} gives {given} of "
        "them to {pal}, [left] {item} are left.",
        {"item": FRUIT},
    ),
    Template(
        "share_and_lose",
        {"start": (8, 40), "kids": (2, 9), "lost": (2, 9)},
        "share = start / kids; left = share - lost",
        "{kids} children share {start} {item} equally. {name} is one of the children. Later {he} loses "
        "{lost} of {his} {item}.",
        ("How many {item} does {name} still have?",),
        "The {kids} children share the {item} equally, so each one gets [share] {item}. After {name} loses "
        "{lost} of them, {he} has [left] {item} left.",
        {"item": TOYS},
    ),
    Template(
        "tickets_rides",
        {"start": (5, 25), "lost": (2, 20), "rides": (2, 9)},
        "left = start - lost; total = left * rides",
        "{name} has {start} cards for the boat and gives {lost} of them to {pal}. Each card is good for {rides} rides.",
        ("How many rides can {name} take?", "How many rides are left for {name}?"),
        "{name} gives {lost} of the cards to {pal} and has [left] cards left. Each card is good for "
        "{rides} rides, so {he} gets [total] rides.",
    ),
    Template(
        "half_sold_more",
        {"start": (8, 40), "second": (2, 15)},
        "half = start / 2; left = half - second",
        "There are {start} {item} in a shop. {name} buys half of the {item}. Then {pal} buys {second} of "
        "the other {item}.",
        ("How many {item} are left in the shop?", "How many {item} does the shop still have?"),
        "{name} buys half of the {item}, so [half] {item} are left in the shop. Then {pal} buys {second} "
        "of them, so there are [left] {item} left.",
        {"item": GOODS + SWEETS},
    ),
    Template(
        "put_together",
        {"first": (3, 20), "second": (3, 20), "broken": (2, 12)},
        "total = first + second; half = total / 2; left = half - broken",
        "{name} has {first} {item} and {pal} has {second} {item}. They put them together and share them "
        "equally. Then {name} loses {broken} {item}.",
        ("How many {item} does {name} have now?",),
        "Together they have [total] {item}. Each one gets half of them, so {name} gets [half] {item}. Then "
        "{he} loses {broken}, so [left] {item} are left.",
        {"item": TOYS},
    ),
    Template(
        "bead_strings",
        {"beads": (8, 40), "size": (2, 9), "price": (2, 9), "start": (2, 20)},
        "strings = beads / size; money = strings * price; now = money + start",
        "{name} has {start} dollars and {beads} beads. {He} puts {size} beads on each string and sells "
        "every string for {price} dollars.",
        ("How many dollars does {name} have in the end?", "How much money does {name} have then?"),
        "With {size} beads on each string, {name} makes [strings] strings. {He} sells them for [money] "
        "dollars. With the {start} from before, {he} has [now] dollars.",
    ),
    Template(
        "twice_as_many",
        {"first": (3, 9), "times": (2, 5), "eaten": (2, 15), "kids": (2, 9)},
        "second = first * times; left = second - eaten; share = left / kids",
        "{name} bakes {first} {item}. {pal} bakes {times} times as many and eats {eaten} of those. {pal} "
        "shares the rest equally among {kids} {people}.",
        ("How many of the {item} does each one get?",),
        "{pal} bakes {times} times as many, which is [second] {item}. After {pal} eats {eaten}, [left] are "
        "left. They are shared equally, so each one gets [share] {item}.",
        {"item": SWEETS, "people": PEOPLE},
    ),
    Template(
        "pots_on_wall",
        {"start": (10, 40), "sold": (2, 15), "walls": (2, 9), "more": (2, 12)},
        "left = start - sold; per = left / walls; now = per + more",
        "{name} has {start} {item} and sells {sold} of them. {He} plants the rest equally in {walls} "
        "gardens. Then {he} adds {more} {item} to each garden.",
        ("How many {item} are in each garden now?",),
        "{name} sells {sold} {item}, so [left] are left. In {walls} equal gardens there are [per] in each "
        "one. With {more} more, each garden has [now] {item}.",
        {"item": PLANTS},
    ),
    Template(
        "rows_of_people",
        {"rows": (2, 9), "each": (2, 9), "out": (2, 12), "come": (2, 12), "size": (2, 9)},
        "total = rows * each; left = total - out; now = left + come; teams = now / size",
        "In a hall there are {rows} rows of {each} people. Then {out} people go away and {come} people "
        "come. {name} puts all the people in teams of {size}.",
        ("How many teams are there?", "How many teams does {name} make?"),
        "In {rows} rows there are [total] people. After {out} go away, [left] people stay. When {come} "
        "more come, there are [now] people. With {size} in each team, there are [teams] teams.",
    ),
    Template(
        "pens_by_box",
        {"pens": (8, 40), "size": (2, 9), "price": (2, 9), "lunch": (2, 9), "found": (2, 12)},
        "boxes = pens / size; money = boxes * price; left = money - lunch; now = left + found",
        "{name} sells {pens} pens in boxes of {size} for {price} dollars a box. {He} pays {lunch} dollars "
        "for milk. Later {he} gets {found} dollars from {pal}.",
        ("How many dollars does {name} have now?",),
        "The pens fill [boxes] boxes. {name} sells them for [money] dollars. After {he} buys milk, [left] "
        "dollars are left. With the {found} from {pal}, {he} has [now] dollars.",
    ),
    Template(
        "water_jars",
        {"jars": (2, 9), "size": (2, 9), "rain": (2, 12), "used": (2, 12), "tanks": (2, 6), "more": (2, 9)},
        "total = jars * size; wet = total + rain; left = wet - used; per = left / tanks; end = per + more",
        "{name} has {jars} jars of {size} liters of water. {He} gets {rain} liters more and uses {used} "
        "liters. {He} puts the rest equally in {tanks} tanks. Then {he} adds {more} liters to each tank.",
        ("How many liters are in each tank?",),
        "The jars hold [total] liters. Then {name} has [wet] liters. After {he} uses some, [left] are "
        "left. Each tank gets [per]. With {more} more, each tank has [end] liters.",
    ),
    Template(
        "club_trip",
        {"boys": (3, 20), "girls": (3, 20), "seats": (2, 9), "price": (2, 9), "paid": (2, 12), "kids": (2, 6)},
        "total = boys + girls; boats = total / seats; cost = boats * price; rest = cost - paid; share = rest / kids",
        "A club of {boys} boys and {girls} girls takes boats for {seats} people each. A boat costs {price} "
        "dollars. {name} pays {paid} dollars, and {kids} friends share the rest equally.",
        ("How many dollars does each friend pay?",),
        "There are [total] children. They need [boats] boats. The boats cost [cost] dollars. After {name} "
        "pays, [rest] dollars are left. Each friend pays [share] dollars.",
    ),
)
