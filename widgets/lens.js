// What every lens shares on the page; its Python side is kdflow_lab/widgets/_lens.py.

import { make } from "./tokens.js";

const lensViews = new Map(); // twin -> views of its lens on this page

function tellViews(model, twin, change) {
  const count = (lensViews.get(twin) ?? 0) + change;
  lensViews.set(twin, count);
  model.send({ kind: "views", count });
}

// Open the view of a lens in `el`: its root element with a style sheet, its static twin hidden.
// Returns the root and what is to be called at the end, which brings the twin back.
export function openLens({ model, el, name, style }) {
  const twin = model.get("twin");
  const root = make("div", `kdflow-lens ${name}`, el);
  if (!/^[\w-]+$/.test(twin)) throw new Error(`${twin} is no name of a class`);
  const hidden = `.${twin}, .jp-OutputArea-child:has(.${twin}) { display: none; }`;
  make("style", "", root, `${style}\n${hidden}`);
  tellViews(model, twin, 1);
  const close = () => {
    root.remove();
    tellViews(model, twin, -1);
  };
  return { root, close };
}
