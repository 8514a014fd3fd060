// The page: its parts, and what is live.
import { $, ask, svg, show, count, rate, clock, many, say, whenLocked } from "./dom.js";
import { Board } from "./live.js";
import { Ring } from "./ring.js";
import { Nodes } from "./nodes.js";
import { Handoffs, Timeline } from "./changes.js";
import { Plan, Drain } from "./plan.js";
import { User } from "./user.js";

const board = new Board({ changed, status });
const hot = (id) => {
  ring.heat(id);
  nodes.heat(id);
  const n = id === null ? null : board.nodes.get(id);
  show($("node-url"), n?.url ?? "");
};
const drain = new Drain(board, (id) => nodes.rows.get(id)?.tr);
const ring = new Ring(board, hot);
const nodes = new Nodes(board, { onHot: hot, onDrain: (id) => drain.open(id) });
const handoffs = new Handoffs(board);
const timeline = new Timeline(board);
new User();
new Plan((moves) => {
  ring.plan = moves;
  ring.layout();
});

function changed(parts, facts, update, all) {
  if (parts.has("nodes") || facts.size > 0) {
    nodes.sync();
    ring.layout();
  } else if (parts.has("figures")) {
    for (const n of update.nodes) nodes.update(n.id);
  }
  if (parts.has("ring")) ring.circle();
  if (parts.has("handoffs")) handoffs.update();
  if (parts.has("handoffs") || parts.has("ring")) ring.drawFlows();
  if (parts.has("timeline") || all) timeline.update(all);
  ring.figures();
  drain.update();
  header();
}

function header() {
  let sessions = 0, pushes = 0, odd = 0;
  for (const n of board.nodes.values()) {
    sessions += n.sessions;
    pushes += n.pushes_per_second;
    if (n.state !== "active") odd++;
  }
  show($("cluster"), board.cluster);
  show($("sum-nodes"), count(board.nodes.size) + (odd > 0 ? ` (${count(odd)} not active)` : ""));
  show($("sum-sessions"), count(sessions));
  show($("sum-pushes"), rate(pushes));
  show($("epoch"), String(board.ring.epoch));
  show($("hash"), board.ring.hash);
  show($("nats"), board.natsUp ? "up" : "away");
  $("nats").classList.toggle("bad", !board.natsUp);
  const behind = board.locators.filter((l) => Math.abs(l.epoch - board.ring.epoch) > 1 || l.suspects > 0); // one epoch: it is about to come
  show($("locators"), `${board.locator} (this one)${board.locators.length > 0 ? `, ${board.locators.map((l) => l.id).join(", ")}` : ""}`);
  show($("locators-odd"), behind.map((l) => `${l.id}: epoch ${l.epoch}${l.suspects > 0 ? `, suspects ${many(l.suspects, "node")}` : ""}`).join("; "));
  pushesNow = pushes;
}

// The last two minutes of pushes, a point a second.
let pushesNow = 0;
const past = [];
const line = svg("polyline");
$("spark").append(line);
setInterval(() => {
  if (!board.live) return;
  past.push(pushesNow);
  if (past.length > 120) past.shift();
  const top = Math.max(1, ...past);
  line.setAttribute("points", past.map((v, i) => `${120 - past.length + i},${(23 - 21 * v / top).toFixed(1)}`).join(" "));
}, 1000);

function status() {
  const e = $("live");
  e.classList.toggle("bad", !board.live);
  document.body.classList.toggle("stale", !board.live);
  if (board.live) e.textContent = "live";
  else if (board.paused) e.textContent = "paused while the page is hidden";
  else e.textContent = (board.heard ? `not live since ${clock(board.heard)}` : "connecting") + (board.full ? ": too many pages look at this locator" : "");
}

// The key.
whenLocked(() => {
  board.stop();
  $("page").hidden = $("logout").hidden = true;
  $("login").hidden = false;
  $("login-key").focus();
});

$("login").addEventListener("submit", async (e) => {
  e.preventDefault();
  $("login-wrong").textContent = "";
  try {
    await ask("POST", "/admin/login", { key: $("login-key").value });
    $("login-key").value = "";
    begin();
  } catch (e) {
    $("login-wrong").textContent = e.message;
    $("login-key").select();
  }
});

$("logout").addEventListener("click", async () => {
  await ask("POST", "/admin/logout").catch((e) => say(e.message));
  location.reload();
});

async function begin() {
  let me = null;
  try {
    me = await ask("GET", "me");
  } catch (e) {
    if (e.status === 401) return; // whenLocked asks for the key
  }
  $("login").hidden = true;
  $("logout").hidden = me?.who !== "session";
  $("page").hidden = false;
  board.connect();
}

begin();
