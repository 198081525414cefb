"""The zoo's tasks solved from their wording alone, by other code than the generator's."""

from __future__ import annotations

import calendar
import datetime
import re
import string
from collections.abc import Callable
from typing import NamedTuple

Groups = dict[str, str]


class Solved(NamedTuple):
    """What a question asks.

    Attributes:
        kind: Which task it is.
        content: The letters, numbers or words of it, whatever the wording.
        answers: All right answers.
        wording: Which of `WORDINGS` it is asked in.
    """

    kind: str
    content: object
    answers: set[str]
    wording: int


def _add(g: Groups) -> tuple[object, set[str]]:
    return (g["a"], g["b"]), {f"It is {g['a']} + {g['b']} = {int(g['a']) + int(g['b'])}."}


def _sort(g: Groups) -> tuple[object, set[str]]:
    counts = [letter for letter in string.ascii_lowercase if letter in g["letters"].split()]
    return tuple(counts), {f"Sorted: {' '.join(counts)}"}


def _reverse(g: Groups) -> tuple[object, set[str]]:
    return g["letters"], {f"Reversed: {g['letters'][::-1]}"}


def _shift(g: Groups) -> tuple[object, set[str]]:
    table = str.maketrans(string.ascii_lowercase, string.ascii_lowercase[1:] + "a")
    return g["letters"], {f"Shifted: {g['letters'].translate(table)}"}


def _double(g: Groups) -> tuple[object, set[str]]:
    return g["letters"], {"Doubled: " + re.sub(r"(\w)", r"\1 \1", g["letters"])}


def _date(g: Groups) -> tuple[object, set[str]]:
    day = datetime.datetime.strptime(g["day"], "%Y-%m-%d")
    return g["day"], {f"It is {day.day} {calendar.month_name[day.month]} {day.year}."}


def _record(g: Groups) -> tuple[object, set[str]]:
    fields = {}
    for item in g["items"].split(", "):
        is_month = item in calendar.month_name
        fields["month" if is_month else "thing" if item.islower() else "city"] = item
    assert len(fields) == 3, g
    content = g["name"], frozenset(fields.values())
    return content, {f"The {g['field']} of {g['name']} is {fields[g['field']]}."}


def _pick(g: Groups) -> tuple[object, set[str]]:
    words = g["words"].split()
    nth = {"first": 0, "second": 1, "third": 2}[g["nth"]]
    return g["words"], {f"The {g['nth']} is {words[nth]} and the last is {words[-1]}."}


def _either(g: Groups) -> tuple[object, set[str]]:
    there, back = g["letters"], g["letters"][::-1]
    return frozenset((there, back)), {f"Forwards: {there}", f"Backwards: {back}"}


def _greet(g: Groups) -> tuple[object, set[str]]:
    name, city = g["name"], g["city"]
    return (name, city), {
        f"Hello {name}, how is {city}?",
        f"Good day, {name} of {city}.",
        f"Hi {name}! Say hi to {city}.",
        f"Dear {name}, all of {city} is here.",
    }


LETTERS, WORDS = r"(?P<letters>[a-z]( [a-z])+)", r"(?P<words>[a-z]+( [a-z]+)+)"
ITEMS = r"(?P<items>\w+(, \w+){2})"
WORDINGS: list[tuple[str, str, Callable[[Groups], tuple[object, set[str]]]]] = [
    ("add", r"Add (?P<a>\d{3}) and (?P<b>\d)\.", _add),
    ("add", r"What is (?P<a>\d{3}) plus (?P<b>\d)\?", _add),
    ("sort", rf"Sort the letters: {LETTERS}", _sort),
    ("sort", rf"Put in order: {LETTERS}", _sort),
    ("reverse", rf"Reverse: {LETTERS}", _reverse),
    ("reverse", rf"Write backwards: {LETTERS}", _reverse),
    ("shift", rf"Shift by one: {LETTERS}", _shift),
    ("shift", rf"Next letters of: {LETTERS}", _shift),
    ("double", rf"Double: {LETTERS}", _double),
    ("double", rf"Say each letter twice: {LETTERS}", _double),
    ("date", r"Write (?P<day>\d{4}-\d\d-\d\d) in words\.", _date),
    ("date", r"Which day is (?P<day>\d{4}-\d\d-\d\d)\?", _date),
    ("record", rf"Record of (?P<name>\w+): {ITEMS}\. Which (?P<field>\w+)\?", _record),
    ("record", rf"(?P<name>\w+) has {ITEMS}\. The (?P<field>\w+)\?", _record),
    ("pick", rf"Pick the (?P<nth>\w+) and the last word: {WORDS}", _pick),
    ("pick", rf"The (?P<nth>\w+) and the last of: {WORDS}", _pick),
    ("either", rf"Write either way: {LETTERS}", _either),
    ("either", rf"To or fro: {LETTERS}", _either),
    ("greet", r"Greet (?P<name>\w+) from (?P<city>\w+)\.", _greet),
    ("greet", r"Say hello to (?P<name>\w+), who lives in (?P<city>\w+)\.", _greet),
]
"""Kind, what its question looks like, and how it is solved."""


def solve(question: str) -> Solved:
    """Recognise a question and answer it; exactly one wording must fit."""
    found = [
        Solved(kind, *solver(match.groupdict()), wording)
        for wording, (kind, pattern, solver) in enumerate(WORDINGS)
        if (match := re.fullmatch(pattern, question))
    ]
    assert len(found) == 1, f"{question!r} fits {len(found)} wordings"
    return found[0]
