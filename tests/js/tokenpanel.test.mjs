// All that is known of one token.

import assert from "node:assert/strict";
import path from "node:path";
import { beforeEach, test } from "node:test";
import { pathToFileURL } from "node:url";

import { Element, install } from "./dom.mjs";

install();
const folder = process.env.KDFLOW_WIDGETS ?? path.join(import.meta.dirname, "..", "..", "widgets");
const { makePanel } = await import(pathToFileURL(path.join(folder, "tokenpanel.js")));
beforeEach(install);

const list = (values) => Object.assign(Float32Array.from(values), { width: values.length });
const STEP = {
  student_topk_ids: list([1, 2]),
  student_topk_logprobs: list([Math.log(0.5), Math.log(0.25)]),
  teacher_topk_ids: list([2, 3]),
  teacher_topk_logprobs: list([Math.log(0.75), Math.log(0.125)]),
  student_logprob: Float32Array.of(Math.log(0.25)),
  student_logit: Float32Array.of(3.5),
  "q:surprise": Float32Array.of(Math.log(4)),
};
const QUANTITIES = [{ name: "surprise", label: "surprise", unit: "nats", kind: "root", high: 4 }];

function show(changes = {}) {
  const parent = new Element("div");
  const panel = makePanel({ parent, textOf: (id) => ` t${id}`, where: () => "here" });
  const shown = { step: STEP, places: { labels: [2] }, index: 0, quantities: QUANTITIES,
    chosen: "surprise", bits: false, ...changes };
  panel.show(shown);
  return { parent, panel, shown, all: (name) =>
    [...parent.all()].filter((one) => one.classList.contains(name)) };
}

test("bars mirror both models, the real token is marked, a bound is said to be one", () => {
  const { all } = show();
  assert.deepEqual(all("name").slice(0, 3).map((one) => one.textContent), ["␣t2", "␣t1", "␣t3"]);
  assert.deepEqual(all("comes").map((one) => one.textContent), ["␣t2"]);
  const numbers = all("p").slice(0, 6).map((one) => one.textContent);
  assert.deepEqual(numbers, ["0.250", "0.750", "0.500", "<0.125", "<0.250", "0.125"]);
  assert.deepEqual(all("bound").length >= 2, true);
  assert.equal(all("bar")[0].style.width, "25.00%");
});

test("what is not known is a dash, and bits are bits", () => {
  const { parent, panel, shown } = show();
  assert.match(parent.byClass("facts").textContent, /logit3\.500–/);
  assert.match(parent.byClass("values").textContent, /1\.386 nats/);
  panel.show({ ...shown, bits: true });
  assert.match(parent.byClass("values").textContent, /2\.000 bits/);
  assert.match(parent.byClass("facts").textContent, /log-probability, bits−2\.000/);
});

test("filling it again makes no new elements", () => {
  const { parent, panel, shown } = show();
  const before = [...parent.all()].length;
  for (let at = 0; at < 5; at += 1) panel.show(shown);
  assert.equal([...parent.all()].length, before);
});
