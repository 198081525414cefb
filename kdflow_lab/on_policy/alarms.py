"""Signs that an on-policy run goes wrong, seen in what the student writes and what is said of it.

Every sign is judged on the last `WINDOW` steps, so that one odd step rings nothing, and rings again
only after `QUIET_STEPS`. A sign of change is compared with the run's first steps.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW = 4
QUIET_STEPS = 50
LEAST_ANSWERS = 8
"""Answers in a window below which shares say nothing."""
GRAM = 4
"""Tokens of a repeated piece."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of a step.

    Attributes:
        step: Its number, counted from 1.
        answers: Int[T] each, the sampled tokens of every answer.
        finished: Of each: ended by a stop id.
        kd: The step's divergence, nats a token.
        most: `max_new_tokens`.
        sampled: Whether tokens were drawn at random: a likeliest token has no entropy to lose.
        student_entropy: Mean of some tokens, nats; also `teacher_entropy`.
        teacher_logprobs: Float[U], what the teacher thinks of some tokens, nats.
        stop_logprobs: Of these, the last token of each finished answer.
        uniform_entropy: Nats of a teacher that knows nothing: ln of its vocabulary.
    """

    step: int
    answers: Sequence[NDArray[np.int32]]
    finished: Sequence[bool]
    kd: float
    most: int
    sampled: bool
    student_entropy: float
    teacher_entropy: float
    teacher_logprobs: NDArray[np.float32]
    stop_logprobs: Sequence[float]
    uniform_entropy: float


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something is wrong.

    Attributes:
        kind: A name of `KINDS`.
        message: What was seen, and what to do.
        answer: The tokens that show it; empty where there are none to show.
    """

    kind: str
    message: str
    answer: NDArray[np.int32]


class Alarms:
    """Looks at one step after the other."""

    def __init__(self) -> None:
        """Nothing has been seen."""
        self._first: list[Look] = []
        self._last: deque[Look] = deque(maxlen=WINDOW)
        self._rang: dict[str, int] = {}

    def saw(self, look: Look) -> list[Alarm]:
        """Take a step in; return what is wrong, as far as it has not just been said."""
        self._last.append(look)
        if len(self._first) < WINDOW:
            self._first.append(look)
        if len(self._last) < WINDOW:
            return []
        found = []
        for kind, sign in KINDS.items():
            quiet = look.step - self._rang.get(kind, -QUIET_STEPS) < QUIET_STEPS
            if not quiet and (alarm := sign(self._first, list(self._last))) is not None:
                self._rang[kind] = look.step
                found.append(Alarm(kind, *alarm))
        return found


Sign = Callable[[list[Look], list[Look]], tuple[str, NDArray[np.int32]] | None]
NOTHING = np.zeros(0, np.int32)


def _truncated(first: list[Look], last: list[Look]) -> tuple[str, NDArray[np.int32]] | None:
    share, cut = _share(last, lambda look, place: not look.finished[place])
    if share <= 0.5:
        return None
    return (
        f"{share:.0%} of the answers reach max_new_tokens={last[-1].most} and are cut. The student "
        "does not end its answers, or has no room to: raise max_new_tokens, or warm it up on "
        "answers first.",
        cut,
    )


def _never_stops(first: list[Look], last: list[Look]) -> tuple[str, NDArray[np.int32]] | None:
    share, cut = _share(last, lambda look, place: not look.finished[place])
    if share < 1.0:
        return None
    return (
        "No answer ended with a stop id. The student does not know it, or it is not the one that "
        "the tokenizer and the generation config name: compare them with kdflow doctor.",
        cut,
    )


def _longer(first: list[Look], last: list[Look]) -> tuple[str, NDArray[np.int32]] | None:
    before, now = (_middle(looks, _mean_length) for looks in (first, last))
    if now < 2 * before or now < 0.25 * last[-1].most:
        return None
    longest = max((one for look in last for one in look.answers), key=len)
    return (
        f"Answers have {now:.0f} tokens on average, {now / before:.1f} times as many as in the "
        "first steps. A divergence that rewards length, or a teacher that never stops, does this: "
        "look at the answer, and lower lr or max_new_tokens.",
        longest,
    )


def _repeated(first: list[Look], last: list[Look]) -> tuple[str, NDArray[np.int32]] | None:
    share, shown = _share(last, lambda look, place: repeats(look.answers[place]))
    if share <= 0.3:
        return None
    return (
        f"{share:.0%} of the answers say the same {GRAM} tokens over and over.",
        shown,
    )


def _collapsed(first: list[Look], last: list[Look]) -> tuple[str, NDArray[np.int32]] | None:
    student = _middle(last, lambda look: look.student_entropy)
    teacher = _middle(last, lambda look: look.teacher_entropy)
    if not last[-1].sampled or teacher < 0.2 or student >= 0.1 * teacher:
        return None
    return (
        f"The student's entropy is {student:.3f} nats a token where the teacher's is {teacher:.3f}:"
        " it has stopped trying other answers. forward_kl, a larger temperature or a lower lr "
        "keeps them.",
        last[-1].answers[0],
    )


def _gibberish(first: list[Look], last: list[Look]) -> tuple[str, NDArray[np.int32]] | None:
    share = _middle(last, lambda look: float((look.teacher_logprobs < -10).mean()))
    if share <= 0.3:
        return None
    return (
        f"{share:.0%} of the tokens are all but impossible for the teacher (below e^-10). Nothing "
        "can be learnt behind them: warm the student up on answers, or sample at a lower "
        "temperature.",
        last[-1].answers[0],
    )


def _uniform(first: list[Look], last: list[Look]) -> tuple[str, NDArray[np.int32]] | None:
    entropy, most = _middle(last, lambda look: look.teacher_entropy), last[-1].uniform_entropy
    if entropy < 0.8 * most:
        return None
    return (
        f"The teacher's entropy is {entropy:.2f} of at most {most:.2f} nats: it knows nothing of "
        "these answers, or its head does not belong to its hidden states.",
        last[-1].answers[0],
    )


def _rising(first: list[Look], last: list[Look]) -> tuple[str, NDArray[np.int32]] | None:
    before, now = (_middle(looks, lambda look: look.kd) for looks in (first, last))
    if not math.isfinite(now) or now < 2 * before or now < before + 0.5:
        return None
    return (
        f"The divergence from the teacher is {now:.3f} nats a token, up from {before:.3f} in the "
        "first steps: the student moves away from it. Lower lr.",
        last[-1].answers[0],
    )


def _stop_ids(first: list[Look], last: list[Look]) -> tuple[str, NDArray[np.int32]] | None:
    values = [one for look in last for one in look.stop_logprobs]
    if len(values) < WINDOW or np.mean([one < -8 for one in values]) < 0.8:
        return None
    ended = next(
        one
        for look in last
        for one, finished in zip(look.answers, look.finished, strict=True)
        if finished
    )
    return (
        "The teacher would not end where the student ends: its log-probability of the stop token "
        f"is {float(np.mean(values)):.1f} nats. The two have different stop ids, or templates: "
        "compare them with kdflow doctor.",
        ended,
    )


KINDS: dict[str, Sign] = {
    "never_stops": _never_stops,
    "truncated": _truncated,
    "length": _longer,
    "repeated": _repeated,
    "entropy_collapse": _collapsed,
    "gibberish": _gibberish,
    "teacher_uniform": _uniform,
    "kl_rising": _rising,
    "stop_ids": _stop_ids,
}


def repeats(answer: NDArray[np.int32]) -> bool:
    """Tell whether one piece of `GRAM` tokens makes up more than a third of an answer."""
    pieces = len(answer) - GRAM + 1
    if pieces < 3 * GRAM:
        return False
    counted = Counter(tuple(answer[at : at + GRAM].tolist()) for at in range(pieces))
    return counted.most_common(1)[0][1] * GRAM > max(len(answer) / 3, 2 * GRAM)


def _share(
    looks: list[Look], is_so: Callable[[Look, int], bool]
) -> tuple[float, NDArray[np.int32]]:
    """The share of answers for which something holds, and one of them."""
    count, total, shown = 0, 0, NOTHING
    for look in looks:
        for place, answer in enumerate(look.answers):
            total += 1
            if is_so(look, place):
                count, shown = count + 1, answer
    return (count / total if total >= LEAST_ANSWERS else 0.0), shown


def _mean_length(look: Look) -> float:
    return float(np.mean([len(one) for one in look.answers]))


def _middle(looks: list[Look], value: Callable[[Look], float]) -> float:
    """The median of some steps, which one odd step does not move far."""
    return float(np.median([value(look) for look in looks]))
