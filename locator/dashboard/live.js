// The board: what the server tells of the cluster, kept up to date by its events.
//
//	connecting --the whole board--> live --an error, or silence--> lost --> connecting
//	     |--refused: the key is missing--> locked --login--> connecting
//	     \--in any of them but locked: the page is hidden--> paused --it is seen--> connecting
//
// A page that nobody sees has no stream: browsers have six connections to a server for all
// their tabs together, and with a stream in each of six tabs none is left for a look-up.
import { ask } from "./dom.js";

const silence = 12_000; // the server says something every 5 s
const again = [500, 1000, 2000, 5000, 10_000];

export class Board {
  nodes = new Map();
  handoffs = [];
  timeline = [];
  locators = [];
  ring = { epoch: 0, hash: "", owners: [], segments: [], flows: [] };
  cluster = "";
  locator = "";
  natsUp = true;
  heard = null; // when something came last
  live = false;
  wanted = false; // it is to be live whenever the page is seen
  full = false; // it is not, because too many pages are

  // changed is called with the names of the parts that did, and with the ids of the nodes
  // of which more than the figures changed; status when it is live, or not any more.
  constructor({ changed, status }) {
    this.changed = changed;
    this.status = status;
    this.tries = 0;
    document.addEventListener("visibilitychange", () => {
      if (!this.wanted) return;
      if (!document.hidden) this.tries = 0;
      this.open();
      this.status();
    });
  }

  connect() {
    this.wanted = true;
    this.open();
    this.status();
  }

  stop() {
    this.wanted = false;
    this.close();
  }

  // paused: the page is hidden, and has no stream.
  get paused() { return this.wanted && document.hidden; }

  open() {
    this.close();
    if (!this.wanted || this.paused) return;
    const s = new EventSource("/admin/v1/events");
    this.stream = s;
    const heard = (f) => (m) => {
      if (s !== this.stream) return;
      this.heard = new Date();
      this.tries = 0;
      clearTimeout(this.watch);
      this.watch = setTimeout(() => this.lost(), silence);
      if (!this.live) {
        this.live = true;
        this.status();
      }
      f(JSON.parse(m.data));
    };
    s.addEventListener("whole", heard((d) => this.take(d, true)));
    s.addEventListener("change", heard((d) => this.take(d, false)));
    s.addEventListener("alive", heard(() => {}));
    s.onerror = () => { if (s === this.stream) this.lost(); };
    this.watch = setTimeout(() => this.lost(), silence);
  }

  close() {
    clearTimeout(this.watch);
    clearTimeout(this.retry);
    this.stream?.close();
    this.stream = null;
    this.live = false;
  }

  // lost comes back by itself, unless it is the key that is missing.
  lost() {
    this.close();
    this.status();
    const wait = again[Math.min(this.tries++, again.length - 1)];
    this.retry = setTimeout(async () => {
      try {
        this.full = (await ask("GET", "me")).full;
        this.status();
      } catch (e) {
        if (e.status === 401) return;
        if (!e.status) return this.lost();
      }
      this.open();
    }, wait);
  }

  take(d, all) {
    const parts = new Set();
    const facts = new Set();
    if (all) {
      this.nodes.clear();
      this.timeline = [];
      parts.add("nodes");
    }
    for (const [from, to] of [["cluster", "cluster"], ["locator", "locator"], ["nats_up", "natsUp"], ["ring", "ring"], ["locators", "locators"], ["handoffs", "handoffs"]]) {
      if (from in d) {
        this[to] = d[from];
        parts.add(to);
      }
    }
    for (const n of d.nodes ?? []) {
      const had = this.nodes.get(n.id);
      if (!had || "state" in n) facts.add(n.id);
      if (!had) parts.add("nodes");
      this.nodes.set(n.id, had ? Object.assign(had, n) : n);
      parts.add("figures");
    }
    for (const id of d.gone ?? []) {
      this.nodes.delete(id);
      parts.add("nodes");
    }
    if (d.timeline) {
      this.timeline = [...this.timeline, ...d.timeline].sort((a, b) => a.epoch - b.epoch).slice(-200);
      parts.add("timeline");
    }
    this.changed(parts, facts, d, all);
  }
}
