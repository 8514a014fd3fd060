// What all parts of the page share: making elements, showing figures, asking the server.
// Text always goes in as text: what comes from users is never markup.

export const $ = (id) => document.getElementById(id);

// el makes an element: attributes, on… for listeners, and children, of which strings are
// text.
export function el(tag, attrs = {}, ...children) {
  return fill(document.createElement(tag), attrs, children);
}

export function svg(tag, attrs = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attrs, children);
}

function fill(e, attrs, children) {
  for (const [name, value] of Object.entries(attrs)) {
    if (name.startsWith("on")) e.addEventListener(name.slice(2), value);
    else if (value === true) e.setAttribute(name, "");
    else if (value !== false && value != null) e.setAttribute(name, value);
  }
  e.append(...children.filter((c) => c != null));
  return e;
}

// show sets a text, if it is another one: most figures of most nodes stay.
export function show(e, text) {
  if (e.shown === text) return;
  e.shown = text;
  e.textContent = text;
}

const whole = new Intl.NumberFormat("en");
const tenth = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

export const count = (n) => whole.format(n);
export const rate = (n) => (n < 10 ? tenth.format(n) : whole.format(Math.round(n)));
export const bytes = (n) => (n < 1024 ? `${n} B` : `${tenth.format(n / 1024)} KiB`);
export const many = (n, one, more = one + "s") => `${count(n)} ${n === 1 ? one : more}`;

export function percent(share) {
  const p = share * 100;
  return (p === 0 ? "0" : p < 0.01 ? "<0.01" : p < 1 ? p.toFixed(2) : p.toFixed(1)) + " %";
}

export function age(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function clock(time) {
  const d = new Date(time);
  const at = d.toLocaleTimeString("en-GB");
  return d.toDateString() === new Date().toDateString() ? at : `${d.toLocaleDateString("en-CA")} ${at}`;
}

// list shortens what may be long.
export function list(names, most = 6) {
  if (names.length <= most) return names.join(", ");
  return `${names.slice(0, most).join(", ")} and ${names.length - most} more`;
}

// tint colours an element as a node: by its id alone, so that it stays the same. Numbers
// that follow each other are far apart, by the golden angle.
export function tint(e, id) {
  const [, name, number] = /^(.*?)(\d{0,9})$/s.exec(id);
  let h = 0;
  for (const c of name) h = (h * 31 + c.codePointAt(0)) % 360;
  e.style.setProperty("--hue", ((h + Number(number) * 137.508) % 360).toFixed(0));
  return e;
}

// visible spells out what a text has that changes how others look, or does not look like
// anything: user ids may have all of it but control characters.
export const visible = (text) => text.replace(/[\p{Cf}\p{Zl}\p{Zp}\u115f\u1160\u3164\u034f]/gu, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);

// chip is a node's name with its colour.
export function chip(id) {
  return el("span", { class: "chip" }, tint(el("i", { class: "dot", "aria-hidden": "true" }), id), id);
}

export const user = (id) => `users/=${encodeURIComponent(id)}`;

// onLocked is called when the server asks for the key.
let onLocked = () => {};
export function whenLocked(f) { onLocked = f; }

// How long an answer may take: a push may wait for a node that is being replaced.
const patience = { GET: 10_000, POST: 30_000, DELETE: 30_000 };

// ask calls the server; what it refuses is thrown, in its own words.
export async function ask(method, path, body) {
  const init = { method, headers: {}, cache: "no-store", redirect: "error", signal: AbortSignal.timeout(patience[method]) };
  if (method !== "GET") {
    init.headers["Content-Type"] = "application/json";
    init.body = typeof body === "string" ? body : JSON.stringify(body ?? {});
  }
  let r, text;
  try {
    r = await fetch(path.startsWith("/") ? path : `/admin/v1/${path}`, init);
    text = await r.text();
  } catch {
    throw new Error("the locator does not answer");
  }
  let value = null;
  try {
    value = text ? JSON.parse(text) : null;
  } catch { /* not JSON: an error of something in between */ }
  if (r.ok) return value;
  if (r.status === 401 && path !== "/admin/login") onLocked();
  const e = new Error(value?.detail ?? `the answer is ${r.status} ${r.statusText}`);
  e.status = r.status;
  throw e;
}

// say tells who cannot see the page change.
export function say(text) { $("announce").textContent = text; }

// confirmed asks a question in a dialog, and gives true if the answer is yes.
export function confirmed(title, text, yes) {
  const dialog = $("confirm");
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = yes;
  return new Promise((done) => {
    const end = (answer) => { dialog.close(); done(answer); };
    $("confirm-yes").onclick = () => end(true);
    $("confirm-no").onclick = () => end(false);
    dialog.oncancel = () => done(false);
    dialog.showModal();
    $("confirm-no").focus();
  });
}
