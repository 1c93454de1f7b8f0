// Suggests models while the beginning of their URI is typed.

import { listModels, pause } from "./api.js";
import { freshId, h } from "./dom.js";

const QUIET_MILLISECONDS = 250;

/** Let an input of a model's URI suggest the models that the key's jobs may name, until `signal` aborts. */
export function suggestModels(input, signal) {
  const list = h("datalist", { id: freshId("models") });
  input.setAttribute("list", list.id);
  input.after(list);
  let asking = new AbortController();
  signal.addEventListener("abort", () => asking.abort());
  input.addEventListener("focus", ask, { once: true });
  input.addEventListener("input", ask);

  async function ask() {
    asking.abort();
    asking = new AbortController();
    const mine = asking.signal;
    await pause(QUIET_MILLISECONDS, mine);
    // Suggestions are a help only: if there are none, the form says what is wrong with the model.
    const found = mine.aborted ? null : await listModels(input.value.trim(), mine).catch(() => null);
    if (found && !mine.aborted) list.replaceChildren(...found.data.map((uri) => h("option", { value: uri })));
  }
}
