// What takes time, with a clock, sockets and events of the test's own: the back-off, signs
// of life, and what pages tell of the network and of sleep.
import { test, mock } from "node:test";
import assert from "node:assert/strict";
import { Client } from "../dialring.js";

const hour = 3_600_000;
const settle = async () => { for (let i = 0; i < 20; i++) await new Promise(ok => setImmediate(ok)); };

// World replaces what a client finds around it.
class World {
  sockets = [];
  locates = []; // bodies
  events = [];
  random = 0.5;
  status = 200;
  after = null; // Retry-After
  loc = {};
  answers = true; // pings
  constructor(t, options = {}) {
    mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1e12 });
    const world = this, target = new EventTarget(), document = new EventTarget();
    document.hidden = false;
    Object.assign(this, { target, document });
    this.navigator = { onLine: true };
    const around = {
      WebSocket: class {
        readyState = 0;
        sent = [];
        constructor(url) { this.url = url; world.sockets.push(this); }
        send(s) {
          const f = JSON.parse(s);
          this.sent.push(f);
          if (f.type === "ping" && world.answers) queueMicrotask(() => this.says({ type: "pong", ref: f.ref }));
        }
        close(code) { this.code = code; this.readyState = 2; }
        says(f) { this.onmessage?.({ data: JSON.stringify(f) }); }
        welcome(f) { this.readyState = 1; this.says({ type: "welcome", session: "s", user: "u", since: "c0", ping_interval_ms: 25_000, ...f }); return this; }
        ends(code) { this.readyState = 3; this.onclose?.({ code, reason: "" }); }
        get pings() { return this.sent.filter(f => f.type === "ping").length; }
      },
      async fetch(_, { body }) {
        world.locates.push(JSON.parse(body));
        if (world.status === 0) throw new Error("no network");
        const { status, after } = world, n = world.locates.length;
        return new Response(JSON.stringify({ user: "u", url: "ws://n/", node: "ws-" + n, ticket: "t", ...world.loc }), { status, headers: after === null ? {} : { "Retry-After": after } });
      },
      addEventListener: target.addEventListener.bind(target),
      document,
      navigator: this.navigator,
    };
    const before = Object.getOwnPropertyDescriptors(globalThis);
    for (const [name, value] of Object.entries(around)) Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
    mock.method(Math, "random", () => this.random);
    this.c = new Client({ locators: "http://l", user: "u", device: "d", onMessage() {}, onEvent: e => this.events.push(e), ...options });
    this.done = this.c.run();
    this.done.catch(() => {});
    t.after(async () => {
      this.c.stop();
      await this.tick(1000);
      await this.done.catch(() => {});
      mock.timers.reset();
      mock.restoreAll();
      for (const name of Object.keys(around)) {
        if (before[name]) Object.defineProperty(globalThis, name, before[name]); else delete globalThis[name];
      }
    });
  }
  get last() { return this.events.at(-1); }
  get socket() { return this.sockets.at(-1); }
  // tick lets time pass as it does: in steps, each timer in its turn.
  async tick(ms, step = 100) {
    await settle();
    for (; ms > 0; ms -= step) {
      mock.timers.tick(Math.min(ms, step));
      await settle();
    }
  }
  // sleep has the clock go on without the machine: timers come too late.
  async sleep(ms) {
    mock.timers.setTime(Date.now() + ms);
    mock.timers.tick(1);
    await settle();
  }
  tell(type, target = this.target) { target.dispatchEvent(new Event(type)); }
  async up(fields) {
    await this.tick(0);
    this.socket.welcome(fields);
    await settle();
    assert.equal(this.c.state, "connected");
    return this.socket;
  }
}

test("the back-off: a uniform random time up to a bound that doubles", async t => {
  const w = new World(t);
  w.status = 0;
  const waits = [];
  for (let i = 0; i < 9; i++) {
    await w.tick(0);
    assert.equal(w.last.state, "waiting");
    waits.push(w.last.wait);
    await w.tick(w.last.wait, w.last.wait);
  }
  assert.deepEqual(waits, [250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000, 15_000]);
  w.random = 0.999999;
  await w.tick(0);
  await w.tick(w.last.wait, w.last.wait);
  assert.ok(w.last.wait > 29_990 && w.last.wait <= 30_000);
});

test("the locator says how long the back-off is", async t => {
  const w = new World(t);
  const waits = [];
  for (const retry of [{ base_ms: 10, max_ms: 100 }, { base_ms: 0, max_ms: 5 }, { base_ms: 0.0001, max_ms: 0.0001 }, { base_ms: 7, max_ms: 5 }, "x", null, { base_ms: "a", max_ms: {} }, { base_ms: 1e15, max_ms: 1e16 }]) {
    w.loc.retry = retry;
    if (waits.length) await w.tick(w.last.wait, w.last.wait);
    await w.tick(0);
    w.socket.ends(1006);
    await w.tick(0);
    waits.push(w.last.wait);
  }
  assert.deepEqual(waits, [5, 10, 20, 40, 50, 50, 50, hour / 2]); // of attempt 0, 1, …
});

test("after a 42xx the first attempt is soon, later ones as ever; n begins anew after 10 s", async t => {
  const w = new World(t);
  const waits = [];
  for (const [stay, code] of [[9000, 4202], [9000, 4202], [9900, 4101], [10_000, 4101], [0, 4202], [10_000, 4201]]) {
    const s = await w.up();
    await w.tick(stay);
    s.ends(code);
    await w.tick(0);
    waits.push(w.last.wait);
    await w.tick(w.last.wait, w.last.wait);
  }
  assert.deepEqual(waits, [50, 500, 1000, 250, 500, 50]);
});

test("Retry-After and dial_after_ms are lower bounds", async t => {
  const w = new World(t);
  w.status = 503;
  w.after = "7";
  await w.tick(0);
  assert.deepEqual([w.last.state, w.last.wait], ["waiting", 7000]);
  w.status = 200;
  w.loc = { dial_after_ms: 1500 };
  await w.tick(5000, 1000);
  w.tell("online"); // does not cut it short
  await w.tick(1900);
  assert.equal(w.locates.length, 1);
  await w.tick(100);
  assert.deepEqual([w.last.state, w.last.wait, w.locates.length], ["waiting", 1500, 2]);
  w.tell("online");
  await w.tick(1400);
  assert.equal(w.last.state, "waiting");
  await w.tick(100);
  assert.equal(w.last.state, "dialing");
});

test("an absurd Retry-After is bounded, or none", async t => {
  for (const [after, wait] of [["86400000", hour], ["0", 250], ["-3", 250], ["soon", 250], ["1e9", 250], ["", 250]]) {
    await t.test(after, async t => {
      const w = new World(t);
          w.status = 503;
      w.after = after;
      await w.tick(0);
      assert.deepEqual([w.last.state, w.last.wait], ["waiting", wait]);
    });
  }
});

test("a node that failed is reported for a minute", async t => {
  const w = new World(t);
  await w.up();
  w.socket.ends(1006);
  await w.tick(1000);
  assert.deepEqual(w.locates.at(-1).failed, ["ws-1"]);
  await w.up();
  await w.tick(57_000);
  w.socket.ends(4101);
  await w.tick(1000);
  assert.deepEqual(w.locates.at(-1).failed, ["ws-1"]);
  await w.up();
  await w.tick(3000);
  w.socket.ends(4101);
  await w.tick(1000);
  assert.deepEqual(w.locates.at(-1).failed, []);
});

test("a dial, and a locate, that hangs is given up after 10 s", async t => {
  const w = new World(t);
  await w.tick(9900);
  assert.equal(w.last.state, "dialing");
  await w.tick(200);
  assert.deepEqual([w.last.state, w.sockets.length, w.socket.code], ["waiting", 1, 1000]);
  let aborted = 0;
  globalThis.fetch = (_, { signal }) => new Promise(() => { signal.addEventListener("abort", () => { aborted++; }); });
  await w.tick(250);
  assert.equal(w.last.state, "locating");
  await w.tick(9900);
  assert.equal(w.last.state, "locating");
  await w.tick(200);
  assert.deepEqual([w.last.state, aborted], ["waiting", 1]);
});

test("it pings each interval, and whatever comes is a sign of life", async t => {
  const w = new World(t);
  const s = await w.up();
  for (let i = 1; i <= 15; i++) {
    assert.equal(s.pings, i);
    s.says(i % 2 ? { type: "pong" } : { type: "message", id: "m" + i, data: 1 });
    await w.tick(25_000);
  }
  assert.deepEqual([w.c.state, w.locates.length], ["connected", 1]);
  assert.deepEqual(s.sent[0], { type: "ping" });
});

test("a node that says nothing: a locator is asked, and then it is given up, and reported", async t => {
  const w = new World(t);
  w.loc.node = "ws-1";
  w.answers = false;
  const s = await w.up();
  s.says({ type: "pong" });
  await w.tick(25_000);
  assert.equal(s.pings, 2);
  await w.tick(4900);
  assert.equal(w.locates.length, 1);
  await w.tick(200);
  assert.deepEqual([w.locates.length, w.c.state], [2, "connected"]);
  await w.tick(4700);
  assert.equal(w.c.state, "connected");
  await w.tick(200);
  assert.deepEqual([w.c.state, s.code], ["waiting", 1000]);
  assert.match(w.last.error.message, /nothing was heard/);
  await w.tick(250);
  assert.deepEqual(w.locates.at(-1).failed, ["ws-1"]);
});

test("a node that says nothing, and the user is elsewhere: it moves", async t => {
  const w = new World(t);
  w.answers = false;
  const s = await w.up();
  await w.tick(5100);
  assert.equal(w.sockets.length, 2);
  w.answers = true;
  w.socket.welcome({ session: "s2" });
  s.says = () => {};
  await w.tick(10_000);
  assert.deepEqual([w.c.state, w.last.node, w.sockets.length], ["connected", "ws-2", 2]);
  assert.equal(s.code, 1000); // it does not answer the last ping either
});

test("told nothing for 5 to 10 minutes it asks a locator, and stays or moves", async t => {
  const w = new World(t);
  w.loc.node = "ws-1";
  const s = await w.up();
  const alive = async ms => { for (; ms > 0; ms -= 5000) { s.says({ type: "pong" }); await w.tick(5000, 1000); } };
  await alive(445_000);
  assert.equal(w.locates.length, 1);
  await alive(10_000);
  assert.equal(w.locates.length, 2);
  w.status = 401; // of no use, and it does not count
  await alive(900_000);
  w.status = 200;
  assert.deepEqual([w.locates.length, w.sockets.length, w.c.state], [4, 1, "connected"]);
  w.loc.node = "ws-2";
  await alive(450_000);
  assert.equal(w.sockets.length, 2);
  assert.equal(w.c.state, "connected"); // and never said otherwise
  w.socket.welcome();
  await w.tick(0);
  assert.equal(w.last.node, "ws-2");
});

test("a timer that comes much too late means sleep: it asks at once, and is gone after 5 s, without a hint", async t => {
  const w = new World(t);
  w.loc.node = "ws-1";
  w.answers = false;
  const s = await w.up();
  s.says({ type: "pong" });
  await w.tick(6000);
  assert.equal(s.pings, 1);
  await w.sleep(8 * hour);
  assert.deepEqual([s.pings, w.c.state], [2, "connected"]);
  await w.tick(4900);
  assert.equal(w.c.state, "connected");
  await w.tick(200);
  assert.deepEqual([w.c.state, s.code, w.locates.length], ["waiting", 1000, 2]); // the other was due long ago
  await w.tick(250);
  assert.deepEqual(w.locates.at(-1).failed, []);
});

test("sleep while it waits for a pong: the node gets another chance", async t => {
  const w = new World(t);
  w.answers = false;
  const s = await w.up();
  await w.tick(1000);
  await w.sleep(hour);
  assert.deepEqual([s.pings, w.c.state], [2, "connected"]);
  s.says({ type: "pong" });
  await w.tick(30_000);
  assert.equal(w.c.state, "connected");
});

test("a connection that was cut while the machine slept is not the node's failure", async t => {
  const w = new World(t);
  const s = await w.up();
  s.says({ type: "pong" });
  await w.tick(6000);
  mock.timers.setTime(Date.now() + hour);
  s.ends(1006); // before the timer comes
  await w.tick(1000);
  assert.deepEqual(w.locates.at(-1).failed, []);
});

test("a page that is shown again, or resumed, asks at once", async t => {
  const w = new World(t);
  w.answers = false;
  const s = await w.up();
  s.says({ type: "pong" });
  await w.tick(6000);
  w.document.hidden = true;
  w.tell("visibilitychange", w.document);
  assert.equal(s.pings, 1);
  w.document.hidden = false;
  w.tell("visibilitychange", w.document);
  assert.equal(s.pings, 2);
  w.tell("visibilitychange", w.document); // one at a time
  assert.equal(s.pings, 2);
  s.says({ type: "pong" });
  await w.tick(6000);
  w.tell("resume", w.document);
  assert.equal(s.pings, 3);
  await w.tick(5100);
  assert.equal(s.code, 1000); // nothing came
});

test("offline is a hint: it asks, waits for the network, and tries rarely all the same", async t => {
  const w = new World(t);
  w.answers = false;
  const s = await w.up();
  s.says({ type: "pong" });
  await w.tick(6000);
  w.navigator.onLine = false;
  w.tell("offline");
  assert.deepEqual([s.pings, w.c.state], [2, "connected"]);
  s.says({ type: "pong" }); // it was not true
  await w.tick(6000);
  assert.equal(w.c.state, "connected");
  w.tell("offline");
  await w.tick(5100);
  w.status = 0;
  assert.deepEqual([w.c.state, w.last.wait], ["waiting", 30_000]);
  await w.tick(29_000, 1000);
  assert.equal(w.locates.length, 1);
  await w.tick(1000);
  assert.equal(w.locates.length, 2);
  assert.deepEqual(w.locates.at(-1).failed, []); // it was not the node
  assert.equal(w.last.wait, 30_000);
  w.status = 200;
  await w.tick(1000);
  w.navigator.onLine = true;
  w.tell("online");
  await w.tick(200);
  assert.equal(w.locates.length, 2); // with a jitter
  await w.tick(100);
  assert.equal(w.locates.length, 3);
  await w.up();
});

test("offline, what fails is not the node's failure", async t => {
  const w = new World(t);
  await w.tick(0);
  w.navigator.onLine = false;
  w.socket.ends(1006);
  await w.tick(30_000, 1000);
  assert.deepEqual(w.locates.map(l => l.failed), [[], []]);
});

test("a 401 that nobody asked for does not count", async t => {
  const w = new World(t);
  w.loc.node = "ws-1";
  const s = await w.up();
  w.status = 401;
  await w.tick(455_000, 1000);
  assert.equal(w.locates.length, 2);
  s.ends(4101);
  await w.tick(300);
  assert.deepEqual([w.locates.length, w.c.state], [3, "waiting"]);
  w.status = 200;
  await w.tick(1000);
  await w.up();
});

test("a page that is left closes its connection, and comes back when it is shown from the cache", async t => {
  const w = new World(t);
  const s = await w.up();
  s.says({ type: "message", id: "m1", seq: 1, cursor: "c1", data: 1 });
  s.says({ type: "message", id: "m2", seq: 2, cursor: "c2", data: 1 });
  await settle();
  w.tell("pagehide");
  assert.equal(s.code, 1000);
  assert.deepEqual(s.sent.at(-1), { type: "ack", cursor: "c2" });
  await w.tick(10_000, 1000);
  assert.deepEqual([w.c.state, w.locates.length], ["waiting", 1]);
  w.tell("pageshow");
  await w.tick(300);
  assert.equal(w.locates.length, 2);
  assert.equal(new URL(w.socket.url).searchParams.get("since"), "c2");
  assert.deepEqual(w.locates.at(-1).failed, []);
  await w.up();
});

test("a send whose key the cluster may have forgotten is not repeated, a request is", async t => {
  const w = new World(t);
  let s = await w.up();
  const sends = s => s.sent.filter(f => f.type === "send").map(f => f.data);
  // next breaks the connection, and has the next one after so many ms.
  const next = async ms => {
    w.status = 0;
    s.ends(1006);
    await w.tick(ms, 1000);
    w.status = 200;
    const n = w.sockets.length;
    while (w.sockets.length === n) await w.tick(100);
    s = await w.up();
    await settle();
  };
  const ended = {};
  const begin = (name, p) => p.then(() => { ended[name] = "done"; }, e => { ended[name] = e.code; });
  begin("old", w.c.send("bob", "old"));
  begin("asked", w.c.request("asked"));
  await w.tick(50_000, 1000);
  await next(1000);
  assert.deepEqual([sends(s), ended], [["old", "asked"], {}]);
  begin("young", w.c.send("bob", "young"));
  await next(60_000); // it grew too old without a connection
  assert.deepEqual([sends(s), ended], [["asked", "young"], { old: "connection_lost" }]);
  await w.tick(101_000, 1000);
  w.status = 0;
  s.ends(1006);
  await w.tick(0);
  assert.deepEqual(ended, { old: "connection_lost", young: "connection_lost" }); // at once
  w.status = 200;
  await next(1000);
  assert.deepEqual(sends(s), ["asked"]);
  s.says({ type: "ack", ref: s.sent.find(f => f.type === "send").ref, data: 1 });
  await settle();
  assert.equal(ended.asked, "done");
});

test("nothing listens after the stop", async t => {
  const w = new World(t);
  const s = await w.up();
  w.c.stop();
  await w.tick(1100);
  await w.done;
  for (const type of ["online", "offline", "pageshow", "pagehide"]) w.tell(type);
  w.tell("visibilitychange", w.document);
  await w.tick(2 * hour, hour);
  assert.deepEqual([s.pings, w.locates.length, w.c.state], [1, 1, "stopped"]);
});
