// Looking a user up, pushing a test message, ending sessions.
import { $, el, ask, user as at, chip, count, many, bytes, age, clock, confirmed, say, visible } from "./dom.js";

const kinds = {
  connected: "connected",
  arrived: "arrived by a move",
  told: "told to move",
  moved: "left by a move",
  left: "left",
  lost: "connection lost",
  closed: "closed",
  kicked: "kicked",
  slow: "closed: too slow",
};

function what(e) {
  let text = kinds[e.kind] ?? e.kind;
  if (e.to) text += ` to ${e.to}`;
  if (e.reason && e.reason !== text) text += ` (${e.reason})`;
  if (e.code) text += `, code ${e.code}`;
  return text;
}

export class User {
  constructor() {
    this.out = $("user-result");
    $("user").addEventListener("submit", (e) => {
      e.preventDefault();
      this.look($("user-id").value);
    });
    $("push").addEventListener("submit", (e) => {
      e.preventDefault();
      this.push();
    });
    $("push-data").addEventListener("input", () => this.check());
    $("user-again").addEventListener("click", () => this.look(this.id));
    $("kick-all").addEventListener("click", (e) => this.kick(e.currentTarget, `all sessions of ${visible(this.id)}`, ""));
    setInterval(() => this.ages(), 1000);
  }

  async look(id) {
    this.id = id;
    let u;
    try {
      u = await ask("GET", at(id));
    } catch (e) {
      if (this.id !== id) return;
      $("user-found").hidden = true;
      this.failed(e instanceof URIError ? "that is no valid text" : e.message);
      return;
    }
    if (this.id !== id) return; // another one was asked for meanwhile
    this.shown(u);
  }

  failed(text) { $("user-wrong").replaceChildren(el("p", { class: "wrong", role: "alert" }, text)); }

  shown(u) {
    $("user-wrong").replaceChildren();
    if (this.last !== u.user) $("push-result").replaceChildren(); // what was pushed to another one
    this.last = u.user;
    this.skew = new Date(u.now) - Date.now();
    $("user-name").textContent = visible(u.user);
    $("user-name").dataset.user = u.user;
    $("user-facts").replaceChildren(...[
      ["Owner", chip(u.node)],
      ["Next owner", u.next_owner ? chip(u.next_owner) : "none"],
      ["Online", u.online ? many(u.sessions.length, "session") : "no"],
      ["Newest stored message", u.head_unknown ? "not known: the store is away" : u.head ? `seq ${count(u.head)}` : "none"],
    ].flatMap(([t, d]) => [el("dt", {}, t), el("dd", {}, d)]));
    this.times = [];
    $("sessions").hidden = u.sessions.length === 0;
    $("kick-all").hidden = u.sessions.length === 0;
    $("sessions-body").replaceChildren(...u.sessions.map((s) => {
      const since = el("td", { class: "num", "data-label": "Age", title: s.connected_at });
      this.times.push([since, new Date(s.connected_at)]);
      return el("tr", {}, el("th", { scope: "row" }, s.device, el("div", { class: "remote" }, s.remote_addr)), el("td", {}, chip(s.node)), since,
        el("td", { class: "num", "data-label": "Queued" }, bytes(s.queued_bytes)), el("td", { class: "num", "data-label": "Acknowledged" }, `${count(s.acked_seq)} of ${count(u.head)}`),
        el("td", { class: "act" }, el("button", { type: "button", class: "small", "aria-label": `Kick ${s.device}`, onclick: (e) => this.kick(e.currentTarget, `the session of ${s.device}`, s.id) }, "Kick")));
    }));
    this.ages();
    const events = u.events.toReversed();
    $("user-events").replaceChildren(...events.map((e) => el("li", {}, el("time", { datetime: e.time, title: e.time }, clock(e.time)), chip(e.node),
      el("span", { class: "what" }, `${e.device} ${what(e)}`), el("span", { class: "remote" }, e.remote_addr))));
    $("no-events").hidden = events.length > 0 && !u.events_forgotten;
    $("no-events").textContent = u.events_forgotten ? "Older ones are not kept." : "There were none since the nodes started.";
    $("user-silent").textContent = u.silent.length > 0 ? `Not said by: ${u.silent.join(", ")}` : "";
    $("user-found").hidden = false;
    say(`${visible(u.user)} is owned by ${u.node}, ${many(u.sessions.length, "session")}`);
  }

  ages() {
    for (const [cell, since] of this.times ?? []) cell.textContent = age(Date.now() + this.skew - since);
  }

  // check tells whether what is to be pushed is JSON.
  check() {
    const field = $("push-data");
    let wrong = "";
    try {
      JSON.parse(field.value);
    } catch (e) {
      wrong = `not JSON: ${e.message}`;
    }
    field.setAttribute("aria-invalid", String(wrong !== ""));
    $("push-wrong").textContent = wrong;
    return wrong === "";
  }

  async push() {
    if (!this.check()) return;
    const stored = $("push-stored").checked;
    const out = $("push-result");
    try {
      const r = await ask("POST", `${at(this.id)}/push?durable=${stored}`, $("push-data").value);
      out.replaceChildren(el("p", {}, `${r.node} ${r.stored ? `stored it as seq ${count(r.seq)} and ` : ""}wrote it to ${many(r.delivered, "session")}.`));
      say(out.textContent);
    } catch (e) {
      out.replaceChildren(el("p", { class: "wrong", role: "alert" }, e.message));
    }
  }

  async kick(button, name, session) {
    const id = this.id;
    if (!await confirmed("Kick?", `This ends ${name}. Its client is told to stop (4002) and does not come back by itself.`, "Kick")) return;
    try {
      const r = await ask("DELETE", `${at(id)}/sessions${session ? `?session=${encodeURIComponent(session)}` : ""}`);
      say(`${many(r.closed, "session")} ended`);
    } catch (e) {
      this.failed(e.message);
      return;
    }
    if (this.id !== id) return;
    await this.look(id);
    if (!button.isConnected || button.hidden) $("user-again").focus(); // its row has gone
  }
}
