// The foot of a run's figure (widgets/health.js): memory and news.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeEach, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";

import { Element, Model, install } from "./dom.mjs";

const checkout = fileURLToPath(new URL("../../widgets", import.meta.url));
const file = join(process.env.KDFLOW_WIDGETS ?? checkout, "health.js");
const health = (await import(pathToFileURL(file))).default;

const ALARM = {
  kind: "alarm",
  step: 12,
  when: "14:03:22",
  text: "repeated: half of the answers repeat themselves",
  tokens: "<b>␣a</b>",
  ids: "1 2 3",
};
beforeEach(() => install());

function show(changes = {}) {
  const model = new Model({ memory: [], total: "", news: [], ...changes });
  model.emit = (event) => {
    for (const [name, handlers] of model.handlers) {
      if (name === event || name.startsWith(`${event}:`)) for (const one of handlers) one();
    }
  };
  const el = new Element("div");
  return { model, el, close: health.render({ model, el }) };
}

test("memory is listed by role, with its sum", () => {
  const uses = [
    { role: "teacher", size: "310 MB", bytes: 3.1e8, count: 2 },
    { role: "student 0", size: "1.20 GB", bytes: 1.2e9, count: 1 },
  ];
  const { el } = show({ memory: uses, total: "1.51 GB in all" });
  const text = el.byClass("memory").textContent;
  assert.equal(text, "Memoryteacher 310 MBstudent 0 1.20 GB1.51 GB in all");
  assert.equal(el.byClass("use").title, "teacher: 2 processes");
});

test("where no process is at hand, that is said", () => {
  assert.equal(show().el.byClass("total").textContent, "not known here");
});

test("an alarm comes with its step and the tokens that show it, as text", () => {
  const { el } = show({ news: [ALARM] });
  const item = el.byClass("item");
  assert.equal(item.byClass("kind").textContent, "alarm");
  assert.equal(item.byClass("when").textContent, "step 12 · 14:03:22");
  assert.equal(item.byClass("tokens").textContent, "<b>␣a</b>");
  assert.equal(item.byClass("tokens").children.length, 0);
  assert.equal(item.byClass("ids").textContent, "ids 1 2 3");
});

test("news come in the order of the kernel, and without a step none is named", () => {
  const { model, el } = show();
  assert.equal(el.byClass("none").textContent, "No alarm, warning or change so far.");
  const warning = { kind: "warning", step: null, when: "14:04:00", text: "slow", tokens: "", ids: "" };
  model.receive({ news: [warning, ALARM] });
  const kinds = [...el.all()].filter((one) => one.className === "kind");
  assert.deepEqual(kinds.map((one) => one.textContent), ["warning", "alarm"]);
  assert.equal(el.byClass("when").textContent, "14:04:00");
  assert.equal(el.byClass("none"), undefined);
});

test("a closed view no longer listens, and nothing is written as HTML", async () => {
  const { model, el, close } = show();
  close();
  model.receive({ news: [ALARM] });
  assert.equal(el.byClass("item"), undefined);
  assert.doesNotMatch(await readFile(file, "utf8"), /innerHTML|outerHTML|insertAdjacentHTML/);
});
