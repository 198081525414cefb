// The form that forks a run (widgets/fork.js).

import assert from "node:assert/strict";
import { join } from "node:path";
import { beforeEach, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";

import { Element, Model, install } from "./dom.mjs";

const checkout = fileURLToPath(new URL("../../widgets", import.meta.url));
const file = join(process.env.KDFLOW_WIDGETS ?? checkout, "fork.js");
const { forkForm } = await import(pathToFileURL(file));

const FIELDS = [
  { name: "steps", label: "steps", value: "100", choices: [] },
  { name: "loss", label: "loss", value: "jsd", choices: ["forward_kl", "jsd"] },
];
beforeEach(() => install());

function show(changes = {}) {
  const state = { fork_fields: FIELDS, checkpoints: [10, 20], pending: {}, errors: {}, forked: {} };
  const model = new Model({ ...state, ...changes });
  const el = new Element("div");
  const buttons = new Element("div");
  const draw = forkForm(model, el, buttons);
  model.on("change", draw);
  draw();
  const field = (name) => el.find((one) => one.dataset.field === name);
  return { model, el, field, opener: buttons.children[0], form: el.byClass("fork-form") };
}

test("the button opens the form and closes it, Escape too", () => {
  const { opener, form } = show();
  assert.equal(form.hidden, true);
  opener.click();
  assert.deepEqual([form.hidden, opener.attributes["aria-expanded"]], [false, "true"]);
  form.press("Escape");
  assert.deepEqual([form.hidden, opener.focused], [true, true]);
});

test("only what was filled in is changed, from the chosen checkpoint", () => {
  const { model, el, field } = show();
  field("steps").typeText("250");
  el.byClass("make-fork").click();
  assert.deepEqual(model.sent.at(-1), { command: "fork", step: null, changes: { steps: "250" } });
  assert.equal(el.byClass("make-fork").textContent, "asked …");
  el.byClass("make-fork").click();
  assert.equal(model.sent.length, 1, "once");
  model.receive({ pending: {} });
  el.byClass("from").value = "10";
  field("loss").typeText("forward_kl");
  el.byClass("make-fork").click();
  const changes = { steps: "250", loss: "forward_kl" };
  assert.deepEqual(model.sent.at(-1), { command: "fork", step: 10, changes });
});

test("fields say what holds now, and the checkpoints are those there are", () => {
  const { model, el, field } = show();
  assert.equal(field("steps").placeholder, "100");
  assert.equal(field("loss").children[0].textContent, "as now: jsd");
  const steps = () => el.byClass("from").children.map((one) => one.textContent);
  assert.deepEqual(steps(), ["newest (20)", "10", "20"]);
  el.byClass("from").value = "10";
  model.receive({ checkpoints: [10, 20, 30] });
  assert.deepEqual(steps(), ["newest (30)", "10", "20", "30"]);
  assert.equal(el.byClass("from").value, "10", "the choice stays");
  model.receive({ checkpoints: [] });
  assert.deepEqual(steps(), ["no checkpoint yet"]);
});

test("a fork is named with the line that opens it", () => {
  const { model, el } = show();
  const code = 'kd.open_run("runs/a-fork1").plot()';
  model.receive({ forked: { name: "a-fork1", step: 20, code } });
  assert.match(el.byClass("fork-answer").textContent, /^a-fork1 begins from step 20/);
  assert.equal(el.find((one) => one.tagName === "CODE").textContent, code);
});

test("what does not fit is said in the form", () => {
  const { model, el } = show();
  model.receive({ errors: { fork: "a has no checkpoint yet. <b>" } });
  assert.equal(el.byClass("fork-answer").textContent, "a has no checkpoint yet. <b>");
  assert.equal(el.byClass("fork-answer").dataset.kind, "error");
  el.byClass("make-fork").click();
  assert.equal(el.byClass("fork-answer").textContent, "");
});
