// The alignment lens: the tokens of teacher and student as two strips, with bridges between the
// spans that write the same bytes of the text.
//
// Traits (see kdflow_lab/widgets/alignment.py): strips, roles, twin. All that is shown is there from
// the start, readable already (no character is invisible), so that no kernel is asked again.

import { openLens } from "./lens.js";
import { make } from "./tokens.js";

const PIECE_KINDS = ["one", "split", "many", "unaligned"];
const KIND_NAMES = ["one to one", "one to many", "many to many", "unaligned"];
const UNALIGNED = 3;
const AT_ONCE = 3000; // pieces; the others are drawn when they are asked for

const STYLE = `
.kdflow-alignment { font-family: var(--jp-ui-font-family, sans-serif); font-size: 13px;
  color: var(--jp-ui-font-color1, inherit); padding: 4px 8px; direction: ltr; }
.kdflow-alignment .numbers { display: flex; flex-wrap: wrap; gap: 4px 22px; align-items: baseline;
  padding-bottom: 4px; }
.kdflow-alignment .number b { font-size: 17px; font-variant-numeric: tabular-nums; }
.kdflow-alignment .number span { color: var(--jp-ui-font-color2, inherit); }
.kdflow-alignment .bar { display: flex; flex-wrap: wrap; gap: 6px; align-items: center;
  padding: 4px 0 6px 0; }
.kdflow-alignment .gap { flex: 1 1 0; }
.kdflow-alignment button { font: inherit; color: inherit; padding: 2px 10px; border-radius: 3px;
  cursor: pointer; background: var(--jp-layout-color2, rgba(128,128,128,.15));
  border: 1px solid var(--jp-border-color1, rgba(128,128,128,.5)); }
.kdflow-alignment button:disabled { cursor: default; opacity: .5; }
.kdflow-alignment button[aria-selected="true"] { font-weight: 600; color: #fff;
  background: #0072b2; border-color: #0072b2; }
.kdflow-alignment .swatch { display: inline-block; width: 18px; height: 11px; margin-right: 6px;
  border-radius: 2px; vertical-align: -1px; }
.kdflow-alignment .strip { display: flex; flex-wrap: wrap; align-content: flex-start; gap: 0 2px;
  max-height: 440px; overflow: auto; padding: 6px 4px; font-family: var(--jp-code-font-family,
  monospace); font-size: 12.5px; border-top: 1px solid var(--jp-border-color2, rgba(128,128,128,.3));
  border-bottom: 1px solid var(--jp-border-color2, rgba(128,128,128,.3)); position: relative; }
.kdflow-alignment .break { flex: 0 0 100%; height: 0; }
.kdflow-alignment .piece { display: inline-flex; flex-direction: column; cursor: default;
  border-radius: 3px; outline: 2px solid transparent; outline-offset: 1px; max-width: 100%; margin-bottom: 10px; }
.kdflow-alignment .side { display: flex; gap: 1px; min-height: 21px; }
.kdflow-alignment .token { flex: 1 1 auto; text-align: center; white-space: pre; padding: 0 3px;
  line-height: 19px; border: 1px solid; border-radius: 2px; unicode-bidi: isolate; }
.kdflow-alignment .teacher .token { border-color: #e69f00; background: rgba(230,159,0,.13); }
.kdflow-alignment .student .token { border-color: #0072b2; background: rgba(0,114,178,.13); }
.kdflow-alignment .token.silent { font-style: italic; border-style: dashed; }
.kdflow-alignment .bridge { height: 13px; margin: 0 1px; text-align: center; font-size: 9.5px;
  line-height: 13px; font-family: var(--jp-ui-font-family, sans-serif); }
.kdflow-alignment .one .bridge, .kdflow-alignment .swatch.one { background: rgba(128,128,128,.22); }
.kdflow-alignment .split .bridge, .kdflow-alignment .swatch.split {
  background: rgba(204,121,167,.5); }
.kdflow-alignment .many .bridge, .kdflow-alignment .swatch.many { background: rgb(204,121,167);
  color: #000; }
.kdflow-alignment .piece.unaligned, .kdflow-alignment .swatch.unaligned {
  background: repeating-linear-gradient(45deg, rgba(213,94,0,.75) 0 3px, rgba(213,94,0,.12) 3px 8px); }
.kdflow-alignment .unaligned .token { background: var(--jp-layout-color0, Canvas); }
.kdflow-alignment .unaligned .bridge { color: transparent; }
.kdflow-alignment .piece.current { outline-color: var(--jp-ui-font-color0, currentColor); }
.kdflow-alignment .details { display: grid; grid-template-columns: minmax(13em, 1.1fr) 1fr 1fr;
  gap: 2px 20px; height: 142px; overflow: auto; padding-top: 6px; }
.kdflow-alignment .details .what { font-weight: 600; }
.kdflow-alignment .details .text { font-family: var(--jp-code-font-family, monospace);
  overflow-wrap: anywhere; unicode-bidi: isolate; }
.kdflow-alignment .details .reason { color: var(--jp-warn-color0, #a85b00); }
.kdflow-alignment .quiet { color: var(--jp-ui-font-color2, inherit); }
.kdflow-alignment table { border-collapse: collapse; font-size: 12px; align-self: start;
  background: none; }
.kdflow-alignment th, .kdflow-alignment td { text-align: left; padding: 1px 9px 1px 0;
  font-weight: normal; vertical-align: top; }
.kdflow-alignment thead th { color: var(--jp-ui-font-color2, inherit); white-space: nowrap; }
.kdflow-alignment th.teacher { border-bottom: 2px solid #e69f00; }
.kdflow-alignment th.student { border-bottom: 2px solid #0072b2; }
.kdflow-alignment td.code { font-family: var(--jp-code-font-family, monospace);
  unicode-bidi: isolate; white-space: nowrap; }
.kdflow-alignment td.bytes { white-space: normal; min-width: 7em; }
.kdflow-alignment .roles { max-height: 440px; overflow: auto; padding: 6px 0; }
.kdflow-alignment .roles td.none { opacity: .6; }
.kdflow-alignment .hidden { display: none; }
.kdflow-alignment .said { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); }
`;

// Turn the columns of a strip into pieces that know their tokens.
export function unpackPieces(strip) {
  const ends = { teacher: 0, student: 0 };
  const take = (side, count) => {
    const first = ends[side];
    ends[side] += count;
    return Array.from({ length: count }, (_, at) => first + at);
  };
  return strip.pieces.map(([kind, teacher, student, start, end, reason, breaks], at) => ({
    kind,
    teacher: take("teacher", teacher),
    student: take("student", student),
    start,
    end,
    reason: strip.reasons[reason],
    breaks,
    text: strip.texts[at],
  }));
}

// The place of the next piece for which `fits` holds, in steps of `step` and round the end; -1 if
// there is none.
export function nextPiece(pieces, from, step, fits) {
  for (let tried = 1; tried <= pieces.length; tried += 1) {
    const at = (((from + step * tried) % pieces.length) + pieces.length) % pieces.length;
    if (fits(pieces[at])) return at;
  }
  return -1;
}

const ratio = (piece) => `${piece.teacher.length}:${piece.student.length}`;

// A piece in words, for screen readers.
export function pieceLabel(strip, piece) {
  const words = (side) => piece[side].map((at) => strip[side].shown[at]).join(" ") || "nothing";
  const kind = `${KIND_NAMES[piece.kind]}${piece.kind === UNALIGNED ? "" : `, ${ratio(piece)}`}`;
  const reason = piece.reason ? `, ${piece.reason}` : "";
  return `${kind}: teacher ${words("teacher")}, student ${words("student")}${reason}`;
}

function drawSide(strip, side, piece, silent, parent) {
  const box = make("div", `side ${side}`, parent);
  for (const at of piece[side]) {
    make("span", silent.has(at) ? "token silent" : "token", box, strip[side].shown[at]);
  }
}

function drawTokens(strip, side, piece, parent) {
  const table = make("table", "", parent);
  const head = make("tr", "", make("thead", "", table));
  make("th", side, head, side);
  for (const name of ["id", "spelling", "bytes"]) make("th", "", head, name);
  const body = make("tbody", "", table);
  for (const at of piece[side]) {
    const row = make("tr", "", body);
    make("td", "code", row, strip[side].shown[at]);
    make("td", "", row, String(strip[side].ids[at]));
    make("td", "code", row, strip[side].names[at]);
    const note = strip[side].notes[at];
    const bytes = [strip[side].hex[at], note && (strip[side].hex[at] ? `(${note})` : note)];
    make("td", "code bytes", row, bytes.filter(Boolean).join(" "));
  }
}

// One strip with its numbers, its legend and the details of the piece that one looks at.
function drawStrip(strip, parent) {
  const pieces = unpackPieces(strip);
  const silent = { teacher: new Set(strip.teacher.silent), student: new Set(strip.student.silent) };
  const numbers = make("div", "numbers", parent);
  for (const [value, what] of strip.numbers) {
    const number = make("span", "number", numbers);
    make("b", "", number, value);
    make("span", "", number, ` ${what}`);
  }
  const bar = make("div", "bar", parent);
  const box = make("div", "strip", parent);
  box.setAttribute("role", "listbox");
  box.setAttribute("aria-label", `${strip.title}: spans of teacher and student`);
  const details = make("div", "details", parent);
  const said = make("div", "said", parent);
  said.setAttribute("aria-live", "polite");
  const drawn = [];
  let current = -1;
  let more = null;

  function drawMore() {
    if (more) more.remove();
    const until = Math.min(pieces.length, drawn.length + AT_ONCE);
    for (let at = drawn.length; at < until; at += 1) {
      const piece = pieces[at];
      const element = make("div", `piece ${PIECE_KINDS[piece.kind]}`, box);
      element.tabIndex = -1; // but for the current one
      element.dataset.at = at;
      element.setAttribute("role", "option");
      element.setAttribute("aria-label", pieceLabel(strip, piece));
      drawSide(strip, "teacher", piece, silent.teacher, element);
      make("div", "bridge", element, piece.kind ? ratio(piece) : "");
      drawSide(strip, "student", piece, silent.student, element);
      drawn.push(element);
      if (piece.breaks) make("div", "break", box);
    }
    if (until < pieces.length) {
      const rest = (pieces.length - until).toLocaleString("en");
      more = make("button", "more", box, `… and ${rest} more spans`);
      more.onclick = drawMore;
    }
  }

  function look(at) {
    if (at === current || !drawn[at]) return;
    const piece = pieces[at];
    if (drawn[current]) {
      drawn[current].className = `piece ${PIECE_KINDS[pieces[current].kind]}`;
      drawn[current].setAttribute("aria-selected", "false");
      drawn[current].tabIndex = -1;
    }
    current = at;
    drawn[at].className = `piece ${PIECE_KINDS[piece.kind]} current`;
    drawn[at].setAttribute("aria-selected", "true");
    drawn[at].tabIndex = 0;
    details.textContent = "";
    const what = make("div", "", details);
    const kind = piece.kind === UNALIGNED ? "" : ` (${ratio(piece)})`;
    make("div", "what", what, `${KIND_NAMES[piece.kind]}${kind}`);
    if (piece.text) make("div", "text", what, piece.text);
    const count = piece.end - piece.start;
    const where = count
      ? `${count === 1 ? "byte" : "bytes"} ${count === 1 ? piece.start : `${piece.start}–${piece.end - 1}`}`
      : `no bytes, at ${piece.start}`;
    make("div", "quiet", what, `${where} · span ${at + 1} of ${pieces.length.toLocaleString("en")}`);
    if (piece.reason) make("div", "reason", what, piece.reason);
    drawTokens(strip, "teacher", piece, details);
    drawTokens(strip, "student", piece, details);
  }

  function go(at) {
    while (at >= drawn.length && drawn.length < pieces.length) drawMore();
    if (!drawn[at]) return;
    look(at);
    drawn[at].focus();
  }

  function jump(step, fits, name) {
    const at = nextPiece(pieces, current, step, fits);
    if (at < 0) said.textContent = `There is no span that is ${name}.`;
    else go(at);
  }

  const kindJump = (kind, step) => jump(step, (piece) => piece.kind === kind, KIND_NAMES[kind]);
  PIECE_KINDS.forEach((name, kind) => {
    const count = strip.counts[name];
    const button = make("button", `jump ${name}`, bar);
    make("span", `swatch ${name}`, button);
    make("span", "", button, `${count.toLocaleString("en")} ${KIND_NAMES[kind]}`);
    button.title = `Go to the next span that is ${KIND_NAMES[kind]}`;
    button.disabled = !count;
    button.onclick = () => kindJump(kind, 1);
  });
  make("span", "gap", bar);
  make("span", "quiet", bar, "← → move · n p unaligned · s S not one to one");

  const keys = {
    ArrowRight: () => go(Math.min(pieces.length - 1, current + 1)),
    ArrowLeft: () => go(Math.max(0, current - 1)),
    ArrowDown: () => go(Math.min(pieces.length - 1, current + 1)),
    ArrowUp: () => go(Math.max(0, current - 1)),
    Home: () => go(0),
    End: () => go(pieces.length - 1),
    n: () => kindJump(UNALIGNED, 1),
    p: () => kindJump(UNALIGNED, -1),
    s: () => jump(1, (piece) => piece.kind > 0, "not one to one"),
    S: () => jump(-1, (piece) => piece.kind > 0, "not one to one"),
  };
  box.onkeydown = (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation(); // the notebook has commands on these keys
    keys[event.key]();
  };
  const pieceOf = (event) => {
    const element = event.target.closest(".piece");
    return element ? Number(element.dataset.at) : -1;
  };
  box.onmouseover = (event) => look(pieceOf(event));
  box.onclick = (event) => go(pieceOf(event));
  // a piece that is reached by the tab key
  box.addEventListener("focusin", (event) => look(pieceOf(event)));

  drawMore();
  const first = pieces.findIndex((piece) => piece.kind > 0);
  look(Math.max(0, first) < drawn.length ? Math.max(0, first) : 0);
  if (!pieces.length) make("span", "quiet", box, "The text is empty.");
}

function drawRoles(roles, parent) {
  const table = make("table", "", make("div", "roles", parent));
  const head = make("tr", "", make("thead", "", table));
  make("th", "", head, "role");
  make("th", "teacher", head, "teacher");
  make("th", "student", head, "student");
  const body = make("tbody", "", table);
  for (const [role, ...both] of roles) {
    const row = make("tr", "", body);
    make("td", "", row, role);
    for (const one of both) make("td", one ? "code" : "code none", row, one || "none");
  }
}

function render({ model, el }) {
  const { root, close } = openLens({ model, el, name: "kdflow-alignment", style: STYLE });
  const tabs = make("div", "bar tabs", root);
  tabs.setAttribute("role", "tablist");
  const panels = [];
  const show = (chosen) => {
    panels.forEach(({ button, panel, draw }, at) => {
      button.setAttribute("aria-selected", String(at === chosen));
      panel.className = at === chosen ? "" : "hidden";
      if (at === chosen && !panel.children.length) draw(panel);
    });
  };
  const add = (title, draw) => {
    const button = make("button", "tab", tabs, title);
    button.setAttribute("role", "tab");
    const panel = make("div", "hidden", root);
    panel.setAttribute("role", "tabpanel");
    panel.setAttribute("aria-label", title);
    const at = panels.push({ button, panel, draw }) - 1;
    button.onclick = () => show(at);
  };
  for (const strip of model.get("strips")) add(strip.title, (panel) => drawStrip(strip, panel));
  add("Special tokens", (panel) => drawRoles(model.get("roles"), panel));
  show(0);
  return close;
}

export default { render };
