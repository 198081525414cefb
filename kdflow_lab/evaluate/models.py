"""Evaluations of one model or of several: their names, their table, their metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kdflow_lab.errors import ConfigError, DataError, MetricError, unknown_name
from kdflow_lab.evaluate.report import Evaluation, same_rows
from kdflow_lab.evaluate.table import EvaluationTable


def named(model: Any, against: str | None, name_of: Callable[[Any], str]) -> dict[str, Any]:
    """Return the models that are asked for by the names they have in tables.

    Args:
        model: One, a list of them, or a mapping of names to them.
        against: The name of one of several, or None.
        name_of: Names a model.

    Raises:
        ConfigError: None, two of one name, or `against` is no name of several.
    """
    if isinstance(model, Mapping):
        models = {str(name): one for name, one in model.items()}
    else:
        listed = list(model) if isinstance(model, list | tuple) else [model]
        names = [name_of(one) for one in listed]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(
                f"Two models are called {twice[0]!r}. Name them: model={{'before': …, 'after': …}}."
            )
        models = dict(zip(names, listed, strict=True))
    if not models:
        raise ConfigError("There is no model to evaluate: the list is empty.")
    if against is not None and against not in models:
        raise unknown_name("model", against, models)
    return models


def joined(
    found: Mapping[str, Any], against: str | None, *, several: bool
) -> Evaluation | EvaluationTable:
    """Put what the engines found together.

    Args:
        found: By model, the ranks' lines.
        against: See `EvaluationTable`.
        several: Make a table, also of one model.

    Raises:
        DataError: There was no row, or the models were not scored on the same rows.
    """
    evaluations = [Evaluation.merge(parts, name=name) for name, parts in found.items()]
    if not several:
        return evaluations[0]
    for one in evaluations[1:]:
        if not same_rows([evaluations[0], one]):
            raise DataError(
                f"{one.name} was scored on other rows than {evaluations[0].name}: "
                f"{one.rows} and {evaluations[0].rows}. Expected the same; pass data that does not "
                "change from one reading to the next, such as a file."
            )
    return EvaluationTable(evaluations, against=against)


def judged(
    result: Evaluation | EvaluationTable, metrics: Mapping[str, Any], kept_in: str
) -> Evaluation | EvaluationTable:
    """Judge answers.

    Args:
        result: With the answers.
        metrics: By name; may be none.
        kept_in: Where a user finds `result`, for the error.

    Raises:
        MetricError: A metric failed; `error.evaluation` is `result` with those that did not.
    """
    if not metrics:
        return result
    try:
        return result.judge(metrics)
    except MetricError as error:
        told = MetricError(
            f"{error} Nothing else is lost: {kept_in} has all other figures and the answers; "
            f"correct the metric, then {kept_in}.judge(metric)."
        )
        told.evaluation = error.evaluation
        raise told from error
