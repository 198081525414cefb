"""The rollout browser as HTML without a script: what a saved notebook keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from kdflow_lab.widgets._divergence_scale import Scale, colour, ink
from kdflow_lab.widgets._rollouts_data import Answer, readable
from kdflow_lab.widgets._tokens import probability, visible

MOST_TOKENS = 400
"""Tokens of an answer that are drawn."""
MOST_PROMPT = 600
MOST_PINNED = 4
MONO = "font-family:monospace"


def html(
    headline: str,
    listed: Sequence[Mapping[str, Any]],
    answer: Answer | None,
    pinned: Mapping[str, Any],
    threshold: float,
) -> str:
    """Draw the list, one answer token by token, and what became of the pinned prompts."""
    parts = [f"<p><b>{escape(headline)}</b></p>"]
    if listed:
        parts.append(_list(listed))
    if answer is not None:
        parts.append(_answer(answer, threshold))
    if pinned.get("rows"):
        parts.append(_pinned(pinned))
    return f'<div style="overflow-x:auto;font-size:13px">{"".join(parts)}</div>'


def nats(value: float | None) -> str:
    """A divergence for a table."""
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def _cell(text: str, style: str = "text-align:right", tag: str = "td") -> str:
    return f'<{tag} style="padding:2px 8px;{style}">{escape(text)}</{tag}>'


def _list(listed: Sequence[Mapping[str, Any]]) -> str:
    left = "text-align:left"
    heads = "".join(
        _cell(name, left if name in ("prompt", "answer") else "text-align:right", "th")
        for name in ("step", "row", "tokens", "mean KL", "max KL", "stale", "end", "prompt")
    )
    lines = []
    for one in listed:
        numbers = (
            *(str(one[name]) for name in ("step", "row", "length")),
            *(nats(one[name]) for name in ("kl_mean", "kl_max")),
            str(one["staleness"]),
            "ended" if one["finished"] else "cut",
        )
        cells = "".join(map(_cell, numbers))
        lines.append(f"<tr>{cells}{_cell(one['prompt'], left)}{_cell(one['text'], left)}</tr>")
    return (
        '<table style="border-collapse:collapse;font-size:12px"><thead><tr>'
        f"{heads}{_cell('answer', left, 'th')}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


def scale_of(answer: Answer) -> Scale:
    """From 0 to 1 nat, or to the largest divergence of the answer."""
    known = [one for one in answer.kl if math.isfinite(one)]
    return Scale("linear", max([1.0, *known]))


def _answer(answer: Answer, threshold: float) -> str:
    scale = scale_of(answer)
    spans = []
    first = answer.first_diverging(threshold)
    for at, token in enumerate(answer.tokens[:MOST_TOKENS]):
        value = answer.kl[at]
        style = "border-bottom:1px dotted"
        if not math.isnan(value):
            ground = colour(min(1.0, value / scale.high))
            style = f"background:{ground};color:{ink(ground)}"
        if at == first:
            style += ";outline:2px solid #D55E00"
        tooltip = f"token {at + 1}: KL {nats(value)} nats. {correction(answer, at)}"
        spans.append(
            f'<span style="{style}" title="{escape(tooltip)}">{escape(visible(token, 60))}</span>'
            + ("<br>" if "\n" in token else "")
        )
    more = len(answer.tokens) - MOST_TOKENS
    rest = f" … {more:,} more tokens" if more > 0 else ""
    return (
        f"<p><b>{escape(title(answer))}</b></p>"
        f'<p style="{MONO};white-space:pre-wrap;opacity:.75;margin:4px 0">'
        f"{escape(readable(answer.prompt, MOST_PROMPT))}</p>"
        f'<p style="{MONO};line-height:1.8;background:#fff;color:#000;padding:2px 4px">'
        f"{''.join(spans)}{rest}</p>"
        f"<p>{escape(verdict(answer, threshold))}</p>"
        f'<p style="font-size:12px">coloured by KL(teacher ‖ student), from 0 to '
        f"{scale.high:.2f} nats; framed: the first token that reaches {threshold:g}</p>"
    )


def title(answer: Answer) -> str:
    """Which answer it is."""
    entry = answer.entry
    what = "pinned prompt, " if entry.pinned else ""
    end = "ended" if entry.finished else "cut"
    return (
        f"Answer {answer.at}: {what}step {entry.step}, row {entry.row}, {entry.length} tokens, "
        f"{end}; mean KL {nats(entry.kl_mean)}, max {nats(entry.kl_max)} nats"
    )


def correction(answer: Answer, at: int) -> str:
    """What the teacher would have written in the place of a token."""
    theirs, ours = answer.teacher_tokens[at], answer.tokens[at]
    if theirs is None:
        return "What the teacher would have written is not known."
    chance = _chance(answer.teacher_top_logprobs[at])
    if theirs == ours:
        return f"The teacher would have written the same{chance}."
    own = _chance(answer.teacher_logprobs[at])
    return (
        f"The teacher would have written {visible(theirs, 60)}{chance} instead of "
        f"{visible(ours, 60)}{own}."
    )


def _chance(logprob: float) -> str:
    return "" if math.isnan(logprob) else f" (p {probability(math.exp(logprob))})"


def verdict(answer: Answer, threshold: float) -> str:
    """Where the answer first leaves the teacher, and what the teacher would have written there."""
    if answer.worst is None:
        return "Nobody looked at the divergence of this answer."
    first = answer.first_diverging(threshold)
    if first is None:
        return f"No token reaches {threshold:g} nats."
    where = (
        f"Token {first + 1} is the first that reaches {threshold:g} nats: {nats(answer.kl[first])}."
    )
    return f"{where} {correction(answer, first)}"


def _pinned(pinned: Mapping[str, Any]) -> str:
    """The pinned prompts before and after, from the token on from which they differ in bold."""
    lines = []
    for row in pinned["rows"][:MOST_PINNED]:
        cells = [f'<td style="padding:2px 8px;text-align:left">{escape(row["prompt"])}</td>']
        for name in ("before", "after"):
            tokens = row[name]
            same = escape("".join(tokens[: row["shared"]]))
            other = escape("".join(tokens[row["shared"] : row["shared"] + 200]))
            cells.append(
                f'<td style="padding:2px 8px;text-align:left;{MONO};white-space:pre-wrap">{same}'
                f"<b>{other}</b></td>"
            )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    heads = "".join(
        _cell(name, "text-align:left", "th")
        for name in ("pinned prompt", f"step {pinned['before']}", f"step {pinned['after']}")
    )
    return (
        '<table style="border-collapse:collapse;font-size:12px;margin-top:10px">'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )
