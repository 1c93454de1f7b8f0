// The history of a job: its events, and its log once that is opened.

import { getLogs, pause } from "./api.js";
import { h, problemBox } from "./dom.js";
import { clock, duration, number, percent } from "./format.js";

const MOST_EVENTS = 300;
const LOG_MILLISECONDS = 3000;

/** Events, newest first. Successive progress events share one line. */
export function eventList() {
  const list = h("ol", { class: "events", tabindex: "0", role: "list", "aria-label": "Events, newest first" });
  let progresses = false;
  return {
    node: list,
    add(event) {
      const text = describe(event);
      if (text === null) return;
      const line = h("li", {}, h("time", { datetime: event.at }, clock(event.at)), h("span", {}, text));
      const same = progresses && event.type === "progress";
      progresses = event.type === "progress";
      if (same) list.firstElementChild.replaceWith(line);
      else list.prepend(line);
      while (list.children.length > MOST_EVENTS) list.lastElementChild.remove();
    },
  };
}

/** An event in words; null if it is not listed, or of a type that this page does not know. */
function describe({ type, data }) {
  if (type === "progress") {
    const steps = data.layers_total ? ` ${data.layers_done} of ${data.layers_total}` : "";
    const left = data.eta_seconds === null ? "" : `, ${duration(data.eta_seconds)} left`;
    return `${data.phase}${steps} (${percent(data.fraction)}${left})`;
  }
  if (type === "workers") return data.workers === 1 ? "1 worker" : `${data.workers} workers`;
  if (type === "layers" && data.kl) return `divergence ${number(data.kl[0], 3)} nats per token`;
  if (type === "layers" && data.experts_after) return `experts of ${data.index.length} layers`;
  if (type === "layers") return data.width_after ? `widths of ${data.index.length} layers` : null;
  if (type !== "state") return null;
  const attempt = data.state === "running" && data.attempt ? `, attempt ${data.attempt}` : "";
  const reason = data.reason ? `: ${data.reason.replaceAll("_", " ")}` : "";
  const error = data.error?.message ? ` – ${data.error.message}` : "";
  return `${data.state}${attempt}${reason}${error}`;
}

/** The log. Fetched once opened, and repeatedly while the job has not ended. */
export function logView(id, signal) {
  const text = h("pre", { tabindex: "0", class: "log", "aria-label": "Log" });
  const status = h("div", {});
  const node = h("details", { class: "card" }, h("summary", {}, "Log"), status, text);
  let after = "0";
  let live = false;
  let reading = false;

  node.addEventListener("toggle", () => { if (node.open) read(); });

  async function read() {
    if (reading) return;
    reading = true;
    do {
      try {
        await fetchMore();
        status.replaceChildren();
      } catch (error) {
        if (!signal.aborted) status.replaceChildren(problemBox(error));
      }
      if (live) await pause(LOG_MILLISECONDS, signal);
    } while (live && node.open && !signal.aborted);
    if (node.open && !signal.aborted) await fetchMore().catch((error) => status.replaceChildren(problemBox(error)));
    if (!text.textContent) status.replaceChildren(h("p", { class: "hint" }, "Nothing has been logged yet."));
    reading = false;
  }

  async function fetchMore() {
    const page = await getLogs(id, after, signal);
    after = page.next_after;
    const atEnd = text.scrollTop + text.clientHeight >= text.scrollHeight - 8;
    text.append(page.data.map((line) => `${clock(line.at)} ${line.level.padEnd(7)} ${line.message}\n`).join(""));
    if (atEnd) text.scrollTop = text.scrollHeight;
  }

  return { node, live(on) { live = on; if (on && node.open) read(); } };
}
