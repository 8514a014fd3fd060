// What is shipped: its size, its files, its types, and the frames that it shares with Go.
import { test } from "node:test";
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { fake, connected } from "./fake.js";

const here = fileURLToPath(new URL("..", import.meta.url));
const source = readFileSync(here + "dialring.js");

test("it is under 8 KB compressed, as it ships, and one file", () => {
  const size = gzipSync(source, { level: 9 }).length;
  assert.ok(size < 8192, `${size} bytes`);
  assert.ok(!/^\s*import\b|\bimport\(|\brequire\(/m.test(source), "it imports something");
});

test("the package has exactly its files", () => {
  const [pack] = JSON.parse(execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], { cwd: here, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }));
  assert.deepEqual(pack.files.map(f => f.path).sort(), ["LICENSE", "README.md", "dialring.d.ts", "dialring.js", "package.json"]);
  assert.equal(readFileSync(here + "LICENSE", "utf8"), readFileSync(here + "../../LICENSE", "utf8"));
  const p = JSON.parse(readFileSync(here + "package.json"));
  assert.equal(p.publishConfig.access, "public"); // npm keeps what has a scope private else
  assert.deepEqual([p.dependencies, p.devDependencies, p.peerDependencies], [undefined, undefined, undefined]);
});

test("the types are right, and those of what there is", async t => {
  const tsc = args => spawnSync("npx", ["--yes", "-p", "typescript@5.9.3", "tsc", ...args], { cwd: here + "test", encoding: "utf8" });
  const version = tsc(["--version"]);
  if (version.status !== 0) {
    if (process.env.DIALRING_FULL === "1") assert.fail(version.stderr);
    return t.skip("npx cannot get typescript: " + version.stderr);
  }
  const out = tsc(["--noEmit", "-p", "tsconfig.json"]);
  assert.equal(out.status, 0, out.stdout + out.stderr);
  const types = readFileSync(here + "dialring.d.ts", "utf8");
  const declared = [...types.matchAll(/^export class (\w+)/gm)].map(m => m[1]);
  assert.deepEqual(declared.sort(), Object.keys(await import("../dialring.js")).sort());
});

// golden are the frames of the contract, which the Go tests hold, too. Numbers beyond
// what JSON.parse keeps are in no field that is used.
const golden = JSON.parse(readFileSync(here + "../../internal/wire/testdata/frames.json"));
const frames = (from, type) => golden.filter(g => g.from === from && g.frame.type === type).map(g => g.frame);

test("it understands each frame of a node", async t => {
  const f = await fake(t, "ws-1");
  const used = new Set();
  const take = type => frames("node", type).map(frame => { used.add(frame); return frame; });
  for (const w of take("welcome")) {
    const [r, s] = await connected(t, f);
    s.close(1001);
    await r.state("waiting");
    const again = (await f.sessions.next()).send({ ...w, user: "alice" });
    const e = await r.state("connected");
    assert.deepEqual(e, { state: "connected", node: "ws-1", session: w.session, pending: w.pending, gap: w.gap });
    for (const m of take("message")) {
      again.send(m);
      const { time, ...got } = await r.messages.next();
      assert.deepEqual(got, { id: m.id, from: m.from, seq: m.seq, cursor: m.cursor, data: m.data_b64 ? new Uint8Array([0, 255]) : m.data, json: !m.data_b64 });
      assert.equal(time.toISOString(), m.time);
    }
    const expired = take("skip").find(k => k.reason === "expired"), limit = take("skip").find(k => k.reason === "limit");
    again.send(expired).stored(expired.to + 1);
    await r.seqs(expired.to + 1);
    again.send({ ...limit, to: expired.to + 2 });
    assert.equal((await r.state("connected")).gap, true);
    again.stored(expired.to + 3, expired.to + 9);
    await r.seqs(expired.to + 3);
    await again.next("resume");
    for (const x of take("resumed")) again.send(x);
    assert.equal((await r.state("connected")).gap, true); // nothing filled the hole
    for (const p of take("pong")) again.send(p);
    for (const a of take("ack")) {
      const sent = "data" in a ? r.c.request(1) : r.c.send("bob", 1);
      again.send({ ...a, ref: (await again.next("send")).ref });
      assert.deepEqual(await sent, "data" in a ? a.data : { id: a.id, seq: a.seq, stored: !!a.stored, duplicate: !!a.duplicate, delivered: a.delivered ?? 0 });
    }
    for (const x of take("error")) {
      const sent = assert.rejects(r.c.request(1), { name: "SendError", code: x.code, detail: x.detail });
      again.send({ ...x, ref: (await again.next("send")).ref });
      await sent;
    }
    for (const m of take("move")) {
      again.send({ ...m, after_ms: 3_600_000 });
      const e = await r.state("moving");
      assert.deepEqual([e.node, e.session], [m.node, w.session]);
    }
    r.c.stop();
    await r.done;
  }
  assert.deepEqual(golden.filter(g => g.from === "node" && !used.has(g.frame)).map(g => g.name), []);
});

test("each of its frames is one of the contract's", async t => {
  const f = await fake(t);
  const [r, s] = await connected(t, f);
  const made = {};
  const [ack] = frames("client", "ack");
  s.send({ type: "message", id: "m", time: "2026-01-02T03:04:05Z", seq: 1, cursor: ack.cursor, data: 1 });
  assert.deepEqual(await s.next("ack"), { type: "ack", cursor: "c0" }, "where it began, before its first message");
  made.ack = await s.next("ack");
  assert.deepEqual(made.ack, ack);
  const resume = frames("client", "resume").find(x => x.since !== "0");
  s.send({ type: "resumed", since: resume.since, gap: true });
  s.stored(5);
  await s.acks("c5");
  s.send({ type: "resumed", since: resume.since, gap: true });
  s.send({ type: "message", id: "n", time: "2026-01-02T03:04:05Z", seq: 1, cursor: resume.since, data: 1 }).stored(9);
  assert.deepEqual(await s.next("resume"), resume);
  const bare = frames("client", "ping").find(x => !("ref" in x));
  assert.ok(s.all.some(x => x === JSON.stringify(bare)), String(s.all));
  const sends = frames("client", "send");
  for (const [call, want] of [
    [x => r.c.request(x.data), sends.find(x => !x.to && x.id)],
    [x => r.c.send(x.to, x.data, { ephemeral: true }), sends.find(x => x.ephemeral)],
    [x => r.c.send(x.to, x.data, { idempotencyKey: x.id }), sends.find(x => x.to && x.id)],
  ]) {
    const sent = call(want);
    const got = await s.next("send");
    assert.match(got.ref, /^[\w-]{1,126}$/);
    if (!want.to) assert.equal(got.id, got.ref); // both are its own
    assert.deepEqual({ ...got, ref: want.ref, ...(!want.to && { id: want.id }) }, want);
    assert.equal(Object.keys(got)[0], "type");
    s.send({ type: "ack", ref: got.ref });
    await sent;
  }
});
