// The divergence lens (widgets/divergence.js) in a document written by hand.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import path from "node:path";
import { afterEach, beforeEach, test } from "node:test";
import { pathToFileURL } from "node:url";

import { EVIL, KL, state, values } from "./divergence_state.mjs";
import { Element, Model, install, livingObservers } from "./dom.mjs";

install();
const folder = process.env.KDFLOW_WIDGETS ?? path.join(import.meta.dirname, "..", "..", "widgets");
const lens = (await import(pathToFileURL(path.join(folder, "divergence.js")))).default;
const open = [];
beforeEach(install);
afterEach(() => open.splice(0).forEach((close) => close()));

function show(changes = {}) {
  const model = new Model(state(changes));
  const el = new Element("div");
  const close = lens.render({ model, el });
  open.push(close);
  const tokens = () => [...el.all()].filter((one) => one.classList.contains("t"));
  const all = (name) => [...el.all()].filter((one) => one.classList.contains(name));
  const text = (name) => el.byClass(name).textContent;
  const key = (name) => el.byClass("kdflow-flow").dispatch("keydown", { key: name });
  const selected = () => tokens().findIndex((one) => one.attributes["aria-selected"] === "true");
  const asked = () => model.sent.filter(({ kind }) => kind === "step").map(({ step }) => step);
  const answer = (step, kl) => {
    const [layout, packed] = values(kl);
    model.emit("msg:custom", { kind: "step", step, layout, texts: {}, note: "" }, [packed]);
  };
  return { model, el, close, tokens, all, text, key, selected, asked, answer };
}

test("every predicted token is drawn, coloured and named; the first of a text has no colour", () => {
  const view = show();
  assert.equal(view.tokens().length, 6);
  assert.equal(view.all("first").length, 2);
  const [prompt, worst] = view.tokens();
  assert.ok(prompt.classList.contains("apart"));
  assert.equal(prompt.style.backgroundColor, "");
  assert.match(prompt.style.borderBottomColor, /^#/);
  assert.equal(worst.style.backgroundColor, "#471365");
  assert.equal(worst.style.color, "#ffffff");
  assert.equal(worst.attributes["aria-label"], "↵, forward KL 4.000 nats");
  assert.match(prompt.attributes["aria-label"], /, not trained$/);
});

test("hostile text stays text, and long text is cut", () => {
  const view = show();
  const tags = new Set([...view.el.all()].map((one) => one.tagName));
  assert.ok(!tags.has("SCRIPT") && !tags.has("B"));
  assert.ok(view.tokens().some((one) => one.textContent === EVIL));
  assert.ok(view.tokens().some((one) => one.textContent === "\\u202eabc"));
  assert.ok(view.tokens().some((one) => one.textContent === "\\x1b[2J"));
  assert.ok(view.tokens().every((one) => one.textContent.length <= 60));
  assert.equal(view.text("title"), "my <run>");
});

test("no module interprets text as HTML or loads anything", async () => {
  for (const name of ["divergence", "lens", "scale", "snapshots", "tokenflow", "tokenpanel",
    "histogram", "timetravel"]) {
    const source = await readFile(path.join(folder, `${name}.js`), "utf8");
    assert.doesNotMatch(source, /innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(/);
    assert.doesNotMatch(source.replace("http://www.w3.org/2000/svg", ""), /https?:|fetch\(/);
  }
});

test("it begins at the worst token, and its panel says what both models expect there", () => {
  const view = show();
  assert.equal(view.selected(), 1);
  assert.equal(view.text("where"), "row 0 · token 2 · trained");
  assert.match(view.text("facts"), /rank21/);
  assert.match(view.text("foot"), /student 75\.0 %, teacher 75\.0 %/);
  assert.match(view.text("values"), /forward KL4\.000 nats/);
});

test("hover shows a token and leaving shows the focused one again", () => {
  const view = show();
  view.tokens()[4].dispatch("mouseover");
  assert.equal(view.text("where"), "row 9 · token 1 · trained");
  assert.equal(view.selected(), 1, "hover does not move the focus");
  view.el.byClass("kdflow-flow").dispatch("mouseleave");
  assert.equal(view.text("where"), "row 0 · token 2 · trained");
});

test("keys move the focus; n and p go through the worst", () => {
  const view = show();
  const path = [["ArrowRight", 2], ["ArrowLeft", 1], ["End", 3], ["Home", 0], ["n", 1], ["n", 5],
    ["n", 4], ["p", 5], ["ArrowRight", 5]];
  for (const [name, index] of path) {
    assert.equal(view.key(name).prevented, true);
    assert.equal(view.selected(), index, name);
    assert.deepEqual(view.tokens().filter((one) => one.tabIndex === 0).length, 1);
  }
  assert.match(view.text("spoken"), /forward KL 3\.000 nats, row 9 · token 2/);
  assert.equal(view.key("x").prevented, false, "other keys stay the notebook's");
});

test("the threshold fades what is below, and says how many stay", () => {
  const view = show();
  const input = view.el.byClass("kdflow-histogram").find((one) => one.tagName === "INPUT");
  input.value = 0.5; // the square root of 1 of 4
  input.dispatch("input");
  const faded = view.tokens().map((one) => one.classList.contains("below"));
  assert.deepEqual(faded, KL.map((one) => one < 1));
  assert.equal(view.text("kept"), "4 of 6 tokens ≥ 1.000 nats");
});

test("the list of the worst jumps to the place", () => {
  const view = show();
  const buttons = view.el.byClass("list").children;
  assert.deepEqual(buttons.map((one) => one.textContent), [
    "↵ 4.000", "\\x1b[2J 3.000", "xxxxxxxxxxxxxxx… 2.000", "\\u202eabc 1.000",
    "<script>alert(1… 0.500",
  ]);
  buttons[2].click();
  assert.equal(view.selected(), 4);
});

test("quantity and unit change at once, and the kernel is told", () => {
  const view = show();
  const menu = view.el.byClass("quantity");
  menu.value = "rank";
  menu.dispatch("change");
  assert.equal(view.model.get("quantity"), "rank");
  assert.match(view.tokens()[5].attributes["aria-label"], /student's rank 6$/);
  view.model.set("quantity", "forward_kl");
  view.el.byClass("unit").click();
  assert.match(view.tokens()[1].attributes["aria-label"], /forward KL 5\.771 bits$/);
  assert.equal(view.model.saved, 2);
});

test("the steps are fetched one at a time, and the slider shows those that are here at once", () => {
  const view = show();
  assert.deepEqual(view.asked(), [10]);
  view.answer(10, KL.map((one) => one * 2));
  assert.deepEqual(view.asked(), [10, 0]);
  const slider = view.el.byClass("kdflow-travel").find((one) => one.type === "range");
  slider.value = 1;
  slider.dispatch("input");
  assert.equal(view.text("at"), "step 10 (2 of 3)");
  assert.match(view.tokens()[3].attributes["aria-label"], /1\.000 nats$/);
  assert.match(view.text("label"), /of this token, 2 steps/);
});

test("while the kernel is busy the page says that it waits", async () => {
  const view = show();
  const slider = view.el.byClass("kdflow-travel").find((one) => one.type === "range");
  slider.value = 0;
  slider.dispatch("input");
  assert.equal(view.text("said"), "");
  await new Promise((done) => setTimeout(done, 400));
  assert.match(view.text("said"), /waiting for the kernel: step 0/);
  assert.equal(view.text("at"), "step 20 (3 of 3)", "what is drawn is what is said");
  view.answer(0, KL);
  assert.equal(view.text("said"), "");
  assert.equal(view.text("at"), "step 0 (1 of 3)");
});

test("a step that cannot be read is said and not asked for again", () => {
  const view = show({ steps: [10, 20] });
  const slider = view.el.byClass("kdflow-travel").find((one) => one.type === "range");
  slider.value = 0;
  slider.dispatch("input");
  view.model.emit("msg:custom", { kind: "failed", step: 10, why: "damaged" }, []);
  assert.equal(view.text("said"), "damaged");
  const before = view.asked().length;
  view.model.receive({ steps: [10, 20] });
  assert.equal(view.asked().length, before);
});

test("it follows the newest step of a run that trains, until the reader looks at another", () => {
  const view = show({ live: true });
  view.model.receive({ steps: [0, 10, 20, 30] });
  view.answer(30, KL.map((one) => one / 2));
  assert.equal(view.text("at"), "step 30 (4 of 4)");
  const slider = view.el.byClass("kdflow-travel").find((one) => one.type === "range");
  slider.value = 2;
  slider.dispatch("input");
  view.model.receive({ steps: [0, 10, 20, 30, 40] });
  view.answer(40, KL);
  assert.equal(view.text("at"), "step 20 (3 of 5)");
});

test("a run without probes yet is waited for", () => {
  const empty = new DataView(new ArrayBuffer(0));
  const view = show({ quantities: [], texts: {}, places: empty, values: empty, step: -1,
    steps: [], live: true });
  assert.match(view.text("about"), /waiting for the first probes/);
  view.model.receive(state({ step: 5, steps: [5], live: true }));
  assert.equal(view.tokens().length, 6);
  assert.equal(view.text("at"), "step 5 (1 of 1)");
});

test("the dark page has colours of its own", () => {
  const view = show();
  document.body.dataset.jpThemeLight = "false";
  livingObservers().forEach((one) => one.callback());
  assert.equal(view.tokens()[1].style.backgroundColor, "#fde725");
  assert.equal(view.el.byClass("kdflow-divergence").dataset.theme, "dark");
});

test("a closed view leaves nothing behind", () => {
  const view = show();
  open.pop()();
  assert.equal(view.el.children.length, 0);
  assert.equal(livingObservers().length, 0);
  assert.equal([...view.model.handlers.values()].flat().length, 0);
  assert.deepEqual(view.model.sent.at(-1), { kind: "views", count: 0 });
});
