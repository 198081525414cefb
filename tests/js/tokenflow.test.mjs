// Tokens that flow as a text.

import assert from "node:assert/strict";
import path from "node:path";
import { beforeEach, test } from "node:test";
import { pathToFileURL } from "node:url";

import { Element, install } from "./dom.mjs";

install();
const folder = process.env.KDFLOW_WIDGETS ?? path.join(import.meta.dirname, "..", "..", "widgets");
const { flowing, makeFlow } = await import(pathToFileURL(path.join(folder, "tokenflow.js")));
beforeEach(install);

test("spaces stay in a line of text, everything else unseen gets a sign", () => {
  assert.equal(flowing(" the  cat"), " the  cat");
  assert.equal(flowing(" a\n\tb"), " a↵⇥b");
  assert.equal(flowing("\u202eevil\u200b"), "\\u202eevil\\u200b");
  assert.equal(flowing("\u0301x"), "◌\u0301x");
  assert.equal(flowing(""), "∅");
  assert.equal(flowing("\ud800"), "\\ud800");
  assert.equal(flowing("😀".repeat(100), 5), "😀😀😀😀…");
});

test("line ends break the line, but a token of thousands does not fill the page", () => {
  const parent = new Element("div");
  const places = {
    input_ids: [0], labels: [1], response: [1], cu_seqlens: [0, 1], row_index: [0],
  };
  const flow = makeFlow({
    parent, rows: [{ dataRow: 0, start: 0, end: 1 }], places,
    textOf: (id) => (id ? "\n".repeat(5000) : "first"), onHover() {}, onFocus() {}, onKey() {},
  });
  const tags = [...parent.all()].map((one) => one.tagName);
  assert.equal(tags.filter((one) => one === "BR").length, 4);
  assert.equal(flow.spans.length, 1);
  flow.paint([NaN], { kind: "linear", high: 1 }, "light", () => "");
  assert.equal(flow.spans[0].style.backgroundColor, "", "what is not known has no colour");
});
