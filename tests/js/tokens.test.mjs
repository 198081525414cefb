// The text of tokens: nothing invisible, nothing that is taken for markup.

import assert from "node:assert/strict";
import path from "node:path";
import test from "node:test";
import { pathToFileURL } from "node:url";

import { install } from "./dom.mjs";

install();
const folder = process.env.KDFLOW_WIDGETS ?? path.join(import.meta.dirname, "..", "..", "widgets");
const { make, probability, visible } = await import(pathToFileURL(path.join(folder, "tokens.js")));

test("white space and what has no ink get signs", () => {
  assert.equal(visible(" a\n\t\r\u00a0"), "␣a↵⇥␍⍽");
  assert.equal(visible("\u200b\u202e\x1b"), "\\u200b\\u202e\\x1b");
  assert.equal(visible("\u{e0001}"), "\\U000e0001");
  assert.equal(visible("\ud800"), "\\ud800"); // half of a pair
  assert.equal(visible(""), "∅");
  assert.equal(visible("\u0301"), "◌\u0301");
});

test("long text is cut by characters, not inside of one", () => {
  assert.equal(visible("😀😀😀", 2), "😀…");
  assert.equal(visible("abc", 3), "abc");
  assert.ok(visible("x".repeat(100_000), 10).length === 10);
});

test("text is never taken for HTML", () => {
  assert.equal(make("span", "t", null, "<b>x</b>").textContent, "<b>x</b>");
});

test("a small probability is not called zero", () => {
  assert.equal(probability(0.0001), "<.001");
  assert.equal(probability(0), "0.000");
  assert.equal(probability(0.5), "0.500");
});
