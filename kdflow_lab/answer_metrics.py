"""Metrics of answers: a few that are well defined, and those of a notebook's own.

A metric is a function of a model's answer, a text, and the row of data that asked for it, a dict.
It returns a number, larger is better, or True or False. `Lab.evaluate` applies it in the kernel, a
run's evaluations apply it in the engines (`eval_metrics`). Imports no torch.
"""

from __future__ import annotations

import inspect
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdflow_lab.errors import ConfigError, DataError, MetricError, unknown_name

Metric = Callable[[str, dict[str, Any]], Any]
"""`metric(answer, row)`, such as `lambda answer, row: answer in row["answers"]`."""

TAKEN = (
    *("row", "kind", "tokens", "compared", "bytes", "kl", "ce", "agreement", "correct", "prompt"),
    *("answer", "rows", "perplexity", "bits_per_byte", "seconds", "step"),
)
"""What evaluations call something else."""

_REGISTERED: dict[str, Metric] = {}


# -- built in -------------------------------------------------------------------------------------


def exact_match(answer: str, row: dict[str, Any]) -> bool:
    """Whether the answer is one of the right answers, but for white space around it."""
    return answer.strip() in [text.strip() for text in _references(row)]


def contains(answer: str, row: dict[str, Any]) -> bool:
    """Whether one of the right answers stands somewhere in the answer, letter by letter."""
    return any(text.strip() in answer for text in _references(row))


def token_f1(answer: str, row: dict[str, Any]) -> float:
    """F1 of the words that answer and right answer share, in 0..1; the best right answer counts.

    Words are compared without case, punctuation and the articles a, an, the.

    Source: SQuAD, arXiv:1606.05250, section 6.1 (Macro-averaged F1 score).
    """
    return max(_f1_of_bags(_plain_words(answer), _plain_words(one)) for one in _references(row))


def rouge_l(answer: str, row: dict[str, Any]) -> float:
    """ROUGE-L: F1 of the longest common subsequence of words, in 0..1; the best reference counts.

    Words are runs of letters and digits, without case; precision and recall weigh the same.

    Source: Lin, ROUGE: A Package for Automatic Evaluation of Summaries (2004), equations 2 to 4,
    with beta = 1.
    """
    ours = _words(answer)
    return max(_lcs_f1(ours, _words(one)) for one in _references(row))


BUILT_IN: dict[str, Metric] = {
    one.__name__: one for one in (exact_match, contains, token_f1, rouge_l)
}
"""Metrics that come with the package; `names()` also lists the registered ones."""


def _references(row: dict[str, Any]) -> list[str]:
    from kdflow_lab.data.prompts import references

    found = references(row)
    if not found:
        raise DataError("the row has no right answer to compare with")
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _plain_words(text: str) -> list[str]:
    kept = "".join(one for one in text.lower() if one not in string.punctuation)
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def _f1_of_bags(ours: list[str], theirs: list[str]) -> float:
    if not ours or not theirs:
        return float(ours == theirs)
    same = (Counter(ours) & Counter(theirs)).total()
    return 2 * same / (len(ours) + len(theirs))  # 2PR / (P + R)


def _lcs_f1(ours: list[str], theirs: list[str]) -> float:
    if not ours or not theirs:
        return float(ours == theirs)
    line = [0] * (len(theirs) + 1)
    for word in ours:
        diagonal = 0
        for place, other in enumerate(theirs, 1):
            above = line[place]
            line[place] = diagonal + 1 if word == other else max(above, line[place - 1])
            diagonal = above
    return 2 * line[-1] / (len(ours) + len(theirs))


# -- by name --------------------------------------------------------------------------------------


def names() -> tuple[str, ...]:
    """Every metric that can be named now, registered ones last."""
    return (*BUILT_IN, *_REGISTERED)


def registered() -> dict[str, Metric]:
    """Return the registered functions by name."""
    return dict(_REGISTERED)


def register(name: str, function: Metric) -> None:
    """Make a function a metric in this process; one of the same name is replaced.

    Raises:
        ConfigError: The name is no identifier or means something else, or the function cannot take
            an answer and a row.
    """
    _check_own_name(name)
    check_call(name, function)
    _REGISTERED[name] = function


def unregister(name: str) -> None:
    """Take a registered metric away again; one that is not registered is no error."""
    _REGISTERED.pop(name, None)


def find(name: str) -> Metric:
    """Return a metric by name.

    Raises:
        ConfigError: Unknown name; the nearest one is offered.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    if name not in _REGISTERED:
        raise unknown_name("metric", name, names())
    return _REGISTERED[name]


def asked_for(metric: Any) -> dict[str, Metric]:
    """Return the metrics that somebody means, by name; `exact_match` is always there and left out.

    Args:
        metric: None, a name (several behind commas), a function, a sequence of such, or a mapping
            of names to functions or names.

    Raises:
        ConfigError: An unknown name, a function that cannot take an answer and a row, or two of one
            name.
    """
    found: dict[str, Metric] = {}
    for name, function in _named(metric):
        if name in found and found[name] is not function:
            raise ConfigError(
                f"Two metrics are called {name!r}. Name them: "
                "metric={'one': first, 'other': second}."
            )
        if function is not exact_match:
            found[name] = function
    return found


def _named(metric: Any) -> list[tuple[str, Metric]]:
    if metric is None:
        return []
    if isinstance(metric, str):
        return [(name, find(name)) for name in map(str.strip, metric.split(",")) if name]
    if isinstance(metric, Mapping):
        return [
            (str(name), find(one) if isinstance(one, str) else _own(str(name), one))
            for name, one in metric.items()
        ]
    if callable(metric):
        name = getattr(metric, "__name__", type(metric).__name__)
        name = name if name.isidentifier() else "metric"  # a lambda
        return [(name, _own(name, metric))]
    if isinstance(metric, Sequence):
        return [pair for one in metric for pair in _named(one)]
    raise ConfigError(
        f"metric={metric!r} is a {type(metric).__name__}; expected a function of (answer, row), a "
        f"name ({', '.join(names())}), or a mapping of names to functions."
    )


def _own(name: str, function: Any) -> Metric:
    if function in BUILT_IN.values():
        return function
    _check_own_name(name)
    check_call(name, function)
    return function


def _check_own_name(name: str) -> None:
    if not name.isidentifier() or name in TAKEN or name in BUILT_IN:
        raise ConfigError(
            f"{name!r} cannot name a metric: use letters, digits and '_', and none of "
            f"{', '.join((*BUILT_IN, *TAKEN))}. Another name: metric={{'name': function}}."
        )


def check_call(name: str, function: Any) -> None:
    """Refuse what cannot be called with an answer and a row; nothing is called.

    Raises:
        ConfigError: With what it takes.
    """
    if not callable(function):
        raise ConfigError(
            f"The metric {name!r} is a {type(function).__name__}; expected a function of "
            "(answer, row)."
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions do not tell
        return
    try:
        signature.bind("", {})
    except TypeError:
        raise ConfigError(
            f"The metric {name!r} takes {signature}; expected two arguments, the model's answer (a "
            "text) and the row of data (a dict)."
        ) from None


# -- applying -------------------------------------------------------------------------------------


def apply(
    name: str,
    function: Metric,
    answers: Sequence[str | None],
    rows: Sequence[dict[str, Any]],
    numbers: Sequence[int],
) -> list[float]:
    """Judge answers.

    Args:
        name: Of the metric, for errors.
        function: The metric.
        answers: The model's; None where it was not asked.
        rows: Of the data, in the same order.
        numbers: Of the rows, for errors.

    Returns:
        A number for each answer; NaN where there is none.

    Raises:
        MetricError: The function raised, or returned no finite number; with the row, what it
            returned, and what was expected.
    """
    return [
        math.nan if answer is None else _value(name, function, answer, dict(row), number)
        for answer, row, number in zip(answers, rows, numbers, strict=True)
    ]


def _value(name: str, function: Metric, answer: str, row: dict[str, Any], number: int) -> float:
    where = f"The metric {name!r} failed on row {number} (answer {_short(answer)})"
    try:
        value = function(answer, row)
    except Exception as error:
        columns = ", ".join(row)
        raise MetricError(
            f"{where}: {type(error).__name__}: {error}. The row has the columns {columns}."
        ) from error
    try:  # numpy's and torch's numbers are welcome, texts that look like numbers are not
        number_ = math.nan if value is None or isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError):
        number_ = math.nan
    if not math.isfinite(number_):
        raise MetricError(
            f"{where}: it returned {_short(value)}, a {type(value).__name__}; expected a finite "
            "number, True or False."
        )
    return number_


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
