// The pinned prompts of the rollout browser (widgets/rolloutpinned.js).

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { fresh, show } from "./rollouts_state.mjs";

beforeEach(fresh);

test("pinned prompts before and after, from where they differ", () => {
  const view = show();
  assert.deepEqual(view.all("changed").map((one) => one.textContent), ["b", "cd"]);
  const menu = view.one("before");
  menu.value = "8";
  menu.onchange();
  assert.deepEqual(view.asked().at(-1), { kind: "pinned", before: 8, after: 12 });
  const none = show({ pinned: { steps: [], rows: [] } });
  assert.match(none.el.textContent, /there is none yet/);
});
