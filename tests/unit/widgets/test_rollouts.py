"""The rollout browser: finding answers in a file that grows, and its static forms."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from kdflow_lab.commands import find
from kdflow_lab.errors import ConfigError, DataError
from kdflow_lab.rundir import RunDirectory
from kdflow_lab.session import Session
from kdflow_lab.widgets._rollouts_data import Answer, one_line, pinned_page, readable
from kdflow_lab.widgets._rollouts_index import RolloutIndex, Wanted
from kdflow_lab.widgets.rollouts import RolloutBrowser, browse

HOSTILE = '<script>alert(1)</script>\u202e\x00\x1b[31m</svg>"&'


def answer(step: int, row: int = 0, **changes: Any) -> dict[str, Any]:
    """A line as the journal writes it."""
    tokens = changes.pop("tokens", ["The", " cat", "\n", "</s>"])
    kl = changes.pop("kl", [0.1, 0.9, None, 2.0])
    known = [one for one in kl or [] if one is not None]
    head = {
        "schema": 1,
        "step": step,
        "attempt": changes.pop("attempt", 1),
        "version": changes.pop("version", step - 1),
        "row": row,
        "length": len(tokens),
        "finished": changes.pop("finished", True),
        "kl_mean": sum(known) / len(known) if known else None,
        "kl_max": max(known, default=None),
        **({"pinned": True} if changes.pop("pinned", False) else {}),
    }
    return head | {
        "prompt": f"<|im_start|>user\nAsk {row}?<|im_end|>\n<|im_start|>assistant\n",
        "text": "".join(tokens[:-1]),
        "ids": list(range(len(tokens))),
        "tokens": tokens,
        "logprobs": [-0.5] * len(tokens),
        "kl": kl,
        "teacher_ids": [0, 9, None, 8],
        "teacher_tokens": ["The", " dog", None, "."],
        "teacher_top_logprobs": [-0.1, -0.05, None, -0.2],
        "teacher_logprobs": [-0.1, -6.0, None, -3.0],
        **changes,
    }


@pytest.fixture
def run(make_run):
    """An ended run without answers yet, and what appends one."""
    return make_run(steps=3)


def _write(run: Any, *lines: dict[str, Any]) -> None:
    for line in lines:
        run.directory.rollout(line)


# -- the index ------------------------------------------------------------------------------------


def test_it_reads_on_where_it_stopped_and_waits_for_the_end_of_a_line(run):
    index = RolloutIndex(run.path / "rollouts.jsonl")
    assert index.read() == 0
    _write(run, answer(1), answer(2))
    assert (index.read(), len(index), index.read()) == (2, 2, 0)
    half = json.dumps(answer(3, prompt="é" * 10), ensure_ascii=False).encode()
    with index.path.open("ab") as file:
        file.write(half[:60])
    assert index.read() == 0
    with index.path.open("ab") as file:
        file.write(half[60:] + b"\n")
    assert index.read() == 1
    assert index.line(2)["prompt"] == "é" * 10


def test_torn_lines_are_skipped(run):
    index = RolloutIndex(run.path / "rollouts.jsonl")
    _write(run, answer(1))
    with index.path.open("ab") as file:
        file.write(b'{"schema": 1, "step"\n[1]\n\n')
    _write(run, answer(2))
    assert index.read() == 2
    assert [index.line(at)["step"] for at in (0, 1)] == [1, 2]


def test_the_head_of_a_line_is_enough(run):
    """A prompt may hold what looks like the end of the head, and be as long as it likes."""
    index = RolloutIndex(run.path / "rollouts.jsonl")
    tricky = ', "prompt": {"step": 9, "ids": ' + "x" * 10_000
    _write(run, answer(4, row=7, prompt=tricky, finished=False))
    index.read()
    (entry,) = index.entries()
    assert (entry.step, entry.row, entry.length, entry.finished) == (4, 7, 4, False)
    assert entry.kl_mean == pytest.approx(1.0)
    assert index.line(0)["prompt"] == tricky
    assert index.select(Wanted(text="X" * 50)) == [0]


def test_files_of_older_versions_are_read(run):
    new = ("length", "kl_mean", "kl_max", "tokens", "teacher_ids", "teacher_tokens")
    new += ("teacher_top_logprobs", "teacher_logprobs")
    old = {name: value for name, value in answer(2).items() if name not in new}
    _write(run, old, old | {"kl": None})
    index = RolloutIndex(run.path / "rollouts.jsonl")
    assert index.read() == 2
    first, second = index.entries()
    assert (first.length, first.kl_max, first.kl_mean) == (4, 2.0, pytest.approx(1.0))
    assert math.isnan(second.kl_max)
    found = Answer.read(index, 0)
    assert found.tokens == ["#0", "#1", "#2", "#3"]
    assert found.teacher_tokens == [None] * 4
    assert (found.first_diverging(), found.worst) == (1, 3)
    browser = RolloutBrowser(run)
    assert "What the teacher would have written is not known" in browser.html()


def test_selection_filters_and_sorts(run):
    _write(
        run,
        answer(1, 0, kl=[0.1]),
        answer(2, 1, kl=[0.9], finished=False),
        answer(3, 2, kl=None),
        answer(3, 0, pinned=True, version=3),
        answer(4, 3, kl=[0.5], version=1, text="Some Dog"),
    )
    index = RolloutIndex(run.path / "rollouts.jsonl")
    index.read()
    assert index.select(Wanted()) == [4, 2, 1, 0]
    assert index.select(Wanted(), descending=False) == [0, 1, 2, 4]
    assert index.select(Wanted(), "kl_max") == [1, 4, 0, 2]  # unknown ones last
    assert index.select(Wanted(), "kl_max", descending=False) == [0, 4, 1, 2]
    assert index.select(Wanted(), "staleness") == [4, 2, 1, 0]
    assert index.select(Wanted(pinned=True)) == [3]
    assert index.select(Wanted(pinned=None, first_step=3, last_step=3)) == [3, 2]
    assert index.select(Wanted(finished=False)) == [1]
    assert index.select(Wanted(kl=0.5)) == [4, 1]
    assert index.select(Wanted(text="dog")) == [4]
    assert index.select(Wanted(text="ASK 1?")) == [1]
    assert index.select(Wanted(text='"schema"')) == []  # only prompts and answers are searched
    with pytest.raises(ConfigError, match="kl_mean"):
        index.select(Wanted(), "kl_men")


def test_what_a_later_attempt_did_again_counts_no_more(run):
    _write(run, answer(1), answer(2), answer(3), answer(3, attempt=2), answer(4, attempt=2))
    index = RolloutIndex(run.path / "rollouts.jsonl")
    index.read()
    assert index.select(Wanted(), later=[(2, 2)]) == [4, 3, 1, 0]


def test_a_line_that_is_gone_is_said(run):
    index = RolloutIndex(run.path / "rollouts.jsonl")
    _write(run, answer(1))
    index.read()
    with pytest.raises(DataError, match="There is no answer 1"):
        index.line(1)
    index.path.write_text("")
    with pytest.raises(DataError, match="the file was changed"):
        index.line(0)


def test_a_hundred_thousand_answers_open_fast(tmp_path: Path):
    path = tmp_path / "rollouts.jsonl"
    line = json.dumps(answer(1, tokens=["tok"] * 64, kl=[0.1] * 64)).encode()
    path.write_bytes((line + b"\n") * 100_000)
    index = RolloutIndex(path)
    start = time.perf_counter()
    assert index.read() == 100_000
    assert index.line(99_999)["length"] == 64
    assert len(index.select(Wanted(), "kl_max")) == 100_000
    assert time.perf_counter() - start < 15  # 2 s on a quiet machine


# -- the browser ----------------------------------------------------------------------------------


def test_the_frame_has_the_numbers(run):
    _write(run, answer(1), answer(2, 5, kl=None, version=0), answer(3, pinned=True, version=3))
    frame = browse(run).frame
    assert frame["step"].tolist() == [1, 2, 3]
    assert frame["staleness"].tolist() == [0, 1, 0]
    assert frame["kl_max"].isna().tolist() == [False, True, False]
    assert frame["pinned"].tolist() == [False, False, True]
    assert frame["counts"].tolist() == [True] * 3


def test_a_run_that_never_writes_is_refused(make_run, tmp_path):
    with pytest.raises(DataError, match="on_policy=True"):
        make_run(steps=1).rollouts()
    directory = RunDirectory(tmp_path / "on-policy")
    directory.create({"on_policy": True})
    from kdflow_lab.run import Run

    assert "no answers yet" in repr(Run(directory.path).rollouts())


def test_the_twin_shows_the_correction_and_the_pinned_prompts(run):
    _write(
        run,
        answer(1, 1, kl=[0.1, 0.2, None, 0.3]),
        answer(2, 2),
        answer(1, 3, pinned=True, version=1, tokens=["a", "b", "</s>"], kl=None),
        answer(3, 3, pinned=True, version=3, tokens=["a", "c", "</s>"], kl=None),
    )
    bundle = run.rollouts()._repr_mimebundle_()
    assert set(bundle) == {"text/html", "image/svg+xml", "text/plain"}
    said = (
        "Token 2 is the first that reaches 0.5 nats: 0.900. The teacher would have written "
        "␣dog (p 0.951) instead of ␣cat (p 0.002)."
    )
    for form in bundle.values():
        assert said in form
        assert "Answer 1: step 2, row 2, 4 tokens, ended" in form
    assert "step 3" in bundle["text/html"]
    assert "a<b>c&lt;/s&gt;</b>" in bundle["text/html"]
    assert "Ask 2?" in bundle["text/html"] and "im_start|&gt;user" in bundle["text/html"]
    ElementTree.fromstring(bundle["image/svg+xml"])


def test_pinned_prompts_are_compared_from_where_they_differ(run):
    for step, last in ((2, "b"), (4, "b"), (6, "c")):
        _write(run, answer(step, 3, pinned=True, version=step, tokens=["a", last], kl=None))
    index = RolloutIndex(run.path / "rollouts.jsonl")
    index.read()
    page = pinned_page(index)
    assert (page["steps"], page["before"], page["after"]) == ([2, 4, 6], 2, 6)
    assert (page["rows"][0]["shared"], page["rows"][0]["same"]) == (1, False)
    assert pinned_page(index, 2, 4)["rows"][0]["same"]
    assert pinned_page(index, 3, 99)["before"] == 2  # no such checkpoint: the first


def test_hostile_text_is_inert_in_every_form(run):
    tokens = [HOSTILE] * 4
    _write(run, answer(1, prompt=HOSTILE, text=HOSTILE, tokens=tokens, teacher_tokens=tokens))
    _write(run, answer(1, prompt=HOSTILE, tokens=tokens, pinned=True, version=1))
    browser = run.rollouts()
    for form in (browser.html(), browser.svg(), repr(browser)):
        assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", form)
    for form in (browser.html(), browser.svg()):
        assert "<script" not in form
    ElementTree.fromstring(browser.svg())


def test_a_long_answer_is_cut_to_what_a_notebook_can_carry(run):
    count = 20_000
    long: dict[str, Any] = {name: [None] * count for name in ("teacher_ids", "teacher_tokens")}
    long |= {name: [-1.0] * count for name in ("teacher_top_logprobs", "teacher_logprobs")}
    _write(run, answer(1, tokens=["word "] * count, kl=[0.5] * count, **long))
    browser = run.rollouts()
    assert len(browser.html()) + len(browser.svg()) < 300_000
    assert "19,600 more tokens" in browser.html()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb c", "a\nb c"),
        ("a\tb\u202e\x00", "a⇥b\\u202e\\x00"),
        ("é e\u0301 東", "é e\u0301 東"),
    ],
)
def test_prompts_keep_their_lines_and_hide_nothing(text, shown):
    assert readable(text) == shown
    assert readable("x" * 7000).startswith("… x")


def test_a_list_shows_one_line():
    assert one_line("a\nb c") == "a↵b c"
    assert one_line("") == ""
    assert one_line("x" * 100) == "x" * 79 + "…"


# -- the live view --------------------------------------------------------------------------------


def _ask(widget: Any, **message: Any) -> None:
    """As the browser's `model.send` arrives."""
    widget._handle_custom_msg(message, [])


def test_the_page_asks_for_lists_and_answers(run):
    _write(run, *(answer(step, step) for step in range(1, 26)), answer(26, kl=[3.0, 0.0, 0.0, 0.0]))
    browser = run.rollouts()
    widget = browser.widget = browser._live()
    try:
        assert not widget.live
        assert widget.listing["count"] == 26
        assert [row["step"] for row in widget.listing["rows"]] == list(range(26, 16, -1))
        assert widget.answer["step"] == 26  # the most diverging of the first page
        assert widget.answer["same"] == [0]
        _ask(widget, kind="list", asked=3, order="step", descending=False, start=20, kl=0.5)
        assert widget.listing["asked"] == 3
        assert [row["step"] for row in widget.listing["rows"]] == list(range(21, 27))
        _ask(widget, kind="answer", at=4)
        assert (widget.answer["row"], widget.answer["tokens"][1]) == (5, "␣cat")
        assert browser._chosen().at == 4  # the twin shows what the page does
        _ask(widget, kind="answer", at=99)
        assert "There is no answer 99" in widget.note
        _ask(widget, kind="list", order="kl")
        assert "order" in widget.note
        _ask(widget, kind="list", asked=4)
        assert widget.note == ""
        widget.threshold = 0.95
        assert browser.threshold == 0.95
    finally:
        widget.close()


def test_new_answers_come_while_the_run_lives(make_run):
    run = make_run(steps=1, state="running")
    browser = RolloutBrowser(run)
    widget = browser._live()
    try:
        assert widget.live and widget.listing["count"] == 0 and widget.answer == {}
        _write(run, answer(1))
        _until(lambda: widget.answer.get("step") == 1)
        _write(run, answer(2), answer(2, pinned=True, version=2))
        _until(lambda: widget.listing["count"] == 2 and widget.pinned.get("steps") == [2])
        assert widget.answer["step"] == 1  # nobody is taken away from what they look at
        run.directory.event("finished")
        _until(lambda: not widget.live)
    finally:
        widget.close()


def _until(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- the command ----------------------------------------------------------------------------------


def _command(made: Any, **given: Any) -> Any:
    return find("rollouts", "%kdflow").call(Session(), {"dir": str(made.path.parent), **given})


def test_the_command_shows_a_run_and_asks_for_prompts(run):
    _write(run, answer(1))
    assert _command(run, run="my-run").run.path == run.path
    assert isinstance(_command(run), RolloutBrowser)  # the newest
    with pytest.raises(ConfigError, match="takes no other options"):
        _command(run, run="my-run", rows=3)
    with pytest.raises(ConfigError, match="Give prompts"):
        _command(run, temperature=0.5)
