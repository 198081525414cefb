// A small inspection as the kernel sends it: two texts, of which the first has hostile tokens.

const encode = (arrays) => {
  const layout = {};
  let offset = 0;
  const parts = [];
  for (const [name, [kind, shape, values]] of Object.entries(arrays)) {
    const Kind = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array }[kind];
    const raw = new Uint8Array(Kind.from(values).buffer);
    layout[name] = [kind, shape, offset];
    const padded = new Uint8Array(Math.ceil(raw.length / 8) * 8);
    padded.set(raw);
    parts.push(padded);
    offset += padded.length;
  }
  const all = new Uint8Array(offset);
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return [layout, new DataView(all.buffer)];
};

export const EVIL = "<script>alert(1)</script>";
export const TEXTS = { 0: EVIL, 1: " cat", 2: "\n", 3: "\u202eabc", 4: "x".repeat(100_000), 5: "\x1b[2J" };
export const KL = [0.25, 4, 1, 0.5, 2, 3];

export function values(kl) {
  const ids = kl.flatMap((_, at) => [at % 6, (at + 1) % 6]);
  const logprobs = kl.flatMap(() => [Math.log(0.5), Math.log(0.25)]);
  return encode({
    "q:forward_kl": ["float32", [6], kl],
    "q:rank": ["float32", [6], [1, 2, 3, 4, 5, 6]],
    student_logprob: ["float32", [6], kl.map((one) => -one)],
    teacher_logprob: ["float32", [6], kl.map((one) => -one / 2)],
    student_rank: ["int32", [6], [1, 2, 3, 4, 5, 6]],
    teacher_rank: ["int32", [6], [1, 1, 1, 1, 1, 1]],
    student_topk_ids: ["int32", [6, 2], ids],
    teacher_topk_ids: ["int32", [6, 2], ids],
    student_topk_logprobs: ["float32", [6, 2], logprobs],
    teacher_topk_logprobs: ["float32", [6, 2], logprobs],
  });
}

export function state(changes = {}) {
  const [layout_of_places, places] = encode({
    input_ids: ["int32", [6], [0, 1, 2, 3, 4, 5]],
    labels: ["int32", [6], [1, 2, 3, 0, 4, 5]],
    response: ["uint8", [6], [0, 1, 1, 1, 1, 1]],
    cu_seqlens: ["int32", [3], [0, 4, 6]],
    row_index: ["int32", [2], [0, 9]],
  });
  const [layout_of_values, packed] = values(KL);
  return {
    twin: "kdflow-twin-x",
    name: "my <run>",
    quantities: [
      { name: "forward_kl", label: "forward KL", unit: "nats", kind: "root", high: 4 },
      { name: "rank", label: "student's rank", unit: "", kind: "log", high: 10 },
    ],
    quantity: "forward_kl",
    bits: false,
    texts: TEXTS,
    layout_of_places,
    places,
    step: 20,
    layout_of_values,
    values: packed,
    note: "",
    steps: [0, 10, 20],
    live: false,
    ...changes,
  };
}
