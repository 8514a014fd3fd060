// A dialring client on the WebSocket that browsers have, and Node from 22 on (20 with --experimental-websocket), to copy from. No package, no SDK.
//
//   node standard.js LOCATOR TOKEN DEVICE
//
// In Node each line of stdin is sent as a frame, and its end leaves; each line of stdout is a frame that came, or tells that a connection was closed. In a page,
// import connect. The rules are in client/WRITING_A_CLIENT.md. Left out: several locators, new tokens, sends that are repeated; and when the dial of a move fails, this
// one stays where it is until the node closes that connection, and only then locates again.

// connect keeps a device connected; handle gets what comes, and when it returns a stored message counts as handled. It returns how to send a frame, how to leave,
// and a promise of the code with which it ended for good.
export function connect(locator, token, device, handle) {
  let seq, cursor; // of the newest stored message that was taken
  const ids = []; // of ephemeral messages, which two connections may bring
  let ws; // the newest connection
  let node;
  let resuming = false;
  let afterGap; // what older connections than this one bring may be of another log
  let welcomed; // when this chain of connections, which moves make, began
  let left = false;
  const sleep = ms => new Promise(ok => setTimeout(ok, ms));

  // connection dials what a locate or a move named, and reads until there is no connection any more; it promises the last close code.
  function connection(to, old) {
    const url = new URL(to.url);
    if (cursor) url.searchParams.set("since", cursor);
    const dialedAnew = !cursor;
    if (!old) node = to.node;
    const c = new WebSocket(url, ["dialring.v1", "dialring.ticket." + to.ticket]); // it cannot set headers
    const send = f => c.readyState === 1 && c.send(JSON.stringify(f));
    let following, silence, pings;
    let interval = 5000; // until the welcome
    const heard = () => { // a close of a dead network takes long: see it as ended at once
      clearTimeout(silence);
      silence = setTimeout(() => { c.close(); ended(1006); }, interval + 5000);
    };
    let ended;
    const end = new Promise(ok => { ended = ok; });
    heard();
    c.onmessage = e => {
      heard();
      const f = JSON.parse(e.data);
      switch (f.type) {
        case "welcome":
          ws = c; node = to.node; resuming = false; welcomed ??= Date.now();
          interval = f.ping_interval_ms;
          pings = setInterval(() => send({ type: "ping", ref: "alive" }), interval); // pings of the protocol are not seen here
          afterGap = f.gap ? c : undefined;
          if (f.gap) seq = undefined;
          if (dialedAnew) send({ type: "ack", cursor: f.since }); // so that a new device that dies with its first message gets it again
          cursor ??= f.since;
          handle(f);
          old?.leave();
          break;
        case "message":
          if (f.seq === undefined) {
            if (ids.includes(f.id)) return;
            if (ids.push(f.id) > 500) ids.shift();
          } else if (seq !== undefined && f.seq <= seq || afterGap && afterGap !== c) {
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
        case "move":
          clearTimeout(following?.timer);
          following = {};
          following.end = new Promise(ok => {
            following.timer = setTimeout(() => ok(connection(f, {
              leave() { send({ type: "ping", ref: "leaving" }); setTimeout(() => c.close(1000), 2000); },
            })), f.after_ms);
          });
          break;
        case "pong":
          if (f.ref === "leaving") c.close(1000); // nothing was under way any more
          if (f.ref !== "leaving" && f.ref !== "alive") handle(f);
          break;
        default: // ack, error, and what is not known yet
          handle(f);
      }
    };
    c.onerror = () => {}; // close comes, too
    c.onclose = e => ended(e.code);
    return end.then(code => {
      clearTimeout(silence); clearInterval(pings);
      handle({ type: "closed", node: to.node, code });
      return following ? following.end : code;
    });
  }

  async function run() {
    let failed = [], retry = { base_ms: 500, max_ms: 30000 };
    for (let attempt = 0; !left; attempt++) {
      let code, atLeast = 0;
      welcomed = undefined;
      try {
        const r = await fetch(locator + "/v1/locate", {
          method: "POST", body: JSON.stringify({ device, failed }), signal: AbortSignal.timeout(10000),
          headers: { "Authorization": "Bearer " + token, "Content-Type": "application/json" },
        });
        atLeast = 1000 * Number(r.headers.get("Retry-After"));
        if (r.status >= 400 && r.status < 500 && r.status !== 408 && r.status !== 429) throw new Refused(`locate: ${r.status} ${await r.text()}`);
        if (r.ok) {
          const found = await r.json();
          ({ retry } = found); failed = [];
          await sleep(found.dial_after_ms);
          code = await connection(found); // an answer such as 503 to the dial does not show: 1006, too
          if (code === 1006) failed = [node];
        }
      } catch (e) {
        if (e instanceof Refused) throw e;
      }
      if (left || code >= 4000 && code < 4100) return code;
      if (welcomed && Date.now() - welcomed >= 10000) attempt = 0;
      let wait = Math.random() * Math.min(retry.max_ms, retry.base_ms * 2 ** attempt);
      if (attempt === 0 && code >= 4200 && code < 4300) wait = Math.random() * 100;
      await sleep(Math.max(wait, atLeast));
    }
    return 1000;
  }

  return {
    ended: run(),
    send(frame) { ws.send(frame); },
    leave() { left = true; ws?.close(1000); }, // the session has left
  };
}

class Refused extends Error {}

if (globalThis.process?.argv[1]?.endsWith("standard.js")) {
  const { createInterface } = await import("node:readline");
  const [locator, token, device] = process.argv.slice(2);
  const client = connect(locator, token, device, f => console.log(JSON.stringify(f)));
  createInterface({ input: process.stdin }).on("line", client.send).on("close", client.leave);
  client.ended.then(code => process.exit(code === 1000 ? 0 : 1), e => { console.error(e); process.exit(1); });
}
