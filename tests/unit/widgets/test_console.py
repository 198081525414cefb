"""An inspection in a terminal: colours only there, numbers always, nothing that a token does."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from inspections import random_arrays, random_inspection

from kdflow_lab.errors import ConfigError
from kdflow_lab.evaluate.inspection import QUANTITIES, Inspection
from kdflow_lab.widgets._console import Palette, Printed, text
from kdflow_lab.widgets._divergence_scale import ink

SGR = re.compile(r"\x1b\[[\d;]*m")
HOSTILE = (
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m",
    "\u202eright to left\u2066",
    "\ud83d",
    "<script>alert(1)</script>",
    "\r\x00\x08\x7f",
    "z" * 100_000,
    "\u0301\u0301",
    "\n\n",
    "",
    "\u200b\u2028\u00ad",
    "\U0001f469\u200d\U0001f52c",
)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals_that_want_them() -> None:
    terminal = _Terminal()
    assert Palette.of(terminal, {}).depth == 8
    assert Palette.of(terminal, {"COLORTERM": "truecolor"}).depth == 24
    assert Palette.of(terminal, {"COLORTERM": "truecolor", "NO_COLOR": "1"}).depth == 0
    assert Palette.of(terminal, {"NO_COLOR": ""}).depth == 8  # no-color.org: empty means not set
    assert Palette.of(terminal, {"TERM": "dumb"}).depth == 0
    assert Palette.of(io.StringIO(), {"COLORTERM": "truecolor"}).depth == 0


def test_what_is_printed_obeys_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    printed = Printed(random_inspection(), "jsd")
    assert "\x1b" not in str(printed)
    monkeypatch.setattr("sys.stdout", _Terminal())
    assert SGR.search(str(printed))
    assert "\x1b" not in repr(random_inspection()), "a notebook's text has no colours"


@pytest.mark.parametrize("depth", [0, 8, 24])
@pytest.mark.parametrize("quantity", list(QUANTITIES))
def test_tokens_are_inert(depth: int, quantity: str) -> None:
    """What is left behind the colours is printable, one line of the text a line of the terminal."""
    found = random_inspection(HOSTILE, rows=((3, 20), (1, 9)))
    shown = text(found, quantity, palette=Palette(depth))
    plain = SGR.sub("", shown)
    assert (plain == shown) == (depth == 0)
    for line in plain.split("\n"):
        assert line.isprintable(), ascii(line)
    assert max(len(line) for line in plain.split("\n")) < 2000, "long tokens are cut"
    assert "\\x1b[2J" in plain and "\\u202e" in plain
    for start in SGR.finditer(shown):
        assert re.fullmatch(r"\x1b\[(0|2|38;[\d;]+;48;[\d;]+)m", start[0])
    plain.encode("utf-8")


def test_numbers_stand_beside_the_colours() -> None:
    found = random_inspection()
    for palette in (Palette(), Palette(24)):
        shown = SGR.sub("", text(found, "forward_kl", palette=palette))
        headline, legend, *_ = shown.split("\n")
        mean = found.values("forward_kl")[found.arrays["response"]].mean()
        assert headline == (
            f"a-run at step 5: forward KL [nats] of 12 tokens in 2 texts, mean of the answers "
            f"{mean:.3g}"
        )
        assert "nats" in legend
        worst = found.worst("forward_kl", 1).iloc[0]
        (line,) = [one for one in shown.split("\n") if f"{worst['forward_kl']:.3g}  " in one]
        assert line.split()[:2] == [str(worst["row"]), str(worst["position"])]
        ids = found.arrays["teacher_topk_ids"][worst.name][:3]
        assert line.rstrip().count("%") == 6 and len(ids) == 3


def test_prompts_are_dim_and_answers_have_readable_colours() -> None:
    words = ("p0", "p1", "a0", "a1", "a2")
    arrays = random_arrays(((2, 3),), vocabulary=5)
    arrays["input_ids"][:], arrays["labels"][:] = [0, 1, 2, 3], [1, 2, 3, 4]
    arrays["forward_kl"][:] = [9.0, 0.0, 4.0, 8.0]
    shown = text(Inspection(arrays, dict(enumerate(words))), palette=Palette(24))
    body = shown.split("\n")[4]
    pieces = re.findall(r"(?:\x1b\[([\d;]+)m)?([pa]\d)", body)
    assert [word for _, word in pieces] == list(words)
    codes = [code for code, _ in pieces]
    assert codes[0] == codes[1] == "2", "a prompt is dim, however high its value"
    assert codes[2] in ("", "0"), "what agrees has no colour"
    assert codes[3] != codes[4]
    for code in codes[3:]:
        front, ground = re.findall(r"[34]8;2;(\d+);(\d+);(\d+)", code)
        ground = "#" + "".join(f"{int(one):02x}" for one in ground)
        assert ink(ground) == "#" + "".join(f"{int(one):02x}" for one in front)


def test_long_texts_end_with_how_much_is_left_out() -> None:
    found = random_inspection(rows=((5, 200), (5, 300)))
    shown = text(found, most=100)
    assert "… 410 more tokens" in shown
    assert "-- row 11 --" not in shown
    assert "more tokens" not in text(found)


def test_a_run_without_a_teacher_shows_the_surprise() -> None:
    alone = random_inspection(teacher=False)
    shown = text(alone)
    assert "student's surprise" in shown and "teacher" not in shown
    with pytest.raises(ConfigError, match="Unknown quantity 'jsd'"):
        text(alone, "jsd")


def test_nothing_stands_out() -> None:
    arrays = random_arrays()
    arrays["forward_kl"] = np.zeros_like(arrays["forward_kl"])
    assert "No token stands out by forward KL" in text(Inspection(arrays))
