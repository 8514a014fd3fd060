// What dialring.js does with frames that a real cluster rarely sends: run in the page
// by TestClient, with sockets of its own. It gives a list of what is wrong.
(async () => {
  const { Dialring } = await import("/dialring.js");
  const wrong = [], sockets = [], located = [], got = [];
  const same = (what, is, want) => {
    if (JSON.stringify(is) !== JSON.stringify(want)) wrong.push(what + " is " + JSON.stringify(is) + ", want " + JSON.stringify(want));
  };
  window.WebSocket = class {
    static OPEN = 1;
    readyState = 1;
    sent = [];
    constructor(url, protocols) {
      this.since = new URL(url).searchParams.get("since");
      this.protocols = protocols;
      sockets.push(this);
    }
    send(s) { this.sent.push(JSON.parse(s)); }
    close(code) { this.code = code; this.readyState = 2; }
    says(f) { this.onmessage({ data: JSON.stringify(f) }); }
    stored(seq) { this.says({ type: "message", id: "m" + seq, seq, cursor: "c" + seq, data: 1 }); }
    welcome() { this.says({ type: "welcome", ping_interval_ms: 1e6 }); }
  };
  window.fetch = async (_, req) => {
    located.push(JSON.parse(req.body));
    return { ok: true, json: async () => ({ url: "ws://n1/", node: "ws-1", ticket: "t1", dial_after_ms: 0, retry: { base_ms: 1, max_ms: 1 } }) };
  };
  const until = async cond => { while (!cond()) await new Promise(done => setTimeout(done)); };
  const chat = new Dialring({ device: "d", login: async () => ({ locator: "", token: "" }), onMessage: m => got.push(m.id), onState() {} });
  const ended = chat.run();

  await until(() => sockets.length === 1);
  const [first] = sockets;
  same("the first place", first.since, "0");
  first.welcome();
  first.stored(5);
  await until(() => first.sent.length === 1);
  first.stored(6);
  same("what is acknowledged", first.sent.map(f => f.cursor), ["c5", "c6"]);
  const answer = chat.send("hello", "bob");
  const send = first.sent[2];
  same("the send", [send.type, send.to, send.data], ["send", "bob", "hello"]);

  // Make before break.
  first.says({ type: "move", url: "ws://n2/", node: "ws-2", ticket: "t2", after_ms: 0 });
  await until(() => sockets.length === 2);
  const second = sockets[1];
  same("the ticket's way", second.protocols, ["dialring.v1", "dialring.ticket.t2"]);
  same("the place", second.since, "c6");
  same("the old connection, before the new one is there,", first.code, undefined);
  second.welcome();
  await until(() => first.code !== undefined);
  same("the old connection", first.code, 1000);
  same("what was not answered", second.sent[0], send);
  same("the acknowledgement", second.sent[1], { type: "ack", cursor: "c6" });
  first.stored(7);
  first.says({ type: "message", id: "e1", data: 1 });
  second.stored(7);
  second.says({ type: "message", id: "e1", data: 1 });
  second.stored(8);
  same("what came on both", got, ["m5", "m6", "m7", "e1", "m8"]);
  first.onclose({ code: 1000 });
  second.says({ type: "ack", ref: send.ref, seq: 1 });
  same("the answer", (await answer).seq, 1);

  // A hole.
  second.stored(10);
  second.stored(11);
  same("what is asked for", second.sent.filter(f => f.type === "resume"), [{ type: "resume", since: "c8" }]);
  for (const seq of [9, 10, 11]) second.stored(seq);
  second.says({ type: "resumed", since: "c11", head: 11, gap: false });
  second.says({ type: "skip", to: 13, reason: "expired" });
  second.stored(14);
  same("after a hole", got.slice(5), ["m9", "m10", "m11", "m14"]);

  // Without a close frame: the node may be dead.
  second.onclose({ code: 1006 });
  await until(() => sockets.length === 3);
  const third = sockets[2];
  same("the hint", located[1].failed, ["ws-2"]);
  same("the place after that", third.since, "c14");
  third.says({ type: "welcome", since: "x0", gap: true, ping_interval_ms: 1e6 });
  third.stored(1);
  same("another log", got.at(-1), "m1");
  const refused = chat.send("no").then(() => "accepted", e => e.message);
  await until(() => third.sent.some(f => f.type === "send"));
  const ref = third.sent.find(f => f.type === "send").ref;
  third.says({ type: "error", ref, code: "forbidden", detail: "not you" });
  same("a refusal", await refused, "not you");

  // The connection ends while the next one is dialed: that takes over, nobody is asked.
  third.says({ type: "move", url: "ws://n3/", node: "ws-3", ticket: "t3", after_ms: 0 });
  await until(() => sockets.length === 4);
  const fourth = sockets[3];
  third.onclose({ code: 4201 });
  await new Promise(done => setTimeout(done)); // it has every reason to locate now
  fourth.welcome();
  fourth.stored(2);
  await until(() => fourth.sent.length > 0);
  same("who takes over", [got.at(-1), located.length, sockets.length], ["m2", 2, 4]);

  // The server's last word.
  fourth.onclose({ code: 4002 });
  await ended;
  same("the connections", sockets.length, 4);
  return wrong;
})()
