// One job: its progress while it runs, and its result.

import { actionBar } from "./actions.js";
import { ENDED, events, getJob } from "./api.js";
import { announce, h, problemBox } from "./dom.js";
import { eventList, logView } from "./history.js";
import { duration, leaf, moment, percent, words } from "./format.js";
import { howMuch, pill, progressBar, title } from "./job_parts.js";
import { layerFigures, layerNotes } from "./layers.js";
import { recipes } from "./recipes.js";
import { showResult } from "./result.js";
import { predictedRows } from "./times.js";

// Updates of layers that come within this time are drawn together.
const DRAW_MILLISECONDS = 100;
// How soon the place in the queue is read again.
const QUEUE_MILLISECONDS = 5000;
const PHASES = ["inspecting", "calibrating", "allocating", "solving", "evaluating", "uploading", "committing"];

/** Show a job and follow it until `signal` aborts. */
export async function showJob(main, signal, id) {
  let job;
  try {
    job = await getJob(id, signal);
  } catch (error) {
    if (!signal.aborted) main.append(h("h1", { tabindex: "-1" }, "Job"), problemBox(error), h("p", {}, h("a", { href: "#/" }, "All jobs")));
    return;
  }
  const state = h("span", {});
  const facts = h("dl", {});
  const trouble = h("div", {});
  const bar = progressBar();
  const phases = phaseList();
  const layers = layerNotes();
  const figures = layerFigures();
  const found = h("div", { class: "stack", hidden: true }, figures.nodes);
  const result = h("div", { class: "stack" });
  const history = eventList();
  const log = logView(id, signal);
  const actions = actionBar(id, {
    done: (next) => { update(next); follow(); },
    failed: (error) => trouble.replaceChildren(problemBox(error)),
    deleted: () => { announce("The job is deleted."); location.hash = "#/"; },
  });
  main.append(
    h("p", { class: "kicker" }, h("a", { href: "#/" }, "Jobs")),
    h("div", { class: "headline" }, h("h1", { tabindex: "-1" }, title(job)), state),
    actions.node, trouble,
    h("section", { class: "card", "aria-label": "Progress" }, phases.node, bar.node),
    found, result,
    h("div", { class: "grid" },
      h("section", { class: "card" }, h("h2", {}, "Job"), facts),
      h("section", { class: "card" }, h("h2", {}, "Events"), history.node)),
    recipes(job), log.node);

  let last = "0";
  let following = false;
  let shown = null;
  let shownRun = null;
  let toldRun = null;
  const announced = new Set([job.progress?.phase]);
  let drawing;
  let looking;
  signal.addEventListener("abort", () => { clearTimeout(drawing); clearTimeout(looking); });
  update(job);
  follow();

  function update(next) {
    const changed = job.state !== next.state;
    job = next;
    phases.update(job);
    bar.update(job);
    clearTimeout(looking);
    if (job.state === "queued" && !signal.aborted) looking = setTimeout(refresh, QUEUE_MILLISECONDS); // others move, too
    const now = JSON.stringify({ ...job, progress: null, queue: null });
    if (shown === now) return; // what stands still can be read, selected and heard in peace
    shown = now;
    state.replaceChildren(pill(job.state));
    actions.update(job.state);
    bar.node.hidden = job.state === "succeeded";
    facts.replaceChildren(...factsOf(job));
    log.live(!ENDED.has(job.state));
    if (changed) {
      announce(`The job is ${job.state}`);
      trouble.replaceChildren();
    }
    if (job.error) trouble.replaceChildren(errorBox(job));
    if (job.state === "succeeded" && shownRun !== job.run) {
      shownRun = job.run;
      showResult(result, job, signal).then(() => { found.hidden = true; }); // the report has the same
    } else if (job.state !== "succeeded") {
      result.replaceChildren();
    }
  }

  /** Read the job's events until it ends, and again after a retry. */
  async function follow() {
    if (following) return;
    following = true;
    for await (const event of events(id, last, signal)) {
      last = event.id;
      history.add(event);
      if (event.type === "progress" && job.state === "running") {
        // Phases alternate where storing and computing overlap, so each is announced once.
        if (!announced.has(event.data.phase)) announce(`${event.data.phase}, ${percent(event.data.fraction)}`);
        announced.add(event.data.phase);
        update({ ...job, progress: event.data });
      } else if (event.type === "layers") {
        layers.note(event.data);
        drawSoon();
      } else if (event.type === "state") {
        if (toldRun !== null && event.data.run !== toldRun) {
          layers.clear();
          announced.clear();
        }
        toldRun = event.data.run;
        drawSoon();
        await refresh();
      }
    }
    following = false;
    if (!signal.aborted) await refresh();
  }

  /** Show the results for layers so far. A succeeded job shows its report instead. */
  function drawSoon() {
    drawing ??= setTimeout(() => {
      drawing = undefined;
      if (job.state === "succeeded") return;
      figures.update(layers.rows);
      found.hidden = figures.nodes.every((node) => node.hidden);
    }, DRAW_MILLISECONDS);
  }

  async function refresh() {
    try {
      update(await getJob(id, signal));
    } catch (error) {
      if (!signal.aborted) trouble.replaceChildren(problemBox(error));
    }
  }
}

/** The phases in order, with what is done of each: they overlap, so that several may be under way. */
function phaseList() {
  const items = new Map(PHASES.map((name) => [name, h("li", {}, name)]));
  return {
    node: h("ol", { class: "phases", "aria-label": "Phases" }, [...items.values()]),
    update(job) {
      const { phase: now, phases: steps = {} } = job.progress ?? {};
      const ended = ENDED.has(job.state);
      const failed = job.state === "failed" ? job.error?.phase : null;
      for (const [name, item] of items) {
        const [done, all] = steps[name] ?? [0, 0];
        const on = name === now && !ended;
        const finished = job.state === "succeeded" || (all > 0 && done === all);
        item.classList.toggle("done", finished && !on);
        item.classList.toggle("part", !finished && done > 0 && !on);
        item.classList.toggle("on", on);
        item.classList.toggle("bad", name === failed);
        item.textContent = stateOf(name, { failed: name === failed, part: !finished && all > 0 && done > 0, done, all });
        if (on) item.setAttribute("aria-current", "step");
        else item.removeAttribute("aria-current");
      }
    },
  };
}

function stateOf(name, { failed, part, done, all }) {
  if (failed) return `${name}: failed`;
  return part ? `${name} ${done} of ${all}` : name;
}

function errorBox(job) {
  const { code, message, phase, layer, remedy } = job.error;
  const where = [phase, layer === null || layer === undefined ? null : `layer ${layer}`].filter(Boolean).join(", ");
  return h("div", { class: "notice bad", role: "alert" },
    h("p", {}, h("strong", {}, headlineOf(job)), where ? ` while ${where}: ` : ": ", message),
    remedy && !message.includes(remedy) ? h("p", {}, remedy) : null,
    h("p", { class: "hint mono" }, code));
}

function headlineOf(job) {
  if (job.state === "failed") return "Failed";
  return job.state === "queued" && job.error.code === "scratch_unavailable" ? "Waiting" : "Last attempt failed";
}

function factsOf(job) {
  const { spec } = job;
  const rows = [
    ["Id", h("span", { class: "mono" }, job.id)],
    ["Model", h("span", { class: "mono" }, spec.model.uri)],
    ["Output", h("span", { class: "mono" }, spec.output.uri_prefix)],
    ["Removes", `${spec.pruning.structures.map(words).join(", ")}: ${howMuch(spec.pruning)}`],
    ["Method", `${spec.pruning.allocation}, ${words(spec.pruning.energy)}, ${spec.pruning.solver}, layout ${words(spec.pruning.layout)}`],
    ["Calibration", `${spec.calibration.source === "self" ? "written by the model" : leaf(spec.calibration.uri)}, ${spec.calibration.samples} × ${spec.calibration.sequence_length} tokens`],
    ["Evaluation", spec.evaluation ? `${leaf(spec.evaluation.uri)}, ${spec.evaluation.sequences} × ${spec.evaluation.sequence_length} tokens` : "none"],
    ...(spec.evaluation?.tasks?.length ? [["Tasks", spec.evaluation.tasks.join(", ")]] : []),
    ["Created", moment(job.created_at)],
    ["Started", moment(job.started_at)],
    ["Finished", job.finished_at ? `${moment(job.finished_at)}, after ${duration((Date.parse(job.finished_at) - Date.parse(job.started_at ?? job.created_at)) / 1000)}` : "–"],
    ...predictedRows(job.predicted),
    ["Run, attempt", `${job.run}, ${job.attempt} of ${spec.runtime.max_attempts}`],
    ["Labels", Object.entries(job.labels).map(([name, value]) => `${name}=${value}`).join(", ") || "none"],
  ];
  return rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]);
}
