// The list of the rollout browser (widgets/rolloutlist.js).

import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";

import { ANSWER, fresh, line, show, STATE, type } from "./rollouts_state.mjs";

beforeEach(fresh);

test("the list shows numbers, and what is not known as such", () => {
  const view = show();
  const cells = view.rows().map((row) => row.children.map((cell) => cell.textContent));
  assert.deepEqual(cells[0], ["10", "0", "3", "–", "–", "0", "ended", "ask 0", "say 0"]);
  assert.deepEqual(cells[1].slice(3, 5), ["0.250", "0.500"]);
  assert.equal(view.one("where").textContent, "1–2 of 5 answers");
  assert.equal(view.one("sorted").textContent, "step ▾");
  assert.equal(view.one("headline").textContent, STATE.headline);
  assert.equal(view.one("live").textContent, "live");
});

test("a click on a heading sorts, a second one turns it round", () => {
  const view = show();
  const heading = (text) => view.el.find((one) => one.tagName === "BUTTON" &&
    one.textContent.startsWith(text));
  heading("max KL").click();
  assert.equal(view.asked().at(-1).order, "kl_max");
  assert.equal(view.asked().at(-1).descending, true);
  view.model.receive({ listing: { ...STATE.listing, order: "kl_max" } });
  heading("max KL").click();
  assert.equal(view.asked().at(-1).descending, false);
});

test("filters ask once typing pauses, from the first page on", () => {
  const view = show();
  type(view.one("search"), "dog");
  type(view.one("least"), "0.7");
  type(view.one("ends"), "cut");
  type(view.one("until"), "9");
  const last = view.asked().at(-1);
  assert.deepEqual(
    [last.text, last.kl, last.finished, last.first_step, last.last_step, last.start],
    ["dog", 0.7, false, 0, 9, 0],
  );
  assert.equal(view.asked().length, 4);
});

test("pages", () => {
  const view = show();
  assert.ok(view.one("earlier").disabled);
  view.one("further").click();
  assert.equal(view.asked().at(-1).start, 2);
  view.model.receive({ listing: { ...STATE.listing, start: 4, rows: [line(4)] } });
  assert.equal(view.one("where").textContent, "5–5 of 5 answers");
  assert.ok(view.one("further").disabled);
  view.one("earlier").click();
  assert.equal(view.asked().at(-1).start, 2);
});

test("a row asks for its answer, by click and by key; a busy kernel is waited for in words", () => {
  const view = show();
  view.rows()[0].onclick();
  assert.deepEqual(view.asked().at(-1), { kind: "answer", at: 0 });
  assert.equal(view.one("note").textContent, "");
  mock.timers.tick(500);
  assert.equal(view.one("note").textContent, "waiting for the kernel …");
  view.model.receive({ answer: { ...ANSWER, at: 0 } });
  assert.equal(view.one("note").textContent, "");
  assert.ok(view.rows()[0].dispatch("keydown", { key: "ArrowDown" }).prevented);
  assert.deepEqual(view.asked().at(-1), { kind: "answer", at: 1 });
  view.model.receive({ note: "Answer 9 is gone." });
  assert.equal(view.one("note").textContent, "Answer 9 is gone.");
});
