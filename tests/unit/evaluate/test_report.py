"""Figures of an evaluation by hand, and metrics that judge its answers."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from kdflow_lab.errors import ConfigError, DataError, MetricError
from kdflow_lab.evaluate.report import Evaluation


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


def test_the_frame_is_pandas():
    assert isinstance(_evaluation().frame, pd.DataFrame)


# -- tokenizers that differ -----------------------------------------------------------------------


def _across() -> Evaluation:
    rows = [
        _row(0, "a", 4, 1.0, 4.0, 2, compared=2, bytes=10),
        _row(1, "a", 6, 0.5, 6.0, 1, compared=1, bytes=6),
    ]
    return Evaluation.merge([rows], name="x")


def test_kl_is_a_mean_over_the_tokens_that_compare():
    one = _across()
    assert (one.kl, one.agreement) == (pytest.approx(1.5 / 3), pytest.approx(3 / 3))
    assert one.compared == pytest.approx(3 / 10)
    assert one.perplexity == pytest.approx(math.e)
    assert one.bits_per_byte == pytest.approx(10 / 16 / math.log(2))
    assert "bits_per_byte 0.902  compared 30.0 %" in repr(one)


def test_bits_per_byte_do_not_depend_on_the_cut():
    """The same text at the same cost, in few tokens and in many: perplexity moves, bits do not."""
    few = Evaluation.merge([[_row(0, "a", 2, 0, 8.0, 0, bytes=12)]], name="few")
    many = Evaluation.merge([[_row(0, "a", 8, 0, 8.0, 0, bytes=12)]], name="many")
    assert few.bits_per_byte == many.bits_per_byte == pytest.approx(8 / 12 / math.log(2))
    assert few.perplexity > 10 * many.perplexity


def test_with_one_tokenizer_all_tokens_compare():
    one = _evaluation()
    assert one.compared == 1.0 and not one.across
    assert math.isnan(one.bits_per_byte)  # these rows do not say how many bytes they have


# -- metrics --------------------------------------------------------------------------------------


def _answered(*answers: str | None) -> Evaluation:
    rows = [
        {**_row(n, "a", 1, 0.0, 0.0, 1), "answer": answer, "data": {"answers": ["yes"], "n": n}}
        for n, answer in enumerate(answers)
    ]
    return Evaluation.merge([rows[1:], rows[:1]], name="x")


def test_a_metric_gets_the_answer_and_its_row():
    seen = []

    def length(answer: str, row: dict[str, Any]) -> int:
        seen.append((answer, row["n"]))
        return len(answer)

    judged = _answered("yes", "no!!").judge(length)
    assert seen == [("yes", 0), ("no!!", 1)]
    assert judged.metrics == ("length",)
    assert judged.frame["length"].tolist() == [3.0, 4.0]
    assert judged.to_dict()["length"] == pytest.approx(3.5)
    assert judged.by_kind.loc["a", "length"] == pytest.approx(3.5)
    assert "length 3.500" in repr(judged)
    both = judged.judge({"again": length, "has": "contains"})
    assert both.metrics == ("length", "again", "has")
    assert both.to_dict()["has"] == pytest.approx(0.5)


def test_rows_without_an_answer_are_not_judged():
    judged = _answered("yes", None).judge("contains")
    assert judged.to_dict()["contains"] == 1.0
    assert judged.frame["contains"].isna().tolist() == [False, True]


def test_a_failing_metric_loses_nothing():
    before = _answered("yes", "no").judge("contains")

    def picky(answer: str, row: dict[str, Any]) -> float:
        return 1 / row["n"]

    with pytest.raises(MetricError, match=r"'picky' failed on row 0 \(answer 'yes'\): Zero"):
        before.judge(picky)
    with pytest.raises(MetricError) as told:
        before.judge({"size": lambda answer, row: len(answer), "picky": picky})
    assert told.value.evaluation.metrics == ("contains", "size")
    assert before.metrics == ("contains",)


def test_what_wrote_no_answers_cannot_be_judged():
    with pytest.raises(ConfigError, match="x wrote no answers that contains could judge"):
        _answered(None, None).judge("contains")
    with pytest.raises(ConfigError, match="generate=True"):
        _evaluation("x").judge("contains")
