"""The models and data that ship with the package: nothing here needs a download.

`zoo/teacher` knows ten kinds of small chat tasks. `zoo/student` speaks and copies but cannot do
them yet; `zoo/student-unigram` is like it, with another tokenizer. `zoo/tasks` are the tasks,
`zoo/prose` is plain text. How they were made: `MODEL_CARD.md`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdflow_lab.errors import unknown_name

if TYPE_CHECKING:
    from datasets import Dataset

WEIGHTS = Path(__file__).parent / "weights"
"""Where the models lie: one folder each, in Hugging Face format."""

MODELS = ("zoo/teacher", "zoo/student", "zoo/student-unigram")
DATASETS = ("zoo/tasks", "zoo/prose")


def path(name: str) -> Path:
    """Return the folder of a zoo model, to be given to `from_pretrained`.

    Args:
        name: One of `MODELS`.

    Raises:
        ConfigError: No such model; the message offers the nearest name.
    """
    if name not in MODELS:
        raise unknown_name("zoo model", name, MODELS)
    return WEIGHTS / name.removeprefix("zoo/")


def dataset(name: str, split: str = "train", rows: int | None = None, seed: int = 0) -> Dataset:
    """Return data that ships with the package.

    Args:
        name: "zoo/tasks" (chat rows: `messages`, `kind`, `answers`) or "zoo/prose" (`text`).
        split: "train", "validation" or "test".
        rows: How many; None for 10,000 tasks, or for all prose.
        seed: Draws the tasks; prose has a fixed order and ignores it.

    Raises:
        ConfigError: No such data set or split; the message offers the nearest name.
    """
    if name == "zoo/tasks":
        from kdflow_lab.zoo.tasks import tasks

        return tasks(split, rows=10_000 if rows is None else rows, seed=seed)
    if name == "zoo/prose":
        from kdflow_lab.zoo.prose import prose

        return prose(split, rows=rows)
    raise unknown_name("zoo data set", name, DATASETS)
