"""Figures of an evaluation by hand, and the table that shows them."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from typing import Any

import pandas as pd
import pytest

from kdflow_lab.errors import DataError
from kdflow_lab.evaluate.report import HEADINGS, Evaluation, EvaluationTable


def _row(
    row: int, kind: str | None, tokens: int, kl: float, ce: float, agreement: int, **more: Any
):
    return {
        "row": row, "kind": kind, "tokens": tokens, "kl": kl, "ce": ce, "agreement": agreement,
        "correct": None, "prompt": "p", "answer": "a", **more,
    }  # fmt: skip


PARTS = [
    [_row(2, "sort", 5, 1.0, 5.0, 4, correct=False), _row(0, "add", 3, 0.5, 2.0, 3, correct=True)],
    [_row(1, "sort", 2, 0.5, 3.0, 1, correct=True)],
]


def _evaluation(name: str = "student") -> Evaluation:
    return Evaluation.merge(PARTS, name=name)


def test_the_ranks_rows_come_together_in_the_datas_order():
    one = _evaluation()
    assert one.frame["row"].tolist() == [0, 1, 2]
    assert one.frame.index.tolist() == [0, 1, 2]
    assert one.rows == 3


def test_an_idle_rank_adds_nothing():
    assert Evaluation.merge([[], *PARTS, []], name="x").rows == 3


def test_figures_by_hand():
    """Means over tokens, not over rows: a long answer counts more."""
    one = _evaluation()
    assert one.exact_match == pytest.approx(2 / 3)
    assert one.kl == pytest.approx(2.0 / 10)
    assert one.agreement == pytest.approx(8 / 10)
    assert one.perplexity == pytest.approx(math.exp(10.0 / 10))
    assert one.to_dict() == pytest.approx(
        {"rows": 3, "exact_match": 2 / 3, "kl": 0.2, "agreement": 0.8, "perplexity": math.e}
    )


def test_figures_of_each_kind():
    table = _evaluation().by_kind
    assert table.index.tolist() == ["add", "sort"]
    assert table.loc["sort", "rows"] == 2
    assert table.loc["sort", "exact_match"] == pytest.approx(0.5)
    assert table.loc["sort", "kl"] == pytest.approx(1.5 / 7)
    assert table.loc["add", "agreement"] == pytest.approx(1.0)


def test_without_generation_there_is_no_exact_match():
    one = Evaluation.merge([[_row(0, "add", 2, 0.2, 1.0, 1)]], name="x")
    assert math.isnan(one.exact_match)
    assert "exact_match -" in repr(one)
    assert one.kl == pytest.approx(0.1)


def test_rows_that_were_not_judged_do_not_count_as_wrong():
    rows = [_row(0, "a", 1, 0, 0, 1, correct=True), _row(1, "a", 1, 0, 0, 1)]
    assert Evaluation.merge([rows], name="x").exact_match == 1.0


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(DataError, match="Look at the split and the data"):
        Evaluation.merge([[], []], name="x")


def test_a_hopeless_model_has_an_infinite_perplexity_and_no_error():
    one = Evaluation.merge([[_row(0, "a", 1, 0.0, 5000.0, 0)]], name="x")
    assert one.perplexity == math.inf
    assert "perplexity inf" in repr(one)


def test_one_line_of_text():
    assert repr(_evaluation("my-student")) == (
        "my-student (3 rows): exact_match 66.7 %  kl 0.200  agreement 80.0 %  perplexity 2.718"
    )


def test_the_table_is_aligned_text():
    lines = repr(EvaluationTable([_evaluation("a"), _evaluation("longer name")])).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert all(heading in lines[0] for heading in HEADINGS)
    assert lines[1].split() == ["a", "3", "66.7", "%", "0.200", "80.0", "%", "2.718"]
    assert lines[2].startswith("longer name  ")


def test_other_names_can_be_given():
    table = EvaluationTable([_evaluation("a"), _evaluation("b")], ["before", "after"])
    assert repr(table).splitlines()[1].startswith("before")
    with pytest.raises(ValueError, match="zip"):
        repr(EvaluationTable([_evaluation("a")], ["one", "two"]))


def test_the_html_table_is_well_formed_and_escapes_names():
    name = '<script>alert("x")</script> & Söhne'
    html = EvaluationTable([_evaluation(name)])._repr_html_()
    assert "<script" not in html
    root = ElementTree.fromstring(html)
    assert [cell.text for cell in root.iter("th")] == list(HEADINGS)
    cells = [cell.text for cell in root.iter("td")]
    assert cells == [name, "3", "66.7 %", "0.200", "80.0 %", "2.718"]


def test_one_evaluation_shows_as_a_table_of_one():
    one = _evaluation()
    assert one._repr_html_() == EvaluationTable([one])._repr_html_()


def test_the_frame_is_pandas():
    assert isinstance(_evaluation().frame, pd.DataFrame)
