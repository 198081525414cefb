"""The alignment lens: what it says of two real tokenizers, in every static form."""

from __future__ import annotations

import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from transformers import AutoTokenizer

from kdflow_lab import zoo
from kdflow_lab.align import align, align_conversation
from kdflow_lab.widgets._alignment_data import counts, lines, page, pieces, roles, squeezed
from kdflow_lab.widgets.alignment import AlignmentLens

TEXT = "It is 14 September.\n\n    naïve(x)  # 東\u200b            twelve"
HOSTILE = "<script>alert(1)</script>\u202e\u0000\x1b[31m</style></svg>&amp;\n" + "x" * 5000


@pytest.fixture(scope="module")
def both() -> tuple[Any, Any]:
    return (
        AutoTokenizer.from_pretrained(zoo.path("zoo/teacher")),
        AutoTokenizer.from_pretrained(zoo.path("zoo/student-unigram")),
    )


@pytest.fixture(scope="module")
def aligned(both: tuple[Any, Any]):
    return align(*both, TEXT)


def test_pieces_are_the_text_and_all_tokens_in_order(aligned):
    found = list(pieces(aligned))
    assert b"".join(aligned.data[one.byte_start : one.byte_end] for one in found) == aligned.data
    for side in ("teacher", "student"):
        tokens = [token for one in found for token in getattr(one, side)]
        assert [token.index for token in tokens] == list(range(len(getattr(aligned, side).ids)))
        assert [token.id for token in tokens] == list(getattr(aligned, side).ids)
    single = sum(one.kind == "one" for one in found)
    assert single == len(aligned.pairs)
    assert sum(counts(found).values()) == len(found)


def test_nothing_is_invisible(aligned):
    found = list(pieces(aligned))
    shown = {token.shown for one in found for token in (*one.teacher, *one.student)}
    assert {"␣September", "␣", "↵␣␣␣", "␣×8"} <= shown
    parts = {token.shown: token.note for one in found for token in one.teacher if token.note}
    assert parts["⟨c3⟩"] == "byte 1 of the 2 of ï"
    assert parts["⟨9d⟩"] == "byte 2 of the 3 of 東"
    assert parts["⟨8b⟩"] == "byte 3 of the 3 of \\u200b"
    assert not any(character.isspace() for text in shown for character in text.replace(" ", ""))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" " * 4, "␣␣␣␣"),
        (" " * 5, "␣×5"),
        ("a" + "\n" * 100 + "b", "a↵×100b"),
        ("e\u0301", "e\u0301"),  # an accent stays on its letter
        ("\u0301", "◌\u0301"),
        ("\t\t\t\t\t  ", "⇥×5␣␣"),
        ("x" * 100, "x" * 39 + "…"),
        ("", "∅"),
    ],
)
def test_long_runs_of_blanks_are_counted(text, shown):
    assert squeezed(text) == shown


def test_lines_end_where_the_text_does_and_before_they_are_too_long(aligned):
    found = list(pieces(aligned))
    broken = list(lines(found, 40))
    assert [piece for line in broken for piece in line] == found
    for line in broken:
        assert len(line) == 1 or sum(piece.width for piece in line) <= 40
        assert not any(piece.breaks for piece in line[:-1])


def test_roles_name_the_tokens_of_both_sides(aligned):
    found = {role.name: (role.teacher, role.student) for role in roles(aligned)}
    assert found["turn_end"] == ("<|im_end|> (3)", "</s> (3)")
    assert found["bos"] == ("", "<s> (2)")
    assert [bool(a and b) for a, b in found.values()].index(False) == 3  # those of both first


def test_a_page_gets_all_of_it(aligned):
    columns = page(aligned)
    json.dumps(columns, allow_nan=False)
    assert len(columns["pieces"]) == len(columns["texts"])
    for column, side in ((1, "teacher"), (2, "student")):
        total = sum(piece[column] for piece in columns["pieces"])
        assert total == len(columns[side]["ids"]) == len(getattr(aligned, side).ids)
    assert columns["numbers"][0] == ["100.0%", f"of {len(aligned.data)} bytes aligned"]


def test_the_bundle_has_every_static_form(aligned):
    bundle = aligned._repr_mimebundle_()
    assert set(bundle) == {"text/html", "image/svg+xml", "text/plain"}
    assert "coverage 100.0%" in bundle["text/plain"]
    for form in ("text/html", "image/svg+xml"):
        assert "100.0% of " in bundle[form]
        assert "␣September" in bundle[form]
    assert "An example conversation through both chat templates" in bundle["text/html"]
    svg = ElementTree.fromstring(bundle["image/svg+xml"])
    texts = [one.text for one in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("eptember") == 1 and "1:3" in texts


def test_what_is_unaligned_is_marked_with_its_reason(both: tuple[Any, Any]):
    html = AlignmentLens(align_conversation(*both)).html()
    assert html.count("✕ ") > 4
    assert "special token (turn_start) without a counterpart of the student" in html
    assert "repeating-linear-gradient" in html  # not by colour alone
    svg = AlignmentLens(align_conversation(*both)).svg()
    assert svg.count("url(#kdflow-unaligned)") == 4


def test_hostile_text_is_inert_in_every_form(both: tuple[Any, Any]):
    lens = AlignmentLens(align(*both, HOSTILE))
    html, svg = lens.html(), lens.svg()
    for form in (html, svg):
        assert "<script" not in form.replace("<svg", "")
        assert not re.search("[\x00-\x08\x0b-\x1f\u202e\u200b]", form)
    ElementTree.fromstring(svg)
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", repr(lens))


def test_a_long_text_is_cut_to_what_a_notebook_can_carry(both: tuple[Any, Any]):
    lens = AlignmentLens(align(*both, TEXT * 60))
    html, svg = lens.html(), lens.svg()
    assert len(html) + len(svg) < 400_000
    assert re.search(r"… and [\d,]+ more spans", html)
    assert re.search(r"… and [\d,]+ more spans", svg)


def test_the_empty_text_and_one_tokenizer(both: tuple[Any, Any]):
    assert "100.0% of 0 bytes" in AlignmentLens(align(*both, "")).html()
    same = AlignmentLens(align(both[0], both[0], TEXT))
    assert counts(list(pieces(same.alignment)))["one"] == len(same.alignment.teacher.ids)


def test_the_live_view_holds_text_and_conversation(aligned, tmp_path):
    widget = aligned.show()._live()
    try:
        state = widget.get_state()
        assert [strip["title"] for strip in state["strips"]] == ["Text", "Chat templates"]
        assert ["bos", "", "<s> (2)"] in state["roles"]
        assert "kdflow-alignment" in state["_esm"]
    finally:
        widget.close()
    assert aligned.save(tmp_path / "a.svg").read_text().startswith("<svg")
