// Messages: what comes to the handler, in which order, and what is acknowledged.
import { test } from "node:test";
import assert from "node:assert/strict";
import { fake, start, connected, problem, Queue } from "./fake.js";

test("it locates, dials, and receives", async t => {
  const f = await fake(t, "ws-1", { locate: () => f.here({ user: "a b/ü" }) });
  const r = start(t, f, { user: "a b/ü", sendTo: ["bob", "team-*"] });
  const call = await f.locates.next();
  assert.equal(call.method, "POST");
  const url = new URL(call.url, f.url);
  assert.deepEqual([url.pathname, url.searchParams.get("user"), url.searchParams.get("send_to")], ["/v1/locate", "a b/ü", "bob,team-*"]);
  assert.deepEqual(call.body, { device: "d", failed: [] });
  const s = await f.sessions.next();
  assert.deepEqual(s.protocols, ["dialring.v1", "dialring.ticket.ticket"]);
  assert.equal(s.since, null);
  assert.ok(!s.req.url.includes("ticket"));
  s.welcome({ user: "a b/ü", pending: 2, session: "s-9" });
  const e = await r.state("connected");
  assert.deepEqual(e, { state: "connected", node: "ws-1", session: "s-9", pending: 2, gap: false });
  assert.equal(r.c.state, "connected");
  s.send({ type: "message", id: "m1", time: "2026-01-02T03:04:05.678Z", from: "bob", seq: 1, cursor: "c1", data: { a: [1, null] } });
  s.send({ type: "message", id: "m2", time: "2026-01-02T03:04:05Z", data_b64: "AP8=" });
  s.send({ type: "message", id: "m3", time: "2026-01-02T03:04:05Z", data: null });
  assert.deepEqual(await r.messages.next(), { id: "m1", time: new Date("2026-01-02T03:04:05.678Z"), from: "bob", seq: 1, cursor: "c1", data: { a: [1, null] }, json: true });
  assert.deepEqual(await r.messages.next(), { id: "m2", time: new Date("2026-01-02T03:04:05Z"), from: undefined, seq: undefined, cursor: undefined, data: new Uint8Array([0, 255]), json: false });
  const m3 = await r.messages.next();
  assert.deepEqual([m3.data, m3.json], [null, true]);
});

test("a message is acknowledged when its handler has fulfilled, one after the other", async t => {
  const f = await fake(t);
  const began = new Queue(), gates = [];
  const [, s] = await connected(t, f, { onMessage: m => new Promise(ok => { gates.push(ok); began.push(m.seq); }) });
  s.stored(1, 2);
  assert.equal(await began.next(), 1);
  s.message("e1");
  s.send({ type: "pong" });
  assert.equal(s.frames.length, 0);
  gates[0]();
  assert.equal(await began.next(), 2);
  gates[1]();
  await s.acks("c2");
  await began.next("the ephemeral one");
  gates[2]();
  s.close(1001);
  assert.equal((await f.sessions.next("a second dial")).since, "c2");
});

test("a new connection hears again what was acknowledged: the last one may have lost it", async t => {
  const f = await fake(t);
  const [, s] = await connected(t, f);
  s.stored(1);
  await s.acks("c1");
  s.lose();
  await (await f.sessions.next()).welcome().acks("c1");
});

test("acks of a handler that is behind are coalesced", async t => {
  const f = await fake(t);
  const [r, s] = await connected(t, f);
  s.raw(Buffer.alloc(0));
  const n = 300;
  s.stored(...Array.from({ length: n }, (_, i) => i + 1));
  await r.seqs(...Array.from({ length: n }, (_, i) => i + 1));
  await s.acks("c" + n);
  const acks = s.all.filter(x => x.includes('"ack"')).length;
  assert.ok(acks < n / 2, `${acks} acks of ${n} messages`);
});

test("a hole has it ask for a replay, once; what comes twice is dropped", async t => {
  const f = await fake(t);
  const [r, s] = await connected(t, f);
  s.stored(1, 2);
  await r.seqs(1, 2);
  s.stored(5, 6);
  assert.deepEqual(await s.next("resume"), { type: "resume", since: "c2" });
  s.stored(7, 3, 4, 5, 6).send({ type: "resumed", since: "c2", head: 7, gap: false });
  await r.seqs(3, 4, 5, 6);
  s.stored(6, 6, 7, 8);
  await r.seqs(7, 8);
  await s.acks("c8");
  s.stored(4).message("e");
  assert.equal((await r.messages.next()).id, "e");
  s.send({ type: "skip", to: 10, reason: "expired" }).stored(11);
  await r.seqs(11);
  await s.acks("c11");
  assert.equal(s.all.filter(x => x.includes("resume")).length, 1);
  const acks = s.all.map(x => JSON.parse(x)).filter(f => f.type === "ack").map(f => Number(f.cursor.slice(1)));
  assert.deepEqual(acks, acks.toSorted((a, b) => a - b)); // none goes back
  assert.equal(r.messages.length, 0);
});

test("a hole that the node cannot fill is told as a gap, and left", async t => {
  const f = await fake(t);
  const [r, s] = await connected(t, f);
  s.stored(1);
  await r.seqs(1);
  s.stored(3);
  await s.next("resume");
  s.send({ type: "resumed", since: "c1", head: 3, gap: false });
  assert.equal((await r.state("connected")).gap, true);
  s.stored(4);
  await r.seqs(4);
});

test("a gap forgets the numbers; what was handled does not come again", async t => {
  const f = await fake(t);
  const [r, s1] = await connected(t, f);
  s1.stored(1, 2, 3);
  await r.seqs(1, 2, 3);
  s1.close(1001);
  const s = (await f.sessions.next()).welcome({ since: "x0", head: 2, pending: 2, gap: true });
  const e = await r.state("connected");
  assert.deepEqual([e.gap, e.pending], [true, 2]);
  s.storedAs("m1", 1).storedAs("n2", 2);
  assert.equal((await r.messages.next()).id, "n2");
  await s.acks("c2");
  // The same on a connection that is open.
  s.send({ type: "resumed", since: "y0", head: 1, gap: true }).storedAs("y1", 1);
  assert.equal((await r.messages.next()).id, "y1");
  assert.equal((await r.state("connected")).gap, true);
  // And a part that the limits took.
  s.send({ type: "skip", to: 5, reason: "limit" }).storedAs("y6", 6);
  assert.equal((await r.messages.next()).id, "y6");
  assert.equal((await r.state("connected")).gap, true);
});

test("a handler at work when the log became another one acknowledges nothing of the old one", async t => {
  const f = await fake(t);
  const began = new Queue();
  let open;
  const gate = new Promise(ok => { open = ok; });
  const [r, s1] = await connected(t, f, { onMessage: m => { began.push(m.id); return m.id === "m5" ? gate : null; } });
  s1.stored(5);
  assert.equal(await began.next(), "m5");
  s1.send({ type: "resumed", since: "y0", head: 1, gap: true });
  s1.send({ type: "message", id: "y1", time: "2026-01-02T03:04:05Z", seq: 1, cursor: "y1", data: 1 });
  s1.close(1001);
  const s = (await f.sessions.next()).welcome({ since: "y1" });
  assert.equal(s.since, "y1");
  await r.state("dialing");
  await r.state("connected");
  open();
  assert.equal(await began.next(), "y1");
  assert.equal((await s.next("ack")).cursor, "y1");
});

test("a client that came while the store was away hears late where it goes on", async t => {
  const f = await fake(t);
  const [r, s1] = await connected(t, f);
  s1.send({ type: "resumed", since: "c500", head: 500, gap: false }).message("e1");
  await r.messages.next();
  s1.close(1001);
  const s = await f.sessions.next();
  assert.equal(s.since, "c500");
  s.welcome({ since: "c500" }).stored(501);
  await r.seqs(501);
});

test("since is where the first run begins", async t => {
  const f = await fake(t);
  start(t, f, { since: "0" });
  assert.equal((await f.sessions.next()).since, "0");
});

test("a run that ended leaves what it did not handle for the next one", async t => {
  const f = await fake(t);
  const got = new Queue();
  let fails = true;
  const [r, s1] = await connected(t, f, {
    onMessage(m, signal) {
      got.push(m.seq);
      if (m.seq === 2 && fails) return new Promise((_, no) => signal.addEventListener("abort", () => no(signal.reason)));
    },
  });
  s1.stored(1, 2, 3, 4);
  assert.deepEqual([await got.next(), await got.next()], [1, 2]);
  await s1.acks("c1");
  r.c.stop();
  await r.done; // a handler that fails because of the stop is no error
  fails = false;
  r.run();
  const s = await f.sessions.next();
  assert.equal(s.since, "c1");
  s.welcome({ since: "c1", pending: 3 }).stored(2, 3, 4);
  assert.deepEqual([await got.next(), await got.next(), await got.next()], [2, 3, 4]);
  await s.acks("c4");
});

test("a handler that throws ends the run with its error, and its message is not acknowledged", async t => {
  for (const onMessage of [() => { throw new Error("mine"); }, async () => { throw new Error("mine"); }, () => Promise.reject(new Error("mine"))]) {
    const f = await fake(t);
    let first = true;
    const [r, s] = await connected(t, f, { onMessage: m => m.seq === 2 && first ? onMessage() : undefined });
    s.stored(1, 2, 3);
    await assert.rejects(r.done, { message: "mine" });
    assert.equal(await s.closed, 1000);
    assert.ok(!s.all.some(x => x.includes('"c2"') || x.includes('"c3"')), String(s.all));
    assert.equal((await r.state("stopped")).error.message, "mine");
    first = false;
    r.run();
    const again = (await f.sessions.next()).welcome({ since: "c1" });
    assert.equal(again.since, "c1");
    again.stored(2, 3);
    await again.acks("c3");
    r.c.stop();
    await r.done;
  }
});

test("an event handler that throws ends the run, too", async t => {
  const f = await fake(t);
  const r = start(t, f, { onEvent(e) { if (e.state === "connected") throw new Error("mine"); } });
  const s = (await f.sessions.next()).welcome();
  await assert.rejects(r.done, { message: "mine" });
  assert.equal(await s.closed, 1000);
});

test("at the stop the handler at work is waited for and acknowledged, ephemeral messages are handled", async t => {
  const f = await fake(t);
  const got = [], began = new Queue();
  let open;
  const gate = new Promise(ok => { open = ok; });
  const [r, s] = await connected(t, f, { async onMessage(m) { began.push(m.id); if (m.id === "m1") await gate; got.push(m.id); } });
  s.stored(1).message("e1").stored(2).message("e2");
  await began.next();
  const answer = r.c.request(1); // its frame comes behind the messages
  const { ref } = await s.next("send");
  s.send({ type: "ack", ref });
  await answer;
  r.c.stop();
  open();
  await r.done;
  assert.deepEqual(got, ["m1", "e1", "e2"]);
  await s.acks("c1");
  assert.equal(await s.closed, 1000);
});

test("what a kicked client had received is handled", async t => {
  const f = await fake(t);
  const got = [];
  const [r, s] = await connected(t, f, { async onMessage(m) { await new Promise(ok => setTimeout(ok, 2)); got.push(m.seq); } });
  s.stored(1, 2, 3, 4, 5).close(4002, "bye");
  await assert.rejects(r.done, { name: "StoppedError", code: 4002 });
  assert.deepEqual(got, [1, 2, 3, 4, 5]);
});

test("too many messages that wait close the connection; it resumes when half of them are handled", async t => {
  const f = await fake(t);
  const got = [];
  let open;
  const gate = new Promise(ok => { open = ok; });
  const [r, s1] = await connected(t, f, { async onMessage(m) { await gate; got.push(m.seq); } });
  const many = 1500, all = Array.from({ length: many }, (_, i) => i + 1);
  s1.stored(...all);
  assert.equal(await s1.closed, 1000);
  const e = await r.state("waiting");
  assert.match(e.error.message, /too many messages/);
  assert.equal(f.calls, 1);
  open();
  const s = await f.sessions.next("a dial when there is room");
  const next = Number(s.since.slice(1)) + 1;
  assert.ok(next > 1000 && next <= 1002, "it goes on at " + next);
  s.welcome({ since: s.since }).stored(...all.slice(next - 1));
  await s.acks("c" + many);
  assert.deepEqual(got, all);
  for (let i = 0; i < 2; i++) assert.deepEqual((await f.locates.next()).body.failed, []);
});

test("a handler that waits for an answer gets it, however many messages wait", async t => {
  const f = await fake(t);
  const got = [];
  let c;
  const [r, s] = await connected(t, f, { async onMessage(m) { if (m.seq === 1) await c.request("?"); got.push(m.seq); } });
  c = r.c;
  s.stored(1);
  const { ref } = await s.next("send");
  const many = 1500, all = Array.from({ length: many }, (_, i) => i + 1);
  const other = r.c.request("another");
  const { ref: last } = await s.next("send");
  s.stored(...all.slice(1)).send({ type: "skip", to: many, reason: "expired" }).send({ type: "error", ref: last, code: "x", detail: "" });
  await assert.rejects(other, { code: "x" });
  r.c.request("third").catch(() => {});
  assert.equal((await s.frames.next()).data, "third"); // it asked for no replay before there is room
  s.send({ type: "ack", ref, data: "!" });
  const { since } = await s.next("resume");
  const next = Number(since.slice(1)) + 1;
  assert.ok(next > 1000 && next <= 1002);
  s.stored(...all.slice(next - 1)).send({ type: "resumed", since, head: many, gap: false });
  await s.acks("c" + many);
  assert.deepEqual(got, all);
  assert.equal(f.dials, 1);
});

test("hostile frames do nothing", async t => {
  const f = await fake(t);
  const [r, s] = await connected(t, f);
  const texts = ["", " ", "hello", "{", "[]", "null", '"message"', "7", '{"type":7}', '{"type":"message"', '{"type":"message","id":7}',
    '{"type":"message","id":"x1","data_b64":"%%%"}', '{"type":"message","id":"x2","time":"yesterday"}', '{"type":"message","id":"x3","seq":-1}',
    '{"type":"message","id":"x4","seq":1e400}', '{"type":"message","id":"x5","seq":1.5,"data":1}', '{"type":"message","id":"x6","seq":18446744073709551615,"data":1}',
    '{"type":"message","id":"x7","seq":"1","data":1}', '{"type":"message","id":"x8","from":{},"data":1}', '{"type":"message","id":"x9","cursor":5,"seq":1}',
    '{"type":"welcome","session":[]}', '{"type":"welcome","gap":"true","since":7}', '{"type":"move"}', '{"type":"move","url":7,"ticket":"x"}', '{"type":"move","url":"ws://x/","ticket":{}}',
    '{"type":"skip"}', '{"type":"skip","to":1e999}', '{"type":"skip","to":-5}', '{"type":"skip","to":null}', '{"type":"resumed","since":5}', '{"type":"resumed","gap":1}',
    '{"type":"ack"}', '{"type":"ack","ref":{}}', '{"type":"ack","ref":"nobody"}', '{"type":"error"}', '{"type":"error","ref":null,"code":5}', '{"type":"pong","ref":[]}',
    '{"type":"constructor"}', '{"type":"__proto__","__proto__":{"type":"message"}}', '{"constructor":1,"type":"x"}', '{"type":"message","id":"x10","time":1}',
    "[".repeat(100_000), '{"type":' + '{"a":'.repeat(50_000)];
  for (const text of texts) s.text(text);
  s.raw(Buffer.from([0x82, 3, 1, 2, 3])); // a binary frame
  s.message("good");
  assert.equal((await r.messages.next()).id, "good");
  assert.equal(r.messages.length, 0);
  assert.equal(f.calls, 1);
  s.stored(1);
  await r.seqs(1);
});

test("a welcome with absurd fields is a welcome", async t => {
  for (const w of [{ ping_interval_ms: Number.MAX_SAFE_INTEGER }, { ping_interval_ms: 0 }, { max_message_bytes: 0 }, { since: "" }, { session: "" }]) {
    const f = await fake(t);
    const r = start(t, f);
    (await f.sessions.next()).welcome(w).stored(7);
    await r.seqs(7);
  }
});

test("a broken handshake, and bytes that break RFC 6455, are ends like others", async t => {
  for (const bytes of [Buffer.from([0xff, 0xff]), Buffer.from([0x81, 0x82, 1, 2, 3, 4, 5, 6]), Buffer.from([0x81, 2, 0xff, 0xfe]), Buffer.from([0x88, 1, 3]), Buffer.from([0x81, 127, 0x80, 0, 0, 0, 0, 0, 0, 0]), Buffer.from("HTTP/1.1 200 OK\r\n\r\n")]) {
    const f = await fake(t);
    const [r, s] = await connected(t, f);
    s.raw(bytes);
    const again = (await f.sessions.next("another dial")).welcome();
    again.message("after");
    assert.equal((await r.messages.next()).id, "after");
  }
});
