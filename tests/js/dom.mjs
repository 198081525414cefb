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
  remove() {
    if (this.parent) this.parent.children = this.parent.children.filter((one) => one !== this);
    this.parent = null;
  }
  focus() {
    this.focused = true;
    this.dispatch("focusin");
  }
  addEventListener(type, listener) {
    this.listeners ??= [];
    this.listeners.push([type, listener]);
  }
  // Fire an event here, as far up as someone listens; returns it.
  dispatch(type, fields = {}) {
    const event = { type, target: this, prevented: false, ...fields };
    event.preventDefault = () => (event.prevented = true);
    event.stopPropagation = () => {};
    for (let at = this; at; at = at.parent) {
      at[`on${type}`]?.(event);
      for (const [name, listener] of at.listeners ?? []) if (name === type) listener(event);
    }
    return event;
  }
  click() {
    if (!this.disabled && this.onclick) this.onclick();
  }
  get classList() {
    const names = () => this.className.split(" ").filter(Boolean);
    return {
      contains: (name) => names().includes(name),
      toggle: (name, on) => {
        this.className = [...names().filter((one) => one !== name), ...(on ? [name] : [])].join(" ");
      },
    };
  }
  getBoundingClientRect() {
    return { top: 0, bottom: 0, height: 0 };
  }
  // What somebody types, or chooses in a menu.
  typeText(value) {
    this.value = value;
    if (this.oninput) this.oninput();
  }
  press(key) {
    if (this.onkeydown) this.onkeydown({ key });
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
      createElementNS: (_, tag) => new Element(tag),
      body: new Element("body"),
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
  save_changes() {
    this.saved = (this.saved ?? 0) + 1;
  }
  emit(event, ...rest) {
    for (const handler of this.handlers.get(event) ?? []) handler(...rest);
  }
  // What the kernel sent.
  receive(state) {
    Object.assign(this.state, state);
    this.emit("change");
  }
}
