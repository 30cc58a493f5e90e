import { open } from "./recommend.js";

const STORE = "recfit-history";
const element = (id) => document.getElementById(id);
const history = JSON.parse(localStorage.getItem(STORE) ?? "[]");
let recommender;
let titles;

async function show() {
  localStorage.setItem(STORE, JSON.stringify(history));
  list("history", history.map((id) => titles.get(id) ?? id));
  const begin = performance.now();
  const { items, source } = await recommender.recommend(history, 10);
  const spent = performance.now() - begin;
  list("answer", items.map((item) => item.title));
  element("source").textContent = source === "model" ? "For this history" : "Popular, as nothing is known yet";
  element("latency").textContent = `${spent.toFixed(2)} ms`;
}

function list(id, texts) {
  const lines = texts.map((text) => Object.assign(document.createElement("li"), { textContent: text }));
  element(id).replaceChildren(...lines);
}

function add(event) {
  event.preventDefault();
  const text = element("item").value.trim();
  const id = [...titles].find(([id, title]) => title === text || id === text)?.[0];
  element("item").setCustomValidity(id === undefined ? "No such item" : "");
  if (!element("add").reportValidity()) return;
  history.push(id);
  element("item").value = "";
  show();
}

function forget() {
  history.length = 0;
  show();
}

async function start() {
  const begin = performance.now();
  recommender = await open();
  const { items, titles: names } = recommender.catalogue;
  titles = new Map(items.map((id, row) => [id, names?.[row] ?? id]));
  element("titles").replaceChildren(...[...titles.values()].map((title) => new Option(title)));
  element("add").addEventListener("submit", add);
  element("item").addEventListener("input", () => element("item").setCustomValidity(""));
  element("forget").addEventListener("click", forget);
  await show();
  await show(); // the first answer also warms up
  element("state").textContent = `${items.length} items, loaded in ${((performance.now() - begin) / 1000).toFixed(1)} s`;
  element("add").hidden = false;
}

start().catch((error) => {
  element("state").textContent = `This page could not start: ${error.message}`;
});
