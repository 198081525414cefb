// Colour scales and numbers. That they are those of Python: tests/unit/widgets/test_divergence.py.

import assert from "node:assert/strict";
import path from "node:path";
import test from "node:test";
import { pathToFileURL } from "node:url";

const folder = process.env.KDFLOW_WIDGETS ?? path.join(import.meta.dirname, "..", "..", "widgets");
const { BITS_PER_NAT, colourAt, inkOn, numberText, placeOf, quantityText, severityOf, valueAt } =
  await import(pathToFileURL(path.join(folder, "scale.js")));

const channel = (hex, at) => {
  const share = parseInt(hex.slice(at, at + 2), 16) / 255;
  return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
};
const luminance = (hex) =>
  0.2126 * channel(hex, 1) + 0.7152 * channel(hex, 3) + 0.0722 * channel(hex, 5);

for (const theme of ["light", "dark"]) {
  for (const kind of ["linear", "signed"]) {
    test(`${kind} colours on a ${theme} page change lightness one way and are read on`, () => {
      for (const sign of kind === "signed" ? [1, -1] : [1]) {
        let before = null;
        for (let at = 0; at <= 100; at += 1) {
          const ground = colourAt((sign * at) / 100, kind, theme);
          const [one, other] = [luminance(ground), luminance(inkOn(ground))].sort((a, b) => b - a);
          assert.ok((one + 0.05) / (other + 0.05) >= 4.5, `${ground} cannot be read on`);
          if (before !== null) {
            const change = luminance(ground) - before;
            assert.ok(theme === "light" ? change <= 0 : change >= 0, `${ground} turns back`);
          }
          before = luminance(ground);
        }
      }
    });
  }
}

test("zero has the colour of the page, and what is outside that of the end", () => {
  assert.equal(colourAt(0, "linear", "light"), "#ffffff");
  assert.equal(colourAt(0, "signed", "dark"), "#111111");
  assert.equal(colourAt(7, "linear", "light"), colourAt(1, "linear", "light"));
  assert.notEqual(colourAt(1, "signed", "light"), colourAt(-1, "signed", "light"));
});

test("values and places are each other's reverse", () => {
  for (const kind of ["linear", "root", "log", "signed", "agreement"]) {
    const scale = { kind, high: kind === "agreement" ? 1 : 40 };
    for (const place of [0, 0.25, 0.5, 1]) {
      assert.ok(Math.abs(placeOf(valueAt(place, scale), scale) - place) < 1e-12, kind);
    }
  }
  assert.equal(placeOf(99, { kind: "root", high: 4 }), 1);
  assert.equal(placeOf(-99, { kind: "signed", high: 4 }), -1);
  assert.equal(placeOf(-1e-9, { kind: "root", high: 4 }), 0);
  assert.ok(Number.isNaN(placeOf(NaN, { kind: "root", high: 4 })));
  assert.equal(placeOf(0, { kind: "agreement", high: 1 }), 1);
});

test("what deserves a look is large, far from zero, or disagrees", () => {
  assert.ok(severityOf(-3, "signed") > severityOf(2, "signed"));
  assert.ok(severityOf(0, "agreement") > severityOf(1, "agreement"));
  assert.ok(severityOf(3, "root") > severityOf(2, "root"));
});

test("numbers keep their unit, and small ones are not called zero", () => {
  const kl = { unit: "nats", kind: "root" };
  assert.equal(quantityText(1.5, kl, false), "1.500 nats");
  assert.equal(quantityText(Math.LN2, kl, true), "1.000 bits");
  assert.equal(BITS_PER_NAT * Math.LN2, 1);
  assert.equal(quantityText(NaN, kl, true), "not known");
  assert.equal(quantityText(0, { unit: "", kind: "agreement" }, false), "no");
  assert.equal(quantityText(1234, { unit: "", kind: "log" }, true), "1,234");
  assert.equal(quantityText(0.5, { unit: "nats", kind: "signed" }, false), "+0.500 nats");
  assert.equal(numberText(-0.00026), "−2.6e-4");
  assert.equal(numberText(-12.345), "−12.35");
  assert.equal(numberText(0), "0.000");
  assert.equal(numberText(-Infinity), "−Infinity");
});
