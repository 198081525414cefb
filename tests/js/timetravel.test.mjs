// The slider over the steps, play, and the curve of one token.

import assert from "node:assert/strict";
import path from "node:path";
import { beforeEach, test } from "node:test";
import { pathToFileURL } from "node:url";

import { Element, install } from "./dom.mjs";

install();
const folder = process.env.KDFLOW_WIDGETS ?? path.join(import.meta.dirname, "..", "..", "widgets");
const { curvePath, makeTravel } = await import(pathToFileURL(path.join(folder, "timetravel.js")));
beforeEach(install);

test("a curve begins at zero and has gaps where nothing is known", () => {
  const { path: drawn, places } = curvePath([[0, 4], [5, NaN], [10, 2], [20, 0]]);
  assert.equal(drawn, "M4.0 4.0M160.0 23.0L316.0 42.0");
  assert.deepEqual([...places.keys()], [0, 10, 20]);
  assert.equal(curvePath([]).path, "");
  assert.equal(curvePath([[3, 0]]).path, "M4.0 42.0");
});

function travel(t) {
  const parent = new Element("div");
  const heard = [];
  let there = true;
  const made = makeTravel({ parent, onStep: (step) => heard.push(step), onFollow: () => {},
    isThere: () => there });
  t.after(() => made.close());
  made.update({ known: [0, 10, 20], step: 20, live: false, following: false });
  return { parent, made, heard, play: parent.byClass("play"), arrive: (now) => (there = now) };
}

test("play begins anew at the end, waits for steps that are not there, and ends", (t) => {
  t.mock.timers.enable({ apis: ["setInterval"] });
  const { heard, play, arrive } = travel(t);
  play.click();
  assert.match(play.textContent, /Pause/);
  assert.deepEqual(heard, [0]);
  arrive(false);
  t.mock.timers.tick(1300);
  assert.deepEqual(heard, [0], "step 0 has not come yet");
  arrive(true);
  t.mock.timers.tick(1200);
  assert.deepEqual(heard, [0, 10, 20]);
  t.mock.timers.tick(700);
  assert.match(play.textContent, /Play/);
});

test("a slider of one step cannot be moved, and none is shown without steps", (t) => {
  const { parent, made, play } = travel(t);
  made.update({ known: [7], step: 7, live: false, following: false });
  assert.equal(play.disabled, true);
  made.update({ known: [], step: null, live: false, following: false });
  assert.match(parent.children[0].className, /none/);
});

test("the curve says its numbers to a screen reader", (t) => {
  const { parent, made } = travel(t);
  const kl = { label: "KL", unit: "nats", kind: "root" };
  made.draw([[0, 2], [20, 1]], kl, false);
  const svg = parent.find((one) => one.tagName === "SVG");
  assert.equal(svg.attributes["aria-label"], "step 0: 2.000 nats, step 20: 1.000 nats");
  assert.match(parent.byClass("label").textContent, /KL of this token, 2 steps1\.000 nats/);
});
