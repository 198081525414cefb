// Units, fields and timers of the rollout browser (widgets/rolloutkit.js).

import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";

import { Element } from "./dom.mjs";
import { fresh, load, show } from "./rollouts_state.mjs";

const { rolloutKit } = await load("rolloutkit");
beforeEach(fresh);

test("bits instead of nats, everywhere at once", () => {
  const view = show();
  const box = view.one("bits");
  box.checked = true;
  box.onchange();
  assert.equal(view.rows()[1].children[4].textContent, "0.721");
  assert.match(view.one("correction").textContent, /first to reach 0\.721 bits \(KL 1\.298\)/);
  assert.equal(view.one("threshold").value, "0.721");
});

test("nats to the value of a field and back", () => {
  const kit = rolloutKit();
  assert.equal(kit.toField(0.5), "0.5");
  kit.useBits(true);
  assert.equal(kit.toField(Math.LN2), "1");
  assert.ok(Math.abs(kit.fromField("2") - 2 * Math.LN2) < 1e-12);
  assert.equal(kit.fromField("nonsense"), 0);
  assert.equal(kit.shown(null), "–");
});

test("typing counts once it pauses, and the notebook hears none of it", () => {
  const kit = rolloutKit();
  const heard = [];
  const input = kit.field(new Element("div"), { name: "x", label: "X" }, (value) => heard.push(value));
  for (const value of ["a", "ab", "abc"]) {
    input.value = value;
    input.oninput();
    mock.timers.tick(100);
  }
  mock.timers.tick(300);
  assert.deepEqual(heard, ["abc"]);
  let stopped = false;
  input.onkeydown({ stopPropagation: () => (stopped = true) });
  assert.ok(stopped);
  input.oninput();
  kit.stop();
  mock.timers.tick(1000);
  assert.deepEqual(heard, ["abc"]);
});
