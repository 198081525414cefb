"""The divergence lens in a page of its own, without JupyterLab: for measuring and for looking."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdflow_lab.evaluate.inspection import Inspection
from kdflow_lab.evaluate.probe_file import ids_in
from kdflow_lab.widgets import esm
from kdflow_lab.widgets._divergence_data import (
    cut_texts,
    described,
    pack_places,
    pack_step,
    scales,
)

PAGE = """<!DOCTYPE html><meta charset="utf-8"><body data-jp-theme-light="THEME_IS_LIGHT"
style="background:GROUND;margin:8px;--jp-ui-font-color1:INK;--jp-ui-font-color2:PALE;
--jp-layout-color1:GROUND;--jp-layout-color2:LAYER;--jp-border-color1:#777;--jp-border-color2:#999">
<div id="cell"></div>
<script type="module">
const bytes = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const given = DATA;
const state = { ...given.state };
for (const name of ["places", "values"]) state[name] = bytes(state[name]);
const handlers = [];
const model = {
  get: (name) => state[name],
  set(name, value) { state[name] = value; emit("change"); },
  save_changes() {},
  send(message) {
    if (message.kind !== "step" || !given.steps[message.step]) return;
    const { layout, texts, values } = given.steps[message.step];
    const answer = { kind: "step", step: message.step, layout, texts, note: "" };
    setTimeout(() => emit("msg:custom", answer, [bytes(values)]), 5);
  },
  on(name, handler) { handlers.push([name, handler]); },
  off(name, handler) {
    handlers.splice(handlers.findIndex(([n, h]) => n === name && h === handler), 1);
  },
};
function emit(name, ...rest) {
  for (const [n, handler] of [...handlers]) if (n === name) handler(...rest);
}
window.model = model;
const blob = new Blob([given.esm], { type: "text/javascript" });
const { default: widget } = await import(URL.createObjectURL(blob));
await new Promise((done) => setTimeout(done, 50));
const start = performance.now();
window.closeLens = widget.render({ model, el: document.getElementById("cell") });
window.renderMs = performance.now() - start;
// two frames: the first one is drawn before the second callback
requestAnimationFrame(() => requestAnimationFrame(() => {
  window.paintMs = performance.now() - start;
}));
</script>"""
THEMES = {
    "light": {
        "THEME_IS_LIGHT": "true",
        "GROUND": "#ffffff",
        "INK": "#212121",
        "PALE": "#616161",
        "LAYER": "#eeeeee",
    },
    "dark": {
        "THEME_IS_LIGHT": "false",
        "GROUND": "#111111",
        "INK": "#ffffff",
        "PALE": "#bdbdbd",
        "LAYER": "#424242",
    },
}


def page(inspections: list[Inspection], *, theme: str = "light", quantity: str = "") -> str:
    """Return a page that shows the last inspection, with the others as steps of a run."""
    shown = inspections[-1]
    layout_of_places, places = pack_places(shown)
    layout_of_values, values = pack_step(shown)
    many = len(inspections) > 1
    state: dict[str, Any] = {
        "twin": "kdflow-twin-bare",
        "name": shown.name,
        "quantities": described(scales([shown, inspections[0]])),
        "quantity": quantity or shown.quantities[0],
        "bits": False,
        "texts": cut_texts(shown, ids_in(shown.arrays)),
        "layout_of_places": layout_of_places,
        "places": base64.b64encode(places).decode(),
        "step": -1 if shown.step is None else shown.step,
        "layout_of_values": layout_of_values,
        "values": base64.b64encode(values).decode(),
        "note": shown.note,
        "steps": [one.step for one in inspections] if many else [],
        "live": False,
    }
    steps = {}
    for one in inspections if many else []:
        layout, packed = pack_step(one)
        texts = cut_texts(one, ids_in(one.arrays))
        steps[one.step] = {
            "layout": layout,
            "texts": texts,
            "values": base64.b64encode(packed).decode(),
        }
    data = json.dumps({"state": state, "steps": steps, "esm": esm("divergence")})
    text = PAGE
    for name, value in THEMES[theme].items():
        text = text.replace(name, value)
    return text.replace("DATA", data.replace("</", "<\\/"), 1)


MEASURE = """async () => {
  const all = [...document.querySelectorAll(".t")];
  const where = document.querySelector(".kdflow-divergence .where");
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  const timed = async (act) => {
    await frame();
    const start = performance.now();
    act();
    document.querySelector(".kdflow-divergence").getBoundingClientRect(); // style and layout
    const drawn = performance.now() - start;
    await frame();
    return [drawn, performance.now() - start];
  };
  const hovers = [];
  for (let at = 0; at < 40; at += 1) {
    const span = all[(at * 197) % all.length];
    const before = where.textContent;
    hovers.push(await timed(() => {
      span.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
    }));
    if (where.textContent === before) throw new Error("hover showed nothing");
  }
  const menu = document.querySelector(".kdflow-divergence select");
  const recolour = await timed(() => {
    menu.value = "reverse_kl";
    menu.dispatchEvent(new Event("change"));
  });
  const slider = document.querySelector(".kdflow-histogram input");
  const filter = await timed(() => {
    slider.value = 0.5;
    slider.dispatchEvent(new Event("input"));
  });
  const sorted = (which) => hovers.map((one) => one[which]).sort((a, b) => a - b);
  return {
    tokens: all.length, first_paint_ms: paintMs, script_ms: renderMs,
    hover_median_ms: sorted(0)[20], hover_worst_ms: sorted(0)[39],
    hover_to_frame_worst_ms: sorted(1)[39], recolour_ms: recolour[0], filter_ms: filter[0],
  };
}"""
"""Measures in a page: events are dispatched, and style and layout are computed before the clock
is read; `hover_to_frame` waits for the next frame as well."""


def long_inspection(tokens: int, k: int, *, seed: int = 0) -> Inspection:
    """Make an inspection of so many tokens in one text, of random distributions."""
    rng = np.random.default_rng(seed)
    words = " the of and to in is a that for it with as was on be by at from\n not or an".split(" ")
    texts = {n: f" {words[n % len(words)]}" for n in range(4096)}
    ids = rng.integers(0, 4096, (2, tokens, k), dtype=np.int32)
    logprobs = -np.sort(rng.exponential(3.0, (2, tokens, k))).astype(np.float32) - 0.1
    other = -rng.exponential(5.0, (2, tokens, k)).astype(np.float32)

    def some(scale: float) -> NDArray[Any]:
        return rng.exponential(scale, tokens).astype(np.float32)

    labels = rng.integers(0, 4096, tokens + 1, dtype=np.int32)
    arrays: dict[str, NDArray[Any]] = {
        "input_ids": labels[:-1], "labels": labels[1:],
        "response": np.arange(tokens) >= tokens // 8,
        "cu_seqlens": np.array([0, tokens], dtype=np.int32),
        "row_index": np.array([0], dtype=np.int32),
        "forward_kl": some(0.5), "reverse_kl": some(0.6), "jsd": some(0.1),
        "student_topk_ids": ids[0], "teacher_topk_ids": ids[1],
        "student_topk_logprobs": logprobs[0], "teacher_topk_logprobs": logprobs[1],
        "student_logprobs_of_teacher_topk": other[0], "teacher_logprobs_of_student_topk": other[1],
    }  # fmt: skip
    for side in ("student", "teacher"):
        arrays[f"{side}_entropy"] = some(1.0)
        arrays[f"{side}_logprob"] = -some(2.0)
        arrays[f"{side}_logit"] = some(5.0)
        arrays[f"{side}_rank"] = 1 + (some(20.0)).astype(np.int32)
    return Inspection(arrays, texts, name="long")
