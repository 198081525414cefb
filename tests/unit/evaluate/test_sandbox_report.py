"""How a sandbox is told: frame, pushes, the token it chooses, and that no text becomes markup."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from kdflow_lab.errors import ConfigError, DataError
from kdflow_lab.evaluate.sandbox_report import Sandbox, disagreement
from kdflow_lab.evaluate.sandbox_tokens import Candidates, Push, SandboxPart, TokenLook
from kdflow_lab.widgets._sandbox_tables import MOST_LINES, shortened
from kdflow_lab.widgets._tokens import probability, signed, visible

SVG = "{http://www.w3.org/2000/svg}"
TEXTS = {0: "<b>&", 1: " dog", 2: "\n", 3: "\u202e"}
EQUAL, OPPOSITE, ACROSS = ((4.0, 4.0), (4.0, 4.0)), ((4.0, -4.0), (-4.0, 4.0)), ((4.0, 0), (0, 4.0))


def _look(position: int, token_id: int = 1, row: int = 0, **changes: Any) -> TokenLook:
    fields: dict[str, Any] = {
        "row": row,
        "position": position,
        "token_id": token_id,
        "student_p": 0.25,
        "teacher_p": 0.5,
        "student_entropy": 1.0,
        "teacher_entropy": 2.0,
        "agreement": True,
        "values": {"forward_kl": 0.5, "reverse_kl": 0.125},
        "up": {"forward_kl": (Push(1, 0.4, 0.25, 0.5),), "reverse_kl": ()},
        "down": {"forward_kl": (Push(0, -0.4, 0.5, 0.1),), "reverse_kl": ()},
        "candidates": Candidates(
            ids=(1, 0),
            student_p=(0.25, 0.5, 0.25),
            teacher_p=(0.5, 0.1, 0.4),
            pushes={"forward_kl": (0.4, -0.4, 0.0), "reverse_kl": (0.1, -0.2, 0.1)},
        ),
        "products": EQUAL,
    }
    return TokenLook(**{**fields, **changes})


def _sandbox(*looks: TokenLook, losses: tuple[str, ...] = ("forward_kl", "reverse_kl")) -> Sandbox:
    rows: dict[int, list[str]] = {}
    for look in looks:
        texts = rows.setdefault(look.row, ["<p>", "q"])
        texts += ["?"] * (look.position - len(texts))
        texts.append(TEXTS[look.token_id])
    part = SandboxPart(list(looks), rows, TEXTS)
    return Sandbox.merge([part], name="my <model>", losses=losses, temperature=1.0)


# -- numbers --------------------------------------------------------------------------------------


def test_parts_are_joined_in_the_order_of_the_texts() -> None:
    parts = [
        SandboxPart([_look(5, row=1), _look(4, row=1)], {1: ["b"] * 6}, {1: " dog"}),
        SandboxPart([_look(7, 0, row=0)], {0: ["a"] * 8}, {0: "<b>&"}),
    ]
    box = Sandbox.merge(parts, name="s", losses=["forward_kl"], temperature=1.0)
    assert [(look.row, look.position) for look in box.looks] == [(0, 7), (1, 4), (1, 5)]
    assert list(box.rows) == [0, 1]
    assert box.texts == {0: "<b>&", 1: " dog"}
    with pytest.raises(DataError, match="no response token"):
        Sandbox.merge([SandboxPart([], {}, {})], name="s", losses=["tvd"], temperature=1.0)


def test_frame_has_a_line_for_each_token() -> None:
    frame = _sandbox(_look(2), _look(3, 0, products=OPPOSITE)).frame
    assert frame["token"].tolist() == [" dog", "<b>&"]
    assert frame["forward_kl"].tolist() == [0.5, 0.5]
    assert frame["reverse_kl"].tolist() == [0.125, 0.125]
    assert frame["position"].tolist() == [2, 3]
    assert frame["agreement"].tolist() == [True, True]
    assert frame["disagreement"].tolist() == [0.0, 4.0]


def test_pushes_of_a_loss_at_a_token() -> None:
    box = _sandbox(_look(2))
    pushes = box.pushes("forward_kl", 0)
    assert pushes["direction"].tolist() == ["up", "down"]
    assert pushes["token"].tolist() == [" dog", "<b>&"]
    assert pushes["push"].tolist() == [0.4, -0.4]
    assert len(box.pushes("reverse_kl", -1)) == 0
    with pytest.raises(ConfigError, match="Did you mean 'forward_kl'"):
        box.pushes("forward", 0)
    with pytest.raises(ConfigError, match="no token 1: the sandbox has 1"):
        box.pushes("forward_kl", 1)
    with pytest.raises(ConfigError, match="A token is 'dog'"):
        box.show("dog")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Did you mean 'reverse_kl'"):
        box.show(loss="revers_kl")


def test_tokens_are_found_by_their_text() -> None:
    box = _sandbox(_look(2, 0), _look(3, 1), _look(2, 1, row=1))
    assert (box.find("dog"), box.find(" dog", row=1)) == (1, 2)
    with pytest.raises(ConfigError, match="Did you mean 'dog'"):
        box.find("dig")


def test_disagreement_is_of_directions_where_both_push() -> None:
    """(1 - cos) * sqrt(|g| |h|), here of gradients of length 2."""
    assert disagreement(_look(2, products=EQUAL)) == 0.0
    assert disagreement(_look(2, products=ACROSS)) == pytest.approx(2.0)
    assert disagreement(_look(2, products=OPPOSITE)) == pytest.approx(4.0)
    # one learning rate would make them equal
    assert disagreement(_look(2, products=((4.0, 8.0), (8.0, 16.0)))) == pytest.approx(0.0)
    # one of them does not push at all
    assert disagreement(_look(2, products=((4.0, 0.0), (0.0, 0.0)))) == 0.0
    assert disagreement(_look(2, products=((4.0,),))) == 0.0
    three = ((4.0, 4.0, -4.0), (4.0, 4.0, -4.0), (-4.0, -4.0, 4.0))
    assert disagreement(_look(2, products=three)) == pytest.approx((0 + 4 + 4) / 3)
    assert math.isnan(disagreement(_look(2, products=((math.nan,) * 2,) * 2)))


def test_the_token_shown_is_that_of_the_largest_disagreement() -> None:
    broken = ((math.nan, math.nan), (math.nan, math.nan))
    looks = [_look(2, products=EQUAL), _look(3, products=broken), _look(4, products=ACROSS)]
    assert _sandbox(*looks).show().token == 2
    assert _sandbox(*looks).show(0).token == 0
    assert _sandbox(*looks).show(-2).token == 1


def test_what_is_not_finite_is_said_with_the_token() -> None:
    bad = _look(
        3, 0, problems=("reverse_kl is NaN",), values={"forward_kl": 1, "reverse_kl": math.nan}
    )
    box = _sandbox(_look(2), bad)
    assert box.problems == ["row 0, token 3 ('<b>&'): reverse_kl is NaN"]
    assert repr(box).startswith("Not finite: row 0, token 3 ('<b>&'): reverse_kl is NaN.")
    assert "&lt;b&gt;&amp;" in box.show().html()
    many = _sandbox(*(_look(2 + n, problems=("tvd is NaN",)) for n in range(9)))
    assert many.warning.endswith("; and 4 more.")
    assert _sandbox(_look(2)).warning == ""


# -- pictures -------------------------------------------------------------------------------------


def test_text_of_tokens_is_escaped_everywhere() -> None:
    """What the page shows is text: the only elements are the sandbox's own."""
    box = _sandbox(_look(2, 0), _look(3, 2), _look(4, 3))
    for token in range(3):
        view = box.show(token)
        page, drawing = view.html(), view.svg()
        for text in (page, drawing):
            assert "<b>&" not in text and "<p>q" not in text and "\u202e" not in text
        tags = set(re.findall(r"<(\w+)", page))
        assert tags <= {"div", "p", "b", "span", "table", "thead", "tbody", "tr", "th", "td", "br"}
        ElementTree.fromstring(f"<x>{page.replace('<br>', '<br/>')}</x>")
        root = ElementTree.fromstring(drawing)
        assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
            "svg",
            "title",
            "text",
            "rect",
            "path",
            "g",
        }
    assert "&lt;b&gt;&amp;" in box.show(0).html()
    assert "my &lt;model&gt;" in box.show(0).html()
    assert "\\u202e" in box.show(2).svg()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" dog", "␣dog"),
        ("\n\t\r", "↵⇥␍"),
        ("\u200b\u202e\x1b", "\\u200b\\u202e\\x1b"),
        ("\u0301a", "◌\u0301a"),
        ("", "∅"),
        ("naïve 日本", "naïve␣日本"),
    ],
)
def test_invisible_characters_become_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_long_texts_and_small_numbers() -> None:
    assert visible("abcdef", 4) == "abc…"
    assert [probability(value) for value in (0.0, 1e-9, 0.0006, 1.0)] == [
        "0.000",
        "<.001",
        "0.001",
        "1.000",
    ]
    assert [signed(value) for value in (0.0, -1e-9, 0.02, -1.234)] == ["0", "0", "+0.020", "-1.23"]


def _bars(root: ElementTree.Element) -> list[tuple[str, float]]:
    rects = [rect for rect in root.iter(f"{SVG}rect") if rect.get("height") == "13"]
    return [(rect.get("fill", ""), float(rect.get("width", "nan"))) for rect in rects]


def test_bars_are_the_numbers() -> None:
    root = ElementTree.fromstring(_sandbox(_look(2)).show().svg())
    bars = _bars(root)
    student = [width for colour, width in bars if colour == "#0072B2"]
    teacher = [width for colour, width in bars if colour == "#E69F00"]
    assert student == pytest.approx([24.0, 48.0, 24.0])
    assert teacher == pytest.approx([48.0, 9.6, 38.4])
    up = [width for colour, width in bars if colour == "#009E73"]
    down = [width for colour, width in bars if colour == "#D55E00"]
    # one scale for all losses: 0.4 is the longest bar
    assert [width / up[0] for width in up] == pytest.approx([1.0, 0.25, 0.25], abs=0.01)
    assert [width / up[0] for width in down if width] == pytest.approx([1.0, 0.5], abs=0.01)
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {"␣dog", "all others", "+0.40", "−0.40", "0.500 nats", "<.001"} - set(texts) == {"<.001"}
    bold = [
        e.text for e in root.iter(f"{SVG}text") if e.get("font-family") and e.get("font-weight")
    ]
    assert bold == ["␣dog"]


def test_many_losses_stay_within_the_page() -> None:
    losses = tuple(f"loss_{number}" for number in range(12))
    candidates = Candidates((1,), (0.5, 0.5), (0.5, 0.5), dict.fromkeys(losses, (1.0, -1.0)))
    look = _look(2, values=dict.fromkeys(losses, 0.5), candidates=candidates)
    root = ElementTree.fromstring(_sandbox(look, losses=losses).show().svg())
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert set(losses) <= set(texts)
    for rect in root.iter(f"{SVG}rect"):
        assert 0 <= float(rect.get("x", "")) <= 960 - float(rect.get("width", ""))


def test_broken_token_is_drawn_with_its_reason() -> None:
    look = _look(2, candidates=Candidates(), problems=("the teacher's logits hold NaN",))
    view = _sandbox(look).show()
    assert "the teacher's logits hold NaN" in "".join(ElementTree.fromstring(view.svg()).itertext())
    assert "the teacher's logits hold NaN" in repr(view)


def test_candidates_beyond_what_is_seen_are_added_up() -> None:
    count = 30
    shares = tuple(1 / (2 + place) ** 2 for place in range(count))
    found = Candidates(
        ids=tuple(range(count)),
        student_p=(*shares, 1 - sum(shares)),
        teacher_p=(*shares, 1 - sum(shares)),
        pushes={"tvd": (*(-share for share in shares), sum(shares))},
    )
    short = shortened(found, 29, most=4)
    assert short.ids == (0, 1, 2, 29)  # the token that comes stays
    assert sum(short.student_p) == pytest.approx(1.0)
    assert sum(short.pushes["tvd"]) == pytest.approx(0.0)
    assert shortened(found, 0, most=100).ids == tuple(range(17))  # fainter ones are no lines


def test_long_texts_are_cut_and_said(tmp_path: Path) -> None:
    box = _sandbox(*(_look(2 + number, number % 2) for number in range(100)))
    page = box.show(70).html()
    assert page.count("<tr>") == 1 + MOST_LINES
    assert "… and 60 more tokens: sandbox.frame has them all." in page
    assert "font-weight:bold" in page  # the chosen token is among them
    saved = box.show(70).save(tmp_path / "token.svg")
    assert saved.read_text() == box.show(70).svg()


def test_forms_for_notebook_and_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    box = _sandbox(_look(2), _look(3, 0))
    bundle = box._repr_mimebundle_()
    assert set(bundle) == {"text/html", "image/svg+xml", "text/plain"}
    assert bundle["text/plain"] == repr(box)
    lines = repr(box).splitlines()
    assert lines[0] == "my <model>: 2 losses on 2 tokens of 1 text"
    assert lines[1].split()[:3] == ["token", "forward_kl", "reverse_kl"]
    assert any(line.startswith("Token 0, ␣dog, behind <p>q") for line in lines)
    shown: list[dict[str, str]] = []
    monkeypatch.setattr("IPython.display.display", lambda forms, raw: shown.append(forms))
    box._ipython_display_()
    first, second = shown
    assert "<svg" not in first["text/html"]
    assert second["image/svg+xml"].startswith("<svg")
