"""Notebook variables reach a command as the objects they are; nothing unknown passes silently."""

from __future__ import annotations

from typing import Any

import pytest

from kdflow_lab.errors import ConfigError
from kdflow_lab.expand import lookup, split, yaml_body

ROWS = [{"text": "a"}]
NAMES: dict[str, Any] = {"rows": ROWS, "rate": 1e-4, "step_count": 30, "_private": 1}


def _words(line: str) -> list[Any]:
    """The words, with the objects in the places of whole words and their text inside others."""
    words, values = split(line, NAMES)
    result: list[Any] = []
    for word in words:
        if word in values:
            result.append(values[word])
            continue
        for key, value in values.items():
            word = word.replace(key, str(value))
        result.append(word)
    return result


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("distill --lr 3", ["distill", "--lr", "3"]),
        ("name='a b' \"c d\"", ["name=a b", "c d"]),
        ("$rate", [1e-4]),
        ("{rate * 2}", [2e-4]),
        ("{len(rows)}", [1]),
        ("lr=$rate name=run-$step_count", ["lr=0.0001", "name=run-30"]),
        ("name=run-{step_count + 1}", ["name=run-31"]),
        ("name=$$rate", ["name=$rate"]),
        ("cost=5$", ["cost=5$"]),
        ("loss_params={beta: 0.5}", ["loss_params={'beta': 0.5}"]),
        ('loss_params={"beta": 0.5}', ["loss_params={'beta': 0.5}"]),
        ("loss_params={}", ["loss_params={}"]),
        ("", []),
    ],
)
def test_split(line: str, words: list[Any]) -> None:
    assert _words(line) == words


def test_whole_value_is_the_object_itself() -> None:
    words, values = split("distill data=$rows", NAMES)
    assert values[words[1].removeprefix("data=")] is ROWS


def test_value_with_blanks_and_quotes_stays_one_word() -> None:
    words, values = split("data=$text", {"text": 'it\'s "one" word'})
    assert len(words) == 1
    assert list(values.values()) == ['it\'s "one" word']


def test_expression_does_not_change_the_notebook() -> None:
    names: dict[str, Any] = {"a": 1}
    split("{(b := a + 1)}", names)
    assert names == {"a": 1}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("$rte", r"The notebook has no variable 'rte'\. Did you mean 'rate'\?"),
        ("{rte * 2}", r"\{rte \* 2\} failed: NameError: .*Did you mean 'rate'\?"),
        ("{1 / 0}", r"\{1 / 0\} failed: ZeroDivisionError: division by zero"),
        ("{rows[3]}", r"\{rows\[3\]\} failed: IndexError"),
        ("name='a", r"No closing quotation in: name='a"),
    ],
)
def test_mistake_is_said_in_words(line: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        split(line, NAMES)


def test_lookup_does_not_offer_private_names() -> None:
    with pytest.raises(ConfigError) as caught:
        lookup("privat", {"_private": 1})
    assert str(caught.value) == "The notebook has no variable 'privat'."


# -- the cell -------------------------------------------------------------------------------------


def test_body_is_a_mapping_with_yaml_types() -> None:
    text = "loss: rkl\nsteps: 30  # few\nbetas: [0.9, 0.98]\npacking: false\nname: null\n"
    assert yaml_body(text, {}) == {
        "loss": "rkl",
        "steps": 30,
        "betas": [0.9, 0.98],
        "packing": False,
        "name": None,
    }


@pytest.mark.parametrize("text", ["", "\n", "# only words\n"])
def test_empty_body_is_no_option(text: str) -> None:
    assert yaml_body(text, {}) == {}


def test_variable_in_the_body_is_the_object_also_deep_inside() -> None:
    body = yaml_body("data: $rows\nbetas: [$rate, {a: $rate}]\n", NAMES)
    assert body["data"] is ROWS
    assert body["betas"] == [1e-4, {"a": 1e-4}]


def test_variable_inside_a_text_of_the_body_is_its_text() -> None:
    body = yaml_body("name: run-$step_count\ndata: $$rate\nsplit: 5$\n", NAMES)
    assert body == {"name": "run-30", "data": "$rate", "split": "5$"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr: $rte", r"The notebook has no variable 'rte'\. Did you mean 'rate'"),
        ("name: run-$rte", r"The notebook has no variable 'rte'"),
        ("steps: 3\nlr: 1\nsteps: 4\n", r"Option 'steps' is given twice"),
        ("steps: 3\nlr: [1\n", r"The cell is no YAML in line 4: "),
        ("steps: 3\n\tlr: 1\n", r"The cell is no YAML in line 3: "),
        ("just words", r"The cell must hold options as YAML, one a line"),
        ("- 1\n- 2\n", r"The cell must hold options as YAML"),
        ("name: a\x07b", r"The cell is no YAML: "),
        ("lr: !!python/object/apply:os.getcwd []", r"The cell is no YAML in line 2: could not"),
        ("lr: !!python/name:os.system", r"The cell is no YAML in line 2: could not"),
    ],
)
def test_mistake_in_the_body_is_said_with_its_line(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        yaml_body(text, NAMES)
