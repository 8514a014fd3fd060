// A locator and a node on real sockets, of which a test plays the part: it answers
// locates by a function, and reads and writes each session's frames itself.
import { createHash } from "node:crypto";
import { createServer } from "node:http";
import { once } from "node:events";
import assert from "node:assert/strict";
import { Client } from "../dialring.js";

export const patience = 20_000; // a bound on hangs

// Queue hands on what comes, in order.
export class Queue {
  #items = [];
  #takers = [];
  push(v) {
    const take = this.#takers.shift();
    if (take) take(v); else this.#items.push(v);
  }
  get length() { return this.#items.length; }
  async next(what = "something") {
    if (this.#items.length) return this.#items.shift();
    let timer;
    const late = new Promise((_, fail) => { timer = setTimeout(() => fail(new Error("in vain: " + what)), patience); });
    try {
      return await Promise.race([new Promise(ok => this.#takers.push(ok)), late]);
    } finally {
      clearTimeout(timer);
    }
  }
}

export function frame(opcode, payload) {
  const p = Buffer.from(payload);
  const head = p.length < 126 ? Buffer.from([0x80 | opcode, p.length])
    : p.length < 65536 ? Buffer.from([0x80 | opcode, 126, p.length >> 8, p.length & 255])
    : Buffer.concat([Buffer.from([0x80 | opcode, 127, 0, 0, 0, 0]), Buffer.from(new Uint32Array([p.length]).buffer).reverse()]);
  return Buffer.concat([head, p]);
}

// Session is one connection of a client, as its node sees it.
class Session {
  constructor(req, socket) {
    this.req = req;
    this.socket = socket;
    this.url = new URL(req.url, "http://node");
    this.since = this.url.searchParams.get("since");
    this.protocols = req.headers["sec-websocket-protocol"].split(", ");
    this.frames = new Queue(); // parsed text frames, but for pings
    this.all = []; // every text, in order
    this.pings = 0;
    this.mute = false; // does not answer pings
    this.closed = new Promise(ok => { this.end = ok; }); // the client's close code; 0: none
    let buffer = Buffer.alloc(0);
    socket.on("data", data => {
      buffer = Buffer.concat([buffer, data]);
      for (;;) {
        if (buffer.length < 2) return;
        let n = buffer[1] & 127, at = 2;
        if (n === 126) { if (buffer.length < 4) return; n = buffer.readUInt16BE(2); at = 4; }
        else if (n === 127) { if (buffer.length < 10) return; n = Number(buffer.readBigUInt64BE(2)); at = 10; }
        if (buffer.length < at + 4 + n) return;
        const mask = buffer.subarray(at, at + 4), payload = Buffer.from(buffer.subarray(at + 4, at + 4 + n)).map((b, i) => b ^ mask[i % 4]);
        const opcode = buffer[0] & 15;
        buffer = buffer.subarray(at + 4 + n);
        if (opcode === 8) {
          this.end(payload.length >= 2 ? payload[0] << 8 | payload[1] : 1005);
          if (!this.mute) socket.end(frame(8, payload));
        } else if (opcode === 1) this.#text(String(payload));
      }
    });
    socket.on("error", () => {});
    socket.on("close", () => this.end(0));
  }
  #text(text) {
    this.all.push(text);
    const f = JSON.parse(text);
    if (f.type !== "ping") return this.frames.push(f);
    this.pings++;
    if (!this.mute) this.send({ type: "pong", ref: f.ref });
  }
  raw(bytes) { this.socket.write(bytes); return this; }
  text(text) { return this.raw(frame(1, text)); }
  send(f) { return this.text(JSON.stringify(f)); }
  welcome(fields = {}) {
    return this.send({ type: "welcome", session: "s-1", user: "alice", device: "d", node: "ws-1", epoch: 1, since: "c0", head: 0, pending: 0, gap: false, ping_interval_ms: 25000, max_message_bytes: 65536, ...fields });
  }
  stored(...seqs) { for (const n of seqs) this.storedAs("m" + n, n); return this; }
  storedAs(id, seq) { return this.send({ type: "message", id, time: "2026-01-02T03:04:05Z", seq, cursor: "c" + seq, data: seq }); }
  message(id, data = 1) { return this.send({ type: "message", id, time: "2026-01-02T03:04:05Z", data }); }
  move(to, fields = {}) { return this.send({ type: "move", url: to.ws, ticket: "moved", node: to.node, epoch: 2, reason: "join", after_ms: 0, deadline_ms: 20000, ...fields }); }
  close(code, reason = "") { return this.raw(frame(8, code ? Buffer.concat([Buffer.from([code >> 8, code & 255]), Buffer.from(reason)]) : "")); }
  lose() { this.socket.destroy(); }
  // next is the client's next frame of a type; others are passed over.
  async next(type) {
    for (;;) {
      const f = await this.frames.next(`the client's ${type}`);
      if (f.type === type) return f;
    }
  }
  // acks waits until a cursor is acknowledged.
  async acks(cursor) { while ((await this.next("ack")).cursor !== cursor); }
}

// fake starts one; script.locate(n, call) may answer a locate with { status, headers, body },
// script.dial(n, req) a dial with { status, headers }.
export async function fake(t, node = "ws-1", script = {}) {
  const f = { node, locates: new Queue(), sessions: new Queue(), upgrades: new Queue(), calls: 0, dials: 0, script };
  const sockets = new Set();
  const server = createServer(async (req, res) => {
    let body = "";
    for await (const part of req) body += part;
    const call = { url: req.url, method: req.method, headers: req.headers, body: JSON.parse(body || "null") };
    const n = f.calls++;
    const answer = await script.locate?.(n, call) ?? f.here();
    f.locates.push(call);
    res.writeHead(answer.status ?? 200, answer.headers).end(typeof answer.body === "string" ? answer.body : JSON.stringify(answer.body));
  });
  server.on("connection", s => { sockets.add(s); s.on("close", () => sockets.delete(s)); });
  server.on("upgrade", async (req, socket) => {
    socket.on("error", () => {});
    const n = f.dials++;
    f.upgrades.push(n);
    await script.before?.(n);
    const refused = script.dial?.(n, req);
    if (refused) return socket.end(`HTTP/1.1 ${refused.status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`);
    const accept = createHash("sha1").update(req.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest("base64");
    socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\nSec-WebSocket-Protocol: dialring.v1\r\n\r\n`);
    f.sessions.push(new Session(req, socket));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const at = `127.0.0.1:${server.address().port}`;
  f.url = "http://" + at;
  f.ws = `ws://${at}/v1/ws`;
  // here answers a locate: this node.
  f.here = (fields = {}) => ({ body: { user: "alice", device: "d", node, url: f.ws, ticket: "ticket", ticket_expires_in_ms: 30000, ring: { epoch: 1, hash: "x" }, dial_after_ms: 0, retry: { base_ms: 1, max_ms: 1 }, ...fields } });
  f.stop = () => {
    server.close();
    for (const s of sockets) s.destroy();
  };
  t.after(f.stop);
  return f;
}

export const problem = (status, code, headers = {}) => ({ status, headers, body: { type: "about:blank", title: "x", status, code, detail: "because" } });

// start runs a client against a fake; it is stopped when the test ends.
export function start(t, f, options = {}) {
  const messages = new Queue(), events = new Queue();
  const c = new Client({ locators: f.url, user: "alice", device: "d", onMessage(m) { messages.push(m); }, onEvent(e) { events.push(e); }, ...options });
  const r = { c, messages, events };
  r.run = () => {
    r.done = c.run();
    r.done.catch(() => {}); // whoever looks, sees it
  };
  r.run();
  r.state = async state => {
    for (;;) {
      const e = await events.next("the state " + state);
      if (e.state === state) return e;
    }
  };
  r.seqs = async (...want) => {
    for (const n of want) {
      const m = await messages.next("message " + n);
      assert.deepEqual([m.seq, m.data], [n, n]);
    }
  };
  t.after(async () => {
    c.stop();
    await r.done.catch(() => {});
  });
  return r;
}

// connected starts a client that is connected to f.
export async function connected(t, f, options) {
  const r = start(t, f, options);
  const s = (await f.sessions.next("a dial")).welcome();
  await r.state("connected");
  return [r, s];
}

// closedPort gives the address of a port where nobody listens.
export async function closedPort() {
  const s = createServer().listen(0, "127.0.0.1");
  await once(s, "listening");
  const { port } = s.address();
  s.close();
  await once(s, "close");
  return "127.0.0.1:" + port;
}
