// What every view of tokens needs: elements without HTML, and text in which nothing is invisible.
// The Python twin of `visible` is kdflow_lab/widgets/_tokens.py; both give the same signs.

const SIGNS = { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽" };
const NO_INK = /[\p{C}\p{Z}]/u; // control characters, marks of direction, separators
const ACCENT = /^\p{M}/u;

// Make an element with text, which is never taken for HTML, and put it into `parent`.
export function make(tag, className, parent, text) {
  const element = document.createElement(tag);
  element.className = className;
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

function sign(character) {
  if (character in SIGNS) return SIGNS[character];
  if (!NO_INK.test(character)) return character;
  const code = character.codePointAt(0);
  if (code < 0x100) return `\\x${code.toString(16).padStart(2, "0")}`;
  if (code < 0x10000) return `\\u${code.toString(16).padStart(4, "0")}`;
  return `\\U${code.toString(16).padStart(8, "0")}`;
}

// A token's text with a sign for every character that would not be seen, at most `most` characters.
export function visible(text, most = Infinity) {
  let characters = Array.from(text).slice(0, most + 1).map(sign);
  if (!characters.length) return "∅";
  if (ACCENT.test(characters[0])) characters = ["◌", ...characters];
  const shown = Array.from(characters.join(""));
  return shown.length > most ? `${shown.slice(0, most - 1).join("")}…` : shown.join("");
}

// A probability in three digits, without claiming that a small one is zero.
export function probability(value) {
  if (value > 0 && value < 0.0005) return "<.001";
  return value.toFixed(3);
}
