// One answer of the rollout browser (widgets/rolloutanswer.js).

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { ANSWER, fresh, load, show, type } from "./rollouts_state.mjs";

const answers = await load("rolloutanswer");
beforeEach(fresh);

test("the first diverging token, and the next ones, round the end", () => {
  assert.equal(answers.firstDiverging(ANSWER, 0.5), 1);
  assert.equal(answers.firstDiverging(ANSWER, 5), -1);
  assert.equal(answers.nextDiverging(ANSWER, 1, 1, 0.5), 3);
  assert.equal(answers.nextDiverging(ANSWER, 3, 1, 0.5), 1);
  assert.equal(answers.nextDiverging(ANSWER, 1, -1, 0.5), 3);
  assert.equal(answers.nextDiverging(ANSWER, 0, 1, 5), -1);
});

test("the scale ends at one nat or at the worst token", () => {
  assert.equal(answers.scaleTop([0.1, null]), 1);
  assert.equal(answers.scaleTop([0.1, 3.5]), 3.5);
});

test("tokens are coloured by what is chosen; unknown ones are marked without colour", () => {
  const view = show();
  const grounds = () => view.all("token").map((one) => one.style.background);
  const byKl = grounds();
  assert.equal(byKl[2], undefined);
  assert.match(view.all("token")[2].className, /unknown/);
  assert.notEqual(byKl[0], byKl[3]);
  type(view.one("colouring"), "logprobs");
  assert.notDeepEqual(grounds(), byKl);
  assert.ok(grounds()[2]);
});

test("the teacher's correction at the first diverging token", () => {
  const view = show();
  assert.equal(
    view.one("correction").textContent,
    "Token 2 is the first to reach 0.500 nats (KL 0.900). The teacher would have written " +
      "␣dog (p 0.951) instead of ␣cat (p 0.002).show",
  );
  assert.equal(view.all("first")[0].textContent, "␣cat");
  assert.match(view.one("panel").textContent, /token 2 of 4: ␣cat/);
  type(view.one("threshold"), "1.5");
  assert.match(view.one("correction").textContent, /Token 4 is the first to reach 1\.500/);
  assert.equal(view.model.get("threshold"), 1.5);
  type(view.one("threshold"), "7");
  assert.equal(view.one("correction").textContent, "No token reaches 7.000 nats.");
  const nobody = show({ answer: { ...ANSWER, kl: [null, null, null, null] } });
  assert.match(nobody.one("correction").textContent, /Nobody looked/);
});

test("keys and hover move over the tokens", () => {
  const view = show();
  const key = (name) => view.one("current").dispatch("keydown", { key: name });
  for (const [name, at] of [["n", 3], ["n", 1], ["p", 3], ["Home", 0], ["ArrowRight", 1], ["End", 3]]) {
    assert.ok(key(name).prevented);
    assert.equal(Number(view.one("current").dataset.at), at, name);
  }
  view.all("token")[0].dispatch("mouseover");
  assert.match(view.one("panel").textContent, /The teacher would have written The \(p 0\.819\) too\./);
  assert.deepEqual(view.all("token").map((one) => one.tabIndex), [0, -1, -1, -1]);
  assert.equal(view.all("token")[1].attributes["aria-label"], "token 2: ␣cat, KL 0.900 nats");
});
