"""Seeded generator of the little texts that the example model learns.

Every document belongs to one of eight domains (stories, recipes, sums, weather
reports, stock lists, journey logs, toy programs, a phrase book). The domains
differ in alphabet, punctuation and layout, which gives a mixture-of-experts
model something to specialise on. Inside a document the parts agree with one
another: a story keeps its hero, sums are right, a recipe uses only the
ingredients it lists. A model therefore has to look back to predict well, and
damage done to its weights shows in its perplexity.

Only the standard library is used; equal seeds give equal bytes.

    python grammar.py --seed 2 --bytes 80000 > calib.txt
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator

# Blank lines separate documents, so no document may contain one.
DOCUMENT_SEPARATOR = "\n\n"

# ----------------------------------------------------------- invented names

# Names are put together afresh for every document. A model cannot know them by
# heart, so the only way to spell one a second time is to look back and copy.
ONSETS = ["b", "br", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "th", "v", "w", "z"]
VOWELS = ["a", "e", "i", "o", "u", "ai", "é", "ö"]
VOWEL_SHARES = [6, 6, 5, 5, 3, 2, 1, 1]
RANKS = ["Old", "Little", "Captain", "Queen", "Doctor", "Uncle"]
TOWN_ENDINGS = ["mere", "ford", " Quay", " Bridge", "wick", "thal", "haven"]


def capitalised(text: str) -> str:
    """Upper-case the first letter only; str.capitalize would lower the rest."""
    return text[0].upper() + text[1:]


def invented_word(rng: random.Random, syllables: int) -> str:
    return "".join(rng.choice(ONSETS) + rng.choices(VOWELS, VOWEL_SHARES)[0] for _ in range(syllables))


def person(rng: random.Random) -> str:
    name = capitalised(invented_word(rng, rng.randint(2, 3)))
    return f"{rng.choice(RANKS)} {name}" if rng.random() < 0.3 else name


def town(rng: random.Random) -> str:
    return capitalised(invented_word(rng, rng.randint(1, 2))) + rng.choice(TOWN_ENDINGS)


# ------------------------------------------------------------------ stories

PRONOUNS = [("she", "her"), ("he", "his")]
FRIENDS = [
    "a grey goose", "a talking kettle", "a sleepy badger", "a very small dragon", "a clockwork mouse", "a lost sailor",
    "an owl with one eye", "a red fox",
]
PLACES = [
    "the salt marsh", "the old windmill", "the glass harbour", "the pine hill", "the sunken garden",
    "the market square", "the frozen river", "the lighthouse",
]
TREASURES = [
    "a silver key", "a blue lantern", "a broken compass", "a jar of honey", "a wooden flute", "a map of the stars",
    "a copper bell", "a loaf of warm bread",
]
REMEDIES = {
    "the bridge was broken": "tied two long ropes together and made a new one",
    "the fog was too thick": "followed the sound of a far bell",
    "the gate was locked": "found a gap under the ivy",
    "the tide came in early": "borrowed a little round boat",
    "a storm blew out every candle": "lit a fire of dry heather",
    "nobody remembered the way": "asked the stones, who are slow but never forget",
}
TROUBLES = list(REMEDIES)
FEELINGS = ["glad", "proud", "tired", "brave", "warm again", "hungry"]
DEEDS = ["counted", "painted", "carried", "washed", "hid", "mended", "drew", "followed", "cooked", "dropped"]
SIZES = ["tiny", "heavy", "crooked", "yellow", "dusty", "wet", "striped", "hollow"]
THINGS = ["acorn", "ladder", "boot", "window", "cart", "turnip", "drum", "feather", "net", "teapot", "fence", "spoon"]
MANNERS = ["slowly", "all day", "without a word", "twice", "by moonlight", "with great care", "in a hurry"]
MORALS = [
    "Slow steps also arrive.", "A shared load is half a load.", "Ask before you open.",
    "Even small lamps push back the night.",
]


def without_article(noun: str) -> str:
    """'a silver key' -> 'silver key'."""
    return noun.split(" ", 1)[1]


def scene(rng: random.Random, actor: str) -> str:
    """One free sentence: the part of a story that cannot be foretold."""
    deed = f"{rng.choice(DEEDS)} the {rng.choice(SIZES)} {rng.choice(THINGS)} {rng.choice(MANNERS)}"
    if rng.random() < 0.3:
        deed += f" and {rng.choice(DEEDS)} {rng.randint(2, 9)} {rng.choice(THINGS)}s"
    return f"{capitalised(actor)} {deed}."


def story(rng: random.Random) -> str:
    name, (he, his) = person(rng), rng.choice(PRONOUNS)
    friend, place, treasure = rng.choice(FRIENDS), rng.choice(PLACES), rng.choice(TREASURES)
    trouble = rng.choice(TROUBLES)
    companion, thing = f"the {without_article(friend)}", f"the {without_article(treasure)}"
    opening = rng.choice([
        f"One morning {name} went to {place} to look for {treasure}.",
        f"Long ago {name} lost {treasure} near {place}.",
        f"{name} had heard that {treasure} was hidden at {place}.",
    ])
    meeting = rng.choice([
        f"On the road {he} met {friend}.",
        f"There {he} found {friend}, who was crying.",
        f"{capitalised(friend)} came along, because {he} did not like to walk alone.",
    ])
    speech = rng.choice([
        f'"Let me help you," said {companion}.',
        f'"I know where {thing} is," said {companion}.',
        f'"Are you a thief?" asked {companion}. "No," said {name}, "I am only looking for {thing}."',
    ])
    hindrance = f"But {trouble}, so {he} {REMEDIES[trouble]}."
    finding = rng.choice([
        f"Behind {place} lay {thing}.",
        f"At last {he} held {thing} in {his} hands.",
        f"In the evening {companion} brought {thing}.",
    ])
    ending = f"{name} was {rng.choice(FEELINGS)}, and {companion} was {rng.choice(FEELINGS)} too."
    scenes = [scene(rng, rng.choice([he, name, companion])) for _ in range(rng.randint(1, 3))]
    sentences = [opening, meeting, speech, *scenes, hindrance, finding, ending]
    if rng.random() < 0.4:
        sentences.append(rng.choice(MORALS))
    return " ".join(sentences)


# ------------------------------------------------------------------ recipes

INGREDIENTS = [
    ("flour", "g"), ("butter", "g"), ("oats", "g"), ("lentils", "g"), ("crème fraîche", "g"), ("mushrooms", "g"),
    ("milk", "ml"), ("water", "ml"), ("apple juice", "ml"), ("cream", "ml"),
    ("salt", "tsp"), ("honey", "tsp"), ("pepper", "tsp"), ("cinnamon", "tsp"),
    ("eggs", ""), ("leeks", ""), ("carrots", ""), ("pears", ""),
]
AMOUNTS = {"g": range(50, 450, 50), "ml": range(100, 700, 100), "tsp": range(1, 4), "": range(2, 7)}
DISH_KINDS = ["soup", "pie", "stew", "cake", "porridge", "gratin"]
DISH_STYLES = ["Harbour", "Winter", "Sunday", "Miller's", "Simple", "Golden"]
VESSELS = ["a large bowl", "a heavy pan", "a clay pot", "a deep dish"]
OVEN_HEATS = [160, 180, 200]
SERVINGS = ["with bread", "with a green salad", "while it is hot", "cold the next day"]


def amount_line(rng: random.Random, ingredient: str, unit: str) -> str:
    amount = rng.choice(AMOUNTS[unit])
    return f"- {amount} {unit} {ingredient}" if unit else f"- {amount} {ingredient}"


def recipe(rng: random.Random) -> str:
    parts = rng.sample(INGREDIENTS, rng.randint(3, 5))
    names = [name for name, _ in parts]
    kind = rng.choice(DISH_KINDS)
    minutes = rng.choice(range(10, 65, 5))
    steps = [
        f"Put the {names[0]} in {rng.choice(VESSELS)}.",
        f"Add the {names[1]} and stir well.",
        *(f"{rng.choice(['Fold in', 'Mix in', 'Add'])} the {name}." for name in names[2:]),
        rng.choice([
            f"Cook gently for {minutes} minutes.",
            f"Bake for {minutes} minutes at {rng.choice(OVEN_HEATS)} °C.",
        ]),
        f"Serve the {kind} {rng.choice(SERVINGS)}.",
    ]
    head = f"RECIPE: {rng.choice(DISH_STYLES)} {kind} for {rng.randint(2, 8)}"
    listing = [amount_line(rng, name, unit) for name, unit in parts]
    return "\n".join([head, *listing, *(f"{number}. {step}" for number, step in enumerate(steps, 1))])


# --------------------------------------------------------------------- sums

NUMBER_WORDS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
]


def plain_sum(rng: random.Random) -> str:
    left, right = rng.randint(0, 40), rng.randint(0, 40)
    if rng.random() < 0.5:
        return f"{left} + {right} = {left + right}"
    return f"{left + right} - {left} = {right}"


def product(rng: random.Random) -> str:
    left, right = rng.randint(2, 10), rng.randint(2, 10)
    return f"{left} x {right} = {left * right}"


def worded_sum(rng: random.Random) -> str:
    left, right = rng.randint(0, 10), rng.randint(0, 10)
    return f"{NUMBER_WORDS[left]} and {NUMBER_WORDS[right]} make {NUMBER_WORDS[left + right]}"


def sequence(rng: random.Random) -> str:
    start, step = rng.randint(0, 12), rng.randint(1, 9)
    return ", ".join(str(start + step * i) for i in range(6)) + ", ..."


def comparison(rng: random.Random) -> str:
    left, right = rng.randint(0, 99), rng.randint(0, 99)
    sign = "<" if left < right else ">" if left > right else "="
    return f"{left} {sign} {right}"


def sums(rng: random.Random) -> str:
    # One kind per document, as on a sheet of exercises: the kind is then known after a line.
    line = rng.choice([plain_sum, product, worded_sum, sequence, comparison])
    return "\n".join(line(rng) for _ in range(rng.randint(5, 10)))


# ------------------------------------------------------------------ weather

WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
WINDS = ["north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west"]
SKIES = {
    "sunny": "Hang out the washing.", "cloudy": "No umbrella needed.", "light rain": "Take a coat.",
    "heavy rain": "Stay by the fire.", "thick fog": "Drive slowly.", "thunder": "Keep away from tall trees.",
}
COLD_SKY, COLD_ADVICE = "snow", "Sweep the steps."


def weather_line(rng: random.Random, day: str, low: int) -> str:
    high = low + rng.randint(3, 9)
    sky = COLD_SKY if high <= 2 else rng.choice(list(SKIES))
    advice = COLD_ADVICE if sky == COLD_SKY else SKIES[sky]
    wind = f"wind {rng.randrange(5, 65, 5)} km/h from the {rng.choice(WINDS)}"
    return f"{day}: {sky}, {low} to {high} °C, {wind}. {advice}"


def weather(rng: random.Random) -> str:
    first = rng.randrange(7)
    low = rng.randint(-10, 18)
    lines = [f"Weather for {town(rng)}"]
    for offset in range(rng.randint(2, 5)):
        lines.append(weather_line(rng, WEEKDAYS[(first + offset) % 7], low))
        low += rng.randint(-2, 2)
    return "\n".join(lines)


# -------------------------------------------------------------- stock lists

GOODS = [
    "rope", "nails", "candles", "blankets", "lamp oil", "barrels", "sailcloth", "tea", "soap", "hinges", "chalk",
    "buckets",
]


def stock(rng: random.Random) -> str:
    records = []
    for item in rng.sample(GOODS, rng.randint(2, 5)):
        records.append({
            "item": item, "count": rng.randint(0, 60), "shelf": rng.choice("ABCD") + str(rng.randint(1, 9)),
            "price": rng.randrange(25, 1000, 25) / 100,
        })
    for record in records:
        # The flag follows from the count, so it can be learned and not only guessed.
        record["order_more"] = record["count"] < 10
    lines = ["  " + json.dumps(record) for record in records]
    return '{"store": "%s", "stock": [\n%s\n]}' % (town(rng).upper(), ",\n".join(lines))


# ------------------------------------------------------------- journey logs

CARRIERS = ["train", "ferry", "mail coach", "barge"]
CAUSES = ["cows", "ice", "signal", "late mail"]
CARGOES = ["coal", "letters", "apples", "sheep", "bricks", "wool"]


def clock(minutes: int) -> str:
    return f"{minutes // 60 % 24:02d}:{minutes % 60:02d}"


def journey(rng: random.Random) -> str:
    carrier, number = rng.choice(CARRIERS), rng.randint(10, 99)
    stops = [town(rng) for _ in range(rng.randint(3, 5))]
    now = rng.randrange(5 * 60, 20 * 60, 5)
    lines = [f"[{clock(now)}] {carrier} {number} leaves {stops[0]} for {stops[-1]} with {rng.choice(CARGOES)}"]
    for stop in stops[1:-1]:
        now += rng.randrange(10, 60, 5)
        lines.append(f"[{clock(now)}] {carrier} {number} calls at {stop}")
        if rng.random() < 0.3:
            delay = rng.choice([5, 10, 15])
            now += delay
            lines.append(f"[{clock(now)}] {carrier} {number} waits {delay} min: {rng.choice(CAUSES)}")
    now += rng.randrange(10, 60, 5)
    lines.append(f"[{clock(now)}] {carrier} {number} arrives at {stops[-1]}")
    return "\n".join(lines)


# ------------------------------------------------------------- toy programs

ROUTINES = ["grow", "step", "raise"]


def program(rng: random.Random) -> str:
    name, start, step, turns = invented_word(rng, 2), rng.randint(0, 9), rng.randint(1, 5), rng.randint(2, 5)
    routine = f"{rng.choice(ROUTINES)}_{name}"
    lines = [
        f"fn {routine}({name}) {{",
        f"    return {name} + {step};",
        "}",
        f"let {name} = {start};",
        f"for i in 1..{turns} {{",
        f"    {name} = {routine}({name});",
        f"    print({name});",
        "}",
    ]
    lines += [f"// > {start + step * (turn + 1)}" for turn in range(turns)]
    return "\n".join(lines)


# -------------------------------------------------------------- phrase book

# A made-up island language. Its accents give the model multi-byte characters.
LEXICON = {
    "sun": "lumø", "moon": "sélu", "river": "vañe", "stone": "korž", "bread": "pämi", "boat": "nåvu",
    "bird": "ti’ra", "night": "ombrí", "house": "dôma", "friend": "amíko", "fire": "žara", "rain": "plüe",
    "child": "niño’a", "road": "viëlo", "song": "kañta", "salt": "séļo",
}
QUALITIES = {"old": "véto", "small": "pikë", "white": "blañ", "warm": "kalü", "lost": "perdø"}


def phrase_book(rng: random.Random) -> str:
    lines = ["Phrase book"]
    for noun in rng.sample(sorted(LEXICON), rng.randint(4, 8)):
        if rng.random() < 0.5:
            quality = rng.choice(sorted(QUALITIES))
            lines.append(f"the {quality} {noun} → o {LEXICON[noun]} {QUALITIES[quality]}")
        else:
            lines.append(f"{noun} → {LEXICON[noun]}")
    return "\n".join(lines)


# ----------------------------------------------------------------- assembly

# Unequal shares on purpose: experts that serve a rare domain should be rarely used.
DOMAINS: dict[Callable[[random.Random], str], int] = {
    story: 30, recipe: 18, weather: 14, stock: 12, journey: 10, sums: 8, program: 5, phrase_book: 3,
}


def documents(seed: int) -> Iterator[str]:
    """Yield documents without end."""
    rng = random.Random(seed)
    writers, shares = list(DOMAINS), list(DOMAINS.values())
    while True:
        (writer,) = rng.choices(writers, shares)
        yield writer(rng)


def corpus(seed: int, size: int) -> str:
    """Return whole documents, together the first `size` UTF-8 bytes or a few more."""
    chosen, written = [], 0
    for document in documents(seed):
        chosen.append(document)
        written += len(document.encode()) + len(DOCUMENT_SEPARATOR)
        if written >= size:
            return DOCUMENT_SEPARATOR.join(chosen) + "\n"
    raise AssertionError("documents() never ends")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write generated documents to standard output.")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--bytes", type=int, required=True, help="least number of bytes to write")
    arguments = parser.parse_args()
    # Bytes, not text: the platform's encoding and line ends must not change the output.
    sys.stdout.buffer.write(corpus(arguments.seed, arguments.bytes).encode())


if __name__ == "__main__":
    main()
