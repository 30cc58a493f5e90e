"use strict";
const at = (id) => document.getElementById(id);
const EVERY_MS = 2000;
let key = "";
let prompted = false;

const askKey = () => prompt("This server asks for a key") || "";

/** The JSON of an answer; throws its message where the server says no. A key is asked for once; then there is a button. */
async function ask(path, options = {}) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const answer = await fetch(path, { ...options, headers });
  const body = await answer.json();
  at("key").hidden = answer.status !== 401;
  if (answer.status === 401) {
    key = prompted ? "" : askKey();
    prompted = true;
    if (key) return ask(path, options);
  }
  if (!answer.ok) throw new Error(body.error.message);
  return body;
}

const ms = (value) => (value === null ? "–" : `${value.toFixed(value < 10 ? 2 : 0)} ms`);
const share = (value) => (value === null ? "–" : `${Math.round(100 * value)} %`);

function row(...cells) {
  const line = document.createElement("tr");
  for (const [text, kind] of cells) {
    const cell = document.createElement("td");
    cell.textContent = text;
    if (kind) cell.className = kind;
    line.append(cell);
  }
  return line;
}

function show(status) {
  at("rate").textContent = status.requests_per_second.toFixed(status.requests_per_second < 10 ? 1 : 0);
  at("p50").textContent = ms(status.p50_ms);
  at("p99").textContent = ms(status.p99_ms);
  at("hits").textContent = share(status.hit_share);
  const lines = status.models.flatMap((model) =>
    model.rungs.length
      ? model.rungs.map((rung, number) =>
          row([number ? "" : model.name], [rung.bundle], [rung.name], [rung.quality === null ? "–" : rung.quality.toFixed(4), "number"],
            [ms(rung.p99_ms), "number"], [rung.answered.toLocaleString("en"), "number"]))
      : [row([model.name], ["not loaded"], [""], ["", "number"], ["", "number"], ["", "number"])]);
  at("bundles").replaceChildren(...lines);
  const ladders = status.models.filter((model) => model.rungs.length > 1).map((model) =>
    `${model.name}: ladder at ${model.level.toFixed(2)}, expected NDCG@10 ${model.expected_quality === null ? "unknown" : model.expected_quality.toFixed(4)}.`);
  at("quality").textContent = ladders.join(" ");
  const running = status.experiments.map((text) => {
    const item = document.createElement("li");
    item.textContent = text;
    return item;
  });
  at("experiments").replaceChildren(...running);
  if (!running.length) at("experiments").textContent = "none";
  const names = status.models.map((model) => model.name);
  if (at("model").options.length !== names.length) at("model").replaceChildren(...names.map((name) => new Option(name, name)));
}

async function look() {
  try {
    show(await ask("v1/status"));
    at("state").textContent = "live";
    at("state").className = "good";
  } catch (error) {
    at("state").textContent = `no answer: ${error.message}`;
    at("state").className = "bad";
  }
}

async function watch() {
  await look();
  setTimeout(watch, document.hidden ? 10 * EVERY_MS : EVERY_MS);
}

at("key").addEventListener("click", () => {
  key = askKey();
  look();
});

at("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const history = at("history").value.trim();
  const body = { k: Number(at("k").value), model: at("model").value || null, explain: true };
  if (at("user").value) body.user_id = at("user").value;
  if (history || !at("user").value) body.history = history ? history.split(/\s+/) : [];
  at("told").className = "";
  try {
    const found = await ask("v1/recommend", { method: "POST", body: JSON.stringify(body) });
    const times = Object.entries(found.timings_ms).map(([stage, took]) => `${stage} ${took.toFixed(2)} ms`).join(", ");
    at("told").textContent = `From the ${found.source} of bundle ${found.bundle}. ${times}.`;
    at("items").querySelector("tbody").replaceChildren(...found.items.map((item, number) =>
      row([number + 1], [item.item_id], [item.title ?? ""], [item.score.toFixed(4), "number"])));
    at("items").classList.toggle("untitled", found.items.every((item) => !item.title));
    at("items").hidden = !found.items.length;
  } catch (error) {
    at("told").textContent = error.message;
    at("told").className = "bad";
    at("items").hidden = true;
  }
});

watch();
