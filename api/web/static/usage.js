// What the caller's organisation may have and has, and for operators the workers.

import { getQuota, getWorkers } from "./api.js";
import { h, problemBox } from "./dom.js";
import { ABSENT, ago, bytes, count, duration, words } from "./format.js";
import { table } from "./tables.js";

// How soon the figures are read again.
const EVERY_MILLISECONDS = 5000;

/** Show quota and workers until `signal` aborts. */
export async function showUsage(main, signal) {
  const quota = h("section", { class: "card" });
  const workers = h("section", { class: "card" });
  main.append(h("h1", { tabindex: "-1" }, "Usage"), quota, workers);
  const follow = async () => {
    await Promise.all([
      fill(quota, () => getQuota(signal), ofQuota, "A key with the scope jobs:read sees the quota of its organisation here.", signal),
      fill(workers, () => getWorkers(signal), ofWorkers, "A key with the scope admin sees the workers here.", signal),
    ]);
    if (!signal.aborted) setTimeout(() => signal.aborted || follow(), EVERY_MILLISECONDS);
  };
  await follow();
}

async function fill(box, read, show, forbidden, signal) {
  let nodes;
  try {
    nodes = show(await read());
  } catch (error) {
    nodes = error.status === 403 ? [h("p", { class: "hint" }, forbidden)] : [problemBox(error)];
  }
  const text = nodes.map((node) => node.textContent).join("\n");
  if (signal.aborted || box.dataset.shown === text) return; // what stands still can be read in peace
  box.dataset.shown = text;
  box.replaceChildren(...nodes);
}

function ofQuota({ limits, use }) {
  const none = (show) => (value) => (value === null || value === undefined ? "no limit" : show(value));
  const rows = [
    ["Jobs that have not ended", count(use.open_jobs), none(count)(limits.open_jobs)],
    ["Jobs that workers hold", count(use.running_jobs), none(count)(limits.running_jobs)],
    ["Jobs in the list", count(use.kept_jobs), none(count)(limits.kept_jobs)],
    ["Memory of these jobs", bytes(use.kept_bytes), none(bytes)(limits.kept_bytes)],
    ["Size of a job's model", ABSENT, none(bytes)(limits.model_bytes)],
    ["Temporary files of a job", ABSENT, none(bytes)(limits.scratch_bytes)],
    ["Time of a job", ABSENT, none(duration)(limits.deadline_seconds)],
    ["Requests per second", ABSENT, none(count)(limits.requests_per_second)],
    ["Highest priority", ABSENT, limits.max_priority],
  ];
  return [h("h2", {}, "Your organisation"), table("Quota", ["", "Now", "Limit"], rows)];
}

function ofWorkers({ data }) {
  if (!data.length) return [h("h2", {}, "Workers"), h("p", { class: "hint" }, "No worker has spoken within the last minute.")];
  const rows = data.map((one) => [
    one.name,
    [one.device, one.threads ? `${one.threads} threads` : null].filter(Boolean).join(", ") || ABSENT,
    one.pool || ABSENT,
    one.job_id ? h("a", { href: `#/jobs/${one.job_id}` }, one.job_id) : "idle",
    [one.part === "help" ? "helps" : null, one.unit].filter(Boolean).map(words).join(", ") || ABSENT,
    one.last_heartbeat_at ? ago(one.last_heartbeat_at) : ABSENT,
  ]);
  return [h("h2", {}, "Workers"), table("Workers", ["Worker", "Device", "Pool", "Job", "At hand", "Last heartbeat"], rows, { text: true })];
}
