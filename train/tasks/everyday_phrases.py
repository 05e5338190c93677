"""Lists the words and phrases of `everyday`: nouns and verbs, whole stories, and parts of longer stories.

Fields in braces are replaced. The fields of numbers are `{n}`, `{o}` and `{r}` for any number, `{p}` and `{q}` for
factors. `{item}` is a noun in the singular, `{items}` its plural, `{an_item}` the noun with its article; `{box}` and
`{kind}` are two other nouns, with the same forms. `{do}`, `{does}` and `{did}` are forms of a verb, such as "reads", and
`{units}` is the noun that the verb counts, such as "pages".
"""

# one entry is a few lines here; one argument per line would make it three times as long
# fmt: off
# ruff: noqa: E501
from __future__ import annotations

NOUNS = """
apple banana carrot potato tomato onion egg cookie candy sandwich pizza pie cupcake dumpling taco bagel pretzel sausage
grape melon lemon mango coconut pumpkin pepper olive nut walnut peanut loaf cheese pancake
dog cat cow pig sheep goat horse duck chicken hen goose bird parrot pigeon fish frog turtle rabbit kitten puppy mouse
bee ant spider snail butterfly elephant monkey lion penguin whale camel donkey cow lamb fox bear owl
pencil pen eraser crayon marker notebook book magazine comic newspaper letter envelope card stamp poster photo picture
ticket coin button bead ring bracelet necklace hat cap scarf sock shoe glove shirt dress jacket towel blanket pillow
cup mug glass bottle can plate bowl spoon fork knife pot pan tray candle lamp lantern bulb battery phone laptop tablet
camera clock watch key lock nail screw bolt brick tile plank rope pipe tool hammer brush bucket ladder
ball bat racket kite doll puzzle game toy robot marble block balloon bike tricycle scooter car truck bus train boat
ship plane wagon tire engine chair table bench desk sofa bed shelf door window flower rose tulip daisy tree bush seed
plant leaf branch rock stone shell feather star flag drum guitar song video point medal trophy badge sticker prize
question answer page chapter recipe pill bandage seat room floor house tent class team ship island road lake field
"""
PLURALS = {
    "sheep": "sheep", "goose": "geese", "fish": "fish", "mouse": "mice", "loaf": "loaves", "knife": "knives", "shelf": "shelves",
    "leaf": "leaves", "potato": "potatoes", "tomato": "tomatoes", "mango": "mangoes", "scarf": "scarves", "child": "children",
    "person": "people", "man": "men", "woman": "women", "foot": "feet",
}  # fmt: skip
BOXES = """
box bag basket jar pack packet bowl crate sack carton case bucket shelf tray plate drawer row table page folder bus van
room tent team bunch bundle stack pile set jug cage nest pond field tree branch barrel container tin chest cart
"""
PERSONS = """
student child friend kid boy girl person player worker guest neighbor cousin teacher nurse farmer runner visitor
customer passenger member classmate pupil camper driver singer dancer woman man
"""
PARTS = """
leg wheel wing eye ear finger toe petal leaf page slice piece seat window door room button pocket string key corner
side point card stamp seed egg drawer battery light spoke
"""
# A verb's base form, third person and past, and the noun that it counts.
VERBS = (
    ("read", "reads", "read", "pages"), ("drink", "drinks", "drank", "glasses of water"), ("drink", "drinks", "drank", "cups of tea"),
    ("run", "runs", "ran", "miles"), ("walk", "walks", "walked", "kilometers"), ("walk", "walks", "walked", "miles"), ("ride", "rides", "rode", "miles"),
    ("drive", "drives", "drove", "kilometers"), ("swim", "swims", "swam", "laps"), ("write", "writes", "wrote", "letters"),
    ("solve", "solves", "solved", "problems"), ("do", "does", "did", "push-ups"), ("bake", "bakes", "baked", "loaves of bread"),
    ("paint", "paints", "painted", "pictures"), ("plant", "plants", "planted", "trees"), ("save", "saves", "saved", "dollars"),
    ("earn", "earns", "earned", "dollars"), ("practice", "practices", "practiced", "minutes"), ("make", "makes", "made", "bracelets"),
    ("learn", "learns", "learned", "words"), ("pick", "picks", "picked", "berries"), ("eat", "eats", "ate", "eggs"), ("sell", "sells", "sold", "tickets"),
    ("wash", "washes", "washed", "cars"), ("fix", "fixes", "fixed", "bikes"), ("take", "takes", "took", "pills"), ("send", "sends", "sent", "messages"),
    ("use", "uses", "used", "liters of water"), ("build", "builds", "built", "chairs"), ("score", "scores", "scored", "points"),
    ("sleep", "sleeps", "slept", "hours"), ("work", "works", "worked", "hours"), ("study", "studies", "studied", "hours"), ("call", "calls", "called", "customers"),
)  # fmt: skip
MEASURES = ("meter", "kilometer", "mile", "inch", "centimeter", "kilogram", "pound", "gram", "liter", "gallon", "degree", "minute", "hour", "second", "page", "point", "euro", "dollar", "cent", "coin", "step")
PERIODS = ("day", "week", "hour", "month", "minute", "game", "trip", "morning", "evening", "lesson")
PLACES = ("in a box", "on the table", "in the garden", "in a room", "at a party", "on a shelf", "in a tree", "on a farm", "at school", "in a shop", "in a parking lot", "in the kitchen", "in a park", "on a boat", "in the fridge", "in a pond", "on a wall", "in a library", "in a drawer", "at the zoo")
COLORS = ("red", "blue", "green", "yellow", "white", "black", "brown", "big", "small", "old", "new", "wooden", "round", "long", "short", "sweet")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
HOLDERS = ("A farmer", "A shop", "A baker", "A school", "A library", "A class", "A team", "A museum", "A restaurant", "A factory", "A family", "The teacher", "The store", "The zoo", "A nurse", "A company", "A gardener", "My brother", "My sister", "My mother", "My friend", "Grandma", "Grandpa", "A man", "A woman", "A boy", "A girl")

# Steps of one calculation or two, and wordings of a story with these steps; `y` is the answer, `k` is in between.
STORIES = (
    ("y = n + o", (
        "What is {n} plus {o}?", "What is {n} + {o}?", "{n} + {o} = ?", "{n} + {o}", "Add {n} and {o}.", "What is the sum of {n} and {o}?", "How much is {n} and {o}?", "{n} plus {o}",
    )),
    ("y = n - o", (
        "What is {n} minus {o}?", "What is {n} - {o}?", "{n} - {o} = ?", "{n} - {o}", "Subtract {o} from {n}.", "What is the difference between {n} and {o}?", "How much is {n} less {o}?", "Take {o} away from {n}.",
    )),
    ("y = p * q", (
        "What is {p} times {q}?", "What is {p} * {q}?", "{p} * {q} = ?", "{p} x {q}", "{p}*{q}", "Multiply {p} by {q}.", "What is the product of {p} and {q}?", "How much is {p} times {q}?",
    )),
    ("y = n / p", (
        "What is {n} divided by {p}?", "What is {n} / {p}?", "{n} / {p} = ?", "{n} / {p}", "Divide {n} by {p}.", "How much is {n} divided by {p}?", "How many times does {p} go into {n}?",
    )),
    ("y = p * q", (
        "Each {box} has {q} {items}. How many {items} are in {p} {boxes}?", "Each {box} holds {q} {items}. How many {items} are in {p} {boxes}?", "There are {p} {boxes} with {q} {items} each. How many {items} are there?",
        "There are {p} {boxes} with {q} {items} in each. How many {items} are there in total?", "{name} has {p} {boxes} of {q} {items}. How many {items} is that?", "How many {items} are in {p} {boxes} if each {box} has {q} {items}?",
        "How many {items} are there in {p} {boxes} of {q} {items} each?", "{A_box} has {q} {items}. How many {items} do {p} {boxes} have?", "{p} {boxes} hold {q} {items} each. How many {items} do they hold altogether?",
        "{name} fills {p} {boxes} with {q} {items} each. How many {items} does {he} use?", "{q} {items} fit into one {box}. How many {items} fit into {p} {boxes}?", "{name} packs {q} {items} into each of {p} {boxes}. How many {items} does {name} pack?",
        "{name} puts {q} {items} in every {box}. How many {items} are in {p} {boxes}?", "{Holder} has {p} {boxes}, and each {box} has {q} {items}. How many {items} are there in all?", "If one {box} holds {q} {items}, how many {items} do {p} {boxes} hold?",
    )),
    ("y = p * q", (
        "{An_item} has {q} {parts}. How many {parts} do {p} {items} have?", "How many {parts} do {p} {items} have if each {item} has {q} {parts}?", "How many {parts} do {p} {items} have if each has {q}?", "Every {item} has {q} {parts}. How many {parts} are on {p} {items}?",
        "There are {p} {items}. Each {item} has {q} {parts}. How many {parts} are there altogether?", "One {item} has {q} {parts}. How many {parts} do {p} {items} have in total?", "{name} has {p} {items} with {q} {parts} each. How many {parts} are there?", "{name} cuts {p} {items} into {q} pieces each. How many pieces are there?",
        "Each {item} needs {q} {kinds}. How many {kinds} are needed for {p} {items}?", "{name} makes {p} {items}. Each needs {q} {kinds}. How many {kinds} does {he} need?", "It takes {q} {kinds} to make one {item}. How many {kinds} does it take to make {p} {items}?",
    )),
    ("y = p * q", (
        "{name} {does} {q} {units} {a_period} for {p} {periods}. How many {units} does {he} {do}?", "{name} {does} {q} {units} every {period}. How many {units} does {he} {do} in {p} {periods}?", "{name} {does} {q} {units} each {period}. How many {units} does {name} {do} in {p} {periods}?",
        "{name} {does} {q} {units} per {period}. How many {units} is that in {p} {periods}?", "{name} {did} {q} {units} {a_period} for {p} {periods}. How many {units} did {he} {do} in total?", "If {name} {does} {q} {units} {a_period}, how many {units} does {he} {do} in {p} {periods}?",
        "How many {units} does {name} {do} in {p} {periods} if {he} {does} {q} {units} {a_period}?", "{Holder} {does} {q} {units} {a_period}. How many {units} is that in {p} {periods}?", "For {p} {periods} {name} {does} {q} {units} every {period}. How many {units} is that altogether?",
        "Every {period} {name} {does} {q} {units}. How many {units} does {he} {do} in {p} {periods}?", "{name} can {do} {q} {units} in one {period}. How many {units} can {he} {do} in {p} {periods}?", "I {do} {q} {units} every {period}. How many {units} do I {do} in {p} {periods}?", "We {do} {q} {units} {a_period}. How many {units} do we {do} in {p} {periods}?",
    )),
    ("y = p * q", (
        "{A_period} has {q} {kinds}. How many {kinds} are in {p} {periods}?", "{An_item} moves {q} {measures} {a_period}. How far does it go in {p} {periods}?", "{An_item} goes {q} {measures} in one {period}. How many {measures} does it go in {p} {periods}?", "{A_kind} grows {q} {measures} every {period}. How many {measures} does it grow in {p} {periods}?",
        "A machine makes {q} {items} every {period}. How many {items} does it make in {p} {periods}?", "{An_item} weighs {q} {measures}. How much do {p} {items} weigh?", "One {item} is {q} {measures} long. How long are {p} {items} together?", "{An_item} takes {q} {measures}. How many {measures} do {p} {items} take?", "Each lap takes {name} {q} minutes. How long do {p} laps take?",
        "{name} needs {q} minutes for each {item}. How many minutes does {he} need for {p} {items}?", "A train passes every {q} minutes. How long does it take until {p} trains have passed?", "{name} takes {q} {items} {p} times a day. How many {items} does {he} take every day?",
    )),
    ("y = p * q", (
        "{An_item} costs {q} dollars. How much do {p} {items} cost?", "One {item} costs {q} dollars. How much do {p} {items} cost?", "{name} buys {p} {items} for {q} dollars each. How much does {he} pay?", "{name} buys {p} {items} that cost {q} dollars each. How much does {name} spend?", "{name} sells {p} {items} at {q} dollars each. How much money does {he} make?",
        "How much do {p} {items} cost at {q} dollars each?", "How much do {p} {items} cost if one {item} costs {q} dollars?", "{items} cost {q} dollars each. {name} wants {p} of them. How much does {he} pay?", "Each {item} costs {q} euros. What is the price of {p} {items}?", "A ticket costs {q} dollars. How much do {p} tickets cost?", "If {an_item} costs {q} dollars, what do {p} {items} cost?",
        "{name} works {p} hours and earns {q} dollars per hour. How much does {he} earn?", "{name} gets {q} dollars for every {item} {he} sells. How much does {he} get for {p} {items}?", "{p} {persons} pay {q} dollars each. How much do they pay together?", "The price of {an_item} is {q} dollars. What is the total for {p} {items}?",
    )),
    ("y = p * q", (
        "{p} {persons} have {q} {items} each. How many {items} do they have together?", "{p} {persons} each bring {q} {items}. How many {items} do they bring in total?", "Each of {p} {persons} gets {q} {items}. How many {items} are needed?", "{name} gives {q} {items} to each of {p} {persons}. How many {items} does {he} give away?", "Every {person} gets {q} {items}. How many {items} do {p} {persons} get?",
        "There are {p} {persons}, and each {person} has {q} {items}. How many {items} are there?", "{p} {persons} need {q} {items} each. How many {items} do they need?", "{name} has {p} {items}. {pal} has {q} times as many. How many {items} does {pal} have?", "There are {p} rows of {q} {items}. How many {items} are there?", "{name} plants {p} rows with {q} {items} in each row. How many {items} does {he} plant?",
        "A room has {p} rows with {q} seats each. How many seats are there?", "{items} are arranged in {p} rows of {q}. How many {items} are there in all?", "How many {items} are needed if {p} {persons} get {q} {items} each?", "{q} {persons} sit at each of {p} tables. How many {persons} are there?", "{p} teams have {q} {persons} each. How many {persons} are there in total?",
    )),
    ("y = n / p", (
        "{name} shares {n} {items} equally among {p} {persons}. How many {items} does each get?", "{n} {items} are shared equally by {p} {persons}. How many {items} does each {person} get?", "{p} {persons} share {n} {items} equally. How many {items} does each {person} get?", "{name} divides {n} {items} equally among {p} {boxes}. How many {items} are in each {box}?",
        "{n} {persons} are split into {p} equal groups. How many {persons} are in each group?", "{n} {items} are put into {p} {boxes} equally. How many {items} are in each {box}?", "If {p} {persons} share {n} {items} equally, how many does each one get?", "How many {items} does each of {p} {persons} get if {n} {items} are shared equally?", "{name} splits {n} {items} evenly between {p} {boxes}. How many {items} go in each {box}?",
        "{p} {items} cost {n} dollars. How much does one {item} cost?", "{name} pays {n} dollars for {p} {items}. How much does each {item} cost?", "{name} {does} {n} {units} in {p} {periods}, the same number each {period}. How many {units} does {he} {do} {a_period}?", "{n} {items} are arranged in {p} equal rows. How many {items} are in each row?", "{p} {persons} split a bill of {n} dollars equally. How much does each pay?",
        "{p} {items} weigh {n} {measures} together, and all weigh the same. How much does one weigh?", "{name} earns {n} dollars in {p} hours. How much is that per hour?", "{name} wants to {do} {n} {units} in {p} {periods}. How many {units} must {he} {do} each {period}?",
    )),
    ("y = n / p", (
        "{name} has {n} {items} and puts {p} in each {box}. How many {boxes} does {he} need?", "{name} packs {n} {items} into {boxes} of {p}. How many {boxes} does {he} fill?", "{n} {items} are packed with {p} in each {box}. How many {boxes} are there?", "{name} makes {n} {items}. {He} puts {p} {items} on each plate. How many plates does {he} need?", "How many {boxes} are needed for {n} {items} if each {box} holds {p}?",
        "Each {box} holds {p} {items}. How many {boxes} are needed for {n} {items}?", "{n} {persons} form teams of {p}. How many teams are there?", "{name} has {n} dollars. How many {items} can {he} buy if each costs {p} dollars?", "One {item} costs {p} dollars. How many {items} can {name} buy with {n} dollars?", "{name} {does} {p} {units} {a_period}. How many {periods} does {he} need for {n} {units}?",
        "A rope of {n} {measures} is cut into pieces of {p} {measures}. How many pieces are there?", "A book has {n} pages. {name} reads {p} pages a day. How many days does it take?", "{n} {persons} travel in cars with {p} {persons} in each car. How many cars are needed?", "{name} saves {p} dollars a week. How many weeks does it take to save {n} dollars?", "How many groups of {p} can be made from {n} {items}?", "{n} {parts} are needed for some {items}. Each {item} has {p}. How many {items} are there?",
    )),
    ("y = n - o", (
        "{name} has {n} {items} and {pal} has {o}. How many more {items} does {name} have?", "There are {n} {items} and {o} {kinds}. How many more {items} than {kinds} are there?", "{name} is {n} years old and {pal} is {o}. How many years older is {name}?", "{name} is {n} years old. {His} {relative} is {o} years younger. How old is {his} {relative}?", "One {item} weighs {n} {measures} and another {o} {measures}. What is the difference?",
        "{name} has {n} {items}. {pal} has {o} fewer. How many {items} does {pal} have?", "{An_item} costs {n} dollars and {a_kind} costs {o} dollars. How much more does the {item} cost?", "{An_item} costs {n} dollars. {name} has {o} dollars. How much more does {he} need?", "{name} needs {n} {items} and has {o}. How many more does {he} need?", "{name} wants {n} {items}. {He} already has {o}. How many are missing?",
        "There are {n} {persons} in a class. {o} are girls. How many are boys?", "There are {n} {items}. {o} of them are {color}. How many are not {color}?", "{name} has {n} {items}, {o} {color} ones and the rest {other}. How many are {other}?", "{An_item} is {n} {measures} long. {name} cuts off {o} {measures}. How long is it now?", "It was {n} degrees in the morning and {o} degrees colder at night. How cold was it at night?",
        "A book has {n} pages. {name} has read {o}. How many pages are left?", "The trip is {n} {measures} long. {name} has done {o} {measures}. How many are left?", "{name} pays with {n} dollars for {an_item} that costs {o} dollars. How much change does {he} get?", "How much change does {name} get from {n} dollars if the {item} costs {o} dollars?", "{n} {persons} are invited, but {o} cannot come. How many come?", "A {box} has room for {n} {items}. There are {o} in it. How many more fit?",
        "{name} {did} {n} {units} on {day} and {o} {units} on {day2}. How many more {units} did {he} {do} on {day}?", "A team scored {n} points and another team {o} points. By how many points did the first team win?", "How many more {items} than {kinds} does {name} have if {he} has {n} {items} and {o} {kinds}?",
    )),
    ("y = n + o", (
        "{name} has {n} {items} and {pal} has {o}. How many {items} do they have together?", "{name} has {n} {color} {items} and {o} {other} {items}. How many {items} does {he} have?", "There are {n} {items} and {o} {kinds} {place}. How many are there in all?", "{Holder} has {n} {items} and {o} {kinds}. How many is that in total?", "{Holder} sells {n} {items} on {day} and {o} on {day2}. How many {items} is that in total?",
        "{name} {does} {n} {units} on {day} and {o} {units} on {day2}. How many {units} does {he} {do} in total?", "{name} {did} {n} {units} in the morning and {o} {units} in the afternoon. How many {units} did {he} {do}?", "{name} is {n} years old. {pal} is {o} years older. How old is {pal}?", "{name} is {n} years old now. How old will {he} be in {o} years?", "It was {n} degrees in the morning. It got {o} degrees warmer. How warm is it now?",
        "{An_item} costs {n} dollars and {a_kind} costs {o} dollars. How much do they cost together?", "{name} buys {an_item} for {n} dollars and {a_kind} for {o} dollars. How much does {he} spend?", "{name} and {pal} pick {items}. {name} picks {n} and {pal} picks {o}. How many {items} do they pick together?", "One {box} has {n} {items} and another has {o}. How many {items} are there?", "{n} {persons} are on a bus and {o} more get on. How many {persons} are on the bus?",
        "{name} has {n} {items}. {pal} has {o} more than {name}. How many {items} does {pal} have?", "There were {n} {items} {place}. {o} more were added. How many are there now?", "A class has {n} boys and {o} girls. How many children are in the class?", "How many {items} are there {place} if there are {n} {color} ones and {o} {other} ones?", "The first {item} weighs {n} {measures} and the second {o} {measures}. How much do they weigh together?",
        "{name} spends {n} minutes on {items} and {o} minutes on {kinds}. How many minutes is that?", "{name} used {o} {items} and has {n} left. How many {items} did {he} have at first?", "After giving away {o} {items}, {name} has {n} left. How many did {he} start with?", "What is the total number of {items} if {name} has {n} and {pal} has {o}?",
    )),
    ("y = n + n", ("{name} has {n} {items}. {pal} has twice as many. How many {items} does {pal} have?", "{name} has twice as many {items} as {pal}. {pal} has {n}. How many {items} does {name} have?", "What is twice {n}?", "Double {n}.", "{name} is {n} years old. {His} {relative} is twice as old. How old is {his} {relative}?", "{An_item} costs {n} dollars. How much do two {items} cost?", "How many {items} are in two {boxes} of {n}?")),
    ("y = n / 2", ("What is half of {n}?", "{name} has {n} {items} and gives half of them to {pal}. How many does {he} have left?", "{name} has {n} {items}. {pal} has half as many. How many {items} does {pal} have?", "Half of the {n} {items} are {color}. How many are {color}?", "{name} {did} half of {n} {units}. How many {units} is that?", "Half of the {n} {persons} leave. How many stay?")),
    ("k = p * q; y = k + n", ("{name} has {p} {boxes} of {q} {items} and {n} more. How many {items} does {he} have?", "{name} buys {p} {items} for {q} dollars each and {a_kind} for {n} dollars. How much does {he} pay?", "{Holder} has {p} {boxes} with {q} {items} each and {n} loose {items}. How many {items} is that?", "{name} {does} {q} {units} {a_period} for {p} {periods} and then {n} more. How many {units} is that?", "There are {p} rows of {q} {items} and {n} other {items}. How many {items} are there in total?")),
    ("k = p * q; y = k - n", ("{name} has {p} {boxes} of {q} {items} and gives away {n}. How many {items} are left?", "{Holder} makes {p} {boxes} of {q} {items} and sells {n}. How many {items} are left?", "There are {p} {boxes} with {q} {items} each. {n} {items} are broken. How many are good?", "{name} buys {p} {boxes} of {q} {items} and eats {n} of them. How many are left?", "{name} works {p} hours for {q} dollars an hour and spends {n} dollars. How much is left?", "{p} {boxes} have {q} {items} each, but {n} {items} are used. How many {items} remain?")),
    ("k = p * q; y = n - k", ("{name} has {n} dollars. {He} buys {p} {items} for {q} dollars each. How much money is left?", "{name} has {n} {items} and gives {q} to each of {p} {persons}. How many are left?", "{name} pays for {p} {items} at {q} dollars each with {n} dollars. How much change does {he} get?", "There are {n} {items}. {p} {persons} take {q} each. How many {items} remain?", "{name} must {do} {n} {units}. {He} {does} {q} {a_period} for {p} {periods}. How many {units} are left?", "{Holder} has {n} {items} and uses {q} {a_period}. How many are left after {p} {periods}?")),
    ("k = n + o; y = k / p", ("{name} has {n} {items} and {pal} has {o}. They share them equally among {p} {persons}. How many does each get?", "{n} {color} and {o} {other} {items} are put into {p} {boxes} equally. How many {items} are in each {box}?", "{n} boys and {o} girls form {p} equal teams. How many children are in each team?", "{name} has {n} {items}, gets {o} more and puts {p} in each {box}. How many {boxes} does {he} fill?")),
    ("k = n - o; y = k / p", ("{name} has {n} {items} and eats {o}. {He} shares the rest equally among {p} {persons}. How many does each get?", "Of {n} {items}, {o} are bad. The rest go into {boxes} of {p}. How many {boxes} are filled?", "{name} has {n} dollars and spends {o}. With the rest {he} buys {items} for {p} dollars each. How many {items} does {he} buy?")),
    ("k = n / p; y = k * q", ("{p} {items} cost {n} dollars. How much do {q} {items} cost?", "{name} {does} {n} {units} in {p} {periods}. How many {units} does {he} {do} in {q} {periods} at that pace?", "{p} {boxes} hold {n} {items}. How many {items} do {q} {boxes} hold?")),
    ("k = n + o; y = n + k", ("{name} has {n} {items}. {pal} has {o} more than {name}. How many {items} do they have together?", "{name} {does} {n} {units} on {day} and {o} more than that on {day2}. How many {units} is that in total?", "{An_item} costs {n} dollars. {A_kind} costs {o} dollars more. How much do both cost?")),
    ("k = n - o; y = n + k", ("{name} has {n} {items}. {pal} has {o} fewer. How many {items} do they have in total?", "{name} {did} {n} {units} on {day} and {o} fewer on {day2}. How many {units} is that altogether?")),
    ("k = n + o; y = k + r", ("{name} has {n} {color} {items}, {o} {other} {items} and {r} {kinds}. How many things does {he} have?", "{name} {did} {n} {units} on Monday, {o} on Tuesday and {r} on Wednesday. How many {units} is that in total?", "{Holder} has {n} {items}, {o} {kinds} and {r} {parts}. How many is that in all?", "What is {n} + {o} + {r}?", "{n} + {o} + {r}")),
    ("k = o + r; y = n - k", ("{name} has {n} {items}. {He} gives {o} to {pal} and {r} to {his} {relative}. How many are left?", "There are {n} {items}. {o} are {color}, {r} are {other}, and the rest are plain. How many are plain?", "{name} has {n} dollars. {He} spends {o} dollars on {an_item} and {r} dollars on {a_kind}. How much is left?")),
)

# A longer story is a start, one or two changes of what is counted, and a question.
STARTS = ("{name} has {n} {items}", "{name} had {n} {items}", "There are {n} {items} {place}", "There were {n} {items} {place}", "{Holder} has {n} {items}", "{Holder} had {n} {items}", "{name} starts with {n} {items}", "At first there are {n} {items}", "{name} collects {n} {items}", "A bus has {n} passengers", "A train leaves with {n} passengers", "{name} bakes {n} {items}", "{name} picks {n} {items}", "{name} has {n} dollars", "I have {n} {items}", "My {relative} has {n} {items}")
INCREASES = ("{pal} brings {o} more", "{he} gets {o} more", "{he} buys {o} more", "{o} more arrive", "{o} more come", "{o} more are added", "{he} finds {o}", "{he} finds {o} more", "{he} makes {o} more", "{o} new ones are bought", "{o} get on", "{pal} gives {him} {o}", "{he} receives {o} more", "{he} wins {o}", "{o} are delivered", "{he} earns {o} more", "{he} adds {o}", "{o} join", "they get {o} more", "{o} are born")
DECREASES = ("{he} gives {o} to {pal}", "{he} gives away {o}", "{o} are sold", "{he} sells {o}", "{he} loses {o}", "{he} eats {o}", "{o} are eaten", "{o} fly away", "{o} leave", "{o} run away", "{o} get off", "{o} break", "{o} are broken", "{he} uses {o}", "{pal} takes {o}", "{he} throws {o} away", "{he} spends {o}", "{o} are gone", "{o} are removed", "{o} go home", "{o} are taken", "{o} fall down", "{o} are lost", "they use {o}", "{he} hands out {o}", "{o} melt", "{o} die")
QUESTIONS = ("How many are left?", "How many {items} are left?", "How many are there now?", "How many {items} are there now?", "How many does {he} have now?", "How many {items} does {he} have now?", "How many {items} does {name} have left?", "How many remain?", "How many {items} are there in the end?", "What is left?", "How many {items} remain?", "How many does {name} have in the end?")
