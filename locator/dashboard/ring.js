// The ring: an arc for each node, as long as its share; around it the circle itself, in
// equal parts by who owns most of each; inside it users on their way, from node to node.
import { $, svg, show, tint, percent, count, rate, many } from "./dom.js";

const sliver = 0.011; // of the circle, for a node without a share
const gap = 0.0012;
const labelled = 24; // more nodes have their names in the table only
const figured = 8; // and so many their figures beside them
const animated = 60; // more flows stand still

const at = (turn, r) => {
  const a = (turn - 0.25) * 2 * Math.PI;
  return [r * Math.cos(a), r * Math.sin(a)].map((v) => v.toFixed(2));
};

function arc(from, to, inner, outer) {
  if (to - from > 0.9995) to = from + 0.9995; // an arc that ends where it begins is none
  const large = to - from > 0.5 ? 1 : 0;
  return `M${at(from, outer)}A${outer} ${outer} 0 ${large} 1 ${at(to, outer)}L${at(to, inner)}A${inner} ${inner} 0 ${large} 0 ${at(from, inner)}Z`;
}

export class Ring {
  places = new Map(); // node: where its arc is
  plan = []; // moves that are only planned

  constructor(board, onHot) {
    this.board = board;
    this.root = $("ring");
    this.band = svg("g", { class: "band" });
    this.flows = svg("g", { class: "flows" });
    this.arcs = svg("g", { class: "arcs" });
    this.names = svg("g", { class: "names" });
    this.middle = [-7, 5, 15].map((y, i) => svg("text", { class: `middle m${i}`, x: 0, y }));
    this.root.append(this.band, this.flows, this.arcs, this.names, svg("circle", { class: "hub", r: 27 }), ...this.middle);
    const of = (e) => e.target.closest?.("[data-node]")?.dataset.node ?? null;
    this.root.addEventListener("pointerover", (e) => onHot(of(e)));
    this.root.addEventListener("pointerleave", () => onHot(null));
    this.root.addEventListener("click", (e) => onHot(of(e)));
  }

  // layout draws everything anew: the nodes, their shares or states are other ones.
  layout() {
    const b = this.board;
    const ids = new Set(b.nodes.keys());
    for (const m of this.plan) ids.add(m.from).add(m.to); // nodes that are only planned
    const nodes = [...ids].sort().map((id) => b.nodes.get(id) ?? { id, share: 0, state: "planned" });
    const without = nodes.filter((n) => n.share === 0).length;
    const scale = Math.max(0.5, 1 - without * sliver);
    this.places.clear();
    this.arcs.replaceChildren();
    this.names.replaceChildren();
    let turn = 0;
    for (const n of nodes) {
      const size = n.share > 0 ? n.share * scale : ((1 - scale) / without);
      const half = Math.min(gap, size / 12);
      const place = { from: turn + half, to: turn + size - half, middle: turn + size / 2 };
      this.places.set(n.id, place);
      place.arc = tint(svg("path", { d: arc(place.from, place.to, 74, 92), class: `arc ${n.state}${n.share === 0 ? " hollow" : ""}`, "data-node": n.id }), n.id);
      this.arcs.append(place.arc);
      if (nodes.length <= labelled) {
        const [x, y] = at(place.middle, 66);
        const anchor = Math.abs(x) < 12 ? "middle" : x < 0 ? "start" : "end";
        place.name = svg("text", { x, y: Number(y) + 2, "text-anchor": anchor, "data-node": n.id });
        this.names.append(place.name);
        if (nodes.length <= figured && n.share > 0) {
          place.figures = svg("text", { x, y: Number(y) + 7, "text-anchor": anchor, class: "figures", "data-node": n.id });
          this.names.append(place.figures);
        }
      }
      turn += size;
    }
    this.drawFlows();
    this.heat(this.hot);
  }

  // circle draws the outer band; it changes with an epoch only.
  circle() {
    const { owners, segments } = this.board.ring;
    const paths = owners.map(() => "");
    for (let i = 0; i < segments.length;) {
      let end = i + 1;
      while (end < segments.length && segments[end] === segments[i]) end++;
      paths[segments[i]] += arc(i / segments.length, end / segments.length, 95, 99);
      i = end;
    }
    this.band.replaceChildren(...owners.map((id, i) => tint(svg("path", { d: paths[i], "data-node": id }), id)));
  }

  drawFlows() {
    const lines = [];
    for (const f of this.board.ring.flows) lines.push({ ...f, left: this.left(f) });
    for (const m of this.plan) lines.push({ ...m, planned: true, left: 1 });
    const tips = new Map();
    const paths = [];
    for (const f of lines) {
      const from = this.places.get(f.from), to = this.places.get(f.to);
      if (!from || !to) continue;
      const p = tint(svg("path", { d: `M${at(from.middle, 73)}Q0 0 ${at(to.middle, 70)}`, class: f.planned ? "flow planned" : "flow" }), f.from);
      p.style.strokeWidth = Math.min(7, Math.max(0.5, f.share * 60)).toFixed(2);
      p.style.opacity = (0.15 + 0.7 * f.left).toFixed(2);
      paths.push(p);
      tips.set(f.to, to);
    }
    for (const [id, to] of tips) {
      const d = 0.9 / 70;
      paths.push(tint(svg("path", { d: `M${at(to.middle, 73.5)}L${at(to.middle - d, 68)}L${at(to.middle + d, 68)}Z`, class: "tip" }), id));
    }
    for (const [id, place] of this.places) if (place.name) show(place.name, this.name(id));
    this.flows.classList.toggle("still", paths.length > animated);
    this.flows.replaceChildren(...paths);
  }

  // name is a node's, with the sessions that it still has to hand over.
  name(id) {
    const to = Math.max(0, ...this.board.handoffs.flatMap((h) => h.pending.filter((p) => p.node === id).map((p) => p.sessions)));
    const short = id.length > 14 ? id.slice(0, 13) + "…" : id;
    return to > 0 ? `${short}: ${count(to)} to go` : short;
  }

  // left is which part of a flow has not gone yet, by what its node still has to move.
  left(f) {
    const h = this.board.handoffs.find((h) => h.from_epoch === f.from_epoch);
    if (!h) return 0;
    const p = h.pending.find((p) => p.node === f.from);
    if (!p) return 0;
    return h.began > 0 ? Math.max(0.1, h.left / h.began) : 1;
  }

  // heat lets one node stand out; null: none.
  heat(id) {
    this.hot = id;
    this.root.classList.toggle("one-hot", id !== null && this.places.has(id));
    for (const e of this.root.querySelectorAll(".hot")) e.classList.remove("hot");
    if (id !== null) for (const e of this.root.querySelectorAll(`[data-node="${CSS.escape(id)}"]`)) e.classList.add("hot");
    this.figures();
  }

  figures() {
    for (const [id, place] of this.places) {
      const n = this.board.nodes.get(id);
      if (place.figures && n) show(place.figures, `${count(n.sessions)}, ${rate(n.pushes_per_second)}/s`);
    }
    const n = this.hot === null ? null : this.board.nodes.get(this.hot);
    let lines;
    if (n) {
      lines = [n.id, `${n.state}, ${percent(n.share)}`, `${many(n.sessions, "session")}, ${rate(n.pushes_per_second)}/s`];
    } else {
      let sessions = 0, pushes = 0;
      for (const n of this.board.nodes.values()) {
        sessions += n.sessions;
        pushes += n.pushes_per_second;
      }
      lines = [count(sessions), sessions === 1 ? "session" : "sessions", `${rate(pushes)} pushes/s`];
    }
    this.middle[0].classList.toggle("long", lines[0].length > 7);
    lines.forEach((text, i) => show(this.middle[i], text));
  }
}
