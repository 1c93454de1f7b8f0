// Shows a job's state and progress, in lists and on its own page.

import { h } from "./dom.js";
import { bytes, count, duration, leaf, percent, words } from "./format.js";
import { starts } from "./times.js";

const TONES = { succeeded: "good", failed: "bad", running: "live", pausing: "live", cancelling: "live" };

export const pill = (state) => h("span", { class: `pill ${TONES[state] ?? ""}` }, state);

/** How much a job removes, for people: a sparsity, several, a target, or a number of experts. */
export function howMuch({ sparsity, sizes, target, expert_count: experts }) {
  if (experts) return `${experts} experts a layer`;
  if (sizes?.length) return `${sizes.map((one) => percent(one, 0)).join(", ")} sparsity`;
  if (target?.parameters) return `at most ${count(target.parameters)} parameters`;
  if (target?.bytes) return `at most ${bytes(target.bytes)}`;
  if (target?.max_perplexity_ratio) return `perplexity × ${target.max_perplexity_ratio} at most`;
  if (target?.memory_bytes) return `at most ${bytes(target.memory_bytes)} of memory`;
  if (target?.speedup) return `${target.of} ${target.speedup} times as fast`;
  return `${percent(sparsity, 0)} sparsity`;
}

/** What a job does, in few words: its model, and how much goes. */
export const task = ({ spec: { model, pruning } }) => `${leaf(model.uri)}, ${howMuch(pruning)}`;

/** What a job is called: its name, or else what it does. */
export const title = (job) => job.spec.name ?? task(job);

/** A bar and a line of text, kept up to date by `update(job)`. */
export function progressBar() {
  const bar = h("progress", { max: "1", value: "0", "aria-label": "Progress of the job" });
  const text = h("p", { class: "hint" });
  return {
    node: h("div", { class: "progress" }, bar, text),
    update(job) {
      const progress = job.progress;
      bar.value = progress?.fraction ?? 0;
      bar.classList.toggle("still", !["running"].includes(job.state));
      text.textContent = progress ? sentence(progress, job.state) : waiting(job);
    },
  };
}

/** `solving, layer 12 of 30 · 41% · 2 min 10 s left` */
export function sentence(progress, state) {
  const steps = progress.layers_total ? ` ${progress.layers_done} of ${progress.layers_total}` : "";
  const left = state === "running" && progress.eta_seconds !== null ? ` · ${duration(progress.eta_seconds)} left` : "";
  return `${words(progress.phase)}${steps} · ${percent(progress.fraction)}${left}`;
}

function waiting({ state, queue }) {
  if (state === "queued" && queue) return inQueue(queue);
  return { queued: "waits for a worker", paused: "paused", running: "starting" }[state] ?? state;
}

/** Where a job stands in the queue, as far as that can be told. */
function inQueue({ position, waits_for: reason, workers, starts_in: start }) {
  const there = `${count(workers)} ${workers === 1 ? "worker is" : "workers are"} there`;
  if (reason === "rest") return `rests before its next attempt · ${there}`;
  const place = position === 1 ? "next in the queue" : `number ${count(position)} in the queue, about`;
  const why = reason === "limit" ? " · your organisation has as many jobs running as it may" : "";
  return `${place} · ${there}${why}${start ? ` · ${starts(start)}` : ""}`;
}
