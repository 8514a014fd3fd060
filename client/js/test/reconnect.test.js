// How connections come about and end, and what the client does then.
import { test } from "node:test";
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:net";
import { spawn } from "node:child_process";
import { APIError, Client, CloseError, StoppedError } from "../dialring.js";
import { fake, start, connected, problem, closedPort, Queue } from "./fake.js";

test("close codes that end the run", async t => {
  for (const code of [4000, 4001, 4002, 4003, 4004, 4005, 4006, 4007, 4099]) {
    const f = await fake(t);
    const [r, s] = await connected(t, f);
    s.close(code, "because");
    await assert.rejects(r.done, e => {
      assert.ok(e instanceof StoppedError && e.cause instanceof CloseError);
      assert.deepEqual([e.code, e.status, e.reason, e.cause.code, e.cause.reason], [code, 0, "because", code, "because"]);
      assert.equal(e.message, `dialring: the server ended it for good: ${code} because`);
      return true;
    });
    const e = await r.state("stopped");
    assert.ok(e.error instanceof StoppedError);
    assert.deepEqual([r.c.state, f.calls], ["stopped", 1]);
  }
});

test("a close code that ends the run counts before the welcome, too", async t => {
  const f = await fake(t);
  const r = start(t, f);
  (await f.sessions.next()).close(4001);
  await assert.rejects(r.done, { name: "StoppedError", code: 4001 });
});

test("close codes to come back from", async t => {
  for (const code of [1000, 1001, 1011, 1012, 3000, 3999, 4100, 4101, 4102, 4103, 4104, 4199, 4200, 4201, 4202, 4203, 4204, 4299, 4300, 4999]) {
    // For 42xx the locator's back-off is a long one, which must not count.
    const soon = Math.floor(code / 100) === 42;
    const retry = soon ? { base_ms: 3_600_000, max_ms: 3_600_000 } : { base_ms: 5, max_ms: 5 };
    const f = await fake(t, "ws-1", { locate: () => f.here({ retry }) });
    const [r, s] = await connected(t, f);
    s.close(code, "why");
    const e = await r.state("waiting");
    assert.ok(e.wait <= (soon ? 100 : 5), `${code}: it waits ${e.wait}`);
    assert.ok(e.error instanceof CloseError && e.error.code === code && e.error.reason === "why", String(e.error));
    await f.locates.next();
    assert.deepEqual((await f.locates.next()).body.failed, [], `${code}: it was closed properly`);
    await f.sessions.next();
    r.c.stop();
    await r.done;
  }
});

test("failed hints: what could not be reached, or was lost without a close frame", async t => {
  const dead = await closedPort();
  const mute = createServer(s => s.on("error", () => {}).destroy()).listen(0, "127.0.0.1");
  await once(mute, "listening");
  t.after(() => mute.close());
  const first = url => f => ({ locate: n => f.here(n === 0 ? { url } : {}) });
  for (const [name, script, play, want] of [
    ["nobody listens", first(`ws://${dead}/v1/ws`), null, ["ws-1"]],
    ["it hangs up", first(`ws://127.0.0.1:${mute.address().port}/v1/ws`), null, ["ws-1"]],
    ["a name that no node can have", f => ({ locate: n => f.here(n === 0 ? { node: "WS_1", url: `ws://${dead}/v1/ws` } : {}) }), null, []],
    ["a name that is too long", f => ({ locate: n => f.here(n === 0 ? { node: "x".repeat(64), url: `ws://${dead}/v1/ws` } : {}) }), null, []],
    ["no name", f => ({ locate: n => f.here(n === 0 ? { node: undefined, url: `ws://${dead}/v1/ws` } : {}) }), null, []],
    ["it refuses, which a page cannot tell", () => ({ dial: n => n === 0 ? { status: 503 } : null }), null, ["ws-1"]],
    ["lost", null, s => s.welcome().lose(), ["ws-1"]],
    ["lost before the welcome", null, s => s.lose(), ["ws-1"]],
    ["closed", null, s => s.welcome().close(4103), []],
    ["closed before the welcome", null, s => s.close(4204), []],
    ["closed without a code", null, s => s.welcome().close(0), []],
    ["no URL of a node", first("http://x/"), null, []],
    ["no URL at all", first("nonsense"), null, []],
  ]) {
    const f = await fake(t);
    Object.assign(f.script, script?.(f));
    const r = start(t, f);
    await f.locates.next();
    if (play) play(await f.sessions.next());
    assert.deepEqual((await f.locates.next()).body.failed, want, name);
    r.c.stop();
    await r.done;
  }
});

test("a ticket that is no subprotocol is a failed dial", async t => {
  const f = await fake(t, "ws-1", { locate: n => f.here(n === 0 ? { ticket: "two words" } : {}) });
  const r = start(t, f);
  assert.ok((await r.state("waiting")).error instanceof Error);
  (await f.sessions.next()).welcome();
  await r.state("connected");
});

test("refused dials lead to another locate, whatever the status", async t => {
  for (const status of [400, 401, 403, 409, 421, 426, 429, 500, 503]) {
    const f = await fake(t, "ws-1", { dial: n => n === 0 ? { status } : null });
    const r = start(t, f);
    (await f.sessions.next()).welcome();
    await r.state("connected");
    assert.ok(f.calls === 2 || status === 421, `${status}: ${f.calls} locates`); // Node itself dials again after a 421
    r.c.stop();
    await r.done;
  }
});

test("events tell the states, and why", async t => {
  const dead = await closedPort();
  const f = await fake(t, "ws-1", {
    locate: n => n === 0 ? problem(503, "no_nodes", { "Retry-After": "1" })
      : n === 1 ? f.here({ url: `ws://${dead}/`, retry: { base_ms: 40, max_ms: 1000 } })
      : f.here({ dial_after_ms: 3 }),
  });
  const r = start(t, f);
  (await f.sessions.next()).welcome();
  const list = [];
  do list.push(await r.events.next()); while (list.at(-1).state !== "connected");
  assert.deepEqual(list.map(e => e.state), ["locating", "waiting", "locating", "dialing", "waiting", "locating", "waiting", "dialing", "connected"]);
  assert.equal(list[0].error, undefined);
  assert.ok(list[1].error instanceof APIError && list[1].wait >= 1000);
  assert.deepEqual({ ...list[1].error }, { name: "APIError", status: 503, code: "no_nodes", detail: "because", retryAfter: 1000 });
  assert.equal(list[1].error.message, "dialring: 503 no_nodes: because");
  assert.ok(list[4].error && list[4].wait <= 80); // attempt 1 of base 40
  assert.deepEqual([list[6].wait, list[6].node], [3, "ws-1"]);
  assert.deepEqual([list[8].node, list[8].session, list[8].error], ["ws-1", "s-1", undefined]);
});

test("refusals of a locator that are final, and others", async t => {
  for (const [status, final] of [[400, true], [403, true], [404, true], [405, true], [408, false], [409, true], [413, true], [429, false], [500, false], [502, false], [503, false], [301, false], [204, false]]) {
    const f = await fake(t, "ws-1", { locate: n => n === 0 ? { ...problem(status, "x"), ...(status === 204 && { body: "" }) } : f.here() });
    const r = start(t, f);
    if (final) {
      await assert.rejects(r.done, e => e instanceof StoppedError && e.status === status && e.code === 0 && e.reason === "because" && e.cause instanceof APIError && e.cause.status === status);
      assert.equal(f.calls, 1);
    } else {
      (await f.sessions.next()).welcome();
      await r.state("connected");
      r.c.stop();
      await r.done;
    }
  }
});

test("a locator that answers nonsense is a failed locate", async t => {
  const nonsense = ["<html>", "[]", "null", "7", "{}", '{"url":7,"ticket":"t"}', '{"url":"ws://x/"}', '{"url":"ws://x/","ticket":{}}', '{"url":"ws://x/","ticket":"t","dial_after_ms":"7"}', '{"url":"ws://x/","ticket":"t","dial_after_ms":-7}'];
  await Promise.all(nonsense.map(async body => {
    const f = await fake(t, "ws-1", { locate: n => n === 0 ? { body } : f.here({ retry: "no", ring: 7 }) });
    const r = start(t, f);
    assert.match((await r.state("waiting")).error.message, /does not answer like a locator/, body);
    (await f.sessions.next()).welcome();
    await r.state("connected");
    assert.equal(f.calls, 2);
  }));
});

test("a problem that is no document has the status", async t => {
  const f = await fake(t, "ws-1", { locate: () => ({ status: 403, body: "go away" }) });
  await assert.rejects(start(t, f).done, { name: "StoppedError", status: 403, reason: "Forbidden" });
});

test("the token is asked for before each locate; one that is refused, once more", async t => {
  const f = await fake(t, "ws-1", { locate: (n, call) => call.headers.authorization === "Bearer good" ? f.here() : problem(401, "unauthorized") });
  const tokens = ["old", "good", "good", "old", "old", "good"];
  const r = start(t, f, { user: undefined, token: async signal => { assert.ok(signal instanceof AbortSignal); return tokens.shift(); } });
  const s = (await f.sessions.next()).welcome();
  assert.equal((await f.locates.next()).url, "/v1/locate");
  await r.state("connected");
  assert.equal(f.calls, 2);
  s.close(1001);
  (await f.sessions.next()).welcome().close(1001);
  await assert.rejects(r.done, { name: "StoppedError", status: 401 }); // old, twice in a row
  assert.deepEqual(tokens, ["good"]);
});

test("a token that cannot be had is a failed attempt", async t => {
  const f = await fake(t);
  let n = 0;
  const ways = [() => { throw new Error("mine"); }, () => Promise.reject(new Error("mine")), () => Promise.reject()];
  Object.assign(f.script, { locate: () => f.here() });
  const r = start(t, f, { user: undefined, token: () => n < ways.length ? ways[n++]() : "t" });
  const e = await r.state("waiting");
  assert.deepEqual([e.error.message, e.error.cause.message], ["dialring: get a user token: mine", "mine"]);
  (await f.sessions.next()).welcome();
  await r.state("connected");
});

test("several locators: any of them first, the next when one does not answer, the most time that one asked for", async t => {
  const dead = "http://" + await closedPort();
  const web = await fake(t, "x", { locate: () => ({ body: "<html>" }) });
  const f = await fake(t);
  const first = { web: 0, f: 0 };
  for (let i = 0; i < 40; i++) {
    const before = web.calls;
    const r = start(t, f, { locators: [dead, web.url + "/", f.url] });
    (await f.sessions.next()).welcome();
    await r.state("connected");
    first[web.calls > before ? "web" : "f"]++;
    r.c.stop();
    await r.done;
  }
  assert.ok(first.web > 0 && first.f > 0, JSON.stringify(first)); // 2^-40 that it fails by chance
  const patient = await fake(t, "x", { locate: () => problem(503, "no_nodes", { "Retry-After": "7" }) });
  const hasty = await fake(t, "x", { locate: () => problem(503, "no_nodes", { "Retry-After": "1" }) });
  const r = start(t, f, { locators: [patient.url, hasty.url] });
  assert.ok((await r.state("waiting")).wait >= 7000);
});

test("a 401 is not carried to the other locators", async t => {
  const a = await fake(t, "x", { locate: () => problem(401, "unauthorized") });
  let tokens = 0;
  const r = start(t, a, { locators: [a.url, a.url, a.url], user: undefined, token: () => "t" + tokens++ });
  await assert.rejects(r.done, { status: 401 });
  assert.deepEqual([a.calls, tokens], [2, 2]);
});

test("it stops in every state", async t => {
  const hang = new Promise(() => {});
  const mute = createServer(s => s.on("error", () => {})).listen(0, "127.0.0.1");
  await once(mute, "listening");
  t.after(() => mute.close());
  const asked = new Queue();
  mute.on("connection", s => { asked.push(s); t.after(() => s.destroy()); });
  for (const [name, script, options, reached] of [
    ["getting a token", {}, { user: undefined, token() { asked.push(1); return hang; } }, () => asked.next()],
    ["locating", { locate() { asked.push(1); return hang; } }, {}, () => asked.next()],
    ["waiting", { locate: () => problem(503, "x", { "Retry-After": "3600" }) }, {}, r => r.state("waiting")],
    ["waiting to dial", { locate: () => f.here({ dial_after_ms: 3_600_000 }) }, {}, r => r.state("waiting")],
    ["dialing", { locate: () => f.here({ url: `ws://127.0.0.1:${mute.address().port}/` }) }, {}, () => asked.next()],
    ["before the welcome", {}, {}, (r, f) => f.sessions.next()],
    ["connected", {}, {}, async (r, f) => (await f.sessions.next()).welcome() && r.state("connected")],
  ]) {
    var f = await fake(t, "ws-1", script);
    const r = start(t, f, options);
    await reached(r, f);
    r.c.stop();
    await r.done;
    assert.equal(r.c.state, "stopped", name);
    r.c.stop();
  }
});

test("a signal stops it, too; one that has aborted before it begins", async t => {
  const f = await fake(t);
  const events = new Queue();
  const c = new Client({ locators: f.url, user: "alice", onMessage() {}, onEvent: e => events.push(e) });
  await c.run({ signal: AbortSignal.abort() });
  assert.equal(f.calls, 0);
  const stop = new AbortController();
  const done = c.run({ signal: stop.signal });
  await assert.rejects(c.run(), /running already/);
  const s = (await f.sessions.next()).welcome();
  while ((await events.next()).state !== "connected");
  stop.abort();
  await done;
  assert.equal(await s.closed, 1000);
  const again = c.run();
  (await f.sessions.next()).welcome();
  c.stop();
  await again;
});

test("its own end is nobody's failure", async t => {
  const f = await fake(t);
  const [r] = await connected(t, f);
  await f.locates.next();
  r.c.stop();
  await r.done;
  r.run();
  assert.deepEqual((await f.locates.next()).body.failed, []);
});

test("settings that cannot work are refused", () => {
  const good = { locators: "https://push.example.com", user: "alice", onMessage() {} };
  const c = new Client(good);
  assert.match(c.device, /^js-[\w-]+$/);
  assert.equal(c.state, "stopped");
  assert.notEqual(new Client(good).device, c.device);
  assert.equal(new Client({ ...good, device: "d" }).device, "d");
  for (const wrong of [{ locators: undefined }, { locators: [] }, { locators: "push.example.com" }, { locators: "ws://x" }, { locators: "https://x?y" }, { locators: ["https://x", ""] },
    { onMessage: undefined }, { user: undefined }, { user: "" }, { token: () => "" }, { user: undefined, token: "a token" },
    { device: "a b" }, { device: "" }, { device: "x".repeat(65) }, { since: "a b" }, { since: "x".repeat(65) }]) {
    assert.throws(() => new Client({ ...good, ...wrong }), TypeError, JSON.stringify(wrong));
  }
});

test("without a WebSocket it says so", async t => {
  const { WebSocket } = globalThis;
  t.after(() => { globalThis.WebSocket = WebSocket; });
  delete globalThis.WebSocket;
  await assert.rejects(new Client({ locators: "https://x", user: "a", onMessage() {} }).run(), /no WebSocket here/);
});

test("a process ends by itself when its client has stopped", async t => {
  const f = await fake(t);
  const program = `
    import { Client } from ${JSON.stringify(new URL("../dialring.js", import.meta.url).href)};
    const c = new Client({ locators: ${JSON.stringify(f.url)}, user: "alice", onMessage() {}, onEvent(e) { if (e.state === "connected") c.request(1, { timeout: 3_600_000 }).catch(() => c.stop()) } });
    setTimeout(() => {}, 0);
    const run = c.run();
    c.send("bob", 2, { timeout: 3_600_000 }).catch(() => {});
    await run;
    console.log("over");`;
  const child = spawn(process.execPath, ["--experimental-websocket", "--no-warnings", "--input-type=module", "-e", program], { stdio: ["ignore", "pipe", "inherit"] });
  let out = "";
  child.stdout.on("data", b => { out += b; });
  const s = (await f.sessions.next()).welcome();
  for (;;) {
    const { ref, to } = await s.next("send");
    if (!to) { s.send({ type: "error", ref, code: "no_application", detail: "x" }); break; }
  }
  const [code] = await once(child, "exit");
  assert.deepEqual([code, out], [0, "over\n"]);
});
