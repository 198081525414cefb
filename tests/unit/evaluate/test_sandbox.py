"""What the sandbox computes, against a naive computation in float64; what it asks and keeps."""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kdflow_lab as kd
from kdflow_lab.errors import ConfigError, DataError, RunError, ShapeError
from kdflow_lab.evaluate import sandbox as captures
from kdflow_lab.evaluate.sandbox import Capture, sandbox, token_texts
from kdflow_lab.evaluate.sandbox_ask import Asked, key_of
from kdflow_lab.evaluate.sandbox_compute import look
from kdflow_lab.evaluate.sandbox_tokens import TokenLook
from kdflow_lab.jobs import StudentPlace, SubjectJob
from kdflow_lab.losses import Head
from kdflow_lab.losses.names import NAMES, unregister_divergence

TOKENS, VOCABULARY, STUDENT, TEACHER = 7, 23, 5, 6
PLACES = [(3, 10 + token) for token in range(TOKENS)]


def _made() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "student_hidden": normal(TOKENS, STUDENT),
        "student_head": Head(normal(VOCABULARY, STUDENT), normal(VOCABULARY)),
        "teacher_hidden": normal(TOKENS, TEACHER),
        "teacher_head": Head(normal(VOCABULARY, TEACHER)),
        "labels": torch.randint(0, VOCABULARY, (TOKENS,), generator=generator),
    }


def _look(made: dict[str, Any], *losses: str, **options: Any) -> list[TokenLook]:
    params = options.pop("params", {})
    chosen = [(name, params.get(name, {})) for name in losses]
    return list(look(**made, places=PLACES, losses=chosen, **options))


def _logits(made: dict[str, Any], temperature: float) -> tuple[Tensor, Tensor]:
    """Both models' logits in float64, the student's with a gradient, divided outside of it."""
    student, teacher = (
        made[f"{side}_hidden"].double() @ made[f"{side}_head"].weight.double().T
        for side in ("student", "teacher")
    )
    student = (student + made["student_head"].bias.double()).requires_grad_()
    return student, teacher / temperature


def _naive(name: str, q: Tensor, p: Tensor, labels: Tensor) -> Tensor:
    """The losses by their definitions, of probabilities."""
    m = 0.3 * p + 0.7 * q
    skewed = 0.1 * p + 0.9 * q
    values = {
        "forward_kl": (p * (p / q).log()).sum(-1),
        "reverse_kl": (q * (q / p).log()).sum(-1),
        "jsd": 0.3 * (p * (p / m).log()).sum(-1) + 0.7 * (q * (q / m).log()).sum(-1),
        "skewed_forward_kl": (p * (p / skewed).log()).sum(-1),
        "tvd": 0.5 * (p - q).abs().sum(-1),
        "cross_entropy": -q.gather(1, labels[:, None])[:, 0].log(),
    }
    return values[name]


LOSSES = ("forward_kl", "reverse_kl", "jsd", "skewed_forward_kl", "tvd", "cross_entropy")


@pytest.mark.parametrize("chunk_tokens", ["auto", 1, 3])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_values_and_pushes_are_those_of_the_definitions(
    temperature: float, chunk_tokens: Any
) -> None:
    made = _made()
    looks = _look(
        made,
        *LOSSES,
        temperature=temperature,
        chunk_tokens=chunk_tokens,
        top=VOCABULARY,
        # GKD's beta is the teacher's share
        params={"jsd": {"beta": 0.3}},
    )
    for name in LOSSES:
        student, teacher = _logits(made, temperature)
        by = 1.0 if name == "cross_entropy" else temperature
        q, p = (student / by).softmax(-1), teacher.softmax(-1)
        value = _naive(name, q, p, made["labels"])
        value.sum().backward()
        assert student.grad is not None
        push, values = -student.grad, value.tolist()
        for token, one in enumerate(looks):
            assert one.values[name] == pytest.approx(values[token], rel=1e-4, abs=1e-6)
            listed = {each.token_id: each.size for each in (*one.up[name], *one.down[name])}
            for token_id, size in listed.items():
                assert size == pytest.approx(float(push[token, token_id]), rel=1e-3, abs=1e-6)
            missed = set(range(VOCABULARY)) - set(listed)
            assert all(abs(float(push[token, each])) < 1e-6 for each in missed)
            sizes = [each.size for each in one.up[name]]
            assert sizes == sorted(sizes, reverse=True) and all(size > 0 for size in sizes)
            sizes = [each.size for each in one.down[name]]
            assert sizes == sorted(sizes) and all(size < 0 for size in sizes)


def test_probabilities_entropies_and_places() -> None:
    made = _made()
    looks = _look(made, "forward_kl", temperature=2.0, top=4)
    student, teacher = _logits(made, 2.0)
    q, p = (student.detach() / 2.0).softmax(-1), teacher.softmax(-1)
    for token, one in enumerate(looks):
        label = int(made["labels"][token])
        assert (one.row, one.position, one.token_id) == (*PLACES[token], label)
        assert one.student_p == pytest.approx(float(q[token, label]), rel=1e-4)
        assert one.teacher_p == pytest.approx(float(p[token, label]), rel=1e-4)
        entropies = [float(-(each[token] * each[token].log()).sum()) for each in (q, p)]
        assert [one.student_entropy, one.teacher_entropy] == pytest.approx(entropies, rel=1e-4)
        assert one.agreement == bool(q[token].argmax() == p[token].argmax())
        assert one.problems == ()
        likely = {*q[token].topk(4).indices.tolist(), *p[token].topk(4).indices.tolist(), label}
        found = one.candidates
        assert likely <= set(found.ids) and len(set(found.ids)) == len(found.ids)
        assert list(found.teacher_p[:-1]) == sorted(found.teacher_p[:-1], reverse=True)
        assert sum(found.student_p) == pytest.approx(1.0)
        assert sum(found.teacher_p) == pytest.approx(1.0)
        # a shift of all logits changes no divergence: what is pushed up is pushed down elsewhere
        assert sum(found.pushes["forward_kl"]) == pytest.approx(0.0, abs=1e-6)
        for place, token_id in enumerate(found.ids):
            push = float(p[token, token_id] - q[token, token_id]) / 2.0
            assert found.pushes["forward_kl"][place] == pytest.approx(push, abs=1e-6)


def test_products_are_those_of_the_whole_gradients() -> None:
    made = _made()
    names = ("forward_kl", "reverse_kl", "tvd")
    gradients = []
    for name in names:
        student, teacher = _logits(made, 1.0)
        _naive(name, student.softmax(-1), teacher.softmax(-1), made["labels"]).sum().backward()
        assert student.grad is not None
        gradients.append(student.grad)
    for token, one in enumerate(_look(made, *names)):
        for a, row in enumerate(one.products):
            for b, product in enumerate(row):
                wanted = float(gradients[a][token] @ gradients[b][token])
                assert product == pytest.approx(wanted, rel=1e-3, abs=1e-6)


def test_every_divergence_can_be_looked_at() -> None:
    looks = _look(_made(), *NAMES)
    for one in looks:
        assert one.problems == ()
        assert all(math.isfinite(value) for value in one.values.values())


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_distribution_are_said_with_their_token(side: str, value: float) -> None:
    made = _made()
    fine = _look(made, "forward_kl", "jsd")
    made[f"{side}_hidden"][2, 1] = value
    looks = _look(made, "forward_kl", "jsd")
    assert [place for place, one in enumerate(looks) if one.problems] == [2]
    (problem,) = looks[2].problems
    assert problem.startswith(f"the {side}'s logits hold ")
    assert all(math.isnan(each) for each in looks[2].values.values())
    assert looks[2].up == {"forward_kl": (), "jsd": ()}
    assert looks[2].candidates.ids == ()
    others = [0, 1, 3, 4, 5, 6]
    assert [looks[place] for place in others] == [fine[place] for place in others]


def test_infinite_loss_is_said_and_excluded_tokens_are_not() -> None:
    made = _made()
    never = torch.full((VOCABULARY,), 0.0)
    never[4] = -math.inf
    head = made["student_head"]
    made["student_head"] = Head(head.weight, head.bias + never)
    looks = _look(made, "forward_kl", "reverse_kl", "jsd")
    for one in looks:
        assert one.problems[0] == "forward_kl is infinite"
        assert math.isfinite(one.values["reverse_kl"]) and math.isfinite(one.values["jsd"])
        assert math.isfinite(one.student_entropy)


@pytest.fixture
def mine() -> Any:
    """Register a divergence for one test."""

    def register(function: Any) -> None:
        from kdflow_lab.losses.names import register_divergence

        register_divergence("mine")(function)

    yield register
    unregister_divergence("mine")


def test_loss_that_is_not_finite_is_said_and_pushes_nothing(mine: Any) -> None:
    mine(lambda student, teacher: (student.softmax(-1) * math.nan).sum(-1))
    looks = _look(_made(), "forward_kl", "mine")
    for one in looks:
        assert one.problems == ("mine is NaN", "the gradient of mine is NaN")
        assert one.up["mine"] == one.down["mine"] == ()
        assert one.up["forward_kl"] and math.isfinite(one.values["forward_kl"])


def test_loss_without_a_gradient_or_of_another_shape_is_refused(mine: Any) -> None:
    mine(lambda student, teacher: teacher.sum(-1))
    with pytest.raises(ConfigError, match="'mine' has no gradient"):
        _look(_made(), "mine")
    mine(lambda student, teacher: student.sum())
    with pytest.raises(ShapeError, match="expected one value for each token"):
        _look(_made(), "mine")


# -- what is asked --------------------------------------------------------------------------------

ASKED: dict[str, Any] = {
    "loss_params": None,
    "temperature": 1.0,
    "top": 5,
    "rows": 4,
    "split": "test",
    "seed": 1,
    "max_length": 64,
}


def _asked(texts: Any = ("a text",), losses: Any = "forward_kl", **options: Any) -> Asked:
    return Asked.checked(texts, losses, **{**ASKED, **options})


def test_losses_are_named_in_full_and_once() -> None:
    asked = _asked(losses=["kl", "forward_kl", "jsd", "ce"], loss_params={"jsd": {"beta": 0.2}})
    assert asked.losses == [("forward_kl", {}), ("jsd", {"beta": 0.2}), ("cross_entropy", {})]
    assert _asked(losses="rkl").names == ["reverse_kl"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"losses": "reverse_k"}, "Unknown divergence 'reverse_k'. Did you mean 'reverse_kl'"),
        ({"losses": []}, "No loss to look at"),
        ({"losses": [3]}, "A loss is 3"),
        ({"losses": "mse"}, "compares hidden states"),
        ({"loss_params": {"jsd": {}}}, "'jsd', which is not among the losses: forward_kl"),
        ({"losses": "jsd", "loss_params": {"jsd": {"beat": 1}}}, "Did you mean 'beta'"),
        ({"losses": "jsd", "loss_params": {"jsd": {"beta": 2}}}, "beta is 2; expected"),
        ({"losses": "ce", "loss_params": {"ce": {"x": 1}}}, "cross_entropy takes no parameters"),
        ({"temperature": 0}, "temperature is 0; expected a number above 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top": 51}, "top is 51; expected a whole number from 1 to 50"),
        ({"top": True}, "top is True"),
        ({"rows": 0}, "rows is 0"),
        ({"texts": "Some text."}, "A text to look at stands in a list"),
        ({"texts": ["a", {"text": "b"}]}, "Cannot look at dict, str"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_computed(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as error:
        _asked(**options)
    assert words in str(error.value)


def test_no_text_is_refused() -> None:
    with pytest.raises(DataError, match="No text to look at"):
        _asked(texts=[])


def test_texts_become_rows_and_what_holds_rows_is_cut() -> None:
    import pandas as pd

    assert _asked(texts=("a", "b")).data == [{"text": "a"}, {"text": "b"}]
    row = {"prompt": "p", "response": "r"}
    assert _asked(texts=[row]).data == [row]
    assert _asked(texts=[row]).rows is None
    assert _asked(texts=Path("my.jsonl")).data == "my.jsonl"
    assert _asked(texts="my.jsonl", rows=7).rows == 7
    frame = _asked(texts=pd.DataFrame([row] * 9), rows=2).data
    assert [(each["prompt"], each["response"]) for each in frame] == [("p", "r")] * 2


def test_capture_holds_as_long_as_weights_texts_and_options_do(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_text("1")
    data = tmp_path / "a.jsonl"
    data.write_text("{}")

    def key(text: Any = "one", **options: Any) -> str:
        return key_of(str(tmp_path / "model"), False, [{"text": text}], **options)

    def file_key() -> str:
        return key_of(str(tmp_path / "model"), False, str(data))

    first, of_file = key(), file_key()
    assert key() == first and file_key() == of_file
    assert len({first, key("two"), key(rows=2)}) == 3
    data.write_text("{ }")
    assert file_key() != of_file
    weights.write_text("22")
    assert key() != first


def test_registered_losses_travel_and_others_do_not() -> None:
    @kd.register_divergence("mine")
    def mine(student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).pow(2).sum(-1)

    try:
        place = {"model": "m", "is_run": False, "data": "d"}
        options = _asked(losses=["forward_kl", "mine"]).fields(place)["options"]
        assert list(options["registered"]["divergences"]) == ["mine"]
        assert _asked(losses=["forward_kl"]).fields(place)["options"]["registered"] == {}
    finally:
        unregister_divergence("mine")


# -- what is kept ---------------------------------------------------------------------------------


class _Letters:
    """A tokenizer of letters, as far as texts of tokens go."""

    names = ("a", "b", "\u2581c", "<0xE2>", "")

    def convert_ids_to_tokens(self, token_id: int) -> str:
        return self.names[token_id % 5]

    def decode(self, ids: list[int]) -> str:
        return ("a", "b", "c", "\ufffd", "")[ids[0] % 5]


def test_text_of_a_token_is_readable_and_keeps_its_space() -> None:
    assert token_texts(_Letters(), [0, 2, 3]) == {0: "a", 2: " c", 3: "<0xE2>"}


def _capture(size: int = 4) -> Capture:
    made = _made()
    return Capture(
        student_hidden=made["student_hidden"],
        student_head=made["student_head"],
        teacher_hidden=made["teacher_hidden"],
        teacher_head=Head(torch.ones(size, TEACHER)) if size != 4 else made["teacher_head"],
        labels=made["labels"],
        places=PLACES,
        rows={3: ["x"] * 20},
        tokenizer=_Letters(),
    )


def _job(key: str) -> SubjectJob:
    place = StudentPlace(0, 1, "cpu", torch.get_num_threads(), None, "")
    options = {
        "key": key,
        "losses": [("forward_kl", {})],
        "registered": {},
        "temperature": 1.0,
        "top": 3,
    }
    return SubjectJob(place, "m", False, "d", "test", None, 0, None, options)


def test_a_capture_is_looked_at_without_models() -> None:
    held = OrderedDict({"a": _capture(), "b": _capture()})
    said: list[tuple[int, int]] = []
    part = sandbox(_job("a"), held, lambda done, total: said.append((done, total)))
    assert part.looks == _look(_made(), "forward_kl", top=3)
    assert part.rows == {3: ["x"] * 20}
    assert {one.token_id for one in part.looks} <= set(part.texts)
    assert said == [(TOKENS, TOKENS)]
    assert list(held) == ["b", "a"]  # the last one used is dropped last
    with pytest.raises(RunError, match="are gone"):
        sandbox(_job("c"), held, lambda done, total: None)


def test_captures_share_the_teachers_head_and_the_oldest_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: OrderedDict[str, Capture] = OrderedDict()
    for name in "abc":
        captures._keep(held, name, _capture())
    assert len({one.teacher_head.weight.data_ptr() for one in held.values()}) == 1
    monkeypatch.setattr(captures, "KEPT", 2)
    captures._keep(held, "d", _capture())
    assert list(held) == ["c", "d"]
    monkeypatch.setattr(captures, "KEPT_BYTES", 1)
    captures._keep(held, "e", _capture())
    assert list(held) == ["e"]
