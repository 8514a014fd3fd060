// The table of nodes, which says all that the ring draws. One row is in the tab order at
// a time; the arrow keys go from row to row.
import { $, el, show, tint, count, rate, percent, age } from "./dom.js";

const states = { active: "●", joining: "◔", suspect: "▲", draining: "▽" };
const columns = ["id", "state", "share", "sessions", "pushes", "weight"];
const values = {
  id: (n) => n.id,
  state: (n) => ({ suspect: 0, draining: 1, joining: 2 }[n.state] ?? 3),
  share: (n) => -n.share,
  sessions: (n) => -n.sessions,
  pushes: (n) => -n.pushes_per_second,
  weight: (n) => -n.weight,
};

export class Nodes {
  rows = new Map();
  by = "state";

  constructor(board, { onHot, onDrain }) {
    this.board = board;
    this.onHot = onHot;
    this.onDrain = onDrain;
    this.body = $("nodes-body");
    for (const name of columns) {
      $(`sort-${name}`).addEventListener("click", () => {
        this.by = name;
        this.order();
      });
    }
    const of = (e) => e.target.closest("tr")?.dataset.node ?? null;
    this.body.addEventListener("pointerover", (e) => onHot(of(e)));
    this.body.addEventListener("pointerleave", () => onHot(null));
    this.body.addEventListener("focusin", (e) => {
      this.enter(of(e));
      onHot(of(e));
    });
    this.body.addEventListener("focusout", () => onHot(null));
    this.body.addEventListener("keydown", (e) => this.key(e));
  }

  key(e) {
    const list = [...this.body.children];
    const i = list.findIndex((r) => r === e.target.closest("tr"));
    const to = { ArrowDown: i + 1, ArrowUp: i - 1, Home: 0, End: list.length - 1, PageDown: i + 10, PageUp: i - 10 }[e.key];
    if (to === undefined || i < 0) return;
    e.preventDefault();
    list[Math.min(list.length - 1, Math.max(0, to))].focus();
  }

  // enter puts a row into the tab order, and takes the one before out of it.
  enter(id) {
    for (const [other, r] of this.rows) {
      const tab = other === id ? 0 : -1;
      if (r.tr.tabIndex !== tab) r.tr.tabIndex = r.drain.tabIndex = tab;
    }
  }

  // sync makes the rows those of the nodes.
  sync() {
    for (const [id, r] of this.rows) {
      if (!this.board.nodes.has(id)) {
        if (r.tr.contains(document.activeElement)) $("nodes-title").focus();
        r.tr.remove();
        this.rows.delete(id);
      }
    }
    for (const n of this.board.nodes.values()) {
      if (!this.rows.has(n.id)) this.rows.set(n.id, this.row(n));
      this.update(n.id);
    }
    this.order();
    if (![...this.rows.values()].some((r) => r.tr.tabIndex === 0)) this.enter(this.body.firstElementChild?.dataset.node);
    $("no-nodes").hidden = this.rows.size > 0;
  }

  row(n) {
    const cell = (name, tag = "td") => el(tag, { class: name });
    const r = { icon: el("span", { "aria-hidden": "true" }), state: el("span"), silence: el("span", { class: "silence" }) };
    r.drain = el("button", { type: "button", class: "small", tabindex: -1, "aria-label": `Drain ${n.id}`, onclick: () => this.onDrain(n.id) }, "Drain");
    for (const name of ["share", "sessions", "pushes", "weight"]) r[name] = cell(name);
    r.tr = el("tr", { tabindex: -1, "data-node": n.id },
      el("th", { scope: "row" }, el("span", { class: "chip" }, tint(el("i", { class: "dot", "aria-hidden": "true" }), n.id), n.id)),
      el("td", { class: "state" }, r.icon, " ", r.state, r.silence), r.share, r.sessions, r.pushes, r.weight, el("td", { class: "act" }, r.drain));
    return r;
  }

  update(id) {
    const n = this.board.nodes.get(id), r = this.rows.get(id);
    if (!n || !r) return;
    const silent = n.silent_ms > 0;
    if (r.tr.state !== n.state) r.tr.className = r.tr.state = n.state;
    show(r.icon, states[n.state] ?? "?");
    show(r.state, n.state);
    show(r.silence, silent ? `, silent for ${age(n.silent_ms)}` : "");
    show(r.share, percent(n.share));
    show(r.sessions, count(n.sessions));
    show(r.pushes, silent ? "–" : rate(n.pushes_per_second));
    show(r.weight, String(n.weight));
    const drains = n.state === "draining" || n.state === "joining";
    if (r.drain.disabled !== drains) {
      if (document.activeElement === r.drain) r.tr.focus(); // what is disabled loses it
      r.drain.disabled = drains;
    }
  }

  // order sorts the rows; they stay as they are while figures change, so that none goes
  // from under a finger.
  order() {
    for (const name of columns) $(`sort-${name}`).closest("th").setAttribute("aria-sort", name === this.by ? (name === "id" || name === "state" ? "ascending" : "descending") : "none");
    const value = values[this.by];
    const nodes = [...this.board.nodes.values()].sort((a, b) => {
      const x = value(a), y = value(b);
      return x < y ? -1 : x > y ? 1 : a.id.localeCompare(b.id, "en", { numeric: true });
    });
    const focus = document.activeElement;
    nodes.forEach((n, i) => {
      const tr = this.rows.get(n.id).tr;
      if (this.body.children[i] !== tr) this.body.insertBefore(tr, this.body.children[i] ?? null);
    });
    if (this.body.contains(focus)) focus.focus(); // a row that was moved loses it
  }

  heat(id) {
    this.hot?.classList.remove("hot");
    this.hot = id === null ? null : this.rows.get(id)?.tr;
    this.hot?.classList.add("hot");
  }
}
