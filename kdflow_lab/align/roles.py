"""What the special tokens of a tokenizer are for, also those that only its chat template shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CONVERSATION = (
    {"role": "user", "content": "What is two and three?"},
    {"role": "assistant", "content": "Five."},
    {"role": "user", "content": "And six?"},
    {"role": "assistant", "content": "Eleven."},
)
"""What every template is shown: two turns of both, of texts that no template writes by itself."""


def roles_of(tokenizer: Any) -> dict[str, int]:
    """Return the special tokens by what they are for.

    `turn_end` closes the assistant's answer in the chat template (the end-of-sequence token where
    there is no template), `turn_start` opens a turn, or `user_start` and `assistant_start` where
    they differ, `header_end` stands between role and text. `eos`, `bos`, `pad`, `unk` are the
    tokenizer's own. All other special tokens are listed by their spelling.
    """
    found: dict[str, int] = {}
    for role, token in turn_markers(tokenizer).items():
        found.setdefault(role, token)
    eos = tokenizer.eos_token_id
    if eos is not None:
        found.setdefault("turn_end", eos)
    for role in ("eos", "bos", "pad", "unk"):
        token = getattr(tokenizer, f"{role}_token_id", None)
        if token is not None:
            found[role] = token
    named = set(found.values())
    for spelling, token in special_tokens(tokenizer).items():
        if token not in named:
            found[spelling] = token
    return found


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the ids of all special tokens by their spelling, in the order of the ids."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {str(one): token for token, one in added.items() if getattr(one, "special", False)}
    for spelling, token in zip(
        tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True
    ):
        special.setdefault(str(spelling), token)
    return dict(sorted(special.items(), key=lambda item: item[1]))


def render(tokenizer: Any, messages: Sequence[dict[str, str]] = CONVERSATION) -> str | None:
    """Render a conversation; None without a template, or if it refuses this conversation."""
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False))
    except (TemplateError, TypeError, ValueError, KeyError, IndexError):
        return None


def turn_markers(tokenizer: Any) -> dict[str, int]:
    """Find the special tokens around the turns of a rendered conversation, by where they stand."""
    text = render(tokenizer)
    if text is None:
        return {}
    between: list[list[int]] = []
    done = 0
    for message in CONVERSATION:
        place = text.find(message["content"], done)
        if place < 0:
            return {}
        between.append(_specials(text[done:place], tokenizer))
        done = place + len(message["content"])
    to_answer, to_question = between[1], between[2]
    after = _specials(text[done:], tokenizer)
    if not to_question and not after:
        return {}
    end = (to_question or after)[0]
    # A template that begins turns but ends none: what follows the last answer tells.
    ends = bool(after) and after[0] == end
    found = {"turn_end": end} if ends or len(to_question) > 1 else {}
    opens_question = to_question[1:] if found else to_question
    opens_answer = to_answer[1:] if found and to_answer[:1] == [end] else to_answer
    question, answer = opens_question[:1], opens_answer[:1]
    if question and question == answer:
        found["turn_start"] = question[0]
    else:
        for role, tokens in (("user_start", question), ("assistant_start", answer)):
            if tokens:
                found[role] = tokens[0]
    if len(opens_answer) > 1:
        found["header_end"] = opens_answer[-1]
    return found


def _specials(text: str, tokenizer: Any) -> list[int]:
    """Return the special tokens spelled in a text, in order; the longest where several fit."""
    known = sorted(special_tokens(tokenizer).items(), key=lambda item: -len(item[0]))
    found: list[int] = []
    place = 0
    while place < len(text):
        for spelling, token in known:
            if spelling and text.startswith(spelling, place):
                found.append(token)
                place += len(spelling)
                break
        else:
            place += 1
    return found
