// What a client sends.
import { test } from "node:test";
import assert from "node:assert/strict";
import { SendError, StoppedError } from "../dialring.js";
import { fake, start, connected } from "./fake.js";

test("answers find their sends by the ref, in whatever order they come", async t => {
  const f = await fake(t);
  const [r, s] = await connected(t, f);
  const one = r.c.send("bob", { a: 1 }, { idempotencyKey: "k" });
  const first = await s.next("send");
  assert.deepEqual({ ...first, ref: 0 }, { type: "send", ref: 0, id: "k", to: "bob", data: { a: 1 } });
  const two = r.c.request("?");
  const second = await s.next("send");
  assert.ok(!("to" in second) && second.id && second.ref !== first.ref);
  const three = r.c.send("carol", null, { ephemeral: true });
  const third = await s.next("send");
  assert.deepEqual({ ...third, ref: 0 }, { type: "send", ref: 0, to: "carol", ephemeral: true, data: null });
  s.send({ type: "ack", ref: "nobody's" }).send({ type: "ack" }).send({ type: "error", ref: 7 });
  s.send({ type: "error", ref: third.ref, code: "forbidden", detail: "no" });
  s.send({ type: "ack", ref: second.ref, id: "a", data: { x: 1 } });
  s.send({ type: "ack", ref: first.ref, id: "m", seq: 9, stored: true, delivered: 2 });
  assert.deepEqual(await one, { id: "m", seq: 9, stored: true, duplicate: false, delivered: 2 });
  assert.deepEqual(await two, { x: 1 });
  await assert.rejects(three, e => e instanceof SendError && e.code === "forbidden" && e.detail === "no" && e.message === "dialring: forbidden: no");
});

test("what cannot be sent is refused here", async t => {
  const f = await fake(t);
  const [r, s] = await connected(t, f);
  const loop = {};
  loop.loop = loop;
  for (const data of [undefined, () => {}, loop, 1n]) await assert.rejects(r.c.send("bob", data), TypeError);
  for (const to of [undefined, "", 7, null]) await assert.rejects(r.c.send(to, 1), TypeError);
  // Larger than the node takes: it would end the connection for good.
  for (const [n, fits] of [[65_534, true], [65_535, false], [10_000_000, false]]) {
    const sent = r.c.send("bob", "x".repeat(n));
    if (!fits) await assert.rejects(sent, { name: "SendError", code: "too_large" });
    else {
      s.send({ type: "ack", ref: (await s.next("send")).ref });
      await sent;
    }
  }
  await assert.rejects(r.c.request("é".repeat(40_000)), { code: "too_large" }); // bytes count
  assert.equal(s.all.filter(x => x.includes('"send"')).length, 1);
  assert.equal(r.c.state, "connected");
});

test("a connection breaks: what was not answered is sent again, the same and in order", async t => {
  const f = await fake(t);
  const r = start(t, f);
  const early = r.c.send("bob", "early"); // before there is a connection
  const s1 = (await f.sessions.next()).welcome();
  const first = await s1.next("send");
  const now = r.c.send("bob", "now", { ephemeral: true });
  await s1.next("send");
  const later = r.c.request("later");
  const second = await s1.next("send");
  const given = new AbortController();
  const forgotten = r.c.send("bob", "forgotten", { signal: given.signal });
  await s1.next("send");
  given.abort(new Error("mine"));
  await assert.rejects(forgotten, { message: "mine" });
  s1.lose();
  await assert.rejects(now, { name: "SendError", code: "connection_lost" });
  const s2 = (await f.sessions.next()).welcome();
  for (const want of [first, second]) {
    assert.deepEqual(await s2.next("send"), want);
    s2.send({ type: "ack", ref: want.ref, id: "m", seq: 1, stored: true, duplicate: true, data: 5 });
  }
  assert.equal((await early).duplicate, true);
  assert.equal(await later, 5);
});

test("while it moves the old connection answers what was sent over it, and is left then", async t => {
  for (const answers of [true, false]) {
    const a = await fake(t), b = await fake(t, "ws-2");
    const [r, s1] = await connected(t, a);
    const one = r.c.send("bob", 1);
    const first = await s1.next("send");
    const two = r.c.send("bob", 2, { ephemeral: true });
    two.catch(() => {});
    const second = await s1.next("send");
    s1.move(b);
    const s2 = (await b.sessions.next()).welcome({ node: "ws-2" });
    await r.state("connected");
    const three = r.c.send("bob", 3);
    const third = await s2.next("send");
    if (answers) {
      s1.send({ type: "ack", ref: first.ref, id: "m", seq: 5, stored: true }).send({ type: "ack", ref: second.ref, id: "e", delivered: 1 });
      assert.equal((await one).seq, 5);
      assert.equal((await two).delivered, 1);
      assert.equal(await s1.closed, 1000);
    } else { // it owes them for long, and is left
      assert.equal(await s1.closed, 1000);
      await assert.rejects(two, { code: "connection_lost" });
      assert.deepEqual(await s2.next("send"), first);
      s2.send({ type: "ack", ref: first.ref, seq: 5 });
      await one;
    }
    s2.send({ type: "ack", ref: third.ref, seq: 6 });
    assert.equal((await three).seq, 6);
    r.c.stop();
    await r.done;
  }
});

test("no more are under way than a node takes, and less haste when it asks for that", async t => {
  const f = await fake(t);
  const [r, s] = await connected(t, f);
  const n = 100, all = Array.from({ length: n }, (_, i) => r.c.send("bob", i));
  const open = [];
  const take = async () => { open.push(await s.next("send")); };
  while (open.length < 64) await take();
  s.send({ type: "move" }).send({ type: "resumed", gap: true }); // what is no answer changes nothing
  await r.state("connected");
  assert.equal(s.frames.length, 0);
  const order = open.map(m => m.data);
  const slow = open.shift(), began = Date.now();
  s.send({ type: "error", ref: slow.ref, code: "rate_limited", detail: "slower" });
  s.send({ type: "ack", ref: open.shift().ref });
  await all[1];
  assert.equal(s.frames.length, 0); // nothing for a while
  await take();
  assert.ok(Date.now() - began >= 990);
  assert.deepEqual(open.at(-1), slow);
  for (let got = 1; got < n; got++) {
    s.send({ type: "ack", ref: open.shift().ref });
    if (order.length < n) { await take(); order.push(open.at(-1).data); }
  }
  await Promise.all(all);
  assert.deepEqual(order, Array.from({ length: n }, (_, i) => i));
});

test("a timeout, and a signal that has aborted", async t => {
  const f = await fake(t);
  const r = start(t, f);
  await assert.rejects(r.c.send("bob", 1, { timeout: 1 }), e => e instanceof DOMException && e.name === "TimeoutError");
  await assert.rejects(r.c.request(1, { timeout: 0 }), { name: "TimeoutError" });
  await assert.rejects(r.c.send("bob", 1, { signal: AbortSignal.abort() }), { name: "AbortError" });
  const s = (await f.sessions.next()).welcome();
  const last = r.c.request("last");
  const m = await s.next("send"); // those that were given up are not sent
  assert.equal(m.data, "last");
  s.send({ type: "ack", ref: m.ref });
  assert.equal(await last, undefined);
});

test("when the run has ended nobody waits, and the next run sends again", async t => {
  const f = await fake(t);
  const [r, s1] = await connected(t, f);
  const one = r.c.send("bob", 1);
  await s1.next("send");
  s1.close(4002);
  await assert.rejects(one, e => e instanceof StoppedError && e.code === 4002);
  await assert.rejects(r.done, { code: 4002 });
  await assert.rejects(r.c.send("bob", 2), { name: "StoppedError", code: 4002 });
  r.run();
  const s = (await f.sessions.next()).welcome();
  const three = r.c.send("bob", 3);
  s.send({ type: "ack", ref: (await s.next("send")).ref, seq: 1 });
  await three;
  const four = r.c.send("bob", 4);
  const caught = assert.rejects(four, { name: "SendError", code: "not_running" });
  r.c.stop();
  await caught;
  await r.done;
  await assert.rejects(r.c.send("bob", 5), { code: "not_running" });
});
