"""Seeded chat tasks: ten kinds, each a question and its answers.

Eight kinds have one right answer. Two are *soft*: `either` and `greet` have several right answers,
drawn with fixed weights, so that a good teacher holds a distribution there and not just a text.

A row belongs to `train`, `validation` or `test` by a hash of its *content* (the letters, the
numbers, the words: never the wording of the question), so that no split repeats another's content.
Answers repeat something of the question; looking up the nearest training row therefore scores
next to nothing.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdflow_lab.errors import ConfigError, unknown_name
from kdflow_lab.zoo.words import CITIES, LETTERS, MONTHS, NAMES, ORDINALS, THINGS

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")

GREETINGS = {
    "Hello {name}, how is {city}?": 4,
    "Good day, {name} of {city}.": 3,
    "Hi {name}! Say hi to {city}.": 2,
    "Dear {name}, all of {city} is here.": 1,
}
"""Greeting styles and how often each is drawn."""

EITHER_WEIGHTS = (3, 2)
"""`either`: how often letters are written forwards and backwards."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One drawn task.

    Attributes:
        content: What the split is decided by; the same for every wording.
        questions: Ways to ask it; one is picked.
        answers: All right answers.
        weights: How often each answer is given; None where there is one answer.
    """

    content: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    weights: tuple[float, ...] | None = None


def _add(rng: random.Random) -> Draw:
    """Three digits plus one, without a carry: the copy is most of the work."""
    last = rng.randrange(0, 9)
    a, b = rng.randrange(10, 100) * 10 + last, rng.randrange(1, 10 - last)
    questions = (f"Add {a} and {b}.", f"What is {a} plus {b}?")
    return Draw(f"{a} {b}", questions, (f"It is {a} + {b} = {a + b}.",))


def _sort(rng: random.Random) -> Draw:
    letters = rng.sample(LETTERS, rng.randint(3, 5))
    shown, answer = " ".join(letters), " ".join(sorted(letters))
    # The answer is the content: two orders of the same letters never lie in two splits.
    return Draw(
        answer, (f"Sort the letters: {shown}", f"Put in order: {shown}"), (f"Sorted: {answer}",)
    )


def _reverse(rng: random.Random) -> Draw:
    letters = rng.sample(LETTERS, rng.randint(3, 5))
    shown, answer = " ".join(letters), " ".join(reversed(letters))
    return Draw(shown, (f"Reverse: {shown}", f"Write backwards: {shown}"), (f"Reversed: {answer}",))


def _shift(rng: random.Random) -> Draw:
    places = [rng.randrange(26) for _ in range(rng.randint(3, 5))]
    shown = " ".join(LETTERS[place] for place in places)
    answer = " ".join(LETTERS[(place + 1) % 26] for place in places)
    return Draw(
        shown, (f"Shift by one: {shown}", f"Next letters of: {shown}"), (f"Shifted: {answer}",)
    )


def _double(rng: random.Random) -> Draw:
    letters = rng.sample(LETTERS, rng.randint(3, 5))
    shown, answer = " ".join(letters), " ".join(f"{x} {x}" for x in letters)
    return Draw(
        shown, (f"Double: {shown}", f"Say each letter twice: {shown}"), (f"Doubled: {answer}",)
    )


def _date(rng: random.Random) -> Draw:
    day = datetime.date(1900, 1, 1) + datetime.timedelta(days=rng.randrange(73_000))
    answer = f"It is {day.day} {MONTHS[day.month - 1]} {day.year}."
    return Draw(str(day), (f"Write {day} in words.", f"Which day is {day}?"), (answer,))


def _record(rng: random.Random) -> Draw:
    name = rng.choice(NAMES)
    fields = {
        "city": rng.choice(CITIES),
        "thing": rng.choice(THINGS),
        "month": rng.choice(MONTHS),
    }
    shown = ", ".join(rng.sample(list(fields.values()), 3))
    asked = rng.choice(list(fields))
    questions = (f"Record of {name}: {shown}. Which {asked}?", f"{name} has {shown}. The {asked}?")
    # Without the asked field: the same record is never asked about in two splits.
    content = " ".join((name, *fields.values()))
    return Draw(content, questions, (f"The {asked} of {name} is {fields[asked]}.",))


def _pick(rng: random.Random) -> Draw:
    words = rng.sample(THINGS, rng.randint(4, 6))
    shown, nth = " ".join(words), rng.randrange(3)
    questions = (
        f"Pick the {ORDINALS[nth]} and the last word: {shown}",
        f"The {ORDINALS[nth]} and the last of: {shown}",
    )
    return Draw(
        shown, questions, (f"The {ORDINALS[nth]} is {words[nth]} and the last is {words[-1]}.",)
    )


def _either(rng: random.Random) -> Draw:
    letters = rng.sample(LETTERS, rng.randint(3, 5))
    forwards, backwards = " ".join(letters), " ".join(reversed(letters))
    questions = (f"Write either way: {forwards}", f"To or fro: {forwards}")
    answers = (f"Forwards: {forwards}", f"Backwards: {backwards}")
    # One content for both directions: what is a question here is no answer there.
    return Draw(min(forwards, backwards), questions, answers, EITHER_WEIGHTS)


def _greet(rng: random.Random) -> Draw:
    name, city = rng.choice(NAMES), rng.choice(CITIES)
    questions = (f"Greet {name} from {city}.", f"Say hello to {name}, who lives in {city}.")
    answers = tuple(style.format(name=name, city=city) for style in GREETINGS)
    return Draw(f"{name} {city}", questions, answers, tuple(GREETINGS.values()))


KINDS: dict[str, Callable[[random.Random], Draw]] = {
    "add": _add,
    "sort": _sort,
    "reverse": _reverse,
    "shift": _shift,
    "double": _double,
    "date": _date,
    "record": _record,
    "pick": _pick,
    "either": _either,
    "greet": _greet,
}
"""Name of a kind -> the function that draws one."""

SOFT_KINDS = ("either", "greet")
"""The kinds with several right answers."""


def split_of(kind: str, content: str) -> str:
    """Return the split that a content belongs to: 85 % train, 5 % validation, 10 % test."""
    digest = hashlib.blake2b(f"{kind}|{content}".encode(), digest_size=4).digest()
    bucket = int.from_bytes(digest) % 20
    return "test" if bucket < 2 else "validation" if bucket == 2 else "train"


def stream(
    split: str = "train",
    *,
    seed: int = 0,
    kinds: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield task rows for ever; the same arguments give the same rows.

    Args:
        split: "train", "validation" or "test".
        seed: Any int; another seed gives other rows of the same split.
        kinds: Names from `KINDS`; None for all.
        weights: Kind -> relative frequency. Read again for every row, so that a training loop may
            change it on the way. None: all kinds equally often.

    Yields:
        `{"messages": [user, assistant], "kind": str, "answers": list[str]}`.

    Raises:
        ConfigError: An unknown split or kind, or no kind at all.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    names = list(KINDS if kinds is None else kinds)
    for name in names:
        if name not in KINDS:
            raise unknown_name("kind of task", name, KINDS)
    if not names:
        raise ConfigError(
            "No kind of task was asked for. Pass kinds=None for all, or some of: "
            f"{', '.join(KINDS)}."
        )
    return _rows(random.Random(f"{split}/{seed}"), split, names, weights)


def _rows(
    rng: random.Random, split: str, names: list[str], weights: Mapping[str, float] | None
) -> Iterator[dict[str, Any]]:
    while True:
        kind = rng.choices(names, [weights[name] for name in names] if weights else None)[0]
        draw = KINDS[kind](rng)
        while split_of(kind, draw.content) != split:
            draw = KINDS[kind](rng)
        question = rng.choice(draw.questions)
        answer = rng.choices(draw.answers, draw.weights)[0]
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        yield {"messages": messages, "kind": kind, "answers": list(draw.answers)}


def tasks(
    split: str = "train", rows: int = 10_000, seed: int = 0, kinds: Sequence[str] | None = None
) -> Dataset:
    """Return task rows as a `datasets.Dataset`; fewer rows are a prefix of more rows.

    Args:
        split: "train", "validation" or "test"; no content is in two of them.
        rows: How many.
        seed: Same arguments, same rows.
        kinds: Names from `KINDS`; None for all ten.

    Returns:
        Columns `messages` (user, then assistant), `kind`, and `answers`: every right answer, of
        which the assistant's message is one.

    Raises:
        ConfigError: An unknown split or kind.
    """
    from datasets import Dataset

    return Dataset.from_list(list(itertools.islice(stream(split, seed=seed, kinds=kinds), rows)))


def is_correct(row: Mapping[str, Any], answer: str) -> bool:
    """Say whether `answer` is one of the row's right answers; spaces around it do not count."""
    return answer.strip() in row["answers"]
