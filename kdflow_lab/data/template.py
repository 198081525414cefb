"""A model's chat template, cut into what is trained and what is not.

A conversation becomes *pieces*: texts that, joined, are the conversation as the template renders
it, each trained or not. Where a template marks the assistant's words with `{% generation %}`, its
blocks are the trained pieces. Elsewhere the conversation is rendered up to each answer, with the
generation prompt, and the text behind that is the answer. Nothing is ever searched for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from kdflow_lab.data.rows import BadRow, Conversation, Message
from kdflow_lab.errors import DataError

Piece = tuple[str, bool]
"""A text, and whether its tokens are trained."""
Rendered = str | BadRow

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Template:
    """The chat template of a tokenizer, for many conversations at once."""

    def __init__(self, tokenizer: Any) -> None:
        """Take a tokenizer that has a chat template.

        Raises:
            DataError: It has several, and none of them is the default.
        """
        self._tokenizer = tokenizer
        try:
            self._template = tokenizer.get_chat_template()
        except ValueError as error:
            raise DataError(f"The tokenizer has no default chat template: {error}") from None
        self.marks_answers = _GENERATION.search(self._template) is not None
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        special = {str(token) for token in added if getattr(token, "special", False)}
        self._special = tuple(special | set(tokenizer.all_special_tokens))

    def pieces(
        self,
        conversations: Sequence[Conversation],
        sources: Sequence[str],
        train_turns: Literal["all", "last"],
    ) -> list[list[Piece] | BadRow]:
        """Cut conversations into pieces; what follows the last trained answer is left out.

        Args:
            conversations: Any number.
            sources: Where each came from, for errors.
            train_turns: Which assistant turns are trained.

        Raises:
            DataError: The template renders a turn in the middle of a conversation otherwise than at
                its end, so that what the model reads in training is not what it reads in use.
        """
        answers: list[list[int] | BadRow] = []
        for conversation in conversations:
            try:
                answers.append(conversation.turns(train_turns))
            except BadRow as problem:
                answers.append(problem)
        good = [place for place, turns in enumerate(answers) if not isinstance(turns, BadRow)]
        cut = self._marked if self.marks_answers else self._joined
        found = cut(
            # No trained token sees what comes after the last answer.
            [conversations[place].messages[: answers[place][-1] + 1] for place in good],  # type: ignore[index]
            [answers[place] for place in good],  # type: ignore[misc]
            [sources[place] for place in good],
        )
        result: list[Any] = list(answers)
        for place, pieces in zip(good, found, strict=True):
            result[place] = pieces
        return result

    def prompts(self, conversations: Sequence[Conversation]) -> list[Rendered]:
        """Render each conversation up to its last answer, with the generation prompt."""
        return self._render([before_answer(each) for each in conversations], prompt=True)

    def _marked(
        self, chats: list[list[Message]], turns: list[list[int]], sources: list[str]
    ) -> list[list[Piece] | BadRow]:
        """Cut at the template's generation blocks."""
        result: list[list[Piece] | BadRow] = []
        for chat, trained, both in zip(chats, turns, self._render_blocks(chats), strict=True):
            if isinstance(both, BadRow):
                result.append(both)
                continue
            text, spans = both
            assistants = [i for i, message in enumerate(chat) if message["role"] == "assistant"]
            if len(spans) == len(assistants):
                spans = [span for span, i in zip(spans, assistants, strict=True) if i in trained]
            elif trained != assistants:
                # Which block belongs to which turn is not known.
                result.append(
                    BadRow(
                        f"the chat template marks {len(spans)} texts for {len(assistants)} "
                        "assistant turns, so that single turns cannot be chosen"
                    )
                )
                continue
            result.append(_cut(text, [(start, self._end(text, end)) for start, end in spans]))
        return result

    def _end(self, text: str, end: int) -> int:
        """Let a block that stops short of the end-of-sequence token take it in.

        A student that is never trained on it would never stop.
        """
        eos = self._tokenizer.eos_token
        return end + len(eos) if eos and text.startswith(eos, end) else end

    def _joined(
        self, chats: list[list[Message]], turns: list[list[int]], sources: list[str]
    ) -> list[list[Piece] | BadRow]:
        """Cut where the generation prompt of each trained turn ends."""
        flat = [
            (chat, turn) for chat, trained in zip(chats, turns, strict=True) for turn in trained
        ]
        starts = iter(self._render([chat[:turn] for chat, turn in flat], prompt=True))
        ends = iter(self._render([chat[: turn + 1] for chat, turn in flat], prompt=False))
        result: list[list[Piece] | BadRow] = []
        for trained, source in zip(turns, sources, strict=True):
            cuts = [(turn, next(starts), next(ends)) for turn in trained]
            problem = next((t for cut in cuts for t in cut[1:] if isinstance(t, BadRow)), None)
            if problem is not None:
                result.append(problem)
                continue
            text = str(cuts[-1][2])  # ends with the last answer: the conversation was cut there
            spans = []
            for turn, start, end in cuts:
                start, end = str(start), str(end)
                if not end.startswith(start):
                    raise self._inconsistent(
                        source,
                        turn,
                        "the prompt that asks for the answer is no part of it",
                        start,
                        end,
                    )
                if not text.startswith(end):
                    raise self._inconsistent(
                        source, turn, "later messages change how it is written", end, text
                    )
                spans.append((len(start), self._trim(end)))
            result.append(_cut(text, spans))
        return result

    def _trim(self, answered: str) -> int:
        """Leave blanks behind the end-of-turn token out: the model never has to write them."""
        stripped = answered.rstrip()
        return len(stripped) if stripped.endswith(self._special) else len(answered)

    def _inconsistent(
        self, source: str, turn: int, what: str, expected: str, got: str
    ) -> DataError:
        same = next(
            (i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b),
            min(len(expected), len(got)),
        )
        window = slice(max(0, same - 20), same + 40)
        return DataError(
            f"{source}: the chat template does not render the assistant turn messages[{turn}] the "
            f"same way each time: {what} ({expected[window]!r} became {got[window]!r}). Expected a "
            "template that only adds to the text. Pass train_turns='last', or give the tokenizer "
            "a template that marks answers with {% generation %}."
        )

    def _render(self, chats: list[list[Message]], *, prompt: bool) -> list[Rendered]:
        """Render conversations; one that the template refuses comes as its reason."""

        def render(some: list[list[Message]]) -> list[str]:
            return self._tokenizer.apply_chat_template(
                some, tokenize=False, add_generation_prompt=prompt
            )

        return _each(render, chats)

    def _render_blocks(
        self, chats: list[list[Message]]
    ) -> list[tuple[str, list[tuple[int, int]]] | BadRow]:
        """Render conversations, with the offsets of their generation blocks."""
        # What apply_chat_template(return_assistant_tokens_mask=True) calls before it tokenizes.
        from transformers.utils.chat_template_utils import render_jinja_template

        def render(some: list[list[Message]]) -> list[tuple[str, list[tuple[int, int]]]]:
            texts, blocks = render_jinja_template(
                some,  # type: ignore[arg-type]
                chat_template=self._template,
                return_assistant_tokens_mask=True,
                **self._tokenizer.special_tokens_map,
            )
            return list(zip(texts, blocks, strict=True))  # type: ignore[arg-type]

        return _each(render, chats)


def before_answer(conversation: Conversation) -> list[Message]:
    """Return the messages before the last assistant turn, or all where there is none."""
    messages = conversation.messages
    for place in reversed(range(conversation.first_trained, len(messages))):
        if messages[place]["role"] == "assistant":
            return messages[:place]
    return messages


def _each(render: Any, chats: list[list[Message]]) -> list[Any]:
    """Render all at once, or one by one where a template refuses some."""
    from jinja2 import TemplateError

    if not chats:
        return []
    try:
        return render(chats)
    except (TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
        if len(chats) == 1:
            return [BadRow(f"the chat template refuses it: {error}")]
    return [each for chat in chats for each in _each(render, [chat])]


def _cut(text: str, spans: list[tuple[int, int]]) -> list[Piece] | BadRow:
    """Cut a text into pieces; the spans are trained, and what follows the last is left out."""
    pieces, done = [], 0
    for start, end in spans:
        pieces += [(text[done:start], False), (text[start:end], True)]
        done = end
    pieces = [piece for piece in pieces if piece[0]]
    if not any(trained for _, trained in pieces):
        return BadRow("the chat template marks no text as the assistant's")
    return pieces
