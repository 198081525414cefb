// What the kernel sent, and what is found in it.

import assert from "node:assert/strict";
import path from "node:path";
import test from "node:test";
import { pathToFileURL } from "node:url";

const folder = process.env.KDFLOW_WIDGETS ?? path.join(import.meta.dirname, "..", "..", "widgets");
const { SeenSteps, binsOf, candidatesAt, rowOfToken, rowsOf, unpack, worstTokens } = await import(
  pathToFileURL(path.join(folder, "snapshots.js"))
);

test("arrays are read from any byte of a message", () => {
  const raw = new ArrayBuffer(3 + 24);
  const view = new DataView(raw, 3);
  [0.5, -2].forEach((value, at) => view.setFloat32(4 * at, value, true));
  [7, 8, 9, 10].forEach((value, at) => view.setUint8(8 + at, value));
  view.setInt32(16, -5, true);
  const layout = { a: ["float32", [2], 0], b: ["uint8", [2, 2], 8], c: ["int32", [1], 16] };
  const found = unpack(layout, view);
  assert.deepEqual([...found.a], [0.5, -2]);
  assert.deepEqual([...found.b], [7, 8, 9, 10]);
  assert.equal(found.b.width, 2);
  assert.deepEqual([...found.c], [-5]);
});

test("the page holds a bounded number of bytes, and the newest and the last used", () => {
  const seen = new SeenSteps(100);
  const arrays = () => ({ "q:kl": new Float32Array(10) }); // 40 bytes
  seen.set(1, arrays());
  seen.set(2, arrays());
  seen.get(1);
  seen.set(3, arrays());
  assert.deepEqual([...seen.held.keys()], [1, 3]);
  seen.set(4, { "q:kl": new Float32Array(1000) });
  assert.deepEqual([...seen.held.keys()], [4], "what is larger than all room is still shown");
});

test("a token's curve is in the order of the steps", () => {
  const seen = new SeenSteps(1e6);
  for (const step of [20, 0, 10]) seen.set(step, { "q:kl": Float32Array.of(0, step / 4) });
  assert.deepEqual(seen.curve("kl", 1), [[0, 0], [10, 2.5], [20, 5]]);
  assert.deepEqual(seen.curve("rank", 1), []);
});

test("rows without a predicted token are left out", () => {
  const rows = rowsOf({ cu_seqlens: [0, 3, 3, 5], row_index: [7, 8, 9] });
  assert.deepEqual(rows.map((row) => [row.dataRow, row.start, row.end]), [
    [7, 0, 3], [9, 3, 5],
  ]);
  assert.equal(rowOfToken(rows, 3).dataRow, 9);
});

test("the worst are those of answers, and equal ones in the order of the text", () => {
  const values = Float32Array.of(9, 1, 3, NaN, 3);
  assert.deepEqual(worstTokens(values, [0, 1, 1, 1, 1], "root", 3), [2, 4, 1]);
  assert.deepEqual(worstTokens(values, [0, 0, 0, 0, 0], "root", 1), [0]);
  assert.deepEqual(worstTokens(Float32Array.of(1, 0, 1), [1, 1, 1], "agreement", 1), [1]);
  assert.deepEqual(worstTokens(Float32Array.of(1, -4), [1, 1], "signed", 1), [1]);
});

test("a histogram counts every value once", () => {
  const scale = { kind: "linear", high: 1 };
  const found = binsOf(Float32Array.of(0, 0.24, 0.26, 1, 5, NaN), scale, 4);
  assert.deepEqual(found, { bins: [2, 1, 0, 2], unknown: 1 });
  assert.deepEqual(binsOf([-1, 0, 1], { kind: "signed", high: 1 }, 2).bins, [1, 2]);
});

const PLACES = { labels: Int32Array.of(5) };
const list = (values) => Object.assign(Float32Array.from(values), { width: values.length });
const STEP = {
  student_topk_ids: list([1, 2]),
  student_topk_logprobs: list([Math.log(0.5), Math.log(0.25)]),
  teacher_topk_ids: list([2, 3]),
  teacher_topk_logprobs: list([Math.log(0.75), Math.log(0.125)]),
  student_logprob: Float32Array.of(Math.log(0.01)),
  teacher_logprob: Float32Array.of(Math.log(0.02)),
};

test("candidates are the union of both lists, the likeliest first, the real one among them", () => {
  const { candidates, bounds, covered, comes, more } = candidatesAt(STEP, PLACES, 0, 3);
  assert.deepEqual(candidates.map(({ id }) => id), [2, 1, 5]);
  assert.equal(comes, 5);
  assert.equal(more, 1);
  assert.equal(candidates[1].teacher, null, "not in the teacher's list");
  assert.ok(Math.abs(Math.exp(bounds.teacher) - 0.125) < 1e-6);
  assert.ok(Math.abs(covered.student - 0.75) < 1e-6);
});

test("with the other model's values nothing is unknown", () => {
  const step = {
    ...STEP,
    teacher_logprobs_of_student_topk: list([-9, Math.log(0.75)]),
    student_logprobs_of_teacher_topk: list([Math.log(0.25), -8]),
  };
  for (const one of candidatesAt(step, PLACES, 0, 9).candidates) {
    assert.ok(one.student !== null && one.teacher !== null);
  }
});

test("without a teacher only the student is shown", () => {
  const { candidates, covered } = candidatesAt(
    { student_topk_ids: list([1]), student_topk_logprobs: list([-1]) }, PLACES, 0, 9,
  );
  assert.deepEqual(candidates, [{ id: 1, student: -1, teacher: null }]);
  assert.equal(covered.teacher, undefined);
});
