// All that is known of one token: what both models expected there, and what really came.
// The lines are made once and filled again at each token, so that nothing moves and hover is quick.

import { make, probability, visible } from "./tokens.js";
import { BITS_PER_NAT, numberText, quantityText } from "./scale.js";
import { candidatesAt } from "./snapshots.js";

const CANDIDATE_LINES = 10; // lines of the mirrored plot

export const PANEL_STYLE = `
.kdflow-panel { overflow: auto; padding: 8px 10px; font-variant-numeric: tabular-nums; }
.kdflow-panel .token { display: flex; gap: 8px; align-items: baseline; height: 24px; }
.kdflow-panel .token .text { font: 600 15px var(--jp-code-font-family, monospace); padding: 1px 5px;
  border: 1px solid var(--jp-border-color1, #bdbdbd); border-radius: 3px; overflow: hidden;
  white-space: pre; text-overflow: ellipsis; unicode-bidi: isolate; }
.kdflow-panel .where, .kdflow-panel .foot, .kdflow-panel .head {
  color: var(--jp-ui-font-color2, #616161); font-size: 11px; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; }
.kdflow-panel .where { height: 18px; padding-top: 2px; }
.kdflow-panel .facts { display: grid; grid-template-columns: 1fr auto auto; gap: 1px 14px;
  margin: 4px 0 8px; }
.kdflow-panel .facts .number { text-align: right; min-width: 5.5em; }
.kdflow-panel .student { color: var(--kdflow-student); } 
.kdflow-panel .teacher { color: var(--kdflow-teacher); }
.kdflow-panel .facts .student, .kdflow-panel .facts .teacher { font-weight: 600; }
.kdflow-panel .bars { display: grid; grid-template-columns: 46px 1fr 104px 1fr 46px;
  grid-auto-rows: 19px; align-items: center; column-gap: 4px; }
.kdflow-panel .bars .p { font-size: 11px; text-align: right; white-space: nowrap; }
.kdflow-panel .bars .p.right { text-align: left; }
.kdflow-panel .bars .track { height: 13px; position: relative; }
.kdflow-panel .bars .bar { position: absolute; top: 0; bottom: 0; min-width: 0; }
.kdflow-panel .bars .left .bar { right: 0; background: #0072b2; }
.kdflow-panel .bars .right .bar { left: 0; background: #e69f00; }
.kdflow-panel .bars .bar.bound { opacity: .45; background-image: repeating-linear-gradient(135deg,
  transparent 0 3px, var(--jp-layout-color1, #fff) 3px 5px); }
.kdflow-panel .bars .name { text-align: center; overflow: hidden; text-overflow: ellipsis;
  white-space: pre; font: 12px var(--jp-code-font-family, monospace); unicode-bidi: isolate; }
.kdflow-panel .bars .name.comes { font-weight: 700; border-radius: 3px;
  box-shadow: inset 0 0 0 1px var(--jp-ui-font-color1, currentColor); }
.kdflow-panel .foot { height: 18px; padding-top: 3px; }
.kdflow-panel .values { display: grid; grid-template-columns: 1fr auto; gap: 1px 10px;
  margin-top: 5px; border-top: 1px solid var(--jp-border-color2, #e0e0e0); padding-top: 5px; }
.kdflow-panel .values .number { text-align: right; }
.kdflow-panel .values .chosen { font-weight: 700; }
`;

// "12.3 %" of what a model's list covers.
function shareText(value) {
  return value === undefined ? "–" : `${(100 * Math.min(1, value)).toFixed(1)} %`;
}

// Fill a bar and its number by a log-probability, or by the bound above one that is not known.
function fillBar({ bar, number }, logprob, bound) {
  const known = logprob !== null;
  const p = known ? Math.exp(logprob) : bound === undefined ? NaN : Math.exp(bound);
  bar.className = known ? "bar" : "bar bound";
  bar.style.width = Number.isNaN(p) ? "0" : `${(100 * Math.min(1, p)).toFixed(2)}%`;
  const shown = Number.isNaN(p) ? "" : probability(p);
  number.textContent = known ? shown : shown && `<${shown.replace("<", "")}`;
}

// Put the panel into `parent`; `show` fills it.
export function makePanel({ parent, textOf, where }) {
  const panel = make("div", "kdflow-panel", parent);
  panel.setAttribute("aria-label", "the token under the pointer");
  const top = make("div", "token", panel);
  const text = make("span", "text", top);
  const id = make("span", "head", top);
  const place = make("div", "where", panel);

  const facts = make("div", "facts", panel);
  make("span", "head", facts, "the token that really comes");
  make("span", "number student", facts, "student");
  make("span", "number teacher", facts, "teacher");
  const factRows = {};
  for (const name of ["probability", "log-probability", "logit", "rank", "entropy"]) {
    const label = make("span", "", facts, name);
    factRows[name] = { label, student: make("span", "number", facts) };
    factRows[name].teacher = make("span", "number", facts);
  }

  const bars = make("div", "bars", panel);
  const lines = [];
  for (let at = 0; at < CANDIDATE_LINES; at += 1) {
    const line = { student: {}, teacher: {} };
    line.student.number = make("span", "p", bars);
    line.student.bar = make("div", "bar", make("div", "track left", bars));
    line.name = make("span", "name", bars);
    line.teacher.bar = make("div", "bar", make("div", "track right", bars));
    line.teacher.number = make("span", "p right", bars);
    lines.push(line);
  }
  const foot = make("div", "foot", panel);
  const values = make("div", "values", panel);
  let valueRows = new Map();

  function showFacts(step, index, bits) {
    const factor = bits ? BITS_PER_NAT : 1;
    const unit = bits ? "bits" : "nats";
    factRows["log-probability"].label.textContent = `log-probability, ${unit}`;
    factRows.entropy.label.textContent = `entropy, ${unit}`;
    for (const side of ["student", "teacher"]) {
      const of = (name) => step[`${side}_${name}`]?.[index];
      const fill = (name, value, write) => {
        factRows[name][side].textContent = value === undefined ? "–" : write(value);
      };
      const logprob = of("logprob");
      fill("probability", logprob, (one) => probability(Math.exp(one)));
      fill("log-probability", logprob, (one) => numberText(one * factor));
      fill("logit", of("logit"), (one) => numberText(one));
      fill("rank", of("rank"), (one) => numberText(one, "log"));
      fill("entropy", of("entropy"), (one) => numberText(one * factor));
    }
  }

  function showBars(step, places, index) {
    const found = candidatesAt(step, places, index, CANDIDATE_LINES);
    lines.forEach((line, at) => {
      const one = found.candidates[at];
      line.name.textContent = one ? visible(textOf(one.id), 14) : "";
      line.name.title = one ? `${visible(textOf(one.id), 80)} #${one.id}` : "";
      line.name.className = one && one.id === found.comes ? "name comes" : "name";
      for (const side of ["student", "teacher"]) {
        if (one) fillBar(line[side], one[side], found.bounds[side]);
        else fillBar(line[side], null, undefined);
      }
    });
    const more = found.more > 0 ? `; ${found.more} more` : "";
    const [student, teacher] = [shareText(found.covered.student), shareText(found.covered.teacher)];
    foot.textContent = `lists cover: student ${student}, teacher ${teacher}${more}`;
  }

  function showValues(step, index, quantities, chosen, bits) {
    if (valueRows.size !== quantities.length) {
      values.textContent = "";
      valueRows = new Map(
        quantities.map(({ name, label }) => [
          name,
          [make("span", "", values, label), make("span", "number", values)],
        ]),
      );
    }
    for (const quantity of quantities) {
      const [label, number] = valueRows.get(quantity.name);
      const array = step[`q:${quantity.name}`];
      number.textContent = array ? quantityText(array[index], quantity, bits) : "not known";
      label.className = quantity.name === chosen ? "chosen" : "";
      number.className = quantity.name === chosen ? "number chosen" : "number";
    }
  }

  return {
    element: panel,
    show({ step, places, index, quantities, chosen, bits }) {
      const comes = places.labels[index];
      text.textContent = visible(textOf(comes), 28);
      text.title = visible(textOf(comes), 400);
      id.textContent = `id ${comes}`;
      place.textContent = where(index);
      showFacts(step, index, bits);
      showBars(step, places, index);
      showValues(step, index, quantities, chosen, bits);
    },
  };
}
