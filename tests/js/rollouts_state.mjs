// What the suites of the rollout browser share: a page of it with a few answers.

import path from "node:path";
import { mock } from "node:test";
import { pathToFileURL } from "node:url";

import { Element, Model, install } from "./dom.mjs";

install();
const folder = process.env.KDFLOW_WIDGETS ?? path.join(import.meta.dirname, "..", "..", "widgets");
export const widgetFile = (name) => path.join(folder, `${name}.js`);
export const load = (name) => import(pathToFileURL(widgetFile(name)));
const browser = await load("rollouts");
// Before each test: a fresh document, and a clock that stands still.
export function fresh() {
  install();
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout"] });
}

export const line = (at, changes = {}) => ({
  at, step: 10 - at, row: at, length: 3, finished: true, staleness: 0, kl_mean: 0.25,
  kl_max: 0.5 * at, pinned: false, prompt: `ask ${at}`, text: `say ${at}`, ...changes,
});
export const ANSWER = {
  ...line(1, { length: 4 }),
  prompt: "user\nask",
  tokens: ["The", "␣cat", "↵", "</s>"],
  breaks: [2],
  more: 0,
  kl: [0.1, 0.9, null, 2.0],
  logprobs: [-0.1, -1.0, -2.0, -0.5],
  teacher_logprobs: [-0.2, -6.0, null, -3.0],
  teacher_tokens: ["The", "␣dog", null, "."],
  teacher_top_logprobs: [-0.2, -0.05, null, -0.1],
  same: [0],
};
export const STATE = {
  twin: "kdflow-twin-1",
  name: "run",
  headline: "run: 25 answers of 7 steps",
  note: "",
  live: true,
  threshold: 0.5,
  listing: {
    asked: 0, order: "step", descending: true, start: 0, per_page: 2, count: 5,
    rows: [line(0, { kl_max: null, kl_mean: null }), line(1)],
  },
  answer: ANSWER,
  pinned: {
    steps: [4, 8, 12], before: 4, after: 12,
    rows: [{ row: 0, prompt: "q", before: ["a", "b"], after: ["a", "c", "d"], shared: 1 }],
  },
};

export function show(changes = {}) {
  const model = new Model({ ...STATE, ...changes });
  const el = new Element("div");
  const close = browser.default.render({ model, el });
  const all = (name) => [...el.all()].filter((one) => one.className.split(" ").includes(name));
  const asked = () => model.sent.filter((one) => one.kind !== "views");
  const rows = () => [...el.byClass("list").all()].filter((one) => one.tagName === "TR").slice(1);
  return { model, el, close, all, asked, rows, one: (name) => all(name)[0] };
}

export function type(input, value) {
  input.value = value;
  input.oninput();
  mock.timers.tick(300);
}
