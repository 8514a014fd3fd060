// Locators and nodes that answer what none does: nothing throws, hangs or turns in
// circles, and the handler gets what came as it should. Frames that break RFC 6455 are
// the platform's.
import { test } from "node:test";
import assert from "node:assert/strict";
import { fake, start, connected } from "./fake.js";

const text = f => JSON.stringify(f);

test("locators that answer what no locator does", async t => {
  const deep = "[".repeat(200_000);
  const bad = {
    nothing: "", html: "<html>", null: "null", array: "[]", text: '"x"', number: "7", half: '{"url":"ws://x', deep, "no url": { url: undefined }, "no ticket": { ticket: undefined }, "url of a number": { url: 7 }, "url of a list": { url: ["ws://x"] },
    "url of http": { url: "http://127.0.0.1:1/" }, "url of a script": { url: "javascript:alert(1)" }, "relative url": { url: "/v1/ws" }, "url that is none": { url: "ws://[::1" }, "port that is none": { url: "ws://127.0.0.1:99999/" },
    "ticket with a newline": { ticket: "a\r\nX: y" }, "ticket with a comma": { ticket: "a, b" }, "wait of 1e308": { dial_after_ms: 1e308 }, "negative wait": { dial_after_ms: -1 }, "wait of text": { dial_after_ms: "0" }, "wait of half": { dial_after_ms: 0.5 },
    "node of an object": { node: {} },
  };
  for (const [name, fields] of Object.entries(bad)) {
    await t.test(name, async t => {
      const f = await fake(t, "ws-1", { locate: n => n ? f.here() : typeof fields === "string" ? { body: fields } : f.here(fields) });
      const r = start(t, f);
      const e = await r.state("waiting");
      assert.ok(e.error instanceof Error && e.error.message.length < 500, String(e.error).slice(0, 600));
      (await f.sessions.next("a dial")).welcome().message("after");
      assert.equal((await r.messages.next()).id, "after");
    });
  }
});

test("back-offs that no locator asks for are not taken", async t => {
  const huge = { base_ms: 1e308, max_ms: 1e308 };
  for (const retry of [{ base_ms: -1, max_ms: -1 }, { base_ms: 0, max_ms: 0 }, { base_ms: 1e-9, max_ms: 1e-9 }, { base_ms: 5, max_ms: 1 }, { base_ms: null, max_ms: null }, { base_ms: {}, max_ms: [] }, { base_ms: "1", max_ms: "x" }, { base_ms: "1", max_ms: "1" }, { base_ms: true, max_ms: true }, { base_ms: [1], max_ms: [1] }, null, 7, "x", [], huge, { base_ms: 1 }]) {
    await t.test(text(retry), async t => {
      const f = await fake(t, "ws-1", { locate: () => f.here({ retry }) });
      const [r, s] = await connected(t, f);
      s.lose();
      const { wait } = await r.state("waiting");
      assert.ok(wait >= 0 && wait <= (retry === huge ? 3_600_000 : 500), `it waits ${wait} ms`); // 500: as long as no locator says otherwise
      assert.ok(wait > 0);
    });
  }
});

test("a redirect in a circle is an answer like any other that is none", async t => {
  const f = await fake(t, "ws-1", { locate: n => n < 30 ? { status: 307, headers: { Location: f.url + "/v1/locate" }, body: "" } : f.here() });
  const r = start(t, f);
  assert.ok((await r.state("waiting")).error);
  assert.ok(f.calls <= 30, `${f.calls} calls`);
});

test("frames that no node sends", async t => {
  const f = await fake(t);
  const [r, s] = await connected(t, f);
  for (const x of ["", " ", "hello", "{", "[]", "null", "7", '"message"', '{"type":7}', '{"type":"message"', '{"type":"message","id":7}', '{"type":"message","id":"x","data_b64":"%%%"}', '{"type":"message","id":"x","time":"yesterday","data":1}',
    '{"type":"message","id":"x","data":1,"seq":-1}', '{"type":"message","id":"x","data":1,"seq":1.5}', '{"type":"message","id":"x","data":1,"seq":"1"}', '{"type":"message","id":"x","data":1,"seq":1e308}', '{"type":"message","id":"x","data":1,"seq":9007199254740993,"cursor":"c"}',
    '{"type":"message","id":"x","data":1,"seq":1,"cursor":{}}', '{"type":"message","id":"x","data":1,"from":[]}', '{"type":"message","id":"x","data":1,"time":1e308}', '{"type":"skip"}', '{"type":"skip","to":"9"}', '{"type":"skip","to":-1}', '{"type":"resumed","gap":"true"}', '{"type":"resumed","since":{},"gap":true}',
    '{"type":"move"}', '{"type":"move","url":{},"ticket":"t"}', '{"type":"move","url":"ws://x/"}', '{"type":"ack"}', '{"type":"ack","ref":{}}', '{"type":"error","ref":"x"}', '{"type":"pong"}', '{"type":"of-the-future"}', '{"__proto__":{"type":"message"}}',
    "[".repeat(100_000), '{"type":' + '{"a":'.repeat(50_000)]) s.text(x);
  s.raw(Buffer.from([0x82, 2, 0x7b, 0x7d])); // binary
  s.welcome({ session: "another", user: "mallory", node: "ws-9", since: "zz", gap: true, ping_interval_ms: 1, max_message_bytes: 1 });
  for (let i = 0; i < 1000; i++) s.send({ type: "skip", to: 5, reason: "limit" }).send({ type: "resumed", since: "0", head: 0, gap: false }).send({ type: "pong", ref: "last" });
  s.message("good").message("good").message("end");
  assert.equal((await r.messages.next()).id, "good");
  assert.equal((await r.messages.next()).id, "end");
  assert.deepEqual([r.c.state, f.calls, f.dials, r.messages.length], ["connected", 1, 1, 0]);
});

test("what comes before the welcome is nothing", async t => {
  const f = await fake(t);
  const r = start(t, f);
  const s = await f.sessions.next();
  s.message("early").stored(1).send({ type: "skip", to: 9, reason: "limit" }).send({ type: "resumed", since: "x", gap: true }).move(f).welcome().message("good");
  assert.equal((await r.messages.next()).id, "good");
  assert.deepEqual([r.c.state, f.dials], ["connected", 1]);
});

test("a move to where nobody can go leaves the connection", async t => {
  for (const url of ["http://127.0.0.1:1/", "javascript:alert(1)", "ws://[::1", "/v1/ws", "ws://127.0.0.1:99999/", "wss:"]) {
    const f = await fake(t);
    const [r, s] = await connected(t, f);
    s.move(f, { url, node: "ws-bad" });
    await r.state("moving");
    await r.state("connected"); // a locator says that it is where it should be
    s.message("still");
    assert.equal((await r.messages.next()).id, "still");
    assert.equal(f.dials, 1);
  }
});
