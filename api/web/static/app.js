// Shows the view that the address names after `#`. Asks for the API key first.

import { showCompare } from "./compare.js";
import { showGate } from "./gate.js";
import { showJob } from "./job.js";
import { showList } from "./list.js";
import { askForKey, forgetKey, getKey, watchKey } from "./session.js";
import { showSubmit } from "./submit.js";
import { showUsage } from "./usage.js";

const ROUTES = [
  [/^\/$/, "list", (main, signal, query) => showList(main, signal, query)],
  [/^\/new$/, "new", (main, signal, query) => showSubmit(main, signal, query)],
  [/^\/compare$/, "compare", (main, signal, query) => showCompare(main, signal, query)],
  [/^\/usage$/, "usage", (main, signal) => showUsage(main, signal)],
  [/^\/jobs\/([\w-]+)$/, "job", (main, signal, query, id) => showJob(main, signal, id)],
];

const main = document.getElementById("main");
const nav = document.getElementById("nav");
let current = new AbortController();
let first = true;

/** Leave the present view, which stops its requests, and show the one the address names. */
async function navigate(refusal = null) {
  current.abort();
  current = new AbortController();
  const { signal } = current;
  nav.hidden = !getKey();
  main.replaceChildren();
  if (!getKey()) {
    document.title = "StrucPrune";
    showGate(main, refusal, () => navigate());
    return;
  }
  const [path, query = ""] = (location.hash.slice(1) || "/").split("?");
  const [found, name, show] = match(path);
  for (const link of nav.querySelectorAll("[data-nav]")) {
    if (link.dataset.nav === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  await show(main, signal, new URLSearchParams(query), found[1]);
  if (signal.aborted) return;
  const heading = main.querySelector("h1");
  document.title = `${heading?.textContent ?? "Jobs"} · StrucPrune`;
  // Keyboard and screen reader users land at the heading of the new view.
  if (!first) heading?.focus({ preventScroll: true });
  if (!first) window.scrollTo(0, 0);
  first = false;
}

function match(path) {
  for (const [pattern, name, show] of ROUTES) {
    const found = path.match(pattern);
    if (found) return [found, name, show];
  }
  location.replace("#/");
  return [[], ...ROUTES[0].slice(1)];
}

function leave(refusal = null) {
  forgetKey();
  navigate(refusal);
}

window.addEventListener("hashchange", () => navigate());
window.addEventListener("key-refused", (event) => leave(event.detail));
document.getElementById("leave").addEventListener("click", () => leave());
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address after # is ours
  main.focus();
});
let begun = false;
watchKey(() => begun && navigate());
await askForKey();
begun = true;
navigate();
