"""Where runs parted on their probe texts, and their newest evaluations: numbers and forms."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import fakes
import inspections
import numpy as np
import pytest
import torch

from kdflow_lab.evaluate import probe_file
from kdflow_lab.evaluate.inspection import Inspection
from kdflow_lab.losses import Head, token_statistics
from kdflow_lab.run import Run
from kdflow_lab.widgets._compare_data import compared
from kdflow_lab.widgets._compare_probes import Probes, parted, probes
from kdflow_lab.widgets._compare_strips import html, text
from kdflow_lab.widgets._compare_tables import evaluations
from kdflow_lab.widgets.compare import Comparison

ROWS = ((3, 4), (2, 5))
TEACHER = -1
WORDS: dict[int, str] = {number: word for number, word in enumerate(inspections.WORDS)}


def _rows_and_head(count: int, seed: int) -> tuple[torch.Tensor, Head]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, 6, generator=generator)
    return hidden, Head(torch.randn(len(WORDS), 6, generator=generator))


def _arrays(
    student: int, *, teacher: int = 100, rows: tuple[tuple[int, int], ...] = ROWS
) -> dict[str, np.ndarray]:
    """A random student on texts that all share; `TEACHER` is a student that is the teacher."""
    arrays = inspections.random_arrays(rows, seed=7)
    labels = torch.from_numpy(arrays["labels"]).long()
    models = [
        _rows_and_head(len(labels), seed)
        for seed in (teacher if student == TEACHER else student, teacher)
    ]
    found = token_statistics(*models[0], *models[1], labels, k=4)
    named = {name: values.numpy() for name, values in found.items()}
    return arrays | {name: each.astype(arrays[name].dtype) for name, each in named.items()}


def _run(
    path: Path, arrays: dict[str, np.ndarray] | None = None, *events: fakes.Event, step: int = 8,
    texts: dict[int, str] | None = WORDS,
) -> Run:  # fmt: skip
    run = fakes.write_run(path, [*fakes.RUNNING, *events, fakes.FINISHED[-1]], fakes.steps(10))
    if arrays is not None:
        path_of_step = path / "probes" / f"{step}.safetensors"
        probe_file.save(path_of_step, arrays, step=step, k=4, texts=texts)
    return run


def _found(*runs: Run) -> Probes:
    found = probes(compared(runs))
    assert found is not None
    return found


# -- what is compared -----------------------------------------------------------------------------


def test_the_newest_probes_of_every_run_are_compared(tmp_path):
    a, b = _run(tmp_path / "a", _arrays(1)), _run(tmp_path / "b", _arrays(2), step=4)
    inspections.write_probes(tmp_path / "b", 3)  # older, of other texts
    found = _found(a, b)
    assert [(each.run.label, each.inspection.step) for each in found.seen] == [("a", 8), ("b", 4)]
    ones, twos = _arrays(1), _arrays(2)
    assert np.array_equal(found.kl, [ones["forward_kl"], twos["forward_kl"]])
    assert np.allclose(found.apart, np.abs(ones["forward_kl"] - twos["forward_kl"]))
    tops = [each["student_topk_ids"][:, 0] for each in (ones, twos)]
    assert np.array_equal(found.differs, tops[0] != tops[1])
    assert 0 < found.differs.sum() < len(found.differs)
    assert found.notes == []


def test_of_three_runs_the_extremes_are_apart(tmp_path):
    students = (TEACHER, 1, 2)
    found = _found(*(_run(tmp_path / f"{n}", _arrays(n)) for n in students))
    assert np.allclose(found.kl[0], 0, atol=1e-5)
    assert np.allclose(found.apart, found.kl.max(0) - found.kl.min(0))


def test_the_tokens_that_are_furthest_apart_come_first(tmp_path):
    teacher, student = _arrays(TEACHER), _arrays(1)
    found = _found(_run(tmp_path / "a", teacher), _run(tmp_path / "b", student))
    table = parted(found)
    rows = [[cell.text for cell in row] for row in table.rows]
    assert [cell.text for cell in table.headings[-3:]] == ["a", "b", "teacher"]
    assert len(rows) == 9  # answers alone: 4 + 5
    values = np.where(student["response"], student["forward_kl"], 0)  # the other one has none
    order = np.argsort(-values)[:9]
    assert [row[3] for row in rows] == [f"{values[at]:.3f}" for at in order]
    at = int(order[0])
    top = WORDS[int(student["student_topk_ids"][at, 0])].replace(" ", "␣").replace("\n", "↵")
    chance = np.exp(student["student_topk_logprobs"][at, 0])
    assert rows[0][5] == f"{values[at]:.3f} → {top} {chance:.3f}"
    expected = rows[0][4].split(" → ")[1]
    assert rows[0][6] == expected  # the student that is the teacher expects what that expects
    in_second = at >= 6
    assert rows[0][:2] == (["11", str(at - 5)] if in_second else ["10", str(at + 1)])


def test_no_more_than_ten_tokens_are_listed(tmp_path):
    runs = [_run(tmp_path / f"{n}", _arrays(n, rows=((2, 30),))) for n in (1, 2)]
    assert len(parted(_found(*runs)).rows) == 10


def test_equal_students_part_nowhere(tmp_path):
    found = _found(*(_run(tmp_path / name, _arrays(1)) for name in "ab"))
    assert parted(found).rows == []
    assert "most at 0 of 4" in text(found)
    assert "<b>≠</b> ␣" not in html(found)


def test_other_teachers_are_said(tmp_path):
    found = _found(_run(tmp_path / "a", _arrays(1)), _run(tmp_path / "b", _arrays(1, teacher=101)))
    assert found.notes == ["The teachers differ: each KL is to the run's own teacher."]
    assert [cell.text for cell in parted(found).headings[-2:]] == ["a's teacher", "b's teacher"]


def test_a_teacher_with_other_tokens_has_a_kl_alone(tmp_path):
    def cut(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        kept = {n: a for n, a in arrays.items() if "teacher" not in n}
        kl = np.where(kept["response"], kept["forward_kl"], np.nan).astype(np.float32)
        return {n: a for n, a in kept.items() if n not in ("reverse_kl", "jsd")} | {
            "forward_kl": kl
        }

    found = _found(*(_run(tmp_path / f"r{n}", cut(_arrays(n))) for n in (1, 2)))
    assert [cell.text for cell in parted(found).headings[4:]] == ["r1", "r2"]
    assert "r1: The teacher reads other tokens" in text(found)
    assert "nan" not in html(found) + text(found)


# -- what is not ----------------------------------------------------------------------------------


def test_there_is_nothing_without_probes_and_for_one_run(tmp_path):
    a, b, c = _run(tmp_path / "a"), _run(tmp_path / "b"), _run(tmp_path / "c", _arrays(1))
    assert probes(compared([a, b])) is None
    assert probes(compared([c])) is None
    assert "robe" not in repr(Comparison([a, b]))
    assert "robe" not in Comparison([a, b])._repr_mimebundle_()["text/html"]


def test_a_run_without_probes_is_named(tmp_path):
    found = _found(_run(tmp_path / "a"), _run(tmp_path / "b", _arrays(1)))
    assert found.seen == []
    assert found.notes == ["a has no probes; probe_every writes them."]
    assert "a has no probes" in html(found)
    assert "a has no probes" in text(found)


def _other_rows(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return arrays | {"row_index": np.array([1, 2], np.int32)}


def _other_tokens(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return arrays | {"labels": (arrays["labels"] + 1) % len(WORDS)}


def _no_teacher(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    alone = inspections.random_arrays(ROWS, seed=7, teacher=False)
    return {name: arrays[name] for name in alone}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_other_rows, "it was probed on rows 1, 2, a on 10, 11"),
        (_other_tokens, "its probe rows have other tokens than those of a"),
        (_no_teacher, "it has no teacher to compare with"),
    ],
)
def test_what_cannot_be_compared_is_left_out_with_the_reason(tmp_path, change, reason):
    runs = [_run(tmp_path / "a", _arrays(1)), _run(tmp_path / "b", change(_arrays(2)))]
    assert _found(*runs).notes[0].startswith(f"b is left out: {reason}")
    found = _found(*runs, _run(tmp_path / "c", _arrays(3)))
    assert [each.run.label for each in found.seen] == ["a", "c"]  # those still are


def test_the_same_ids_of_another_tokenizer_are_other_tokens(tmp_path):
    words = {token_id: f"{word}!" for token_id, word in WORDS.items()}
    found = _found(_run(tmp_path / "a", _arrays(1)), _run(tmp_path / "b", _arrays(2), texts=words))
    assert "or tokenizer" in found.notes[0]


def test_a_damaged_file_is_said(tmp_path):
    runs = [_run(tmp_path / name, _arrays(n)) for n, name in enumerate("ab")]
    (tmp_path / "b" / "probes" / "8.safetensors").write_bytes(b"no probes")
    assert "is no probe file" in _found(*runs).notes[0]


# -- forms ----------------------------------------------------------------------------------------


def test_every_form_of_a_comparison_shows_them(tmp_path):
    comparison = Comparison([_run(tmp_path / f"r{n}", _arrays(n)) for n in (1, 2)])
    bundle = comparison._repr_mimebundle_()
    for form in ("text/html", "text/plain", "image/svg+xml"):
        assert "Where they part most" in bundle[form]
    for form in ("text/html", "text/plain"):
        assert "Probe texts, r1 at step 8, r2 at step 8" in bundle[form]
    ElementTree.fromstring(bundle["image/svg+xml"])


def test_strips_have_every_answer_and_mark_where_students_differ(tmp_path):
    found = _found(*(_run(tmp_path / f"r{n}", _arrays(n)) for n in (1, 2)))
    shown = html(found)
    root = ElementTree.fromstring(shown.replace("&nbsp;", " "))
    titles = [each.get("title") for each in root.iter("span") if each.get("title")]
    assert len(titles) == 2 * len(found.apart)  # the prompts are short enough to be shown
    assert titles[0] == f"r1 expects {found.seen[0].expects(0)}"
    assert shown.count("<b>≠</b>") == 1 + found.differs.sum()  # the legend's too
    printed = text(found)
    assert printed.count("≠") == 1 + found.differs.sum()
    assert max(map(len, printed.splitlines())) <= 120
    first = next(line for line in printed.splitlines() if line.startswith("r1"))
    assert first.split()[1:] == [f"{kl:.2f}" for kl in found.kl[0, :6]]


def test_hostile_texts_and_names_stay_text(tmp_path):
    evil = ["<script>x()</script>", "\x1b[31m", "\u202e", "\ud800", '"><u>', "a" * 100_000]
    words = WORDS | {number: evil[number % len(evil)] for number in WORDS}
    path = tmp_path / "<img src=x>"
    runs = [
        _run(path, _arrays(1), texts=words),
        _run(tmp_path / "b", _arrays(2), texts=words),
    ]
    bundle = Comparison(runs)._repr_mimebundle_()
    for form in ("text/html", "image/svg+xml"):
        assert "<script" not in bundle[form]
        assert "<img" not in bundle[form]
        assert "<u>" not in bundle[form]
        bundle[form].encode()
    for bad in "\x1b\u202e":
        assert not any(bad in bundle[form] for form in ("text/html", "text/plain"))
    shown = html(_found(*runs))
    assert len(shown.encode()) < 50_000
    tags = {each.tag for each in ElementTree.fromstring(shown.replace("&nbsp;", " ")).iter()}
    assert tags == {"div", "p", "span", "b"}


@pytest.mark.parametrize("rows", [((4, 3000),), tuple([(10, 90)] * 40)])
def test_long_texts_are_bounded(tmp_path, rows):
    runs = [_run(tmp_path / f"run-{n}", _arrays(n, rows=rows)) for n in range(8)]
    found = _found(*runs)
    shown, printed = html(found), text(found)
    assert len(shown.encode()) + len(parted(found).html().encode()) < 100_000
    assert len(printed) < 100_000
    assert "more tokens" in shown
    assert "more tokens" in printed
    assert ("28 more texts" in shown) == (len(rows) == 40)


# -- evaluations ----------------------------------------------------------------------------------


def test_the_newest_evaluation_of_each_run_is_listed(tmp_path):
    def evaluated(step: int, kl: float | None, agreement: float | None) -> fakes.Event:
        scores = {"kl": kl, "agreement": agreement, "ce": 1.5, "perplexity": 4.4817, "rows": 16}
        return "evaluated", {"step": step, **scores}

    a = _run(tmp_path / "a", None, evaluated(4, 0.1, 0.9), evaluated(8, 0.25, 0.625))
    b, sft = _run(tmp_path / "b"), _run(tmp_path / "sft", None, evaluated(8, None, None))
    rows = [[cell.text for cell in row] for row in evaluations(compared([a, b, sft])).rows]
    assert rows == [
        ["a", "8", "0.25", "62.5 %", "1.5", "4.482", "16"],
        ["b", *"––––––"],
        ["sft", "8", "–", "–", "1.5", "4.482", "16"],
    ]
    assert evaluations(compared([b])).rows == []
    assert "Newest evaluation" in repr(Comparison([a, b]))


def test_names_come_from_the_run_that_knows_them(tmp_path):
    found = _found(_run(tmp_path / "a", _arrays(1), texts=None), _run(tmp_path / "b", _arrays(2)))
    labels = _arrays(1)["labels"]
    known = Inspection(_arrays(2), WORDS)
    assert found.name(0) == known.text(labels[0]).replace(" ", "␣").replace("\n", "↵")
