// What a program in TypeScript may write, and what it may not.
import { APIError, Client, CloseError, SendError, StoppedError, type ClientOptions, type Event, type Message, type Receipt, type State } from "@dialring/client";

const options: ClientOptions = {
  locators: ["https://push.example.com"],
  token: async signal => (await fetch("/token", { signal })).text(),
  device: "web-1",
  since: undefined,
  async onMessage(m: Message, signal) {
    const seq: number | undefined = m.seq;
    if (!signal.aborted && m.time.getTime() > 0) console.log(m.id, seq, m.data.anything, m.json, m.from?.length);
  },
  onEvent(e: Event) {
    const state: State = e.state;
    if (e.error instanceof CloseError) console.log(state, e.error.code, e.error.reason);
    if (e.error instanceof APIError) console.log(e.error.status, e.error.code, e.error.detail, e.error.retryAfter);
  },
};
const c = new Client(options);
new Client({ locators: "http://127.0.0.1:8080", user: "alice", sendTo: ["bob"], onMessage() {} });
try {
  const done: Promise<void> = c.run({ signal: AbortSignal.timeout(1000) });
  const r: Receipt = await c.send("bob", { text: "hi" }, { ephemeral: true, timeout: 1000, signal: new AbortController().signal });
  const answer: { price: number } = await c.request({ price_of: "tea" }, { timeout: 5000 });
  console.log(r.id, r.seq, r.stored, r.delivered, r.duplicate, answer.price, c.device, c.state === "connected");
  c.stop();
  await done;
} catch (e) {
  if (e instanceof StoppedError) console.log(e.code, e.status, e.reason, e.cause);
  if (e instanceof SendError) console.log(e.code, e.detail);
}
// @ts-expect-error: onMessage is required
new Client({ locators: "https://x", user: "a" });
// @ts-expect-error: nobody is to connect
new Client({ locators: "https://x", onMessage() {} });
// @ts-expect-error: one of the two
new Client({ locators: "https://x", token: () => "t", user: "a", onMessage() {} });
// @ts-expect-error: the token says that
new Client({ locators: "https://x", token: () => "t", sendTo: ["bob"], onMessage() {} });
// @ts-expect-error: it is read only
c.state = "stopped";
// @ts-expect-error: there is no such state
c.state === "idle";
// @ts-expect-error: a request names nobody
c.request("bob", { text: "hi" }, {});
// @ts-expect-error: they are made by the SDK
new SendError("code", "detail");
