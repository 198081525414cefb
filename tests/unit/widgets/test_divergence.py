"""The divergence lens without a browser: arrays for a page, its static twin, its colours."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from node import find_node

from kdflow_lab import zoo
from kdflow_lab.errors import ConfigError
from kdflow_lab.evaluate import probe_file
from kdflow_lab.evaluate.inspection import Inspection
from kdflow_lab.evaluate.run_probes import RunProbes
from kdflow_lab.losses import Head, divergence, token_statistics
from kdflow_lab.rundir import RunDirectory
from kdflow_lab.widgets import divergence as lens_module
from kdflow_lab.widgets import esm_path
from kdflow_lab.widgets._divergence_data import MOST_CHARACTERS, flowing, pack_step, scales
from kdflow_lab.widgets._divergence_scale import Scale, colour, fit, ink, nice
from kdflow_lab.widgets.divergence import NONE_YET, DivergenceLens, DivergenceWidget

TEXT = "Sort the letters: q d k a"
EVIL = ("<script>alert(1)</script>", "\u202eabc", "\ud800", "\x1b[2J", "x" * 100_000, "\n" * 900)


@pytest.fixture(scope="module")
def seen() -> tuple[Inspection, torch.Tensor, torch.Tensor]:
    """One text through both zoo models: an inspection, and their logits, Float32[P, V]."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(zoo.path("zoo/teacher"))
    chat = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "a d k q"}]
    ids = tokenizer.apply_chat_template(chat, return_dict=True, return_tensors="pt")["input_ids"]
    hidden, heads, logits = [], [], []
    for name in ("zoo/student", "zoo/teacher"):
        model = AutoModelForCausalLM.from_pretrained(zoo.path(name), dtype=torch.float32)
        with torch.no_grad():
            out = model(ids, output_hidden_states=True)
        hidden.append(out.hidden_states[-1][0, :-1])
        heads.append(Head(model.lm_head.weight.detach()))
        logits.append(out.logits[0, :-1])
    found = token_statistics(hidden[0], heads[0], hidden[1], heads[1], ids[0, 1:], k=5)
    count = ids.shape[1] - 1
    arrays = {name: value.numpy() for name, value in found.items()} | {
        "input_ids": ids[0, :-1].int().numpy(),
        "labels": ids[0, 1:].int().numpy(),
        "response": np.arange(count) >= count - 9,
        "cu_seqlens": np.array([0, count], dtype=np.int32),
        "row_index": np.array([3], dtype=np.int32),
    }
    texts = {one: tokenizer.decode([one]) for one in probe_file.ids_in(arrays)}
    return Inspection(arrays, texts, name="my <model>", step=7), logits[0], logits[1]


@pytest.fixture
def inspection(seen: tuple[Inspection, Any, Any]) -> Inspection:
    return seen[0]


@pytest.fixture
def hostile(inspection: Inspection) -> Inspection:
    """The same, its last tokens replaced by what should do nothing."""
    labels = inspection.arrays["labels"].copy()
    labels[-len(EVIL) :] = np.arange(len(EVIL)) + 1_000_000
    texts = inspection.texts | {1_000_000 + at: text for at, text in enumerate(EVIL)}
    return Inspection(inspection.arrays | {"labels": labels}, texts, name=EVIL[0])


@pytest.fixture
def run(tmp_path: Path, inspection: Inspection) -> Iterator[RunDirectory]:
    """A run that trains, with probes of steps 0 and 10."""
    directory = RunDirectory(tmp_path / "my-run")
    directory.create({"loss": "forward_kl"})
    directory.event("starting", pid=0, steps=30)
    directory.lock()
    directory.event("started", backend="transformers")
    for step in (0, 10):
        probe(directory, inspection, step)
    yield directory
    directory.unlock()


def probe(directory: RunDirectory, inspection: Inspection, step: int) -> None:
    """Write probes; the higher the step, the lower the divergence."""
    arrays = inspection.arrays | {"forward_kl": inspection.arrays["forward_kl"] / (1 + step)}
    path = directory.probes / f"{step}.safetensors"
    probe_file.save(path, arrays, step=step, k=5, texts=inspection.texts)
    directory.event("probes", step=step)


def unpacked(layout: dict[str, Any], raw: bytes) -> dict[str, np.ndarray]:
    """Read what a page gets, as `snapshots.js` does."""
    found = {}
    for name, (kind, shape, offset) in layout.items():
        assert offset % 8 == 0
        count = int(np.prod(shape))
        found[name] = np.frombuffer(raw, kind, count, offset).reshape(shape)
    return found


# -- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_a_page_gets_what_the_losses_say_of_the_same_logits(
    seen: tuple[Inspection, torch.Tensor, torch.Tensor], name: str
) -> None:
    inspection, student, teacher = seen
    found = unpacked(*pack_step(inspection))[f"q:{name}"]
    options: dict[str, Any] = {"beta": 0.5} if name == "jsd" else {}
    expected = divergence(name, student, teacher, **options)
    torch.testing.assert_close(torch.from_numpy(found.copy()), expected, rtol=1e-4, atol=1e-5)


def test_all_that_is_known_reaches_the_page(inspection: Inspection) -> None:
    found = unpacked(*pack_step(inspection))
    for name in inspection.quantities:
        np.testing.assert_array_equal(found[f"q:{name}"], inspection.values(name))
    for name in ("student_topk_ids", "teacher_topk_logprobs", "teacher_logit"):
        np.testing.assert_array_equal(found[name], inspection.arrays[name])


def test_without_a_teacher_it_is_the_surprise_that_colours(inspection: Inspection) -> None:
    arrays = {
        name: array
        for name, array in inspection.arrays.items()
        if "teacher" not in name and name not in ("forward_kl", "reverse_kl", "jsd")
    }
    lens = DivergenceLens(Inspection(arrays, inspection.texts, name="alone"))
    assert "student&#x27;s surprise" in lens.html()
    assert "teacher p" not in lens.html()
    with pytest.raises(ConfigError, match="forward_kl"):
        DivergenceLens(lens.source, quantity="forward_kl")


def test_a_wrong_quantity_offers_the_nearest(inspection: Inspection) -> None:
    with pytest.raises(ConfigError, match="forward_kl"):
        DivergenceLens(inspection, quantity="forwardkl")


# -- colours --------------------------------------------------------------------------------------


def test_python_and_javascript_have_the_same_scales() -> None:
    node = find_node()
    if node is None:
        pytest.skip("There is no node.")
    kinds = ["linear", "root", "log", "signed", "agreement"]
    places = np.linspace(-1, 1, 21).tolist()
    module = json.dumps(esm_path("scale").as_uri())
    script = f"""
        import {{ colourAt, inkOn, placeOf, valueAt }} from {module};
        const out = [];
        for (const kind of {json.dumps(kinds)}) for (const place of {json.dumps(places)}) {{
          const scale = {{ kind, high: kind === "agreement" ? 1 : 12.5 }};
          const ground = colourAt(place, kind, "light");
          out.push([ground, inkOn(ground), placeOf(place * 20, scale), valueAt(place, scale)]);
        }}
        console.log(JSON.stringify(out));"""
    done = subprocess.run(
        [node, "--input-type=module", "-e", script], capture_output=True, text=True, check=True
    )
    found = iter(json.loads(done.stdout))
    for kind in kinds:
        scale = Scale(kind, 1.0 if kind == "agreement" else 12.5)
        for place in places:
            ground, letters, at, value = next(found)
            assert (colour(place, kind), ink(ground)) == (ground, letters)
            if kind != "agreement":
                assert scale.places(np.array([place * 20]))[0] == pytest.approx(at)
            assert scale.value(place) == pytest.approx(value)


def test_a_scale_ends_at_a_round_number_above_most_values() -> None:
    values = np.concatenate([np.linspace(0, 3.7, 990), np.full(10, 1e6)]).astype(np.float32)
    assert fit("root", values) == Scale("root", 4.0)
    assert fit("log", np.array([1.0, 2.0])).high == 10.0
    assert fit("linear", np.array([np.nan])).high > 0
    assert (nice(0.0), nice(0.0123), nice(7.0)) == (0.0, 0.015, 8.0)


def test_all_steps_of_a_run_share_one_scale(run: RunDirectory, inspection: Inspection) -> None:
    probes = RunProbes(run.path)
    lens = DivergenceLens(probes)
    first, last = (probes.at(step) for step in (0, 10))
    assert lens._scales(last)["forward_kl"] == scales([first])["forward_kl"]
    assert scales([first])["forward_kl"].high > scales([last])["forward_kl"].high


# -- the static twin ------------------------------------------------------------------------------


def test_the_twin_has_texts_numbers_and_a_legend(inspection: Inspection) -> None:
    html = DivergenceLens(inspection).html()
    assert "my &lt;model&gt; at step 7: forward KL of" in html
    assert "Sort the letters" in re.sub(r"<[^>]+>", "", html).replace("␣", " ")
    assert "nats; student" in html  # in a tooltip
    assert "Worst tokens" in html
    assert html.count("text-decoration:underline dotted") > 5  # the prompt
    for forbidden in ("<script", "<style", "class=", "http"):
        assert forbidden not in html


def test_the_twin_is_an_svg_too(inspection: Inspection, tmp_path: Path) -> None:
    lens = DivergenceLens(inspection, quantity="entropy_gap")
    root = ElementTree.fromstring(lens.svg())
    assert root.tag.endswith("svg")
    assert "entropy gap" in lens.svg()
    assert lens.save(tmp_path / "a.svg").read_text().startswith("<svg")
    assert "charset" in lens.save(tmp_path / "a.html").read_text()


@pytest.mark.parametrize("quantity", ["forward_kl", "rank", "agreement", "entropy_gap"])
def test_hostile_text_is_inert_in_every_form(hostile: Inspection, quantity: str) -> None:
    forms = DivergenceLens(hostile, quantity=quantity)._repr_mimebundle_()
    for form in forms.values():
        form.encode("utf-8")  # a notebook must be able to hold it
        assert "\u202e" not in form
        assert "\x1b[2J" not in form
        assert len(form) < 300_000
    for mime in ("text/html", "image/svg+xml"):
        assert "<script" not in forms[mime]
        assert "alert(1)" in forms[mime]
    ElementTree.fromstring(forms["image/svg+xml"])


def test_the_twin_of_a_long_text_is_cut(inspection: Inspection) -> None:
    repeats = 400
    arrays = {
        name: np.tile(array, (repeats,) + (1,) * (array.ndim - 1))
        for name, array in inspection.arrays.items()
        if name not in ("cu_seqlens", "row_index")
    }
    arrays["cu_seqlens"] = np.array([0, len(arrays["labels"])], dtype=np.int32)
    arrays["row_index"] = np.array([0], dtype=np.int32)
    forms = DivergenceLens(Inspection(arrays, inspection.texts))._repr_mimebundle_()
    assert len(arrays["labels"]) > 8000
    assert "more tokens" in forms["text/html"]
    assert len(forms["text/html"]) < 300_000
    assert "tokens not drawn" in forms["image/svg+xml"]


def test_a_token_in_a_line_keeps_its_spaces() -> None:
    assert flowing(" the cat\n", 40) == " the cat↵"
    assert flowing("x" * 100_000, 10) == "x" * 9 + "…"
    assert flowing("", 9) == "∅"


# -- the live view --------------------------------------------------------------------------------


def test_a_page_gets_texts_cut_and_encodable(hostile: Inspection) -> None:
    widget = DivergenceLens(hostile)._live()
    assert isinstance(widget, DivergenceWidget)
    json.dumps(widget.texts).encode("utf-8")
    assert max(map(len, widget.texts.values())) < MOST_CHARACTERS + 40
    assert widget.texts["1000000"] == EVIL[0]
    widget.close()


def test_the_kernel_sends_a_step_that_is_asked_for(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = RunProbes(run.path)
    widget = DivergenceLens(probes)._live()
    sent: list[tuple[dict[str, Any], Any]] = []
    monkeypatch.setattr(
        widget, "send", lambda content, buffers=None: sent.append((content, buffers))
    )
    assert isinstance(widget, DivergenceWidget)
    assert (widget.step, widget.steps, widget.live) == (10, [0, 10], True)
    widget.asked({"kind": "step", "step": 0})
    content, buffers = sent[-1]
    found = unpacked(content["layout"], buffers[0])
    np.testing.assert_array_equal(found["q:forward_kl"], probes.at(0).values("forward_kl"))
    widget.asked({"kind": "step", "step": 99})
    assert sent[-1][0]["kind"] == "failed"
    assert "no probes of step 99" in sent[-1][0]["why"]
    before = len(sent)
    widget.asked({"kind": "step", "step": "../../x"})
    assert len(sent) == before
    widget.close()


def _until(test: Any) -> None:
    deadline = time.monotonic() + 10
    while not test():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("kdflow-lens")]


def test_it_follows_a_run_until_that_ends(
    run: RunDirectory, inspection: Inspection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lens_module, "POLL_S", 0.02)
    widget = DivergenceLens(RunProbes(run.path))._live()
    assert isinstance(widget, DivergenceWidget)
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(widget, "send", lambda content, buffers=None: sent.append(content))
    probe(run, inspection, 20)
    _until(lambda: sent)
    assert sent[0]["step"] == 20
    assert widget.steps == [0, 10, 20]
    run.event("finished")
    run.unlock()
    _until(lambda: not widget.live)
    _until(lambda: not _threads())
    widget.close()


def test_a_run_without_probes_is_waited_for(
    tmp_path: Path, inspection: Inspection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lens_module, "POLL_S", 0.02)
    directory = RunDirectory(tmp_path / "young")
    directory.create({"loss": "forward_kl"})
    directory.event("starting", pid=0, steps=30)
    directory.lock()
    lens = DivergenceLens(RunProbes(directory.path))
    assert NONE_YET in lens.html()
    assert NONE_YET in lens.svg()
    assert repr(lens) == NONE_YET
    widget = lens._live()
    assert isinstance(widget, DivergenceWidget)
    assert (widget.step, widget.quantities) == (-1, [])
    probe(directory, inspection, 5)
    _until(lambda: widget.step == 5)
    assert widget.quantities[0]["name"] == "forward_kl"
    widget.close()
    _until(lambda: not _threads())
    directory.unlock()
