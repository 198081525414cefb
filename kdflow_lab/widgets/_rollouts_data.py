"""What the rollout browser shows of answers, before it is drawn: texts that people can read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdflow_lab.widgets._rollouts_index import Entry, RolloutIndex, Wanted
from kdflow_lab.widgets._tokens import visible

THRESHOLD = 0.5
"""Nats from which on a token counts as diverging, if nothing else is asked for."""
LONG_TOKEN = 60
"""Characters of a token that are shown."""
LONG_TEXT = 6000
"""Characters of a prompt that are shown; its end, which the answer follows."""
SHORT_TEXT = 80
"""Characters of a text in the list."""
MOST_TOKENS = 4000
"""Tokens of one answer that a page gets."""
PER_PAGE = 10
"""Answers in the list at a time."""
_NO_INK = re.compile(r"[^\S \n]|[^\w\s!-~]")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the file, token by token; n of them.

    Attributes:
        at: Its number in the file.
        entry: Its numbers.
        prompt: The conversation before it.
        text: The answer.
        tokens: The text of each token; its id where a file of an older version has no text.
        kl: KL(teacher || student) at each, nats; NaN where it is not known.
        logprobs: Of the student when it wrote, nats.
        teacher_logprobs: Of the teacher, of the same token, nats; NaN where it is not known.
        teacher_tokens: What the teacher finds likeliest in the place of each; None if not known.
        teacher_top_logprobs: The log-probability of that, nats; NaN where it is not known.
    """

    at: int
    entry: Entry
    prompt: str
    text: str
    tokens: list[str]
    kl: list[float]
    logprobs: list[float]
    teacher_logprobs: list[float]
    teacher_tokens: list[str | None]
    teacher_top_logprobs: list[float]

    @classmethod
    def read(cls, index: RolloutIndex, at: int) -> Answer:
        """Read an answer.

        Raises:
            DataError: There is none of that number, or the file was changed.
        """
        line = index.line(at)
        count = len(line["ids"])
        texts = line.get("tokens") or [f"#{one}" for one in line["ids"]]
        return cls(
            at,
            index.entries()[at],
            str(line["prompt"]),
            str(line["text"]),
            texts,
            _numbers(line, "kl", count),
            _numbers(line, "logprobs", count),
            _numbers(line, "teacher_logprobs", count),
            list(line.get("teacher_tokens") or [None] * count),
            _numbers(line, "teacher_top_logprobs", count),
        )

    def first_diverging(self, threshold: float = THRESHOLD) -> int | None:
        """Return the first token whose divergence reaches `threshold` nats; None if none does."""
        return next((at for at, one in enumerate(self.kl) if one >= threshold), None)

    @property
    def worst(self) -> int | None:
        """The token with the largest divergence; None where nobody looked."""
        known = [at for at, one in enumerate(self.kl) if not math.isnan(one)]
        return max(known, key=lambda at: self.kl[at], default=None)


def _numbers(line: Mapping[str, Any], name: str, count: int) -> list[float]:
    found = line.get(name) or [None] * count
    return [math.nan if one is None else float(one) for one in found]


def readable(text: str, most: int = LONG_TEXT) -> str:
    """A text of several lines with a sign for whatever has no ink but spaces and line ends."""
    if len(text) > most:
        text = f"… {text[len(text) - most :]}"
    return _NO_INK.sub(lambda found: _seen(found[0]), text)


def _seen(character: str) -> str:
    shown = visible(character)
    return character if shown.startswith("◌") else shown  # an accent stays on its letter


def one_line(text: str, most: int = SHORT_TEXT) -> str:
    """A text in one line, cut, for a list."""
    shown = visible(text[: most + 1]).replace("␣", " ") if text else ""
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def answer_page(answer: Answer) -> dict[str, Any]:
    """All of an answer for the page."""
    cut = slice(0, MOST_TOKENS)
    return {
        "at": answer.at,
        **entry_page(answer.entry),
        "prompt": readable(answer.prompt),
        "tokens": [visible(token, LONG_TOKEN) for token in answer.tokens[cut]],
        "breaks": [at for at, token in enumerate(answer.tokens[cut]) if "\n" in token],
        "more": max(0, len(answer.tokens) - MOST_TOKENS),
        "kl": _plain(answer.kl[cut]),
        "logprobs": _plain(answer.logprobs[cut]),
        "teacher_logprobs": _plain(answer.teacher_logprobs[cut]),
        "teacher_tokens": [
            None if one is None else visible(one, LONG_TOKEN) for one in answer.teacher_tokens[cut]
        ],
        "same": [
            at
            for at, (ours, theirs) in enumerate(
                zip(answer.tokens[cut], answer.teacher_tokens[cut], strict=True)
            )
            if ours == theirs
        ],
        "teacher_top_logprobs": _plain(answer.teacher_top_logprobs[cut]),
    }


def entry_page(entry: Entry) -> dict[str, Any]:
    """The numbers of an answer for the page."""
    return {
        "step": entry.step,
        "row": entry.row,
        "length": entry.length,
        "finished": entry.finished,
        "staleness": entry.staleness,
        "kl_mean": _number(entry.kl_mean),
        "kl_max": _number(entry.kl_max),
        "pinned": entry.pinned,
    }


def listing_page(
    index: RolloutIndex, found: Sequence[int], start: int, count: int = PER_PAGE
) -> list[dict[str, Any]]:
    """Some answers of a selection for the list."""
    entries = index.entries()
    rows = []
    for at in found[start : start + count]:
        line = index.line(at)
        texts = {"prompt": _asked(str(line["prompt"])), "text": one_line(str(line["text"]))}
        rows.append({"at": at, **entry_page(entries[at]), **texts})
    return rows


_MARKUP = re.compile(r"<[|/]?[^<>\s]{1,24}[|]?>")


def _asked(prompt: str) -> str:
    """What a prompt asks, in one line: the template's marks and blanks take no room there."""
    words = [one for one in _MARKUP.sub("\n", prompt).split("\n") if one.strip()]
    kept = [one for one in words if one.strip() not in ("user", "assistant", "system")]
    return one_line(" ".join(kept or words))


def pinned_steps(index: RolloutIndex, later: Sequence[tuple[int, int]] = ()) -> list[int]:
    """Checkpoints at which pinned prompts were answered, in order."""
    entries = index.entries()
    return sorted({entries[at].step for at in index.select(Wanted(pinned=True), later=later)})


def pinned_page(
    index: RolloutIndex,
    before: int | None = None,
    after: int | None = None,
    later: Sequence[tuple[int, int]] = (),
) -> dict[str, Any]:
    """Pinned prompts with their answers at two checkpoints, by default the first and the last."""
    steps = pinned_steps(index, later)
    if not steps:
        return {"steps": [], "rows": []}
    before = before if before in steps else steps[0]
    after = after if after in steps else steps[-1]
    entries = index.entries()
    answers: dict[int, dict[int, Answer]] = {}
    for at in reversed(index.select(Wanted(pinned=True), later=later)):
        entry = entries[at]
        if entry.step in (before, after):  # the last of a step counts
            answers.setdefault(entry.row, {})[entry.step] = Answer.read(index, at)
    rows = []
    for row, found in answers.items():
        some = next(iter(found.values()))
        pair = [found[one].tokens if one in found else [] for one in (before, after)]
        shared = sum(1 for _ in _common(*pair))
        rows.append(
            {
                "row": row,
                "prompt": _asked(some.prompt),
                "before": [readable(token, LONG_TOKEN) for token in pair[0][:MOST_TOKENS]],
                "after": [readable(token, LONG_TOKEN) for token in pair[1][:MOST_TOKENS]],
                "shared": shared,
                "same": pair[0] == pair[1],
            }
        )
    return {"steps": steps, "before": before, "after": after, "rows": rows}


def _common(one: Sequence[str], other: Sequence[str]) -> Any:
    """The tokens that both begin with."""
    for ours, theirs in zip(one, other, strict=False):
        if ours != theirs:
            return
        yield ours


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _plain(values: Sequence[float]) -> list[float | None]:
    return [_number(value) for value in values]
