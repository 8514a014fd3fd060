// What a change of the ring would move, and draining a node.
import { $, el, ask, chip, count, many, percent, say, show } from "./dom.js";
import { progress } from "./changes.js";

const rows = 12;

// moves shows what would move, the most first.
function moves(plan) {
  const all = [...plan.moves].sort((a, b) => b.sessions - a.sessions || b.share - a.share);
  const table = el("table", {}, el("caption", { class: "hidden" }, "What would move"),
    el("thead", {}, el("tr", {}, ...["From", "To", "Of all users", "Sessions"].map((t, i) => el("th", { scope: "col", class: i > 1 ? "num" : "" }, t)))),
    el("tbody", {}, ...all.slice(0, rows).map((m) => el("tr", {}, el("td", {}, chip(m.from)), el("td", {}, chip(m.to)),
      el("td", { class: "num" }, percent(m.share)), el("td", { class: "num" }, count(m.sessions))))));
  const out = [el("p", { class: "sum" }, el("strong", {}, percent(plan.share)), " of all users would move, and ",
    el("strong", {}, many(plan.sessions, "session")), ` that ${plan.sessions === 1 ? "is" : "are"} open now.`)];
  if (all.length > 0) out.push(table);
  if (all.length > rows) out.push(el("p", {}, `and ${all.length - rows} more pairs of nodes`));
  return out;
}

const names = (text) => text.split(/[\s,]+/).filter((s) => s !== "");

// nodeOf reads a node and its weight, as the command line does.
function nodeOf(text) {
  const [, id, weight] = /^([^:]*)(?::(.*))?$/s.exec(text);
  if (weight !== undefined && !/^0*[1-9][0-9]*$/.test(weight)) throw new Error(`${text}: the weight "${weight}" is no number from 1`);
  return { id, weight: Number(weight ?? 1) };
}

export class Plan {
  constructor(onPlan) {
    const out = $("plan-result");
    $("plan").addEventListener("submit", async (e) => {
      e.preventDefault();
      try {
        const add = names($("plan-add").value).map(nodeOf);
        const plan = await ask("POST", "plan", { add, remove: names($("plan-remove").value) });
        out.replaceChildren(...moves(plan));
        onPlan(plan.moves);
        say(`${percent(plan.share)} of all users would move`);
      } catch (e) {
        out.replaceChildren(el("p", { class: "wrong", role: "alert" }, e.message));
        onPlan([]);
      }
    });
    $("plan-clear").addEventListener("click", () => {
      $("plan").reset();
      out.replaceChildren();
      onPlan([]);
    });
  }
}

// Drain is the dialog that drains a node:
//
//	asked --the plan--> ready --yes--> draining --gone--> drained, or dead
//	           \--there is none--> ready once the id is typed
export class Drain {
  constructor(board, rowOf) {
    this.board = board;
    this.rowOf = rowOf; // a node's row of the table
    this.dialog = $("drain");
    $("drain-yes").addEventListener("click", () => this.start());
    $("drain-close").addEventListener("click", () => this.dialog.close());
    $("drain-id").addEventListener("input", () => { $("drain-yes").disabled = $("drain-id").value !== this.id; });
    this.dialog.addEventListener("close", () => {
      // What opened it may be gone, or disabled while the node drains.
      const row = this.rowOf(this.id);
      if (!row) $("nodes-title").focus();
      else if (row.querySelector("button").disabled) row.focus();
      this.id = null;
    });
  }

  async open(id) {
    this.id = id;
    this.began = 0;
    this.running = false;
    $("drain-title").textContent = `Drain ${id}?`;
    $("drain-progress").hidden = $("drain-type").hidden = true;
    $("drain-yes").hidden = false;
    $("drain-yes").disabled = true;
    show($("drain-yes"), `Drain ${id}`);
    show($("drain-close"), "Cancel");
    $("drain-plan").replaceChildren(el("p", {}, "Finding out what would move…"));
    this.dialog.showModal();
    $("drain-close").focus();
    try {
      const plan = await ask("POST", "plan", { remove: [id] });
      if (this.id !== id) return;
      $("drain-plan").replaceChildren(el("p", {}, "The node leaves the ring, its clients are moved to their new owners, and its process ends."), ...moves(plan));
      $("drain-yes").disabled = false;
    } catch (e) {
      if (this.id !== id) return;
      $("drain-plan").replaceChildren(el("p", { class: "wrong", role: "alert" }, `It cannot be said what would move: ${e.message}. Its sessions may be closed with nowhere to go.`));
      $("drain-type").hidden = false;
      $("drain-id").value = "";
    }
  }

  async start() {
    const id = this.id;
    $("drain-yes").disabled = true;
    try {
      await ask("POST", `nodes/${encodeURIComponent(id)}/drain`);
    } catch (e) {
      $("drain-plan").replaceChildren(el("p", { class: "wrong", role: "alert" }, e.message));
      $("drain-yes").disabled = false;
      return;
    }
    if (this.id !== id) return;
    this.running = true;
    this.began = this.board.nodes.get(id)?.sessions ?? 0;
    this.epoch = this.board.ring.epoch;
    $("drain-title").textContent = `Draining ${id}`;
    $("drain-yes").hidden = $("drain-type").hidden = true;
    $("drain-plan").replaceChildren();
    $("drain-progress").hidden = false;
    show($("drain-close"), "Close, it goes on");
    $("drain-close").focus();
    say(`Draining ${id}`);
    this.update();
  }

  // update follows the node until it is empty.
  update() {
    if (!this.running || this.id === null) return;
    const n = this.board.nodes.get(this.id);
    const left = n?.sessions ?? 0;
    this.began = Math.max(this.began, left);
    progress($("drain-bar"), { began: Math.max(1, this.began), left });
    if (n) {
      show($("drain-left"), left > 0 ? `${count(left)} of ${many(this.began, "session")} left` : "no session left; the node is about to end");
      return;
    }
    const t = this.board.timeline;
    if ((t.at(-1)?.epoch ?? 0) < this.board.ring.epoch) return; // why it is gone is about to be told
    this.running = false;
    const died = t.some((c) => c.epoch > this.epoch && c.nodes.includes(this.id) && c.reason.split("+").includes("crash"));
    const end = died ? `${this.id} died before it was empty. Its clients connect to their new owners by themselves.` : `${this.id} is empty and has left.`;
    show($("drain-left"), end);
    $("drain-title").textContent = died ? `${this.id} is dead` : `${this.id} is drained`;
    show($("drain-close"), "Close");
    say(end);
  }
}
