// README.md explains these numbers.

const dialTimeout = 10_000, settled = 10_000, failedFor = 60_000, recheckAfter = 300_000;
const shortJitter = 100, takeOverWait = 1000, answerWait = 2000, closeTimeout = 1000, hasteWait = 1000, repeatFor = 100_000;
const usualPing = 25_000, pongWait = 5000, ackEvery = 200, maxWait = 3_600_000, forever = 2 ** 31 - 1;
const pace = 5000, maxAnswer = 2 ** 20, maxWaiting = 1000, maxUnanswered = 64, seenSize = 1024;

class Failure extends Error {
  constructor(text, fields, cause) {
    super("dialring: " + text, { cause });
    Object.assign(this, fields);
  }
}
export class CloseError extends Failure { name = "CloseError"; }
export class APIError extends Failure { name = "APIError"; }
export class SendError extends Failure { name = "SendError"; }
export class StoppedError extends Failure { name = "StoppedError"; }
const sendError = (code, detail) => new SendError(`${code}: ${detail}`, { code, detail });

const types = {
  string: "type id time from user cursor since data_b64 reason url ticket node session code detail",
  number: "seq to pending ping_interval_ms max_message_bytes after_ms dial_after_ms delivered",
  boolean: "gap stored duplicate",
};
const typeOf = new Map(Object.keys(types).flatMap(type => types[type].split(" ").map(name => [name, type])));

// parse gives {} for what is not of the contract.
function parse(text) {
  try {
    const f = JSON.parse(text);
    const good = ([name, v]) => !typeOf.has(name) || typeof v === typeOf.get(name) && (typeof v !== "number" || Number.isSafeInteger(v) && v >= 0);
    return Object.entries(f).every(good) ? f : {};
  } catch {
    return {};
  }
}

// within waits for p, or until signal aborts or ms are over.
const within = (ms, signal, p) => new Promise((ok, fail) => {
  const stop = () => {
    clearTimeout(timer);
    signal?.removeEventListener("abort", stop);
    ok();
  };
  const timer = setTimeout(stop, ms);
  signal?.addEventListener("abort", stop);
  if (signal?.aborted) stop();
  p?.then(ok, fail).finally(stop);
});

const hundred = code => Math.floor(code / 100);
const millis = ms => Math.min(ms || 0, maxWait);
const offline = () => globalThis.navigator?.onLine === false;
const randomID = () => crypto.getRandomValues(new Uint32Array(3)).join("-");

class Conn {
  welcomed = false;
  old = false; // another one has taken over
  flushed = false;
  hasty = false;
  resuming = false;
  progress = false;
  ended = null; // then { code, reason, error }; code 0: no close frame
  slept = false;
  interval = usualPing;
  #ws; #timer; #due; #woken = false;
  #count = 0;

  constructor(loc, since, take, gone, doubt) {
    const url = new URL(loc.url);
    if (!/^wss?:$/.test(url.protocol)) throw new Failure(loc.url + " is no ws or wss URL");
    if (since) url.searchParams.set("since", since);
    this.node = loc.node ?? "";
    this.user = loc.user;
    this.doubt = doubt;
    this.ready = new Promise(ok => { this.welcome = ok; });
    this.over = new Promise(ok => { this.gone = () => { gone(this); this.welcome(); ok(); }; });
    const ws = this.#ws = new WebSocket(url.href, ["dialring.v1", "dialring.ticket." + loc.ticket]);
    ws.onmessage = e => {
      this.#count++;
      if (e.data.length > 2 * maxAnswer) this.end(1009);
      else take(this, parse(e.data));
    };
    ws.onclose = e => this.end(e.code === 1006 ? 0 : e.code, e.reason);
    ws.onerror = () => this.#after(0, () => this.end(0)); // not all runtimes close behind it
    this.#after(dialTimeout, () => this.end(0));
  }

  get open() { return this.#ws.readyState === 1; }

  send(frame) { this.write(JSON.stringify(frame)); }

  write(text) { if (this.open) this.#ws.send(text); }

  // after calls f, telling whether it is late.
  #after(ms, f) {
    clearTimeout(this.#timer);
    this.#due = Date.now() + ms;
    this.#timer = setTimeout(() => f(this.#late()), ms);
  }

  #late() { return Date.now() - this.#due > pongWait; }

  // ping asks for a sign of life, now and each interval; once more after a sleep.
  ping(woken = false, ref) {
    if (this.ended || woken && this.#woken) return;
    this.#woken = woken;
    const n = this.#count;
    this.send({ type: "ping", ref });
    const look = (late, last) => {
      if (this.#count > n) {
        this.#woken = false;
        this.#after(Math.max(this.interval - pongWait, 0), late => this.ping(late));
      } else if (late && !woken) {
        this.ping(true);
      } else if (last) {
        this.end(0, "", new Failure("nothing was heard from the node for too long"));
      } else {
        this.doubt(this);
        this.#after(pongWait, late => look(late, true));
      }
    };
    this.#after(pongWait, late => look(late, woken));
  }

  // Browsers drop what comes after close().
  end(code, reason = "", error = code ? new CloseError(`the node closed: ${code} ${reason}`, { code, reason }) : new Failure("no connection to " + this.node)) {
    if (this.ended) return;
    this.ended = { code, reason, error };
    this.slept = this.#woken || this.#late();
    clearTimeout(this.#timer);
    const ws = this.#ws;
    ws.onmessage = ws.onerror = null;
    this.closed = ws.readyState < 3 && new Promise(ok => { ws.onclose = ok; });
    if (ws.readyState < 2) ws.close(1000);
    this.gone();
  }
}

export class Client {
  #o; #user;
  #event = { state: "stopped" };
  #run = null;
  #signal;
  #failure = null;
  #hidden = false;
  #wake;
  #failed = new Map();
  #refusals = 0;
  #attempt = 0;
  #retry = { base_ms: 500, max_ms: 30_000 };

  #cur = null;
  #conns = new Set();
  #moving = null;
  #look;
  #again = null;
  #recheck; #pace = 0;

  #since;
  #seq;
  #log = 0;
  #seen = new Set();
  #queue = [];
  #busy;
  #full = false; // and messages were dropped, to come again
  #room;
  #dropped = [];
  #base;
  #handled; #acked; #ackedAt = 0;
  #anchor; // #base, until a message comes

  #calls = new Map();
  #prefix = randomID() + "-";
  #n = 0;
  #limit = 0;
  #pause;
  #over;

  constructor(options) {
    const o = this.#o = { ...options };
    const must = (ok, text) => { if (!ok) throw new TypeError("dialring: " + text); };
    o.device ??= "js-" + randomID();
    o.locators = [o.locators].flat().map(l => String(l).replace(/\/$/, ""));
    must(o.locators.length && o.locators.every(l => /^https?:\/\/[^?#]+$/.test(l)), "locators must be http or https URLs");
    must(typeof o.onMessage === "function", "onMessage is required");
    must(o.token ? !o.user && typeof o.token === "function" : o.user, "token, a function, or user is required");
    must(/^[\w.-]{1,64}$/.test(o.device), "device must be 1 to 64 of A-Z a-z 0-9 . _ -");
    must(/^[!-~]{0,64}$/.test(o.since ??= ""), "since is no cursor");
    this.#user = o.user;
    this.#since = this.#base = o.since;
  }

  get state() { return this.#event.state; }

  get device() { return this.#o.device; }

  stop() { this.#run?.abort(); }

  async run({ signal: outer } = {}) {
    if (this.#run) throw new Failure("run() is running already");
    if (!globalThis.WebSocket) throw new Failure("no WebSocket here; Node has it from 22 on");
    const run = this.#run = new AbortController(), stop = () => run.abort();
    this.#signal = run.signal;
    this.#signal.addEventListener("abort", () => {
      this.#endSends();
      this.#room?.();
    });
    this.#failure = this.#over = null;
    this.#hidden = false;
    this.#listen();
    for (const id of this.#dropped.splice(0)) this.#seen.delete(id);
    if (this.#base) this.#reset(this.#base);
    outer?.addEventListener("abort", stop, { signal: this.#signal });
    if (outer?.aborted) stop();
    const refused = await this.#loop();
    this.#endSends(refused);
    await this.#busy;
    stop();
    this.#run = null;
    const end = refused ? { error: refused } : this.#failure;
    this.#tell({ state: "stopped", ...end });
    if (end) throw end.error;
  }

  async send(to, data, { ephemeral = false, idempotencyKey: key, ...limits } = {}) {
    if (typeof to !== "string" || !to) throw new TypeError("dialring: send needs a user");
    const { id, seq, stored = false, duplicate = false, delivered = 0 } = await this.#ask(ephemeral ? { to, ephemeral } : { id: key, to }, data, limits);
    return { id, seq, stored, duplicate, delivered };
  }

  async request(data, limits = {}) { return (await this.#ask({}, data, limits)).data; }

  #tell(e) {
    this.#event = e;
    try {
      this.#o.onEvent?.(e);
    } catch (error) {
      this.#fail(error);
    }
  }

  #fail(error) {
    this.#failure ??= { error };
    this.stop();
  }

  async #loop() {
    this.#attempt = this.#refusals = 0;
    for (let e = {}, wait = 0, error; ;) {
      await this.#rest(wait, millis(e.after), error);
      while (this.#full && !this.#calls.size && !this.#signal.aborted) await new Promise(ok => { this.#room = ok; });
      if (!this.#signal.aborted) e = await this.#once(error);
      if (this.#signal.aborted) return;
      if (e.final || hundred(e.code) === 40) {
        const { code = 0, reason = e.error.detail, error: { status = 0 } } = e;
        return new StoppedError(`the server ended it for good: ${code || status} ${reason}`, { code, status, reason }, e.error);
      }
      error = e.error;
      const n = this.#attempt++;
      wait = n === 0 && hundred(e.code) === 42 ? Math.random() * shortJitter : this.#jitter(n);
    }
  }

  #jitter(n) { return Math.random() * Math.max(Math.min(pace, 2 ** n), Math.min(maxWait, this.#retry.max_ms, this.#retry.base_ms * 2 ** n)); }

  // rest waits; beyond least, only until there is a network again.
  async #rest(wait, least, error) {
    const until = Date.now() + least;
    wait = Math.max(wait, least, error && (offline() || this.#hidden) ? this.#retry.max_ms : 0);
    if (!wait) return;
    this.#tell({ state: "waiting", wait, error });
    const woken = await within(wait, this.#signal, new Promise(ok => { this.#wake = () => ok(true); }));
    if (woken) await within(Math.max(until - Date.now(), this.#jitter(0)), this.#signal);
  }

  async #once(error) {
    this.#tell({ state: "locating", error });
    const loc = await this.#locate(this.#signal);
    if (loc.error) return loc;
    const { base_ms, max_ms } = loc.retry ?? {};
    if ([base_ms, max_ms].every(Number.isFinite) && base_ms >= 1 && max_ms >= base_ms) this.#retry = { base_ms, max_ms };
    const wait = millis(loc.dial_after_ms);
    if (wait) {
      this.#tell({ state: "waiting", node: loc.node, wait, error });
      await within(wait, this.#signal);
    }
    if (this.#signal.aborted) return;
    this.#tell({ state: "dialing", node: loc.node, error });
    const k = await this.#dial(loc);
    if (!k.welcomed) return k.ended;
    const start = Date.now();
    const e = await this.#receive();
    if (Date.now() - start >= settled) this.#attempt = 0;
    const stop = this.#signal.aborted;
    if (stop && this.#busy) await within(closeTimeout, null, this.#busy);
    this.#ack();
    clearTimeout(this.#recheck);
    this.#look?.abort();
    const closing = this.#endAll();
    if (stop) await within(closeTimeout, null, Promise.all(closing));
    await this.#moving;
    this.#cur = null;
    return e;
  }

  #endAll(error) {
    return [...this.#conns].map(k => {
      k.end(1000, "", error);
      return k.closed;
    });
  }

  #listen() {
    const on = (target, type, f) => target?.addEventListener?.(type, f, { signal: this.#signal });
    const ask = () => { for (const k of this.#conns) if (k.welcomed) k.ping(true); };
    const wake = () => {
      this.#hidden = false;
      this.#wake?.();
      ask();
    };
    on(globalThis, "online", wake);
    on(globalThis, "pageshow", wake);
    on(globalThis, "offline", ask);
    on(globalThis, "pagehide", () => {
      this.#hidden = true;
      this.#ack();
      this.#endAll(new Failure("the page was left"));
    });
    on(globalThis.document, "resume", ask);
    on(globalThis.document, "visibilitychange", () => { if (!document.hidden) ask(); });
  }

  // locate gives { error, after, final } if no locator answers well.
  async #locate(signal) {
    let token;
    try {
      token = await within(forever, signal, (async () => this.#o.token?.(signal))());
    } catch (cause) {
      return { error: new Failure("get a user token: " + cause?.message, {}, cause) };
    }
    if (signal.aborted) return { error: signal.reason };
    for (const [node, at] of this.#failed) if (Date.now() - at > failedFor) this.#failed.delete(node);
    const body = JSON.stringify({ device: this.device, failed: [...this.#failed.keys()] });
    let last = {}, after = 0;
    for (const [, base] of this.#o.locators.map(l => [Math.random(), l]).sort()) {
      last = await this.#locateAt(base, token, body, signal);
      if (!last.error) {
        this.#refusals = 0;
        return last;
      }
      after = Math.max(after, last.after ?? 0);
      if (last.final || signal.aborted || last.error.status === 401) break;
    }
    return { ...last, after };
  }

  async #locateAt(base, token, body, signal) {
    const { user, sendTo } = this.#o, headers = { "Content-Type": "application/json", ...!user && { Authorization: "Bearer " + token } };
    const url = `${base}/v1/locate${user ? "?" + new URLSearchParams({ user, ...sendTo && { send_to: sendTo.join() } }) : ""}`;
    const c = new AbortController();
    const ask = async () => {
      const res = await fetch(url, { method: "POST", headers, body, signal: c.signal, cache: "no-store", credentials: "omit" });
      let text = "";
      await res.body?.pipeThrough(new TextDecoderStream()).pipeTo(new WritableStream({ write(s) { if ((text += s).length > maxAnswer) c.abort(); } }));
      const f = parse(text);
      if (res.status !== 200) return this.#refused(res, f);
      if (f.user && f.user !== (this.#user ?? f.user)) throw new Error(base + " answers for another user");
      return f.url && f.ticket && f.user && f;
    };
    try {
      const f = await within(dialTimeout, signal, ask());
      if (f) return f;
      throw new Error(base + " does not answer like a locator");
    } catch (cause) {
      return { error: new Failure("locate: " + cause?.message, {}, cause) };
    } finally {
      c.abort();
    }
  }

  // A token may just have expired: its first refusal is not final.
  #refused({ status, statusText, headers }, { code = "", detail = statusText }) {
    const after = (/^\d+$/.exec(headers.get("Retry-After")) ?? 0) * 1000;
    const final = status === 401 ? ++this.#refusals > 1 : hundred(status) === 4 && ![408, 429].includes(status);
    return { error: new APIError(`${status} ${code}: ${detail}`, { status, code, detail, retryAfter: after }), after, final };
  }

  // dial gives a connection that has welcomed, or has ended.
  async #dial(loc) {
    let k;
    try {
      k = new Conn(loc, this.#since,
        (k, f) => { if (!this.#signal.aborted) this.#frame(k, f); },
        k => this.#gone(k),
        k => { if (k === this.#cur) this.#move(); });
    } catch (error) {
      return { ended: { error } };
    }
    this.#conns.add(k);
    await within(forever, this.#signal, k.ready);
    if (!k.welcomed) k.end(1000);
    return k;
  }

  #gone(k) {
    this.#conns.delete(k);
    if (!k.ended.code && /^[a-z\d-]{1,63}$/.test(k.node ?? "") && !k.old && !k.slept && !offline()) this.#failed.set(k.node, Date.now());
    for (const c of this.#calls.values()) if (c.on === k) [c.on, c.lost] = [null, true];
    this.#write();
  }

  async #receive() {
    for (;;) {
      const k = this.#cur;
      await within(forever, this.#signal, k.over);
      if (this.#signal.aborted) return;
      if (!k.ended || this.#cur !== k) continue;
      const { code } = k.ended;
      // What is being dialed may take over, and may have replaced this one.
      if (this.#moving && (hundred(code) !== 40 || code === 4003)) {
        await within(takeOverWait, this.#signal, this.#moving);
        this.#look.abort();
        if (this.#cur === k && [...this.#conns].some(k => k.open && !k.welcomed)) await this.#moving;
      }
      if (this.#cur === k) return k.ended;
    }
  }

  #recheckLater() {
    clearTimeout(this.#recheck);
    this.#recheck = setTimeout(() => {
      this.#recheckLater();
      this.#move();
    }, recheckAfter * (1 + Math.random()));
  }

  // move dials where m says or, without it, a locator.
  #move(m) {
    if (this.#moving) {
      if (m) {
        this.#again = m;
        this.#look.abort();
      }
      return;
    }
    this.#look = new AbortController();
    this.#again = null;
    if (m) this.#tell({ state: "moving", node: m.node, session: this.#cur.session });
    this.#moving = this.#follow(m, this.#look.signal).then(() => {
      this.#moving = null;
      if (this.#signal.aborted || this.#cur.ended) return;
      if (this.state === "moving") this.#tellConnected({});
      if (this.#again) this.#move(this.#again);
    });
  }

  // A begun dial is carried through: it may count.
  async #follow(m, look) {
    const here = this.#cur.node;
    if (m) {
      await within(Math.max(millis(m.after_ms), Math.min(this.#pace - Date.now(), pace)), look);
      if (!look.aborted) {
        this.#pace = Math.max(this.#pace, Date.now() - 6 * pace) + pace;
        if ((await this.#dial(m)).welcomed) return;
      }
    }
    for (let n = 0; !look.aborted; n++) {
      const asked = m || n, refusals = this.#refusals;
      if (asked) await within(this.#jitter(n), look);
      const loc = await this.#locate(look);
      if (loc.error && !asked) this.#refusals = refusals;
      if (loc.error ? !asked || loc.final : loc.node === here) return;
      await within(millis(loc.after ?? loc.dial_after_ms), look);
      if (look.aborted || !loc.error && (await this.#dial(loc)).welcomed) return;
    }
  }

  #leave(k) {
    if (k.flushed && (k.hasty || ![...this.#calls.values()].some(c => c.on === k))) k.end(1000);
  }

  #frame(k, f) {
    if (!k.welcomed) {
      if (f.type === "welcome") this.#welcome(k, f);
    } else if (f.type === "message") this.#message(k, f);
    else if (f.type === "skip") this.#skip(k, f);
    else if (f.type === "resumed") this.#resumed(k, f);
    else if (f.type === "ack" || f.type === "error") this.#answer(k, f);
    else if (f.type === "pong" && f.ref === "last" && k.old) {
      k.flushed = true;
      this.#leave(k);
    } else if (f.type === "move" && k === this.#cur && f.url && f.ticket) {
      this.#recheckLater();
      this.#move(f);
    }
  }

  #welcome(k, w) {
    const user = this.#user ?? k.user;
    if (w.user !== user) return k.end(1000, "", new Failure(k.node + " answers for another user"));
    this.#user = user;
    const old = this.#cur;
    this.#cur = k;
    this.#again = null;
    k.welcomed = true;
    k.session = w.session;
    k.interval = millis(w.ping_interval_ms) || usualPing;
    if (w.gap || !this.#since) this.#begin(w.since);
    k.log = this.#log;
    k.ping();
    k.welcome();
    this.#recheckLater();
    this.#acked = undefined; // the last one may have lost it
    this.#ack();
    if (old && !old.ended) {
      old.old = true;
      old.ping(false, "last"); // answered behind all that was sent
      within(answerWait, this.#signal).then(() => {
        old.hasty = true;
        this.#leave(old);
      });
    }
    this.#tellConnected(w);
    this.#limit = w.max_message_bytes ?? 0;
    this.#write();
  }

  #tellConnected({ pending = 0, gap = false }) {
    const { node, session } = this.#cur;
    this.#tell({ state: "connected", node, session, pending, gap });
  }

  #reset(since) {
    this.#seq = undefined;
    this.#since = since;
  }

  #begin(since = "") {
    this.#reset(since);
    this.#log++;
    this.#base = this.#anchor = since;
    this.#handled = this.#acked = undefined;
  }

  #message(k, { id = "", time = 0, from, seq, cursor, data, data_b64 = "" }) {
    const json = data !== undefined;
    try {
      data = json ? data : Uint8Array.from(atob(data_b64), c => c.charCodeAt());
      time = new Date(time);
      time.toISOString();
    } catch {
      return;
    }
    const m = { id, time, from, seq, cursor, data, json };
    if (seq) this.#stored(k, m);
    else if (!this.#seen.has(id) && this.#hand(k, m)) this.#see(id);
  }

  #stored(k, m) {
    if (k.log !== this.#log || m.seq <= this.#seq) return;
    if (this.#full) {
      k.progress = true;
    } else if (m.seq > this.#seq + 1) { // the replay brings this one, too
      if (k === this.#cur && !k.resuming) this.#resume(k);
    } else {
      k.progress = true;
      // Else a new device would go on from now, should the handler not finish.
      if (this.#anchor) this.#cur.send({ type: "ack", cursor: this.#anchor });
      this.#anchor = "";
      if (!this.#hand(k, m)) return;
      this.#see(m.id);
      this.#seq = m.seq;
      this.#since = m.cursor || this.#since;
    }
  }

  #resume(k) {
    k.resuming = true;
    k.progress = false;
    k.send({ type: "resume", since: this.#since || "0" });
  }

  #skip(k, { to, reason }) {
    if (k.log !== this.#log || !(to > this.#seq)) return;
    k.progress = true;
    if (this.#full) return;
    this.#seq = to;
    if (reason === "limit") this.#tellConnected({ gap: true });
  }

  // A gap without one message of a replay means another log.
  #resumed(k, { since, gap }) {
    const asked = k.resuming, idle = asked && !k.progress;
    k.resuming = false;
    if (gap ? idle || !asked : !asked && this.#seq === undefined) { // or only now the node knows the place
      this.#begin(since);
      k.log = this.#log;
    } else if (idle) { // the node cannot fill the hole
      this.#seq = undefined;
    } else {
      return;
    }
    if (gap || idle) this.#tellConnected({ gap: true });
  }

  #see(id) {
    if (id) this.#seen.add(id);
    if (this.#seen.size > seenSize) this.#seen.delete(this.#seen.values().next().value);
  }

  // Too much waits: it leaves, unless the handler may be waiting for a send.
  #hand(k, m) {
    if (this.#queue.length >= maxWaiting) {
      this.#full = true;
      if (!this.#calls.size) this.#endAll(new Failure("too many messages wait"));
      return false;
    }
    this.#queue.push({ m, log: k.log, seen: m.seq && this.#seen.has(m.id) });
    this.#busy ??= this.#handle();
    return true;
  }

  async #handle() {
    await null;
    for (let q; (q = this.#queue.shift());) {
      const { m, log, seen } = q;
      let ok = !(this.#failure || m.seq && this.#signal.aborted); // else it comes again
      try {
        if (ok && !seen) await this.#o.onMessage(m, this.#signal);
      } catch (error) {
        ok = false;
        if (!this.#signal.aborted) this.#fail(error);
      }
      if (ok) this.#done(log, m.cursor);
      else if (m.seq && !seen) this.#dropped.push(m.id);
      if (this.#full && this.#queue.length <= maxWaiting / 2) {
        this.#full = false;
        this.#room?.();
        if (this.#cur && !this.#cur.ended) this.#resume(this.#cur);
      }
    }
    this.#busy = null;
  }

  #done(log, cursor) {
    if (cursor && log === this.#log) this.#handled = this.#base = cursor;
    if (!this.#queue.length || Date.now() - this.#ackedAt >= ackEvery) this.#ack();
  }

  #ack() {
    const cursor = this.#handled;
    if (!this.#cur?.open || cursor === this.#acked) return;
    this.#cur.send({ type: "ack", cursor });
    this.#acked = cursor;
    this.#ackedAt = Date.now();
  }

  async #ask(fields, data, { timeout, signal }) {
    const json = JSON.stringify(data);
    if (json === undefined) throw new TypeError("dialring: what is sent must be JSON");
    signal?.throwIfAborted();
    if (this.#over) throw this.#over;
    const ref = this.#prefix + ++this.#n;
    const head = JSON.stringify({ type: "send", ref, ...fields, id: fields.ephemeral ? undefined : fields.id || ref });
    const c = { ...fields, size: new Blob([json]).size, text: `${head.slice(0, -1)},"data":${json}}` };
    try {
      const f = await within(Math.min(timeout ?? forever, forever), signal, new Promise((ok, fail) => {
        this.#calls.set(ref, Object.assign(c, { ok, fail }));
        this.#room?.();
        this.#write();
      }));
      signal?.throwIfAborted();
      if (f) return f;
      throw new DOMException("dialring: no answer in time", "TimeoutError");
    } finally {
      this.#calls.delete(ref);
      this.#write();
    }
  }

  #write() {
    const k = this.#cur, now = Date.now();
    let under = k?.open && !this.#pause ? 0 : maxUnanswered;
    for (const c of this.#calls.values()) {
      if (c.lost && !c.on && (c.ephemeral || c.to && now - c.at >= repeatFor)) {
        c.fail(sendError("connection_lost", "the connection broke"));
      } else if (under >= maxUnanswered) continue;
      else if (this.#limit && c.size > this.#limit) {
        c.fail(sendError("too_large", `${c.size} bytes; the node takes ${this.#limit}`));
      } else if (under++, !c.on) {
        c.on = k;
        c.at ??= now;
        k.write(c.text);
      }
    }
  }

  #answer(k, f) {
    const c = this.#calls.get(f.ref);
    if (!c) return;
    if (f.type === "error" && f.code === "rate_limited") {
      c.on = null;
      clearTimeout(this.#pause);
      this.#pause = setTimeout(() => {
        this.#pause = undefined;
        this.#write();
      }, hasteWait);
      return;
    }
    this.#calls.delete(f.ref);
    if (f.type === "ack") c.ok(f);
    else c.fail(sendError(f.code, f.detail));
    this.#leave(k);
  }

  #endSends(error) {
    this.#over ??= error ?? sendError("not_running", "the client has stopped");
    clearTimeout(this.#pause);
    this.#pause = undefined;
    for (const c of this.#calls.values()) c.fail(this.#over);
  }
}
