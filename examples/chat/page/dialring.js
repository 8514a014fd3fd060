// A client of dialring for a page: everything that a client has to do, and no more.
//
//   locate --> dial --> connected --+
//     ^          |        |   ^     | a move: the next connection first, then
//     |          |        |   +-----+ this one is closed
//     +--back-off+--------+

const sleep = ms => new Promise(done => setTimeout(done, ms));
const dialTimeout = 10000, steady = 10000, remembered = 1000;

export class Dialring {
  #device; #login; #onMessage; #onState;
  #cursor = "0";       // of the last message; "0": everything that is kept
  #seq = 0;            // its number; 0: not known
  #seen = new Set();   // ids of messages that are not stored
  #sends = new Map();  // by ref: those that are not answered
  #refs = 0;
  #prefix = crypto.randomUUID() + "-";
  #cur = null;         // the connection in use
  #moving = null;      // a promise, while a move is under way
  #failed = new Map(); // nodes that could not be reached, and when
  #retry = { base_ms: 500, max_ms: 30000 };

  // login returns a promise of { locator, token }, and is called before each locate.
  // onMessage gets each message once. onState gets { node } when connected, else
  // { why }, and { code } when the server says not to come back.
  constructor({ device, login, onMessage, onState }) {
    this.#device = device;
    this.#login = login;
    this.#onMessage = onMessage;
    this.#onState = onState;
  }

  // send sends data to a user, or without one to the application. It promises the
  // answer. What a broken connection left unanswered is sent again, with the same id,
  // and so is one message in the end.
  send(data, to) {
    const ref = ++this.#refs;
    const frame = JSON.stringify({ type: "send", ref, id: this.#prefix + ref, ...(to ? { to } : {}), data });
    return new Promise((ok, refused) => {
      this.#sends.set(ref, { frame, ok, refused });
      this.#write(frame);
    });
  }

  // run connects, and connects again, until the server says not to.
  async run() {
    for (let attempt = 0; ; attempt++) {
      let code = 0, least = 0, began = 0;
      try {
        const ws = await this.#dial(await this.#locate());
        began = Date.now();
        this.#use(ws);
        code = await this.#stay(ws);
        this.#onState({ why: "the connection has ended (" + code + ")" });
      } catch (e) {
        code = e.code ?? 0;
        least = e.least ?? 0;
        this.#onState({ why: e.message });
      }
      if (code >= 4000 && code < 4100) return this.#onState({ code });
      if (began && Date.now() - began >= steady) attempt = 0;
      const soon = attempt === 0 && code >= 4200 && code < 4300;
      await sleep(Math.max(least, soon ? Math.random() * 100 : this.#backOff(attempt)));
    }
  }

  #backOff(n) { return Math.random() * Math.min(this.#retry.max_ms, this.#retry.base_ms * 2 ** Math.min(n, 20)); }

  async #locate() {
    const { locator, token } = await this.#login();
    for (const [node, at] of this.#failed) if (Date.now() - at > 60000) this.#failed.delete(node);
    const res = await fetch(locator + "/v1/locate", {
      method: "POST",
      headers: { Authorization: "Bearer " + token, "Content-Type": "application/json" },
      body: JSON.stringify({ device: this.#device, failed: [...this.#failed.keys()] }),
      signal: AbortSignal.timeout(dialTimeout),
    });
    if (!res.ok) {
      const least = 1000 * (Number(res.headers.get("Retry-After")) || 0);
      throw Object.assign(new Error("the locator answers " + res.status), { least });
    }
    const at = await res.json();
    this.#retry = at.retry;
    await sleep(at.dial_after_ms);
    return at;
  }

  // dial promises a connection that has welcomed. The ticket goes as a subprotocol,
  // never in the URL. A connection has node, and ended, which promises its close code.
  #dial({ url, ticket, node }) {
    const u = new URL(url);
    u.searchParams.set("since", this.#cursor);
    const ws = new WebSocket(u, ["dialring.v1", "dialring.ticket." + ticket]);
    ws.node = node;
    return new Promise((welcomed, failed) => {
      const late = setTimeout(() => ws.close(), dialTimeout);
      let beat;
      ws.ended = new Promise(ended => {
        const end = code => {
          clearTimeout(late);
          clearInterval(beat);
          if (code === 1006) this.#failed.set(node, Date.now()); // or it refused: pages are not told
          failed(Object.assign(new Error(node + " cannot be reached"), { code }));
          ended(code);
        };
        ws.onclose = e => end(e.code);
        ws.onmessage = e => {
          ws.heard = true;
          const f = JSON.parse(e.data);
          if (f.type === "welcome") {
            clearTimeout(late);
            this.#failed.delete(node);
            beat = setInterval(() => { // pages do not see the pings of the node
              if (!ws.heard) { ws.close(); end(1006); return; }
              ws.heard = false;
              ws.send('{"type":"ping"}');
            }, f.ping_interval_ms);
            welcomed(ws);
          }
          this.#frame(ws, f);
        };
      });
    });
  }

  // use writes to a connection from now on, first what was not answered.
  #use(ws) {
    this.#cur = ws;
    for (const { frame } of this.#sends.values()) this.#write(frame);
    this.#acknowledge();
    this.#onState({ node: ws.node });
  }

  #write(frame) { if (this.#cur?.readyState === WebSocket.OPEN) this.#cur.send(frame); }

  #acknowledge() { if (this.#seq) this.#write(JSON.stringify({ type: "ack", cursor: this.#cursor })); }

  // stay promises the close code of the last connection, when none took over.
  async #stay(ws) {
    for (;;) {
      const code = await ws.ended;
      if (this.#cur === ws) await this.#moving; // what is being dialed may take over
      if (this.#cur === ws) { this.#cur = null; return code; }
      ws = this.#cur;
    }
  }

  // move dials another node, where the node says, else where the locator says; then
  // the old connection is closed, and read until it has ended.
  async #move(old, to) {
    await sleep(to.after_ms);
    for (let n = 0; old.readyState === WebSocket.OPEN; n++) {
      try {
        const ws = await this.#dial(n === 0 ? to : await this.#locate());
        this.#use(ws);
        old.close(1000);
        return;
      } catch (e) {
        await sleep(Math.max(e.least ?? 0, this.#backOff(n)));
      }
    }
  }

  #frame(ws, f) {
    switch (f.type) {
      case "welcome":
        if (f.gap) { this.#cursor = f.since; this.#seq = 0; }
        break;
      case "message":
        if (f.seq ? this.#next(ws, f) : this.#unseen(f.id)) this.#onMessage(f);
        if (f.seq && f.seq === this.#seq) this.#acknowledge();
        break;
      case "skip":
        if (this.#seq && f.to > this.#seq) this.#seq = f.to;
        break;
      case "resumed":
        if (f.gap && ws.hole === undefined || ws.hole === this.#seq) { this.#cursor = f.since; this.#seq = 0; } // it cannot be filled: go on with what comes
        ws.hole = undefined;
        break;
      case "move":
        if (ws === this.#cur && !this.#moving) this.#moving = this.#move(ws, f).finally(() => { this.#moving = null; });
        break;
      case "ack":
      case "error": {
        const s = this.#sends.get(f.ref);
        if (!s) break;
        this.#sends.delete(f.ref);
        if (f.type === "ack") s.ok(f); else s.refused(new Error(f.detail));
      }
    }
  }

  // next tells whether a stored message is the next one: one may come twice while
  // two connections overlap, and after a hole the node is asked to begin there again.
  #next(ws, { seq, cursor }) {
    if (this.#seq && seq <= this.#seq) return false;
    if (this.#seq && seq > this.#seq + 1) {
      if (ws.hole === undefined) {
        ws.hole = this.#seq;
        ws.send(JSON.stringify({ type: "resume", since: this.#cursor }));
      }
      return false;
    }
    this.#seq = seq;
    this.#cursor = cursor;
    return true;
  }

  #unseen(id) {
    if (this.#seen.has(id)) return false;
    this.#seen.add(id);
    if (this.#seen.size > remembered) this.#seen.delete(this.#seen.values().next().value);
    return true;
  }
}
