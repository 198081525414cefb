// What every lens shares: it hides its static twin while it is on the page, and tells the kernel.

import assert from "node:assert/strict";
import path from "node:path";
import { beforeEach, test } from "node:test";
import { pathToFileURL } from "node:url";

import { Element, Model, install } from "./dom.mjs";

install();
const folder = process.env.KDFLOW_WIDGETS ?? path.join(import.meta.dirname, "..", "..", "widgets");
const { openLens } = await import(pathToFileURL(path.join(folder, "lens.js")));
beforeEach(install);

const open = (model, el) => openLens({ model, el, name: "my-lens", style: ".a { color: red; }" });

test("the twin is hidden as long as a view is open", () => {
  const model = new Model({ twin: "kdflow-twin-1" });
  const el = new Element("div");
  const { root, close } = open(model, el);
  assert.equal(root.className, "kdflow-lens my-lens");
  const style = root.find((one) => one.tagName === "STYLE").textContent;
  assert.match(style, /^\.a \{ color: red; \}\n\.kdflow-twin-1, .*\{ display: none; \}$/);
  close();
  assert.equal(el.children.length, 0, "the style sheet has gone with the view");
});

test("the kernel hears how many views there are", () => {
  const model = new Model({ twin: "kdflow-twin-2" });
  const [first, second] = [open(model, new Element("div")), open(model, new Element("div"))];
  first.close();
  second.close();
  assert.deepEqual(model.sent.map(({ kind, count }) => [kind, count]), [
    ["views", 1], ["views", 2], ["views", 1], ["views", 0],
  ]);
});

test("nothing but a class name gets into the style sheet", () => {
  const model = new Model({ twin: "x{} body" });
  assert.throws(() => open(model, new Element("div")), /no name of a class/);
});
