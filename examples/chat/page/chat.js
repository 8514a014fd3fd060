import { Dialring } from "./dialring.js";

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

function start(name) {
  $("login").hidden = true;
  $("chat").hidden = false;
  let node = "";
  const chat = new Dialring({
    device: sessionStorage.device ||= "page-" + crypto.randomUUID(), // this tab's
    login: () => login(name),
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
    onState(s) {
      $("state").textContent = s.node ? name + " is on " + s.node : s.code ? "The server ended the session for good: " + s.code : "Not connected: " + s.why;
      $("drain").hidden = !s.node;
      $("drain").textContent = "Drain " + s.node;
      if (s.node && node && node !== s.node) add("event", "", "you moved from " + node + " to " + s.node);
      if (s.node) node = s.node;
    },
  });
  $("say").onsubmit = async e => {
    e.preventDefault();
    const to = $("to").value.trim(), text = $("text").value;
    $("text").value = "";
    try {
      await chat.send({ text }, to);
      if (to) { met(to); add("alone", "you to " + to + ":", text); } // from the room it comes back
    } catch (err) {
      add("event", "", "not sent: " + text + " (" + err.message + ")");
    }
  };
  $("drain").onclick = async () => { $("note").textContent = await (await post("drain", { node })).text(); };
  chat.run();
}

$("login").onsubmit = async e => {
  e.preventDefault();
  const name = $("name").value.trim();
  try {
    await login(name); // says what is wrong with a name
    $("note").textContent = "";
    start(name);
  } catch (err) {
    $("note").textContent = err.message;
  }
};

const given = new URLSearchParams(location.search).get("name");
if (given) {
  $("name").value = given;
  $("login").requestSubmit();
}
