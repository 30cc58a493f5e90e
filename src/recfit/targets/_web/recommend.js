// Answers on this device what the bundle's engine answers: the same graph, the same rules. Nothing leaves the page.
import * as ort from "./ort/ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;

/** Loads the model and the catalogue beside this file. */
export async function open() {
  const found = (name) => new URL(name, import.meta.url).href;
  const answer = await fetch(found("catalogue.json"));
  if (!answer.ok) throw new Error(`catalogue.json: ${answer.status} ${answer.statusText}`);
  const session = await ort.InferenceSession.create(found("model.onnx"), { executionProviders: ["wasm"] });
  return new Recommender(await answer.json(), session);
}

class Recommender {
  #session;
  #rows;

  constructor(catalogue, session) {
    this.catalogue = catalogue;
    this.#session = session;
    this.#rows = new Map(catalogue.items.map((id, row) => [id, row]));
  }

  /** The `k` best items that are neither in `history` (ids, oldest first) nor in `exclude`, best first. */
  async recommend(history, k = 10, exclude = []) {
    if (!Number.isInteger(k) || k < 1) throw new RangeError(`k = ${k}; ask for at least 1 item`);
    const seen = this.#known(history);
    const gone = [...seen, ...this.#known(exclude)];
    return seen.length ? this.#scored(seen, gone, k) : this.#popular(gone, k);
  }

  /** Rows of the known ids; unknown ones carry no signal and are skipped. */
  #known(ids) {
    return ids.map((id) => this.#rows.get(id)).filter((row) => row !== undefined);
  }

  async #scored(seen, gone, k) {
    const { items, max_history } = this.catalogue;
    const tokens = seen.slice(-max_history).map((row) => row + 1);
    const inputs = {
      history: tensor(tokens, [1, tokens.length]),
      gone: tensor(gone.flatMap((row) => [0, row]), [gone.length, 2]),
      k: tensor([Math.min(k, items.length)], [1]),
    };
    const taken = Object.fromEntries(this.#session.inputNames.map((name) => [name, inputs[name]]));
    const found = await this.#session.run(taken);
    const [scores, rows] = this.#session.outputNames.map((name) => found[name].data);
    const alive = [...scores.keys()].filter((at) => scores[at] > -Infinity);
    return { items: alive.map((at) => this.#item(Number(rows[at]), scores[at])), source: "model" };
  }

  #popular(gone, k) {
    const out = new Set(gone);
    const rows = this.catalogue.fallback.filter((row) => !out.has(row)).slice(0, k);
    return { items: rows.map((row, at) => this.#item(row, -at)), source: "fallback" };
  }

  #item(row, score) {
    const { items, titles } = this.catalogue;
    return { id: items[row], title: titles?.[row] ?? items[row], score };
  }
}

const tensor = (values, shape) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), shape);
