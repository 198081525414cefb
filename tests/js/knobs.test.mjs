// The knobs of a run (widgets/knobs.js): pending at once, refused in place, never overwritten.

import assert from "node:assert/strict";
import { join } from "node:path";
import { beforeEach, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";

import { Element, Model, install } from "./dom.mjs";

const checkout = fileURLToPath(new URL("../../widgets", import.meta.url));
const file = join(process.env.KDFLOW_WIDGETS ?? checkout, "knobs.js");
const { knobRow } = await import(pathToFileURL(file));

const KNOBS = [
  { name: "lr", label: "lr", value: "0.001", choices: [] },
  { name: "loss", label: "loss", value: "jsd", choices: ["forward_kl", "jsd"] },
];
beforeEach(() => install());

function show(changes = {}) {
  const state = { knobs: KNOBS, pending: {}, errors: {}, settled: "", state: "running" };
  const model = new Model({ ...state, ...changes });
  const el = new Element("div");
  const draw = knobRow(model, el);
  model.on("change", draw);
  draw();
  const box = (name) => el.find((one) => one.dataset.knob === name);
  const part = (name, tag) => box(name).find((one) => one.tagName === tag);
  return {
    model,
    el,
    box,
    field: (name) => part(name, name === "loss" ? "SELECT" : "INPUT"),
    button: (name) => part(name, "BUTTON"),
    answer: () => el.byClass("answer"),
  };
}

test("a knob shows the value in force, and a menu the names", () => {
  const { field, button, box } = show();
  assert.equal(field("lr").value, "0.001");
  assert.equal(field("loss").value, "jsd");
  assert.deepEqual(field("loss").children.map((one) => one.textContent), ["forward_kl", "jsd"]);
  assert.equal(button("lr").disabled, true, "nothing to apply");
  assert.equal(box("lr").children[0].htmlFor, field("lr").id);
});

test("a value is asked for by Enter or by the button, and pending at once", () => {
  for (const ask of [(v) => v.field("lr").press("Enter"), (v) => v.button("lr").click()]) {
    const view = show();
    view.field("lr").typeText("0.0003");
    assert.equal(view.button("lr").disabled, false);
    ask(view);
    assert.deepEqual(view.model.sent, [{ command: "set", name: "lr", value: "0.0003" }]);
    assert.equal(view.button("lr").textContent, "asked …");
    assert.equal(view.field("lr").disabled, true);
    assert.equal(view.box("lr").attributes["aria-busy"], "true");
    view.field("lr").press("Enter");
    assert.equal(view.model.sent.length, 1, "once");
  }
});

test("the run's answer ends it", () => {
  const view = show();
  view.field("lr").typeText("0.0003");
  view.button("lr").click();
  const settled = "lr = 0.0003 from step 12 on, by figure, pid 7";
  view.model.receive({ knobs: [{ ...KNOBS[0], value: "0.0003" }, KNOBS[1]], pending: {}, settled });
  assert.equal(view.field("lr").value, "0.0003");
  assert.equal(view.button("lr").textContent, "Apply");
  assert.equal(view.button("lr").disabled, true);
  assert.equal(view.answer().textContent, `◆ ${settled}`);
});

test("a refused value stays in its field, with the reason below", () => {
  const view = show();
  view.field("lr").typeText("fast");
  view.button("lr").click();
  view.model.receive({ pending: {} }); // the answer comes in two parts
  view.model.receive({ errors: { lr: "Option 'lr' = 'fast' cannot be used." } });
  assert.equal(view.field("lr").value, "fast");
  assert.equal(view.field("lr").attributes["aria-invalid"], "true");
  assert.equal(view.answer().textContent, "Option 'lr' = 'fast' cannot be used.");
  assert.equal(view.answer().dataset.kind, "error");
  assert.equal(view.field("lr").attributes["aria-describedby"], view.answer().id);
  view.field("lr").typeText("0.002");
  view.button("lr").click();
  assert.equal(view.answer().textContent, "", "another try takes the reason away");
});

test("what somebody types is not overwritten, and Escape takes it back", () => {
  const view = show();
  view.field("lr").typeText("0.00");
  view.model.receive({ state: "paused" });
  assert.equal(view.field("lr").value, "0.00");
  view.field("lr").press("Escape");
  assert.equal(view.field("lr").value, "0.001");
});

test("Escape takes a refused value and its reason back", () => {
  const view = show();
  view.field("lr").typeText("fast");
  view.button("lr").click();
  view.model.receive({ pending: {}, errors: { lr: "no", kd_ratio: "no" } });
  view.field("lr").press("Escape");
  assert.equal(view.field("lr").value, "0.001");
  assert.equal(view.field("lr").attributes["aria-invalid"], "false");
  assert.deepEqual(Object.keys(view.model.get("errors")), ["kd_ratio"]);
  assert.deepEqual(view.model.sent.at(-1), { command: "forget", name: "lr" });
});

test("a loss that is registered later can be chosen", () => {
  const view = show();
  view.model.receive({ knobs: [KNOBS[0], { ...KNOBS[1], choices: ["forward_kl", "jsd", "mine"] }] });
  assert.deepEqual(
    view.field("loss").children.map((one) => one.value),
    ["forward_kl", "jsd", "mine"],
  );
});

test("an ended run has no knobs to turn", () => {
  const view = show({ state: "finished" });
  assert.ok(view.field("lr").disabled);
  view.field("lr").typeText("1");
  view.button("lr").click();
  assert.deepEqual(view.model.sent, []);
});

test("JupyterLab's keys do not act on what is typed", () => {
  assert.equal(show().el.byClass("knobs").attributes["data-lm-suppress-shortcuts"], "true");
});
