// The header of a run's figure (widgets/status.js) in a document written by hand.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeEach, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";

import { Element, Model, install, livingObservers } from "./dom.mjs";

const checkout = fileURLToPath(new URL("../../widgets", import.meta.url));
const file = join(process.env.KDFLOW_WIDGETS ?? checkout, "status.js");
const source = await readFile(file, "utf8");
const status = (await import(pathToFileURL(file))).default;

const STATE = {
  name: "my-run",
  state: "running",
  headline: "step 3/10 · loss 0.5",
  note: "",
  step: 3,
  steps: 10,
  asked: "",
  knobs: [],
  pending: {},
  errors: {},
  settled: "",
  advice: "",
  idle: "",
  checkpoints: [],
  fork_fields: [],
  forked: {},
};
const SHOWN = { command: "shown" };

let windowEvents;
beforeEach(() => {
  windowEvents = install();
});

function show(changes = {}) {
  const model = new Model({ ...STATE, ...changes });
  const el = new Element("div");
  const close = status.render({ model, el });
  const button = (name) => el.find((e) => e.tagName === "BUTTON" && e.className === name);
  const bar = el.find((e) => e.tagName === "PROGRESS");
  return { model, el, close, button, bar };
}

const enabled = ({ button }) =>
  ["pause", "resume", "stop", "checkpoint"].filter((name) => !button(name).disabled);

const BUTTONS = {
  starting: ["stop"],
  running: ["pause", "stop", "checkpoint"],
  paused: ["resume", "stop", "checkpoint"],
  stopping: [],
  finished: [],
  stopped: [],
  failed: [],
};
for (const [state, buttons] of Object.entries(BUTTONS)) {
  test(`a run that is ${state} offers ${buttons.join(" and ") || "nothing"}`, () => {
    const view = show({ state });
    assert.deepEqual(enabled(view), buttons);
    assert.equal(view.el.byClass("state").textContent, state);
    assert.equal(view.el.byClass("state").dataset.state, state);
  });
}

test("the buttons carry their names", () => {
  const { button } = show();
  assert.deepEqual(
    ["pause", "resume", "stop", "checkpoint", "fork"].map((name) => button(name).textContent),
    ["Pause", "Resume", "Stop", "Checkpoint", "Fork …"],
  );
});

for (const [name, state, shown] of [
  ["pause", "running", "pausing …"],
  ["resume", "paused", "resuming …"],
  ["stop", "running", "stopping …"],
  ["checkpoint", "running", "saving …"],
]) {
  test(`a click on ${name} asks for it and shows at once`, () => {
    const view = show({ state });
    view.button(name).click();
    assert.deepEqual(view.model.sent, [SHOWN, { command: name }]);
    assert.equal(view.el.byClass("state").textContent, shown);
    assert.equal(view.el.byClass("state").dataset.state, state);
    assert.deepEqual(enabled(view), []);
    view.button("stop").click();
    assert.equal(view.model.sent.length, 2, "one click at a time");
  });
}

test("the run's answer enables the buttons of its new state", () => {
  const view = show();
  view.button("pause").click();
  view.model.receive({ state: "paused", asked: "" });
  assert.deepEqual(enabled(view), ["resume", "stop", "checkpoint"]);
  assert.equal(view.el.byClass("state").textContent, "paused");
});

test("changes of the kernel are drawn", () => {
  const view = show();
  assert.equal(view.el.byClass("name").textContent, "my-run");
  view.model.receive({ headline: "step 4/10 · loss 0.4", note: "slow", step: 4 });
  assert.equal(view.el.byClass("figures").textContent, "step 4/10 · loss 0.4");
  assert.equal(view.el.byClass("note").textContent, "slow");
  assert.deepEqual([view.bar.value, view.bar.max], [4, 10]);
});

test("the bar moves while the steps are unknown, and lies at zero if they stay so", () => {
  const starting = show({ state: "starting", step: 0, steps: 0 });
  assert.equal(starting.bar.value, undefined);
  assert.equal(starting.bar.max, 1);
  starting.model.receive({ state: "running", step: 1, steps: 8 });
  assert.deepEqual([starting.bar.value, starting.bar.max], [1, 8]);
  assert.equal(show({ state: "failed", step: 0, steps: 0 }).bar.value, 0);
});

test("text of the run is never interpreted as HTML", () => {
  const evil = "<img src=x onerror=alert(1)><script>alert(2)</script> & more";
  const texts = { name: evil, headline: evil, note: evil, state: evil, idle: evil, advice: evil };
  const view = show(texts);
  for (const place of ["name", "figures", "note", "state", "idle", "advice"]) {
    const element = view.el.byClass(place);
    assert.equal(element.textContent, evil);
    assert.equal(element.children.length, 0);
  }
  const tags = new Set([...view.el.all()].map((element) => element.tagName));
  const known = "BUTTON CODE DIV LABEL OPTION PROGRESS SELECT SPAN STYLE";
  assert.deepEqual([...tags].sort(), known.split(" "));
  assert.doesNotMatch(source, /innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(/);
});

test("the state is announced to screen readers", () => {
  assert.equal(show().el.byClass("state").attributes.role, "status");
});

test("a closed view no longer listens", () => {
  const view = show();
  assert.equal(livingObservers().length, 2);
  view.close();
  assert.deepEqual(view.model.sent, [SHOWN, { command: "hidden" }]); // so that it can be freed
  view.model.receive({ state: "paused" });
  assert.equal(view.el.byClass("state").textContent, "running");
  assert.equal(livingObservers().length, 0);
});

test("two views of one run show the same click", () => {
  const model = new Model(STATE);
  const [first, second] = [new Element("div"), new Element("div")];
  status.render({ model, el: first });
  status.render({ model, el: second });
  first.find((e) => e.className === "pause").click();
  assert.equal(second.byClass("state").textContent, "pausing …");
});

test("the figure beside the header hears that the cell was resized", () => {
  const view = show();
  const box = new Element("div");
  box.className = "widget-vbox jupyter-widgets";
  const figure = new Element("div");
  box.append(view.el, figure);
  const sizes = livingObservers().find((observer) => observer.observed.includes(view.el));
  sizes.callback();
  assert.deepEqual(windowEvents, ["resize"]);
  assert.ok(sizes.observed.includes(figure));
});
