// Shows a job's state and progress, in lists and on its own page.

import { h } from "./dom.js";
import { bytes, count, duration, leaf, percent, words } from "./format.js";

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

/** A job's name for people: its model, and how much goes. */
export const title = ({ spec: { model, pruning } }) =>
  `${leaf(model.uri)}, ${howMuch(pruning)}`;

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
      text.textContent = progress ? sentence(progress, job.state) : waiting(job.state);
    },
  };
}

/** `solving, layer 12 of 30 · 41% · 2 min 10 s left` */
export function sentence(progress, state) {
  const steps = progress.layers_total ? ` ${progress.layers_done} of ${progress.layers_total}` : "";
  const left = state === "running" && progress.eta_seconds !== null ? ` · ${duration(progress.eta_seconds)} left` : "";
  return `${words(progress.phase)}${steps} · ${percent(progress.fraction)}${left}`;
}

function waiting(state) {
  return { queued: "waits for a worker", paused: "paused", running: "starting" }[state] ?? state;
}
