"""Benchmarks of the lm-evaluation-harness on a real model, with tasks of a local folder."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import kdflow_lab as kd
from kdflow_lab.errors import ConfigError, ModelError

installed = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not installed, reason="the extra lm-eval is not installed")
ROWS = 10
TASK = """
task: zoo_sums
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def _rows() -> list[dict[str, Any]]:
    return [
        {"question": f"{n} + 1 is", "choices": [f" {n + 1}", f" {n + 3}"], "label": n % 2}
        for n in range(ROWS)
    ]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "sums.jsonl"
    data.write_text("\n".join(map(json.dumps, _rows())), encoding="utf-8")
    (folder / "sums.yaml").write_text(TASK.format(data=data), encoding="utf-8")
    return folder


@needs_harness
@pytest.mark.filterwarnings("ignore")
def test_figures_are_those_of_the_model(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracy by the harness, and here by the log-probabilities of a plain model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = kd.lm_eval("zoo/student", "zoo_sums", include_path=tasks, batch_size=4)
    (line,) = found.to_dict("records")
    folder = kd.zoo.path("zoo/student")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    right = 0
    for row in _rows():
        scores = []
        for choice in row["choices"]:
            start = len(tokenizer(row["question"])["input_ids"])
            ids = tokenizer(row["question"] + choice)["input_ids"]
            with torch.no_grad():
                logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            scores.append(sum(logps[at - 1, ids[at]].item() for at in range(start, len(ids))))
        right += scores.index(max(scores)) == row["label"]
    assert line["value"] == pytest.approx(right / ROWS)
    assert (line["task"], line["metric"], line["rows"]) == ("zoo_sums", "acc", ROWS)
    p = right / ROWS
    assert line["stderr"] == pytest.approx(math.sqrt(p * (1 - p) / (ROWS - 1)))
    limited = kd.lm_eval("zoo/student", ["zoo_sums"], include_path=tasks, limit=3)
    assert limited["rows"].tolist() == [3]


@needs_harness
def test_what_is_not_there_is_said(tasks: Path) -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'zoo_sums'.*own need include_path"):
        kd.lm_eval("zoo/student", "zoo_sum", include_path=tasks)
    with pytest.raises(ConfigError, match="is no folder with tasks"):
        kd.lm_eval("zoo/student", "zoo_sums", include_path=tasks / "sums.yaml")
    with pytest.raises(ConfigError, match="is no run: it has no checkpoint of step 3"):
        kd.lm_eval("zoo/student", "zoo_sums", include_path=tasks, step=3)
    with pytest.raises((ConfigError, ModelError), match="no-such-model"):
        kd.lm_eval("./no-such-model", "zoo_sums", include_path=tasks)


def test_a_missing_package_is_told_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "lm_eval" else found(name)
    )
    with pytest.raises(ConfigError, match=r"pip install 'kdflow-lab\[lm-eval\]'"):
        kd.lm_eval("zoo/student", "hellaswag")
