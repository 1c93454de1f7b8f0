// The list of jobs, with filters in the address, live progress, and a selection to compare.

import { ENDED, listJobs, pause } from "./api.js";
import { announce, h, problemBox } from "./dom.js";
import { ago, bytes, change, moment, number, percent } from "./format.js";
import { pill, progressBar, task, title } from "./job_parts.js";

const STATES = ["queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"];
const BUSY_MILLISECONDS = 2000;
const IDLE_MILLISECONDS = 10000;
const PAGE_SIZE = 50;

/** Show the list until `signal` aborts. */
export async function showList(main, signal, query) {
  const rows = new Map();
  const chosen = new Set();
  const list = h("ul", { class: "jobs" });
  const status = h("div", {});
  const more = h("button", { type: "button", hidden: true }, "Show older jobs");
  const compare = h("a", { class: "button primary", hidden: true }, "");
  const filters = filtersOf(query);
  let pages = 1;

  main.append(
    h("div", { class: "headline" }, h("h1", { tabindex: "-1" }, "Jobs"), h("a", { class: "button primary", href: "#/new" }, "New job")),
    filterForm(query), status, list,
    h("div", { class: "actions" }, more));
  main.append(h("div", { class: "dock" }, compare));

  more.addEventListener("click", async () => { pages += 1; await refresh(); });
  poll(await refresh());

  async function poll(wait) {
    while (!signal.aborted) {
      await pause(wait, signal);
      if (document.hidden || signal.aborted) continue;
      wait = await refresh();
    }
  }

  /** Fetch and show; returns how long to wait until the next time. */
  async function refresh() {
    try {
      const { jobs, next } = await fetchPages(filters, pages, signal);
      if (signal.aborted) return IDLE_MILLISECONDS;
      status.replaceChildren(...(jobs.length ? [] : [emptyNote(query)]));
      show(jobs);
      more.hidden = !next;
      return jobs.some((job) => !ENDED.has(job.state)) ? BUSY_MILLISECONDS : IDLE_MILLISECONDS;
    } catch (error) {
      if (!signal.aborted) status.replaceChildren(problemBox(error));
      return 1000 * (error.retryAfterSeconds ?? IDLE_MILLISECONDS / 1000);
    }
  }

  function show(jobs) {
    const present = new Set(jobs.map((job) => job.id));
    for (const [id, row] of rows) {
      if (present.has(id)) continue;
      row.node.remove();
      rows.delete(id);
      chosen.delete(id);
    }
    jobs.forEach((job, place) => {
      if (!rows.has(job.id)) rows.set(job.id, makeRow(job, choose));
      const { node, update } = rows.get(job.id);
      update(job);
      // Moved only if needed, since an element that is moved loses the focus.
      if (list.children[place] !== node) list.insertBefore(node, list.children[place] ?? null);
    });
    showChoice();
  }

  function choose(id, on) {
    if (on) chosen.add(id);
    else chosen.delete(id);
    showChoice();
  }

  function showChoice() {
    compare.hidden = chosen.size < 2;
    compare.textContent = `Compare ${chosen.size} jobs`;
    compare.href = `#/compare?${new URLSearchParams([...chosen].map((id) => ["job", id]))}`;
  }
}

async function fetchPages(filters, pages, signal) {
  const jobs = [];
  let next = null;
  for (let page = 0; page < pages; page += 1) {
    const answer = await listJobs({ ...filters, limit: PAGE_SIZE, cursor: next }, signal);
    jobs.push(...answer.data);
    next = answer.next_cursor;
    if (!next) break;
  }
  return { jobs, next };
}

function makeRow(first, choose) {
  const state = h("span", {});
  const bar = progressBar();
  const result = h("div", { class: "result" });
  const box = h("input", { type: "checkbox", "aria-label": `Compare ${title(first)}, ${moment(first.created_at)}` });
  box.addEventListener("change", () => choose(first.id, box.checked));
  const labels = Object.entries(first.labels).map(([name, value]) => h("li", {}, `${name}=${value}`));
  const when = h("time", { datetime: first.created_at, title: moment(first.created_at) });
  const node = h("li", { class: "job card" },
    h("label", { class: "pick" }, box),
    h("div", { class: "who" },
      h("a", { href: `#/jobs/${first.id}` }, title(first)),
      h("ul", { class: "chips", "aria-label": "Labels" }, labels),
      first.spec.name ? h("p", {}, task(first)) : null,
      h("p", { class: "hint" }, when, ` · ${first.spec.pruning.structures.join(", ").replaceAll("_", " ")}`)),
    h("div", { class: "state" }, state),
    h("div", { class: "how" }, bar.node, result));
  let known = null;
  return {
    node,
    update(job) {
      when.textContent = ago(job.created_at);
      // A job of several sizes is a comparison by itself.
      box.disabled = job.state !== "succeeded" || Boolean(job.summary?.sizes);
      if (known !== job.state) state.replaceChildren(pill(job.state));
      if (known && known !== job.state) announce(`${title(job)} is ${job.state}`);
      known = job.state;
      const over = ENDED.has(job.state);
      bar.node.hidden = over;
      result.hidden = !over;
      if (over) result.replaceChildren(...outcome(job));
      else bar.update(job);
    },
  };
}

function outcome(job) {
  if (job.state === "failed") return [h("p", { class: "clip bad-text" }, job.error?.message ?? "")];
  if (job.state !== "succeeded" || !job.summary) return [];
  const { bytes: size, perplexity, sparsity, sizes } = job.summary;
  if (sizes) return [figure("sizes", sizes.map((one) => (one.folder ? bytes(one.bytes) : `${one.name}: not published`)).join(", "))];
  return [
    figure("size", `${bytes(size.after)} (${change(size.before, size.after)})`),
    figure("reached", percent(sparsity.reached, 1)),
    perplexity ? figure("perplexity", `${number(perplexity.before)} → ${number(perplexity.after)}`) : null,
  ].filter(Boolean);
}

const figure = (name, value) => h("p", {}, h("span", { class: "hint" }, `${name} `), value);

function emptyNote(query) {
  const filtered = [...query.values()].some(Boolean);
  return h("div", { class: "card empty" },
    h("p", {}, filtered ? "No job matches the filters." : "There are no jobs yet."),
    filtered ? h("a", { href: "#/" }, "Show all jobs") : h("a", { href: "#/new" }, "Submit the first one"));
}

/** The query for the API from the address. Days are local, from 0 to 24 o'clock. */
function filtersOf(query) {
  const day = (name, add) => {
    if (!/^\d{4}-\d\d-\d\d$/.test(query.get(name) ?? "")) return null;
    const date = new Date(`${query.get(name)}T00:00:00`);
    date.setDate(date.getDate() + add);
    return new Date(date.getTime() - (add ? 0 : 1)).toISOString();
  };
  return { state: query.get("state"), label: query.get("label"), created_after: day("from", 0), created_before: day("to", 1) };
}

function filterForm(query) {
  const state = h("select", { id: "filter-state", name: "state" },
    h("option", { value: "" }, "any"), STATES.map((name) => h("option", { value: name, selected: query.get("state") === name }, name)));
  const input = (name, attributes) => h("input", { id: `filter-${name}`, name, value: query.get(name) ?? "", ...attributes });
  const field = (label, node) => h("div", { class: "field" }, h("label", { for: node.id }, label), node);
  const form = h("form", { class: "filters", role: "search", "aria-label": "Filter jobs" },
    field("State", state),
    field("Label", input("label", { placeholder: "team=nlp", pattern: "[^=]+=.*", title: "name=value", autocomplete: "off" })),
    field("From", input("from", { type: "date" })),
    field("To", input("to", { type: "date" })),
    h("button", {}, "Filter"));
  const apply = () => {
    const given = [...new FormData(form)].filter(([, value]) => value);
    location.hash = given.length ? `#/?${new URLSearchParams(given)}` : "#/";
  };
  form.addEventListener("submit", (event) => { event.preventDefault(); apply(); });
  state.addEventListener("change", () => { if (form.reportValidity()) apply(); });
  return form;
}
