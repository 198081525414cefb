"""The alignment lens as HTML without a script: what a saved notebook keeps.

Each line of the text is a table of two rows, so that teacher and student stay above one another
where a page strips all styles, as GitHub does. Kinds are told apart by a sign, not by colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import islice
from typing import TYPE_CHECKING

from kdflow_lab.widgets._alignment_data import (
    KINDS,
    MANY,
    ONE,
    SPLIT,
    UNALIGNED,
    Piece,
    Role,
    Token,
    counts,
    headline,
    lines,
    pieces,
)
from kdflow_lab.widgets._panels import STUDENT, TEACHER

if TYPE_CHECKING:
    from kdflow_lab.align.alignment import Alignment

CHARACTERS = 110
"""Of a line."""
MOST_PIECES = 250
"""Drawn; some 150 kB of HTML. The rest is counted."""
MOST_REASONS = 12
GROUND = {
    ONE: "rgba(128,128,128,.10)",
    SPLIT: "rgba(204,121,167,.28)",
    MANY: "rgba(204,121,167,.50)",
    UNALIGNED: "repeating-linear-gradient(45deg,rgba(213,94,0,.4) 0 4px,rgba(213,94,0,.1) 4px 8px)",
}
"""Behind a piece: nothing much where all is well, else Okabe and Ito's purple and vermilion."""
SIGN = {ONE: "", SPLIT: "", MANY: "", UNALIGNED: "✕"}
CELL = (
    "padding:1px 3px;text-align:center;white-space:nowrap;border:1px solid rgba(128,128,128,.35);"
)


def html(alignment: Alignment, example: Alignment | None, found_roles: Sequence[Role]) -> str:
    """Draw an alignment, the example conversation through both templates, and the roles."""
    parts = [strips(alignment)]
    if example is not None:
        parts.append(_heading("An example conversation through both chat templates"))
        parts.append(strips(example))
    parts.append(_heading("Special tokens"))
    parts.append(roles_table(found_roles))
    return f'<div style="overflow-x:auto;font-size:13px">{"".join(parts)}</div>'


def strips(alignment: Alignment) -> str:
    """The two strips of one alignment, its numbers above and its reasons below."""
    found = list(pieces(alignment))
    numbers = "".join(
        f'<span style="background:{GROUND[kind]};padding:0 6px;margin-right:6px">'
        f"{SIGN[kind]} {count:,} {KINDS[kind]}</span>"
        for kind, count in counts(found).items()
    )
    parts = [f"<p><b>{escape(headline(alignment))}</b></p><p>{numbers}</p>"]
    parts += [_line(line) for line in lines(islice(found, MOST_PIECES), CHARACTERS)]
    if len(found) > MOST_PIECES:
        parts.append(f"<p>… and {len(found) - MOST_PIECES:,} more spans.</p>")
    parts.append(_reasons(found))
    return "".join(parts)


def _heading(text: str) -> str:
    return f'<p style="margin-top:14px"><b>{escape(text)}</b></p>'


def _line(line: Sequence[Piece]) -> str:
    """One line of the text: a row of the teacher's tokens, and one of the student's."""
    rows = "".join(
        f'<tr><th style="{CELL}text-align:right;border-color:transparent;color:inherit">'
        f'<span style="border-bottom:2px solid {colour}">{side}</span></th>'
        f"{''.join(_cell(piece, side) for piece in line)}</tr>"
        for side, colour in (("teacher", TEACHER), ("student", STUDENT))
    )
    return (
        '<table style="border-collapse:collapse;margin:0 0 7px 0;font-family:monospace;'
        f'font-size:12px">{rows}</table>'
    )


def _cell(piece: Piece, side: str) -> str:
    tokens: tuple[Token, ...] = getattr(piece, side)
    colour = TEACHER if side == "teacher" else STUDENT
    boxes = (
        '<span style="opacity:.5"> · </span>'.join(
            f'<span style="border-bottom:2px solid {colour}"'
            f' title="{escape(f"{token.name}  id {token.id}  {token.note}".strip())}">'
            f"{f'<i>{escape(token.shown)}</i>' if token.silent else escape(token.shown)}</span>"
            for token in tokens
        )
        or "–"
    )
    title = f"{piece.ratio} {KINDS[piece.kind]}{f': {piece.reason}' if piece.reason else ''}"
    sign = f"{SIGN[piece.kind]} " if SIGN[piece.kind] else ""
    return (
        f'<td style="{CELL}background:{GROUND[piece.kind]}" title="{escape(title)}">'
        f"{sign}{boxes}</td>"
    )


def _reasons(found: Sequence[Piece]) -> str:
    """Why what is unaligned is so, each reason once."""
    reasons: dict[str, list[str]] = {}
    for piece in found:
        if piece.reason:
            reasons.setdefault(piece.reason, []).append(piece.shown or "∅")
    listed = "".join(
        f"<li><code>{escape(texts[0])}</code>"
        f"{f' and {len(texts) - 1:,} more' if len(texts) > 1 else ''}: {escape(reason)}</li>"
        for reason, texts in islice(reasons.items(), MOST_REASONS)
    )
    more = len(reasons) - MOST_REASONS
    rest = f"<li>… and {more:,} more reasons.</li>" if more > 0 else ""
    return f"<p>Unaligned:</p><ul>{listed}{rest}</ul>" if reasons else ""


def roles_table(found: Sequence[Role]) -> str:
    """What special tokens are for, on both sides."""
    cell = "text-align:left;padding:2px 10px 2px 0"
    lines = "".join(
        f'<tr><td style="{cell}">{escape(role.name)}</td>'
        + "".join(
            f'<td style="{cell};font-family:monospace">{escape(one) or "–"}</td>'
            for one in (role.teacher, role.student)
        )
        + "</tr>"
        for role in found
    )
    heads = "".join(f'<th style="{cell}">{head}</th>' for head in ("role", "teacher", "student"))
    return (
        '<table style="border-collapse:collapse;font-size:12px">'
        f"<thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"
    )
