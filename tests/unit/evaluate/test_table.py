"""The table of several evaluations: intervals, paired differences, and its forms."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kdflow_lab.errors import ConfigError, DataError, MetricError
from kdflow_lab.evaluate.bootstrap import interval, paired_interval
from kdflow_lab.evaluate.models import joined, judged, named
from kdflow_lab.evaluate.report import Evaluation
from kdflow_lab.evaluate.table import EvaluationTable

ROWS = 60
HEADINGS = ["model", "rows", "exact match", "KL to teacher (nats)", "top-1 agreement", "perplexity"]


def _part(seed: int, better: float = 0.0, rows: int = ROWS, **more: Any) -> list[dict[str, Any]]:
    """Rows of random difficulty that is the same for all seeds; `better` moves the model."""
    hard = np.random.default_rng(0).random(rows)
    own = np.random.default_rng(seed)
    found = []
    for row in range(rows):
        tokens = 2 + row % 7
        loss = max(0.0, hard[row] - better + 0.05 * own.normal())
        found.append(
            {
                "row": row,
                "kind": "ab"[row % 2],
                "tokens": tokens,
                "compared": tokens,
                "bytes": 3 * tokens,
                "kl": tokens * loss,
                "ce": tokens * (loss + 0.5),
                "agreement": tokens - (loss > 0.5),
                "correct": bool(loss < 0.5),
                "prompt": f"p{row}",
                "answer": "yes" if loss < 0.5 else "no",
                "data": {"answers": ["yes"], "n": row},
                **more,
            }
        )
    return found


def _one(name: str, seed: int = 1, better: float = 0.0, **more: Any) -> Evaluation:
    return Evaluation.merge([_part(seed, better, **more)], name=name)


@pytest.fixture(scope="module")
def table() -> EvaluationTable:
    return EvaluationTable([_one("teacher", 1, 0.4), _one("student", 2), _one("run", 3, 0.2)])


def _line(table: EvaluationTable, model: str, figure: str) -> Any:
    frame = table.frame
    return frame[(frame["model"] == model) & (frame["figure"] == figure)].iloc[0]


def test_values_are_those_of_the_evaluations(table: EvaluationTable):
    for one in table.evaluations:
        for name, value in one.to_dict().items():
            if name != "rows":
                assert _line(table, one.name, name)["value"] == pytest.approx(value)


def test_intervals_of_means_over_rows_are_the_plain_bootstraps(table: EvaluationTable):
    """Exact match is a mean over rows: the interval that is known, up to the drawing."""
    run, before = table["run"].frame["correct"], table["student"].frame["correct"]
    line = _line(table, "run", "exact_match")
    plain = interval(run, seed=5)
    assert (line["low"], line["high"]) == pytest.approx(plain[1:], abs=0.035)
    paired = paired_interval(run.astype(float), before.astype(float), seed=5)
    assert line["difference"] == pytest.approx(paired.mean)
    ends = (line["difference_low"], line["difference_high"])
    assert ends == pytest.approx(paired[1:], abs=0.035)


def test_figures_of_tokens_are_bootstrapped_as_ratios(table: EvaluationTable):
    frame = table["run"].frame
    rng = np.random.default_rng(7)
    drawn = [frame.iloc[rng.integers(0, ROWS, ROWS)] for _ in range(1000)]
    kl = [one["kl"].sum() / one["tokens"].sum() for one in drawn]
    line = _line(table, "run", "kl")
    assert (line["low"], line["high"]) == pytest.approx(np.quantile(kl, [0.025, 0.975]), rel=0.06)
    perplexity = [math.exp(one["ce"].sum() / one["tokens"].sum()) for one in drawn]
    line = _line(table, "run", "perplexity")
    ends = np.quantile(perplexity, [0.025, 0.975])
    assert (line["low"], line["high"]) == pytest.approx(ends, rel=0.03)


def test_pairing_takes_the_difficulty_of_rows_out(table: EvaluationTable):
    line = _line(table, "run", "kl")
    assert line["against"] == "student"
    assert line["difference_high"] < 0 < line["high"] - line["low"]
    assert line["difference_high"] - line["difference_low"] < 0.6 * (line["high"] - line["low"])
    assert math.isnan(_line(table, "student", "kl")["difference"])


def test_differences_cover_the_truth_as_often_as_they_say():
    """100 pairs of models that differ by 0.1 nats a token; 95 % +- 4 standard errors."""
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(1000 + seed)
        tokens = rng.integers(1, 9, 50)
        hard = rng.exponential(size=50)
        kls = [tokens * (hard + gap + 0.3 * rng.normal(size=50)) for gap in (0.0, 0.1)]
        parts = [
            [{**row, "tokens": t, "compared": t, "kl": k} for row, t, k in zip(base, tokens, kl)]  # noqa: B905
            for base, kl in zip((_part(1, rows=50), _part(1, rows=50)), kls, strict=True)
        ]
        both = [Evaluation.merge([part], name=name) for part, name in zip(parts, "ab", strict=True)]
        line = _line(EvaluationTable(both, samples=300, seed=seed), "b", "kl")
        covered += line["difference_low"] <= 0.1 <= line["difference_high"]
    assert 0.86 <= covered / 100 <= 0.99


def test_one_model_compared_with_itself_differs_by_nothing():
    table = EvaluationTable([_one("a"), _one("b")])
    for figure in ("exact_match", "kl", "agreement", "perplexity"):
        line = _line(table, "b", figure)
        ends = (line["difference"], line["difference_low"], line["difference_high"])
        assert ends == (0.0, 0.0, 0.0)


def test_others_are_compared_with_the_student_or_the_first_or_who_is_named():
    assert EvaluationTable([_one("a"), _one("student")]).against == "student"
    assert EvaluationTable([_one("a"), _one("b")]).against == "a"
    assert EvaluationTable([_one("a"), _one("b")], against="b").against == "b"
    with pytest.raises(ConfigError, match="Did you mean 'before'"):
        EvaluationTable([_one("a")], ["before"], against="befor")


def test_names_are_one_for_each_and_differ():
    with pytest.raises(ConfigError, match="1 evaluations and 2 names"):
        EvaluationTable([_one("a")], ["one", "two"])
    with pytest.raises(ConfigError, match="Two evaluations are called 'a'"):
        EvaluationTable([_one("a"), _one("a")])
    with pytest.raises(ConfigError, match="at least one"):
        EvaluationTable([])
    with pytest.raises(ConfigError, match="Did you mean 'teacher'"):
        EvaluationTable([_one("teacher")])["techer"]


def test_other_rows_are_not_compared():
    table = EvaluationTable([_one("a"), _one("b", rows=20)])
    assert not table.paired
    assert set(table.frame["difference"].isna()) == {True}
    assert "not of the same rows" in repr(table)
    assert "not of the same rows" in table._repr_html_()
    other = [{**row, "prompt": "another"} for row in _part(1)]
    with pytest.raises(DataError, match="b was scored on other rows than a"):
        joined({"a": [_part(1)], "b": [other]}, None, several=True)


def test_text_is_aligned_and_says_both(table: EvaluationTable):
    lines = repr(table).splitlines()
    assert len({len(line) for line in lines[:-1]}) == 1
    assert all(heading in lines[0] for heading in HEADINGS)
    assert lines[1].startswith("teacher  ") and lines[4].startswith("Δ to student")
    assert re.search(r"\d\.\d % \[\d+\.\d, \d+\.\d\]", lines[1])
    assert re.search(r"\+\d+\.\d \[[+-]\d+\.\d, \+\d+\.\d\]", lines[5])
    assert "paired over rows" in lines[-1]


def test_bits_per_byte_stand_beside_perplexity_where_tokenizers_differ():
    short = [{**row, "tokens": 1, "compared": 1} for row in _part(1)]
    table = EvaluationTable([_one("a"), Evaluation.merge([short], name="b")])
    assert [figure.name for figure in table.figures][-2:] == ["bits_per_byte", "compared"]
    assert "bits per byte" in repr(table)
    assert "bits per byte" not in repr(EvaluationTable([_one("a"), _one("b")]))


def test_html_is_well_formed_escapes_names_and_draws_the_numbers(table: EvaluationTable):
    name = '<script>alert("x")</script> & Söhne'
    html = EvaluationTable(table.evaluations, ["teacher", "student", name])._repr_html_()
    assert "<script" not in html
    root = ElementTree.fromstring(html)
    assert [cell.text for cell in root.iter("th")] == HEADINGS
    assert [row[0].text for row in root.iter("tr")][1:] == ["teacher", "student", name]
    dots = [_place(bar) for bar in root.iter("span") if bar.get("aria-hidden")]
    assert len(dots) == 12
    assert dots[0] > dots[8] > dots[4]  # exact match of teacher, run, student
    assert dots[1] < dots[9] < dots[5]  # KL
    texts = "".join(root.itertext())
    assert texts.count("Δ") == 8 + 1  # two models times four figures, and the note


def _place(bar: ElementTree.Element) -> float:
    """Where a bar's last mark, the dot, begins: marks follow each other, some of them backwards."""
    end = begin = 0.0
    for mark in bar:
        style = dict(one.split(":") for one in (mark.get("style") or "").split(";"))
        begin = end + float(style["margin-left"].removesuffix("px"))
        end = begin + float(style["width"].removesuffix("px"))
    return begin


def test_a_table_of_one_has_intervals_and_no_bars():
    one = _one("a")
    html = one._repr_html_()
    assert "aria-hidden" not in html and "Δ" not in html and "[" in html
    assert repr(EvaluationTable([one])).splitlines()[-1] == "[95 % bootstrap interval over rows]"


def test_infinite_and_missing_figures_are_shown():
    bad = [{**row, "ce": 5000.0 * row["tokens"], "correct": None} for row in _part(1)]
    table = EvaluationTable([_one("a"), Evaluation.merge([bad], name="b")])
    line = _line(table, "b", "perplexity")
    assert (line["value"], line["low"], line["high"]) == (math.inf,) * 3
    assert math.isnan(_line(table, "b", "exact_match")["value"])
    assert "inf [inf, inf]" in repr(table)
    ElementTree.fromstring(table._repr_html_())


def test_saved_tables_hold_the_numbers(table: EvaluationTable, tmp_path: Path):
    csv = pd.read_csv(table.save(tmp_path / "t.csv"))
    assert csv["value"].tolist() == pytest.approx(table.frame["value"].tolist())
    saved = json.loads(table.save(tmp_path / "t.json").read_text())
    assert (saved["schema"], saved["level"]) == (1, 0.95)
    assert saved["lines"][4]["model"] == "student" and saved["lines"][4]["difference"] is None
    page = table.save(str(tmp_path / "t.html")).read_text()
    assert page.startswith("<!doctype html>") and "color-scheme:light dark" in page
    with pytest.raises(ConfigError, match=r"none of \.csv, \.json, \.html"):
        table.save(tmp_path / "t.xlsx")


# -- models by name, metrics ----------------------------------------------------------------------


def test_models_are_named():
    assert named("student", None, str) == {"student": "student"}
    assert named(["a", "b"], "b", str) == {"a": "a", "b": "b"}
    assert named({"before": "a"}, None, str) == {"before": "a"}
    with pytest.raises(ConfigError, match="Two models are called 'a'"):
        named(["a", "a"], None, str)
    with pytest.raises(ConfigError, match="the list is empty"):
        named([], None, str)
    with pytest.raises(ConfigError, match="Did you mean 'after'"):
        named({"after": "a"}, "aftr", str)


def test_metrics_are_a_column_of_the_table(table: EvaluationTable):
    judged_table = table.judge({"size": lambda answer, row: len(answer)})
    assert [figure.name for figure in judged_table.figures][:2] == ["exact_match", "size"]
    line = _line(judged_table, "run", "size")
    assert line["low"] < line["value"] < line["high"]


def test_a_metric_that_fails_says_where_the_rest_is(table: EvaluationTable):
    with pytest.raises(MetricError, match=r"lab\.x has all other figures.*lab\.x\.judge") as told:
        judged(table, {"bad": lambda answer, row: None}, "lab.x")
    assert told.value.evaluation is table
    assert judged(table, {}, "lab.x") is table
