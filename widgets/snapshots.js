// What the kernel sent of texts and steps, and what is found in it. No elements are made here.
// kdflow_lab/widgets/_divergence_data.py packs the arrays.

import { severityOf, placeOf } from "./scale.js";

const ARRAY_KINDS = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array };

// Arrays by name, from one buffer of the kernel; `width` is the length of a row.
export function unpack(layout, view) {
  const arrays = {};
  for (const [name, [kind, shape, offset]] of Object.entries(layout)) {
    const count = shape.reduce((product, size) => product * size, 1);
    const start = view.byteOffset + offset;
    const Kind = ARRAY_KINDS[kind];
    // a copy: a view of the message may begin at any byte
    arrays[name] = new Kind(view.buffer.slice(start, start + count * Kind.BYTES_PER_ELEMENT));
    arrays[name].width = shape.length > 1 ? shape[1] : 1;
  }
  return arrays;
}

// The steps that this page holds, at most so many bytes: those not shown for longest go first.
export class SeenSteps {
  constructor(mostBytes) {
    this.mostBytes = mostBytes;
    this.held = new Map();
  }
  static size(arrays) {
    return Object.values(arrays).reduce((sum, array) => sum + array.byteLength, 0);
  }
  get(step) {
    const arrays = this.held.get(step);
    if (arrays === undefined) return undefined;
    this.held.delete(step);
    this.held.set(step, arrays);
    return arrays;
  }
  set(step, arrays) {
    this.held.delete(step);
    this.held.set(step, arrays);
    let sum = [...this.held.values()].reduce((all, one) => all + SeenSteps.size(one), 0);
    for (const [oldest, one] of this.held) {
      if (sum <= this.mostBytes || oldest === step) break;
      this.held.delete(oldest);
      sum -= SeenSteps.size(one);
    }
  }
  // [step, value] of one token at every step held, in the order of the steps.
  curve(name, index) {
    return [...this.held]
      .filter(([, arrays]) => `q:${name}` in arrays)
      .map(([step, arrays]) => [step, arrays[`q:${name}`][index]])
      .sort((one, other) => one[0] - other[0]);
  }
}

// The texts: which predicted tokens each has, without those that have none.
export function rowsOf(places) {
  const starts = places.cu_seqlens;
  const rows = [];
  for (let row = 0; row + 1 < starts.length; row += 1) {
    const [start, end] = [starts[row], starts[row + 1]];
    if (end > start) rows.push({ dataRow: places.row_index[row], start, end });
  }
  return rows;
}

export function rowOfToken(rows, index) {
  return rows.find((row) => index < row.end);
}

// Indices of the tokens to look at first; prompts count only if there is nothing else.
export function worstTokens(values, response, kind, most) {
  const anyResponse = response.some(Boolean);
  const found = [];
  for (let index = 0; index < values.length; index += 1) {
    if (Number.isNaN(values[index]) || (anyResponse && !response[index])) continue;
    found.push(index);
  }
  const severity = (index) => severityOf(values[index], kind);
  found.sort((one, other) => severity(other) - severity(one) || one - other);
  return found.slice(0, most);
}

// How many tokens lie in each of `count` equal parts of the scale; and how many are not known.
export function binsOf(values, scale, count) {
  const bins = new Array(count).fill(0);
  const low = scale.kind === "signed" ? -1 : 0;
  let unknown = 0;
  for (const value of values) {
    const place = placeOf(value, scale);
    if (Number.isNaN(place)) unknown += 1;
    else bins[Math.min(count - 1, Math.floor(((place - low) / (1 - low)) * count))] += 1;
  }
  return { bins, unknown };
}

// What both models expect at a token: at most `most` candidates, the likeliest first, the one that
// really comes among them. A log-probability that is not known is null; `bound` is above it.
export function candidatesAt(step, places, index, most) {
  const found = new Map();
  const bounds = {};
  const covered = {};
  const note = (id, side, logprob) => {
    if (!found.has(id)) found.set(id, { id, student: null, teacher: null });
    found.get(id)[side] = logprob;
  };
  for (const [side, other] of [["student", "teacher"], ["teacher", "student"]]) {
    const ids = step[`${side}_topk_ids`];
    if (!ids) continue;
    const logprobs = step[`${side}_topk_logprobs`];
    const others = step[`${other}_logprobs_of_${side}_topk`];
    covered[side] = 0;
    for (let at = index * ids.width; at < (index + 1) * ids.width; at += 1) {
      note(ids[at], side, logprobs[at]);
      if (others) note(ids[at], other, others[at]);
      covered[side] += Math.exp(logprobs[at]);
      bounds[side] = logprobs[at];
    }
  }
  const comes = places.labels[index];
  for (const side of ["student", "teacher"]) {
    if (step[`${side}_logprob`]) note(comes, side, step[`${side}_logprob`][index]);
  }
  const weight = (one) => Math.max(one.student ?? -Infinity, one.teacher ?? -Infinity);
  const all = [...found.values()].sort((one, other) => weight(other) - weight(one));
  const kept = all.slice(0, most);
  const real = all.find((one) => one.id === comes);
  if (real && !kept.includes(real)) kept[kept.length - 1] = real;
  return { candidates: kept, bounds, covered, comes, more: all.length - kept.length };
}
