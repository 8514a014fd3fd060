// Users on their way, and what changed the ring.
import { $, el, show, chip, count, many, percent, clock, list, say } from "./dom.js";

const reasons = {
  join: (n) => `${n} joined`,
  leave: (n) => `${n} left, to be drained`,
  crash: (n) => `${n} taken out: dead`,
  restart: (n) => `${n} restarted in place`,
  update: (n) => `${n} has another address`,
  weight: (n) => `${n} has another weight`,
  handoff: (n) => `handed over (${n})`,
  restored: () => "published again: the store had lost it",
};

export function sentence(c, most = 6) {
  const names = list(c.nodes, most);
  return c.reason.split("+").map((r) => (reasons[r] ?? ((n) => `${r}: ${n}`))(names)).join("; ");
}

export class Handoffs {
  rows = new Map(); // by the epoch before

  constructor(board) {
    this.board = board;
    this.list = $("handoffs");
  }

  update() {
    const epochs = new Set(this.board.handoffs.map((h) => h.from_epoch));
    for (const [epoch, r] of this.rows) {
      if (epochs.has(epoch)) continue;
      if (r.li.contains(document.activeElement)) $("handoffs-title").focus();
      r.li.remove();
      this.rows.delete(epoch);
    }
    for (const h of this.board.handoffs) {
      let r = this.rows.get(h.from_epoch);
      if (!r) {
        const title = `${sentence({ reason: h.reason, nodes: h.nodes }, 3)}`;
        r = { text: el("p"), left: el("ul", { class: "pending" }), bar: el("progress", { max: 1, "aria-label": `Sessions moved since epoch ${h.from_epoch}` }) };
        r.li = el("li", {}, el("p", { class: "title" }, title, " ", el("small", {}, `since epoch ${h.from_epoch}`)), r.bar, r.text, r.left);
        this.rows.set(h.from_epoch, r);
        this.list.append(r.li);
      }
      progress(r.bar, h);
      show(r.text, h.began > 0 ? `${count(h.left)} of ${many(h.began, "session")} still to go` : "waiting for the nodes' reports");
      const pending = h.pending.filter((p) => p.sessions > 0).sort((a, b) => b.sessions - a.sessions);
      const key = JSON.stringify(pending);
      if (r.key !== key) {
        r.key = key;
        r.left.replaceChildren(...pending.slice(0, 8).map((p) => el("li", {}, chip(p.node), ` ${count(p.sessions)} left`)),
          ...(pending.length > 8 ? [el("li", {}, `and ${pending.length - 8} more`)] : []));
      }
    }
    $("no-handoffs").hidden = this.rows.size > 0;
  }
}

// progress shows how much of a handoff is done.
export function progress(bar, h) {
  if (h.began > 0) bar.value = 1 - h.left / h.began;
  else bar.removeAttribute("value");
}

export class Timeline {
  constructor(board) {
    this.board = board;
    this.list = $("timeline");
    this.newest = 0;
  }

  update(all) {
    const t = this.board.timeline;
    if (all) {
      this.list.replaceChildren();
      this.newest = 0;
    }
    for (const c of t) {
      if (c.epoch <= this.newest) continue;
      this.newest = c.epoch;
      this.list.prepend(el("li", { class: c.reason.split("+")[0] },
        el("time", { datetime: c.time, title: new Date(c.time).toISOString() }, clock(c.time)), el("span", { class: "epoch" }, `#${c.epoch}`),
        el("span", { class: "what" }, sentence(c)),
        el("span", { class: "moved", title: `published by ${c.by}` }, c.share > 0 ? `${percent(c.share)} moved` : "")));
      if (!all) say(`Ring epoch ${c.epoch}: ${sentence(c)}`);
    }
    while (this.list.children.length > 200) this.list.lastElementChild.remove();
    const first = t[0];
    show($("timeline-begin"), !first ? "No change is known yet." : first.epoch > 1 ? `Changes before epoch ${first.epoch} are not kept any more.` : "");
  }
}
