"""Plain text and simple chat rows out of the standard library's docstrings.

Every Python carries this text, so nothing is downloaded. Sources are parsed with `ast`; no module
is imported. The order is fixed (by path, then by line); the text itself depends on the Python
version that reads it.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import random
import re
import sysconfig
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdflow_lab.errors import unknown_name
from kdflow_lab.zoo.words import CITIES, LETTERS, NAMES, THINGS

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
SKIPPED = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "__pycache__",
}
"""Folders that are not the library itself, or are mostly test data."""

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@lru_cache(maxsize=1)
def docstrings() -> tuple[tuple[str, str], ...]:
    """Return `(name, docstring)` of the standard library's modules, classes and functions.

    Returns:
        Pairs in a fixed order, without repeated or very short texts.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, str] = {}  # text -> name: the first of equal texts stays
    for source in sorted(root.rglob("*.py")):
        if SKIPPED.intersection(source.relative_to(root).parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old escapes in the library's own strings
                tree = ast.parse(source.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, _DOCUMENTED):
                text = ast.get_docstring(node)
                if text and len(text) >= 40 and text.isascii():
                    found.setdefault(text, getattr(node, "name", source.stem))
    return tuple((name, text) for text, name in found.items())


def split_of(text: str) -> str:
    """Return the split a text belongs to: 90 % train, 5 % validation, 5 % test."""
    bucket = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) % 20
    return "validation" if bucket == 0 else "test" if bucket == 1 else "train"


def texts(split: str = "train") -> list[tuple[str, str]]:
    """Return the `(name, docstring)` pairs of one split.

    Raises:
        ConfigError: An unknown split.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    return [(name, text) for name, text in docstrings() if split_of(text) == split]


def prose(split: str = "train", rows: int | None = None) -> Dataset:
    """Return docstrings as a `datasets.Dataset` with the one column `text`.

    Args:
        split: "train", "validation" or "test".
        rows: The first so many; None for all.

    Raises:
        ConfigError: An unknown split.
    """
    from datasets import Dataset

    return Dataset.from_dict({"text": [text for _, text in texts(split)][:rows]})


def questions(split: str = "train") -> list[tuple[str, str]]:
    """Return `(question, answer)` pairs: "What does NAME do?", a docstring's first sentence."""
    pairs: list[tuple[str, str]] = []
    for name, text in texts(split):
        sentence = re.split(r"(?<=[.!?])\s|\n\n", text.strip(), maxsplit=1)[0].replace("\n", " ")
        if 15 <= len(sentence) <= 120:
            pairs.append((f"What does {name} do?", sentence))
    return pairs


def echo(rng: random.Random, words: list[str]) -> tuple[str, str]:
    """Return an `(instruction, answer)` pair that asks to repeat something, and nothing else.

    Args:
        rng: Where the draw comes from.
        words: Words of prose to repeat, beside letters, numbers and the tasks' single words.
    """
    source = rng.randrange(4)
    if source == 0:
        shown = " ".join(rng.choices(LETTERS, k=rng.randint(3, 7)))
    elif source == 1:
        shown = " ".join(
            str(rng.randrange(10 ** rng.randint(1, 4))) for _ in range(rng.randint(1, 3))
        )
    elif source == 2:
        shown = " ".join(rng.sample(THINGS + NAMES + CITIES, rng.randint(2, 6)))
    else:
        start = rng.randrange(len(words) - 8)
        shown = " ".join(words[start : start + rng.randint(2, 6)])
    return rng.choice((f"Repeat: {shown}", f"Say this again: {shown}")), f"Again: {shown}"


def chat(split: str = "train", *, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield chat rows for the base student for ever: half echo, half docstring questions.

    They hold none of the tasks: the student learns to speak and to copy, not to answer them.

    Yields:
        `{"messages": [user, assistant], "kind": "echo" or "docstring", "answers": [str]}`.

    Raises:
        ConfigError: An unknown split.
    """
    rng = random.Random(f"chat/{split}/{seed}")
    pairs = questions(split)
    words = list(
        itertools.chain.from_iterable(re.findall(r"[A-Za-z]+", answer) for _, answer in pairs)
    )
    while True:
        is_echo = rng.random() < 0.5
        question, answer = echo(rng, words) if is_echo else rng.choice(pairs)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        yield {
            "messages": messages,
            "kind": "echo" if is_echo else "docstring",
            "answers": [answer],
        }
