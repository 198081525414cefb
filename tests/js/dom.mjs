// The few parts of a browser's document that the widgets use, written by hand: no packages.

class Style {}

export class Element {
  constructor(tag) {
    this.tagName = tag.toUpperCase();
    this.className = "";
    this.children = [];
    this.parent = null;
    this.attributes = {};
    this.dataset = {};
    this.style = new Style();
    this.disabled = false;
    this.onclick = null;
    this.text = "";
  }
  append(...children) {
    for (const child of children) {
      child.parent = this;
      this.children.push(child);
    }
  }
  get textContent() {
    return this.text + this.children.map((child) => child.textContent).join("");
  }
  set textContent(value) {
    this.children = [];
    this.text = String(value);
  }
  set innerHTML(_) {
    throw new Error("innerHTML interprets text as HTML");
  }
  set outerHTML(_) {
    throw new Error("outerHTML interprets text as HTML");
  }
  insertAdjacentHTML() {
    throw new Error("insertAdjacentHTML interprets text as HTML");
  }
  setAttribute(name, value) {
    this.attributes[name] = String(value);
  }
  removeAttribute(name) {
    delete this.attributes[name];
    delete this[name];
  }
  closest(selector) {
    const name = selector.slice(1);
    for (let at = this; at; at = at.parent) if (at.className.split(" ").includes(name)) return at;
    return null;
  }
  click() {
    if (!this.disabled && this.onclick) this.onclick();
  }
  *all() {
    for (const child of this.children) {
      yield child;
      yield* child.all();
    }
  }
  find(test) {
    return [...this.all()].find(test);
  }
  byClass(name) {
    return this.find((element) => element.className.split(" ").includes(name));
  }
}

class Observer {
  static living = new Set();
  constructor(callback) {
    this.callback = callback;
    this.observed = [];
    Observer.living.add(this);
  }
  observe(element) {
    this.observed.push(element);
  }
  disconnect() {
    Observer.living.delete(this);
  }
}

export class ResizeObserver extends Observer {}
export class MutationObserver extends Observer {}
export const livingObservers = () => [...Observer.living];

// Put the document where an ES module of a page looks for it; returns what the window was told.
export function install() {
  const events = [];
  Observer.living.clear();
  Object.assign(globalThis, {
    document: {
      createElement: (tag) => new Element(tag),
      write: () => {
        throw new Error("document.write interprets text as HTML");
      },
    },
    window: { dispatchEvent: (event) => events.push(event.type) },
    ResizeObserver,
    MutationObserver,
  });
  return events;
}

// The model of an anywidget, as far as the widgets use it.
export class Model {
  constructor(state) {
    this.state = { ...state };
    this.handlers = new Map();
    this.sent = [];
  }
  get(name) {
    if (!(name in this.state)) throw new Error(`no trait ${name}`);
    return this.state[name];
  }
  set(name, value) {
    this.state[name] = value;
    this.emit("change");
  }
  send(content) {
    this.sent.push(content);
  }
  on(event, handler) {
    this.handlers.set(event, [...(this.handlers.get(event) ?? []), handler]);
  }
  off(event, handler) {
    this.handlers.set(event, (this.handlers.get(event) ?? []).filter((one) => one !== handler));
  }
  emit(event) {
    for (const handler of this.handlers.get(event) ?? []) handler();
  }
  // What the kernel sent.
  receive(state) {
    Object.assign(this.state, state);
    this.emit("change");
  }
}
