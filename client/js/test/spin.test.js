// Servers that send a client on at once, or answer for somebody else. The clock, sockets
// and random numbers that make waits exact are in time.test.js; here they are real, and
// what is awaited is one more lap, or the end of a time that is enough for a thousand.
import { test } from "node:test";
import assert from "node:assert/strict";
import { fake, start, connected, closedPort, problem } from "./fake.js";

const laps = 60, most = 2000;

// spins fails if there are so many laps in that time.
async function spins(t, lap) {
  let over = false;
  const end = new Promise(ok => setTimeout(() => { over = true; ok(); }, most));
  for (let n = 0; !over; n++) {
    assert.ok(n < laps, `${laps} laps in less than ${most} ms`);
    await Promise.race([end, lap().catch(() => end)]);
  }
}

test("no server keeps a client spinning", async t => {
  const nowhere = `ws://${await closedPort()}/`;
  const session = play => async (f, r) => play(await f.sessions.next(), f, r);
  const cases = {
    moved: [{}, session((s, f) => s.welcome().move(f))],
    closed: [{}, session(s => s.welcome().close(1001))],
    "told to come back": [{}, session(s => s.welcome().close(4204))],
    lost: [{}, session(s => s.welcome().lose())],
    "lost before its welcome": [{}, session(s => s.lose())],
    "locators are overloaded": [{ locate: n => n ? problem(503, "no_nodes", { "Retry-After": "0" }) : { body: { user: "alice", node: "ws-1", url: nowhere, ticket: "t", retry: { base_ms: 1, max_ms: 1 } } } }, f => f.locates.next()],
    "dials are refused": [{ dial: () => ({ status: 503 }) }, f => f.upgrades.next()],
  };
  await Promise.all(Object.entries(cases).map(([name, [script, lap]]) => t.test(name, async t => {
    const f = await fake(t, "ws-1", script);
    const r = start(t, f);
    await spins(t, () => lap(f, r));
  })));
  await t.test("told to move to nowhere", async t => {
    const f = await fake(t);
    const [, s] = await connected(t, f);
    await f.locates.next();
    await spins(t, async () => {
      s.move({ ws: nowhere, node: "ws-2" });
      await f.locates.next();
    });
  });
});

test("a locator's answer is read up to 1 MiB", async t => {
  const f = await fake(t, "ws-1", { locate: n => f.here(n === 0 ? { x: "x".repeat(2 ** 20) } : {}) });
  const r = start(t, f);
  assert.match((await r.state("waiting")).error.message, /^dialring: locate: /);
  (await f.sessions.next()).welcome();
  await r.state("connected");
  assert.deepEqual([f.calls, f.dials], [2, 1]);
});

test("a frame of more than 2 MiB ends the connection", async t => {
  const f = await fake(t);
  const [r, s] = await connected(t, f);
  s.message("big", "x".repeat(2 ** 21));
  assert.ok((await r.state("waiting")).error instanceof Error);
  (await f.sessions.next()).welcome().message("after");
  assert.equal((await r.messages.next()).id, "after");
});

test("a node that welcomes another user is left, and nothing that it says counts", async t => {
  for (const options of [{}, { user: undefined, token: () => "t" }]) {
    for (const user of ["mallory", "", undefined]) {
      const f = await fake(t);
      const r = start(t, f, options);
      await f.locates.next();
      const s = await f.sessions.next();
      s.welcome({ user, since: "zz", gap: true }).message("not ours");
      assert.match((await r.state("waiting")).error.message, /answers for another user/);
      assert.equal(await s.closed, 1000);
      assert.deepEqual((await f.locates.next()).body.failed, []); // it was reached
      const next = await f.sessions.next();
      assert.equal(next.since, null);
      next.welcome().message("ours");
      assert.equal((await r.messages.next()).id, "ours");
    }
  }
});

test("a move to a node that welcomes another user has failed", async t => {
  const a = await fake(t), b = await fake(t, "ws-2");
  const [r, s] = await connected(t, a);
  await a.locates.next();
  s.move(b);
  const other = (await b.sessions.next()).welcome({ user: "mallory" }).message("not ours");
  assert.equal(await other.closed, 1000);
  await a.locates.next();
  s.message("ours");
  assert.equal((await r.messages.next()).id, "ours");
});

test("a locator that answers for another user than before is not listened to", async t => {
  const f = await fake(t, "ws-1", { locate: n => f.here(n === 1 ? { user: "mallory" } : {}) });
  const r = start(t, f, { user: undefined, token: () => "t" });
  (await f.sessions.next()).welcome().close(1001);
  while (!/answers for another user/.test((await r.state("waiting")).error.message));
  (await f.sessions.next()).welcome();
  await r.state("connected");
  assert.equal(f.dials, 2);
});
