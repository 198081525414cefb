// The histogram that is legend and threshold at once.

import assert from "node:assert/strict";
import path from "node:path";
import { beforeEach, test } from "node:test";
import { pathToFileURL } from "node:url";

import { Element, install } from "./dom.mjs";

install();
const folder = process.env.KDFLOW_WIDGETS ?? path.join(import.meta.dirname, "..", "..", "widgets");
const { makeHistogram } = await import(pathToFileURL(path.join(folder, "histogram.js")));
beforeEach(install);

const draw = (values, scale, bits = false) => {
  const parent = new Element("div");
  const heard = [];
  const made = makeHistogram({ parent, onThreshold: (place) => heard.push(place) });
  made.draw(Float32Array.from(values), scale, "light", bits);
  const ticks = () => parent.byClass("ticks").children.map((one) => one.textContent);
  return { parent, made, heard, ticks };
};
const KL = { kind: "linear", unit: "nats", high: 2 };

test("bars count tokens, and ticks carry numbers and the unit", () => {
  const { parent, ticks } = draw([0, 0, 0, 0, 2, NaN], KL);
  const heights = parent.byClass("plot").children.map((one) => one.style.height);
  assert.equal(heights[0], "54px");
  assert.equal(heights.at(-1), "27px", "square roots: 1 of 4 is half as high");
  assert.equal(heights[5], "0px");
  assert.deepEqual(ticks(), ["0.000", "0.500", "1.000", "1.500", "≥ 2.000 nats"]);
  assert.match(parent.byClass("kdflow-histogram").title, /not known of 1/);
});

test("bits change the ticks", () => {
  assert.equal(draw([0], { ...KL, high: Math.LN2 * 2 }, true).ticks().at(-1), "≥ 2.000 bits");
});

test("quantities with a sign and yes-or-no have ticks of their own", () => {
  assert.deepEqual(draw([0], { ...KL, kind: "signed" }).ticks(), [
    "−2.000", "−1.000", "0.000", "+1.000", "≥ +2.000 nats",
  ]);
  assert.deepEqual(draw([0, 1], { kind: "agreement", unit: "", high: 1 }).ticks(), ["yes", "no"]);
});

test("moving the threshold is heard, and what it leaves is said", () => {
  const { parent, made, heard } = draw([0, 2], KL);
  made.input.value = 0.5;
  made.input.dispatch("input");
  assert.deepEqual(heard, [0.5]);
  made.mark(0.5, 1, 2, false);
  assert.equal(parent.byClass("kept").textContent, "1 of 2 tokens ≥ 1.000 nats");
  assert.equal(made.input.attributes["aria-valuetext"], parent.byClass("kept").textContent);
});
