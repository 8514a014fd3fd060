// A dialring client in Node on the package ws (npm install ws), to copy from.
//
//   node npm_ws.js LOCATOR TOKEN DEVICE [subprotocol]
//
// Each line of stdin is sent as a frame, and its end leaves. Each line of stdout is a frame that came, or tells that a connection was closed. The rules are in
// client/WRITING_A_CLIENT.md. Left out: several locators, new tokens, sends that are repeated; and when the dial of a move fails, this one stays where it is
// until the node closes that connection, and only then locates again.
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import WebSocket from "ws";

const [locator, token, device, subprotocol] = process.argv.slice(2);

// handle is what the application does. When it returns, a stored message counts as handled.
const handle = frame => console.log(JSON.stringify(frame));

let seq, cursor; // of the newest stored message that was taken
const ids = []; // of ephemeral messages, which two connections may bring
let newest; // connection
let node;
let resuming = false;
let afterGap; // what older connections than this one bring may be of another log
let welcomed; // when this chain of connections, which moves make, began
let left = false;

// connection dials what a locate or a move named, and reads until there is no connection any more. It promises the last close code, or how the dial was answered.
async function connection(to, old) {
  await sleep(to.after_ms ?? 0);
  const url = new URL(to.url), since = cursor;
  if (since) url.searchParams.set("since", since);
  if (!old) node = to.node;
  const ws = subprotocol // the way of clients that cannot set headers
    ? new WebSocket(url, ["dialring.v1", "dialring.ticket." + to.ticket])
    : new WebSocket(url, ["dialring.v1"], { headers: { Authorization: "Bearer " + to.ticket } });
  const send = f => ws.readyState === WebSocket.OPEN && ws.send(JSON.stringify(f));
  let following, silence, pings, interval = 5000; // until the welcome
  const heard = () => {
    clearTimeout(silence);
    silence = setTimeout(() => ws.terminate(), interval + 5000);
  };
  heard();
  ws.on("ping", heard); // the package answers it
  ws.on("pong", heard);
  ws.on("message", text => {
    heard();
    const f = JSON.parse(text);
    switch (f.type) {
      case "welcome":
        newest = ws; node = to.node; resuming = false; welcomed ??= Date.now();
        interval = f.ping_interval_ms;
        pings = setInterval(() => ws.ping(), interval); // finds a network that is dead on the way there
        afterGap = f.gap ? ws : undefined;
        if (f.gap) seq = undefined;
        if (!since) send({ type: "ack", cursor: f.since }); // so that a new device that dies with its first message gets it again
        cursor ??= f.since;
        handle(f);
        if (old?.readyState === WebSocket.OPEN) { // it may be closed when its pong says that nothing was under way
          old.send('{"type":"ping","ref":"leaving"}');
          setTimeout(() => old.close(1000), 2000).unref();
        }
        break;
      case "message":
        if (f.seq === undefined) {
          if (ids.includes(f.id)) return;
          if (ids.push(f.id) > 500) ids.shift();
        } else if (seq !== undefined && f.seq <= seq || afterGap && afterGap !== ws) {
          return;
        } else if (seq !== undefined && f.seq > seq + 1) { // one is missing
          if (!resuming) send({ type: "resume", since: cursor });
          resuming = true;
          return;
        } else {
          seq = f.seq; cursor = f.cursor;
        }
        handle(f);
        if (f.cursor) send({ type: "ack", cursor: f.cursor });
        break;
      case "skip":
        if (seq !== undefined) seq = Math.max(seq, f.to);
        break;
      case "resumed":
        resuming = false;
        if (f.gap) seq = undefined;
        break;
      case "move": // a newer one replaces it
        following = connection(f, ws);
        break;
      case "pong":
        if (f.ref === "leaving") ws.close(1000);
        else handle(f);
        break;
      default: // ack, error, and what is not known yet
        handle(f);
    }
  });
  const end = await new Promise(ok => {
    ws.on("error", () => {}); // close comes, too
    ws.on("unexpected-response", (_, response) => { ok({ status: response.statusCode, retryAfter: response.headers["retry-after"] }); ws.terminate(); });
    ws.on("close", code => ok({ code })); // 1006: without a close frame
  });
  clearTimeout(silence); clearInterval(pings);
  handle({ type: "closed", node: to.node, ...end });
  return following ?? end;
}

async function run() {
  let failed = [], retry = { base_ms: 500, max_ms: 30000 };
  for (let attempt = 0; !left; attempt++) {
    let end = {};
    welcomed = undefined;
    const r = await fetch(locator + "/v1/locate", {
      method: "POST", body: JSON.stringify({ device, failed }), signal: AbortSignal.timeout(10000),
      headers: { Authorization: "Bearer " + token, "Content-Type": "application/json" },
    }).catch(() => undefined);
    if (r?.status >= 400 && r.status < 500 && r.status !== 408 && r.status !== 429) throw new Error(`locate: ${r.status} ${await r.text()}`);
    if (r?.ok) {
      const found = await r.json();
      ({ retry } = found); failed = [];
      await sleep(found.dial_after_ms);
      end = await connection(found);
      if (end.code === 1006) failed = [node];
      if (end.status === 400) seq = cursor = undefined; // the cursor may be what is wrong
    }
    if (left || end.code >= 4000 && end.code < 4100) return end.code;
    if (welcomed && Date.now() - welcomed >= 10000) attempt = 0;
    let wait = Math.random() * Math.min(retry.max_ms, retry.base_ms * 2 ** attempt);
    if (attempt === 0 && end.code >= 4200 && end.code < 4300) wait = Math.random() * 100;
    await sleep(Math.max(wait, 1000 * Number(end.retryAfter ?? r?.headers.get("Retry-After") ?? 0)));
  }
  return 1000;
}

createInterface({ input: process.stdin })
  .on("line", line => newest.send(line))
  .on("close", () => { left = true; newest?.close(1000); }); // the session has left
run().then(code => process.exit(code === 1000 ? 0 : 1), e => { console.error(e); process.exit(1); });
