// Moves: the next connection first, then the end of the old one.
import { test } from "node:test";
import assert from "node:assert/strict";
import { fake, start, connected, closedPort, problem } from "./fake.js";

test("make before break", async t => {
  const a = await fake(t), b = await fake(t, "ws-2");
  const [r, s1] = await connected(t, a);
  s1.stored(1);
  await r.seqs(1);
  s1.move(b);
  const s2 = await b.sessions.next();
  assert.deepEqual([s2.protocols, s2.since], [["dialring.v1", "dialring.ticket.moved"], "c1"]);
  const e = await r.events.next();
  assert.deepEqual([e.state, e.node, e.session], ["moving", "ws-2", "s-1"]);
  assert.equal(r.c.state, "moving");
  s1.stored(2).message("e1"); // not welcomed yet: the old one carries on
  await r.seqs(2);
  assert.equal((await r.messages.next()).id, "e1");
  s2.welcome({ since: "c1", node: "ws-2", pending: 2 });
  s2.stored(2, 3).message("e1");
  s1.stored(3).message("e2"); // and what was under way comes all the same
  s2.message("e2").stored(4);
  const got = [];
  for (let i = 0; i < 3; i++) got.push((await r.messages.next()).id);
  assert.deepEqual(got.sort(), ["e2", "m3", "m4"]);
  assert.equal(await s1.closed, 1000);
  await s2.acks("c4");
  const c = await r.state("connected");
  assert.deepEqual([c.node, c.session, c.error], ["ws-2", "s-1", undefined]);
  assert.deepEqual([r.messages.length, a.calls, b.calls], [0, 1, 0]);
});

test("what the old node had sent before it hears the goodbye is handled", async t => {
  const a = await fake(t), b = await fake(t, "ws-2");
  const [r, s1] = await connected(t, a);
  s1.move(b);
  const s2 = await b.sessions.next();
  s2.welcome({ node: "ws-2" });
  const n = 500;
  for (let i = 0; i < n; i++) s1.message("e" + i);
  for (let i = 0; i < n; i++) assert.equal((await r.messages.next()).id, "e" + i);
  assert.equal(await s1.closed, 1000);
});

test("after_ms is waited for", async t => {
  const a = await fake(t), b = await fake(t, "ws-2");
  const [, s1] = await connected(t, a);
  const began = Date.now();
  s1.move(b, { after_ms: 200 });
  await b.sessions.next();
  assert.ok(Date.now() - began >= 190);
});

test("the dial fails: it keeps this connection, and locates again", async t => {
  const dead = await closedPort();
  const b = await fake(t, "ws-2");
  const a = await fake(t, "ws-1", { locate: n => n === 0 ? a.here() : n === 1 ? problem(503, "no_nodes") : b.here() });
  const [r, s1] = await connected(t, a);
  await a.locates.next();
  s1.move({ ws: `ws://${dead}/`, node: "ws-9" });
  assert.deepEqual((await a.locates.next()).body.failed, ["ws-9"]);
  s1.message("meanwhile");
  assert.equal((await r.messages.next()).id, "meanwhile");
  const s2 = await b.sessions.next();
  assert.equal(s2.protocols[1], "dialring.ticket.ticket");
  s2.welcome({ node: "ws-2" });
  assert.equal(await s1.closed, 1000);
  assert.equal((await r.state("connected")).node, "ws-2");
});

test("the dial fails, and the locator says that it is in the right place: it stays", async t => {
  const dead = await closedPort();
  const a = await fake(t);
  const [r, s1] = await connected(t, a);
  await a.locates.next();
  s1.move({ ws: `ws://${dead}/`, node: "ws-9" });
  await a.locates.next();
  await r.state("moving");
  const e = await r.state("connected");
  assert.deepEqual([e.node, e.session], ["ws-1", "s-1"]);
  s1.stored(1);
  await r.seqs(1);
  assert.equal(a.dials, 1);
});

test("the new node closes before its welcome: locate again, after a back-off", async t => {
  const b = await fake(t, "ws-2");
  const hour = { base_ms: 3_600_000, max_ms: 3_600_000 };
  const a = await fake(t, "ws-1", { locate: n => n === 0 ? a.here({ retry: hour }) : b.here() });
  const [r, s1] = await connected(t, a);
  s1.move(b);
  (await b.sessions.next()).close(4204);
  s1.stored(1);
  await r.seqs(1);
  assert.deepEqual([a.calls, b.dials], [1, 1]);
});

test("a second move while the first is under way counts when that fails", async t => {
  const a = await fake(t), c = await fake(t, "ws-3");
  let open;
  const gate = new Promise(ok => { open = ok; });
  const b = await fake(t, "ws-2", { before: () => gate, dial: () => ({ status: 421 }) });
  const [r, s1] = await connected(t, a);
  s1.move(b);
  await b.upgrades.next();
  s1.move(c, { ticket: "second" }).message("y");
  await r.messages.next();
  open();
  const s3 = await c.sessions.next();
  assert.equal(s3.protocols[1], "dialring.ticket.second");
  s3.welcome({ node: "ws-3" });
  assert.equal(await s1.closed, 1000);
});

test("a move cuts short the wait for an earlier one", async t => {
  const a = await fake(t), b = await fake(t, "ws-2"), c = await fake(t, "ws-3");
  const [, s1] = await connected(t, a);
  s1.move(b, { after_ms: 3_600_000 }).move(c);
  (await c.sessions.next()).welcome({ node: "ws-3" });
  assert.equal(await s1.closed, 1000);
  assert.equal(b.dials, 0);
});

test("two moves in a row", async t => {
  const a = await fake(t), b = await fake(t, "ws-2"), c = await fake(t, "ws-3");
  const [r, s1] = await connected(t, a);
  s1.mute = true; // it never says that it has sent all
  s1.move(b);
  const s2 = (await b.sessions.next()).welcome({ node: "ws-2" });
  await r.state("connected");
  s2.move(c);
  const s3 = (await c.sessions.next()).welcome({ node: "ws-3" });
  assert.equal(await s2.closed, 1000);
  s1.message("from the first").close(4201);
  assert.equal((await r.messages.next()).id, "from the first");
  s3.stored(1);
  await r.seqs(1);
  assert.equal((await r.state("connected")).node, "ws-3");
  assert.equal(a.calls, 1);
});

test("a move to the same node", async t => {
  const a = await fake(t);
  const [r, s1] = await connected(t, a);
  s1.move(a, { reason: "lifetime" });
  const s2 = (await a.sessions.next()).welcome();
  assert.equal(await s1.closed, 1000);
  s2.stored(1);
  await r.seqs(1);
  assert.equal(a.calls, 1);
});

test("the connection ends while the next one is dialed: that takes over", async t => {
  for (const code of [4201, 4003, 4101, 0]) {
    const a = await fake(t);
    let open;
    const gate = new Promise(ok => { open = ok; });
    const b = await fake(t, "ws-2", { before: () => gate });
    const [r, s1] = await connected(t, a);
    s1.move(b);
    await b.upgrades.next();
    if (code) s1.close(code); else s1.lose();
    await s1.closed;
    setTimeout(open, 50);
    const s2 = await b.sessions.next();
    await new Promise(ok => setTimeout(ok, 50)); // open, and not welcomed
    s2.welcome({ node: "ws-2" }).stored(1);
    await r.seqs(1);
    assert.equal(a.calls, 1, "after " + code);
    r.c.stop();
    await r.done;
  }
});

test("against the server's word nothing takes over", async t => {
  const a = await fake(t);
  let open;
  const gate = new Promise(ok => { open = ok; });
  const b = await fake(t, "ws-2", { before: () => gate });
  const [r, s1] = await connected(t, a);
  s1.move(b);
  await b.upgrades.next();
  s1.close(4002);
  await Promise.race([r.done.catch(() => {}), new Promise(ok => setTimeout(ok, 500))]);
  open(); // it may come now, and does not help
  b.sessions.next().then(s => s.welcome({ node: "ws-2" }));
  await assert.rejects(r.done, { code: 4002 });
});

test("the next one does not come in time: a locator is asked", async t => {
  const a = await fake(t);
  const b = await fake(t, "ws-2", { before: () => new Promise(() => {}) });
  const [r, s1] = await connected(t, a);
  s1.move(b);
  await b.upgrades.next();
  s1.close(4201);
  const s = (await a.sessions.next()).welcome();
  s.stored(1);
  await r.seqs(1);
});

test("the next one ends before its welcome, too: a locator is asked at once", async t => {
  const a = await fake(t, "ws-1", { locate: () => a.here({ retry: { base_ms: 3_600_000, max_ms: 3_600_000 } }) });
  const b = await fake(t, "ws-2");
  const [r, s1] = await connected(t, a);
  s1.move(b);
  const s2 = await b.sessions.next();
  s1.close(4201);
  await s1.closed;
  await new Promise(ok => setTimeout(ok, 1200)); // what is open is waited for
  assert.equal(r.c.state, "moving");
  s2.close(4204);
  (await a.sessions.next()).welcome().stored(1);
  await r.seqs(1);
});

test("what is still under way is of the old log, when the new node has another one", async t => {
  const a = await fake(t), b = await fake(t, "ws-2");
  const [r, s1] = await connected(t, a);
  s1.mute = true; // it is kept
  s1.stored(49);
  await r.seqs(49);
  s1.move(b);
  const s2 = (await b.sessions.next()).welcome({ since: "0", node: "ws-2", head: 1, pending: 1, gap: true });
  while (!(await r.state("connected")).gap);
  s1.storedAs("old", 50).send({ type: "skip", to: 60, reason: "expired" }).message("e");
  assert.equal((await r.messages.next()).id, "e");
  s2.storedAs("new1", 1).storedAs("new2", 2);
  assert.deepEqual([(await r.messages.next()).id, (await r.messages.next()).id], ["new1", "new2"]);
  await s2.acks("c2");
});

test("it stops in the middle of a move", async t => {
  const a = await fake(t);
  const b = await fake(t, "ws-2", { before: () => new Promise(() => {}) });
  const [r, s1] = await connected(t, a);
  s1.move(b);
  await b.upgrades.next();
  r.c.stop();
  await r.done;
  assert.equal(await s1.closed, 1000);
});
