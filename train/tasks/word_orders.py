"""Lists stories of training templates with their sentences in another order, by template; the question stays last.

Only some templates allow another order: "then", "the rest" and pronouns must still refer to the right sentence, and a
verb in the past tense shows what happened earlier.
"""

# one entry is one story here
# fmt: off
# ruff: noqa: E501
from __future__ import annotations

REORDERED_STORIES = {
    "bags_given": "There are {each} {item} in each bag. {name} buys {bags} bags of {item}. Then {he} gives {given} of the {item} to {pal}.",
    "trays_shared": "{kids} {people} share all the {item} of {name} equally. {name} bakes {trays} trays of {item} with {each} {item} on each tray.",
    "weeks_saved": "{name} adds {save} dollars to a jar every week for {weeks} weeks. There were {start} dollars in the jar before.",
    "stop_off_on": "At a stop {off} people get off a {ride} and {on} people get on. There were {first} people on it before.",
    "pages_to_go": "{name} has read {read} pages of a book so far. The book has {pages} pages. From now on {he} reads {daily} pages a day.",
    "uncle_age": "{pal} is {older} years older than {name}. {name} is {age} years old. {name} has an uncle who is {times} times as old as {pal}.",
    "change_back": "{name} pays with {paid} dollars for {count} {item}. Each of them costs {price} dollars.",
    "times_total": "On the day after {day} {name} {verb} {times} times as many {unit} as on {day}. On {day} {he} {verb} {first} {unit}.",
    "rope_pieces": "{name} cuts off {cut} feet of a {rope} for {pal}. The {rope} was {long} feet long before. {He} cuts the rest into pieces that are {piece} feet long.",
    "teams_made": "There are {girls} girls and {boys} boys in a {place}. {name} puts them all in teams of {size}.",
    "third_sold": "On {day} {name} sells a third of the {item} in a shop. There were {start} {item} before.",
    "gift_shared": "A card costs {card} dollars and a {gift_word} costs {gift} dollars. {kids} {people} buy both and share the cost equally.",
    "read_then_days": "{name} reads {daily} pages of a book a day for {days} days. The book has {pages} pages. After these days {he} reads {fast} pages a day.",
    "bike_need": "{name} has {start} dollars and saves {save} dollars a week for {weeks} weeks. A {thing} costs {price} dollars.",
    "egg_profit": "{name} spends {food} dollars on {food_word}. Before that {he} packs {eggs} eggs in boxes of {size} and sells each box for {price} dollars.",
    "fish_ponds": "{name} buys {more} more fish. Before that {he} had {tanks} tanks with {fish} fish in each tank. Then {he} puts all of the fish equally in {ponds} ponds.",
    "brother_older": "The sister of {name} is {times} times as old as {name}, and {his} brother is {more} years older than the sister. {name} is {age} years old.",
    "money_split": "{name} buys {count} {item} for {price} dollars each. Before that {he} had {money} dollars. {He} shares the rest of the money equally among {kids} {people}.",
    "walk_goal": "On Monday {name} does {first} miles. On Tuesday {he} does {more} miles more than on Monday. {He} wants to {verb} {goal} miles.",
    "vases_half": "{name} puts {each} {item} in each of {vases} vases. Before that {he} picks {picked} {item}. {He} gives half of the other {item} to {pal}.",
    "album_pages": "{name} gets {new} new {item}. Before that {he} had {old} {item}. {He} puts all of them equally on {pages} pages of an album.",
    "water_tank": "{name} adds {buckets} buckets of {size} liters each to a tank. The tank held {start} liters of {drink} before. Then {he} uses {used} liters.",
    "empty_chairs": "{people} people sit down in a {place}, one on each chair. The {place} has {rows} rows of {each} chairs. {name} takes away half of the empty chairs.",
    "birds_fly": "{name} sees twice as many {bird} on a {place} as in a tree. In the tree there are {first} {bird}. Then {fly} of all the {bird} fly away.",
    "saved_shared": "{name} gets {gift} dollars from {pal} and saves {save} dollars a week for {weeks} weeks. {He} spends {spent} dollars. {kids} {people} share the rest equally.",
    "family_ages": "{pal} is {less} years younger than {name}. {name} is {age} years old. The aunt of {pal} is {times} times as old as {pal}. The grandmother is {more} years older than the aunt.",
    "two_day_book": "{name} reads {first} pages of a book on Monday and twice as many on Tuesday. The book has {pages} pages. After Tuesday {he} reads {daily} pages a day.",
    "shells_pair": "{pal} finds {times} times as many {item} as {name}. {name} finds {first} {item}. They throw away {broken} old {item} and share the rest equally.",
    "pay_and_tip": "{name} gets a tip of {tip} dollars and pays {lunch} dollars for lunch. {He} works {hours} hours in a {place} for {pay} dollars an hour. {He} saves half of what {he} has then.",
    "half_to_pal": "{name} saves {save} dollars a week for {weeks} weeks. Before that {he} had {start} dollars. {He} buys a {thing} for {toy} dollars. {He} gives half of the rest to {pal}. Then {he} finds {gift} dollars.",
    "farm_pens": "{name} puts {size} {animal} in each pen, and each pen needs {corn} bags of corn. Before that {he} had {start} {animal}, sold a third of them and bought {new} more.",
    "game_points": "{name} trades every {worth} points for a {thing}. {He} gets {first} points in a game, and {times} times as many in the next game. {He} loses {lost} points and wins {bonus} points.",
}
