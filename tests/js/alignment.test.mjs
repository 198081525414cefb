// The alignment lens (widgets/alignment.js) in a document written by hand.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import path from "node:path";
import { beforeEach, test } from "node:test";
import { pathToFileURL } from "node:url";

import { Element, Model, install } from "./dom.mjs";

install();
const folder = process.env.KDFLOW_WIDGETS ?? path.join(import.meta.dirname, "..", "..", "widgets");
const file = path.join(folder, "alignment.js");
const lens = await import(pathToFileURL(file));
const source = await readFile(file, "utf8");
beforeEach(install);

const side = (shown) => ({
  ids: shown.map((_, at) => 100 + at),
  names: shown.map((one) => `Ġ${one}`),
  shown,
  hex: shown.map(() => "61"),
  notes: { 1: "byte 1 of the 2 of é" },
  silent: [2],
});
// "It" 1:1, a line end; "September" 1:3; then what is unaligned, and one more span
const STRIP = {
  title: "Text",
  numbers: [["97.0%", "of 20 bytes aligned"]],
  counts: { one: 2, split: 1, many: 0, unaligned: 1 },
  reasons: ["", "the student has no such token"],
  pieces: [
    [0, 1, 1, 0, 3, 0, 1],
    [1, 1, 3, 3, 12, 0, 0],
    [3, 1, 0, 12, 12, 1, 0],
    [0, 1, 1, 12, 20, 0, 0],
  ],
  texts: ["It↵", "September", "", "end"],
  teacher: side(["It↵", "September", "<s>", "end"]),
  student: side(["It↵", "S", "ept", "ember", "end"]),
};
const ROLES = [
  ["eos", "</s> (2)", "<end> (3)"],
  ["bos", "<s> (1)", ""],
];

function show(strips = [STRIP]) {
  const model = new Model({ strips, roles: ROLES, twin: "kdflow-twin-1" });
  const el = new Element("div");
  const close = lens.default.render({ model, el });
  const all = (name) => [...el.all()].filter((one) => one.className.split(" ").includes(name));
  const key = (name, target = all("current")[0]) => target.dispatch("keydown", { key: name });
  const current = () => Number(all("current")[0].dataset.at);
  return { model, el, close, all, key, current };
}

test("columns become pieces with their tokens", () => {
  const pieces = lens.unpackPieces(STRIP);
  assert.deepEqual(pieces.map((one) => one.teacher), [[0], [1], [2], [3]]);
  assert.deepEqual(pieces.map((one) => one.student), [[0], [1, 2, 3], [], [4]]);
  assert.equal(pieces[2].reason, "the student has no such token");
});

test("the next piece is looked for round the end, both ways", () => {
  const pieces = lens.unpackPieces(STRIP);
  const one = (piece) => piece.kind === 0;
  assert.equal(lens.nextPiece(pieces, 0, 1, one), 3);
  assert.equal(lens.nextPiece(pieces, 3, 1, one), 0);
  assert.equal(lens.nextPiece(pieces, 0, -1, one), 3);
  assert.equal(lens.nextPiece(pieces, 1, 1, (piece) => piece.kind === 2), -1);
  assert.equal(lens.nextPiece([], 0, 1, one), -1);
});

test("both strips are drawn, with bridges that say how many tokens meet", () => {
  const { all, el } = show();
  assert.deepEqual(all("piece").map((one) => one.byClass("bridge").textContent), [
    "", "1:3", "1:0", "",
  ]);
  assert.equal(all("break").length, 1);
  assert.deepEqual(all("teacher").filter((one) => one.tagName === "DIV").map((one) => one.textContent),
    STRIP.teacher.shown);
  assert.match(el.textContent, /97\.0% of 20 bytes aligned/);
  assert.equal(all("token").filter((one) => one.className.includes("silent")).length, 2);
});

test("it begins at the first span that is not one to one, and shows ids, bytes and notes", () => {
  const view = show();
  assert.equal(view.current(), 1);
  const details = view.all("details")[0].textContent;
  assert.match(details, /one to many \(1:3\)/);
  assert.match(details, /bytes 3–11 · span 2 of 4/);
  for (const shown of ["September", "ept", "101", "byte 1 of the 2 of é"]) {
    assert.ok(details.includes(shown), shown);
  }
});

test("hover and focus look at a span on both sides", () => {
  const view = show();
  const token = view.all("piece")[2].find((one) => one.className.startsWith("token"));
  token.dispatch("mouseover");
  assert.equal(view.current(), 2);
  assert.match(view.all("details")[0].textContent, /the student has no such token/);
  view.all("piece")[3].focus();
  assert.equal(view.current(), 3);
  assert.equal(view.all("current").length, 1);
  assert.deepEqual(view.all("piece").map((one) => one.tabIndex), [-1, -1, -1, 0]);
});

test("keys move and jump", () => {
  const view = show();
  for (const [name, at] of [
    ["End", 3], ["ArrowRight", 3], ["ArrowLeft", 2], ["Home", 0], ["ArrowLeft", 0],
    ["n", 2], ["n", 2], ["p", 2], ["s", 1], ["s", 2], ["S", 1],
  ]) {
    assert.ok(view.key(name).prevented);
    assert.equal(view.current(), at, name);
  }
  assert.ok(!view.key("x").prevented);
  assert.ok(!view.all("current")[0].dispatch("keydown", { key: "s", ctrlKey: true }).prevented);
});

test("the legend counts the kinds and jumps to them", () => {
  const view = show();
  const button = (name) => view.all("jump").find((one) => one.className.includes(name));
  assert.equal(button("one").textContent, "2 one to one");
  button("unaligned").click();
  assert.equal(view.current(), 2);
  assert.ok(button("many").disabled);
});

test("what is not there is said", () => {
  const plain = {
    ...STRIP,
    pieces: [STRIP.pieces[0]],
    texts: ["It"],
    counts: { one: 1, split: 0, many: 0, unaligned: 0 },
  };
  const view = show([plain]);
  view.key("n");
  assert.equal(view.all("said")[0].textContent, "There is no span that is unaligned.");
  const empty = show([{ ...plain, pieces: [], texts: [] }]);
  assert.match(empty.el.textContent, /The text is empty/);
});

test("a long text is drawn in parts, and reached by keys", () => {
  const count = 7000;
  const texts = Array.from({ length: count }, () => "a");
  const long = {
    ...STRIP,
    texts,
    pieces: texts.map((_, at) => [0, 1, 1, at, at + 1, 0, 0]),
    teacher: { ...side(texts), silent: [] },
    student: { ...side(texts), silent: [] },
  };
  const view = show([long]);
  assert.equal(view.all("piece").length, 3000);
  view.all("more")[0].click();
  assert.equal(view.all("piece").length, 6000);
  view.key("End");
  assert.equal(view.current(), count - 1);
  assert.equal(view.all("more").length, 0);
});

test("tabs: the second strip and the roles are drawn when they are asked for", () => {
  const view = show([STRIP, { ...STRIP, title: "Chat templates" }]);
  assert.equal(view.all("strip").length, 1);
  const [, chat, roles] = view.all("tab");
  chat.click();
  assert.equal(view.all("strip").length, 2);
  roles.click();
  assert.equal(roles.attributes["aria-selected"], "true");
  assert.match(view.el.byClass("roles").textContent, /eos<\/s> \(2\)<end> \(3\)bos<s> \(1\)none/);
});

test("a span says what it is to screen readers", () => {
  const label = lens.pieceLabel(STRIP, lens.unpackPieces(STRIP)[2]);
  assert.equal(
    label,
    "unaligned: teacher <s>, student nothing, the student has no such token",
  );
  const view = show();
  assert.equal(view.all("piece")[2].attributes["aria-label"], label);
  assert.equal(view.all("strip")[0].attributes.role, "listbox");
});

test("text is never taken for HTML", () => {
  const evil = "<img src=x onerror=alert(1)>";
  const bad = side([evil, evil, evil, evil]);
  const view = show([{ ...STRIP, title: evil, texts: [evil, evil, evil, evil], teacher: bad }]);
  assert.ok(!new Set([...view.el.all()].map((one) => one.tagName)).has("IMG"));
  assert.doesNotMatch(source, /innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(/);
});

test("the end takes the view away and brings its twin back", () => {
  const view = show();
  view.close();
  assert.equal(view.el.children.length, 0);
  const [opened, closed] = view.model.sent.map((one) => one.count);
  assert.equal(closed, opened - 1);
});
