// The rollout browser as a whole (widgets/rollouts.js).

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { beforeEach, mock, test } from "node:test";

import { livingObservers } from "./dom.mjs";
import { ANSWER, fresh, line, show, STATE, widgetFile } from "./rollouts_state.mjs";

const PARTS = ["rollouts", "rolloutanswer", "rolloutkit", "rolloutlist", "rolloutpinned"];
const sources = async () =>
  (await Promise.all(PARTS.map((name) => readFile(widgetFile(name), "utf8")))).join("");
beforeEach(fresh);

test("a run without answers yet, and new ones", () => {
  const view = show({ listing: { ...STATE.listing, count: 0, rows: [] }, answer: {} });
  assert.match(view.el.textContent, /no such answers/);
  assert.equal(view.all("token").length, 0);
  view.model.receive({ listing: STATE.listing, answer: ANSWER, live: false });
  assert.equal(view.all("token").length, 4);
  assert.equal(view.all("live").length, 0);
});

test("text is never taken for HTML", async () => {
  const evil = "<img src=x onerror=alert(1)>";
  const view = show({
    headline: evil,
    note: evil,
    listing: { ...STATE.listing, rows: [line(0, { prompt: evil, text: evil })] },
    answer: { ...ANSWER, prompt: evil, tokens: Array(4).fill(evil),
      teacher_tokens: Array(4).fill(evil) },
    pinned: { ...STATE.pinned, rows: [{ prompt: evil, before: [evil], after: [], shared: 0 }] },
  });
  assert.ok(!new Set([...view.el.all()].map((one) => one.tagName)).has("IMG"));
  assert.doesNotMatch(await sources(), /innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(/);
});

test("the end takes the view away and stops all timers", () => {
  const view = show();
  view.rows()[0].onclick();
  view.close();
  assert.equal(view.el.children.length, 0);
  assert.equal(livingObservers().length, 0);
  mock.timers.tick(1000);
  assert.doesNotMatch(view.el.textContent, /waiting/);
});
