import { Client } from "./dialring.js";

const $ = id => document.getElementById(id);

// Whatever others wrote gets into the page as text, and in no other way.
function add(kind, who, text) {
  const li = document.createElement("li"), b = document.createElement("b"), span = document.createElement("span");
  li.className = kind;
  b.textContent = who;
  span.textContent = text;
  li.append(b, span);
  $("lines").prepend(li);
}

const people = new Set();
function met(name) {
  if (people.has(name)) return;
  people.add(name);
  const o = document.createElement("option");
  o.value = name;
  $("people").append(o);
}

const post = (path, fields) => fetch(path, { method: "POST", body: new URLSearchParams(fields) });

async function login(name) {
  const res = await post("login", { name });
  if (!res.ok) throw new Error(await res.text());
  return res.json();
}

// start runs the client; it ends when the server says not to come back.
async function start(name, { locator, token }) {
  $("login").hidden = true;
  $("chat").hidden = false;
  let node = "";
  const chat = new Client({
    locators: locator,
    device: sessionStorage.device ||= "page-" + crypto.randomUUID(), // this tab's
    since: "0", // the page begins empty: all that is kept
    async token() {
      const first = token;
      token = null;
      return first ?? (await login(name)).token; // the next one, when this is too old
    },
    onMessage(m) {
      const text = typeof m.data?.text === "string" ? m.data.text : JSON.stringify(m.data);
      if (m.from !== undefined) { // from a user; the node says so. Whatever the data says of its sender does not count.
        met(m.from);
        add("alone", m.from + " to you:", text);
      } else {
        met(m.data.from);
        add("room", m.data.from + ":", text);
      }
    },
    onEvent(e) {
      if (e.state === "connected") {
        $("state").textContent = name + " is on " + e.node;
        $("drain").textContent = "Drain " + e.node;
        if (node && node !== e.node) add("event", "", "you moved from " + node + " to " + e.node);
        node = e.node;
      } else if (e.state !== "moving") {
        $("state").textContent = e.error ? "Not connected: " + e.error.message : "Connecting …";
      }
      $("drain").hidden = e.state !== "connected" && e.state !== "moving";
    },
  });
  $("say").onsubmit = async e => {
    e.preventDefault();
    const to = $("to").value.trim(), text = $("text").value;
    $("text").value = "";
    try {
      if (to) await chat.send(to, { text });
      else await chat.request({ text });
      if (to) { met(to); add("alone", "you to " + to + ":", text); } // from the room it comes back
    } catch (err) {
      add("event", "", "not sent: " + text + " (" + err.message + ")");
    }
  };
  $("drain").onclick = async () => { $("note").textContent = await (await post("drain", { node })).text(); };
  try {
    await chat.run();
  } catch (err) {
    $("state").textContent = err.message;
  }
}

$("login").onsubmit = async e => {
  e.preventDefault();
  const name = $("name").value.trim();
  try {
    const first = await login(name); // says what is wrong with a name
    $("note").textContent = "";
    start(name, first);
  } catch (err) {
    $("note").textContent = err.message;
  }
};

const given = new URLSearchParams(location.search).get("name");
if (given) {
  $("name").value = given;
  $("login").requestSubmit();
}
