// The result of a succeeded job: figures, widths and energies by layer, and files.

import { getArtifacts, getReport, pause } from "./api.js";
import { h, problemBox } from "./dom.js";
import { predicted } from "./estimate.js";
import { bytes, change, count, duration, number, percent, visible, words } from "./format.js";
import { layerFigures } from "./layers.js";
import { nextSteps } from "./next.js";
import { scatter, tick } from "./plots.js";
import { table } from "./tables.js";

// Links are renewed this long before they expire.
const RENEW_AT = 0.8;

/** Fill `box` with the result. Resolves once the report has loaded. */
export async function showResult(box, job, signal) {
  const files = h("section", { class: "card" }, h("h2", {}, "Files"));
  const several = job.summary?.sizes;
  const summary = several ? sizesOf(job) : h("div", { class: "cards" }, job.summary ? cards(job.summary) : null);
  const next = h("div", {}, nextSteps(job, []));
  const layers = h("div", { class: "stack" });
  box.replaceChildren(next, summary, layers, files);
  showFiles(files, job.id, signal);
  try {
    const report = await getReport(job.id, signal);
    next.replaceChildren(nextSteps(job, report.loading ?? []));
    layers.replaceChildren(...(several ? detailsOfSizes(report) : details(report)));
  } catch (error) {
    if (!signal.aborted) layers.replaceChildren(problemBox(error));
  }
}

function cards({ parameters, bytes: size, perplexity, tasks, sparsity, seconds, predicted_seconds: predicted, peak_memory_bytes: peak }) {
  return [
    card("Size", bytes(size.after), `was ${bytes(size.before)} (${change(size.before, size.after)})`),
    card("Parameters", count(parameters.after), `was ${count(parameters.before)} (${change(parameters.before, parameters.after)})`),
    perplexity ? card("Perplexity", number(perplexity.after), `was ${number(perplexity.before)} (× ${number(perplexity.ratio, 3)})`) : card("Perplexity", "–", "no evaluation text was given"),
    ...(tasks ? [card("Accuracy kept", tasks.retention === null ? "–" : percent(tasks.retention, 1), "of the dense accuracy above chance, on tasks")] : []),
    card("Sparsity", percent(sparsity.reached, 1), `${percent(sparsity.requested, 1)} requested`),
    card("Peak memory", bytes(peak.device ?? peak.host), peak.device ? `on the device; host ${bytes(peak.host)}` : "of the pruning process"),
    card("Time", duration(seconds), predicted ? `in all phases; ${duration(predicted)} predicted` : "in all phases"),
  ];
}

const card = (name, now, was) => h("div", { class: "card" }, h("h3", {}, name), h("p", { class: "now" }, now), h("p", { class: "hint" }, was));

const notes = (report) => (report.warnings.length
  ? h("section", { class: "notice note" }, h("h2", {}, "Warnings"), h("ul", {}, report.warnings.map((text) => h("li", {}, text))))
  : null);

/** Several sizes: perplexity over size, and a table. */
function sizesOf({ id, summary: { sizes, bytes: size, parameters, perplexity, seconds } }) {
  const judged = sizes.filter((one) => one.perplexity !== null);
  const points = judged.map((one) => ({ x: one.bytes, y: one.perplexity, label: one.name, text: `${one.name}: ${bytes(one.bytes)}, perplexity ${number(one.perplexity)}` }));
  const dense = perplexity ? [{ x: size.before, y: perplexity.before, label: "dense", hollow: true, text: `dense: ${bytes(size.before)}, perplexity ${number(perplexity.before)}` }] : [];
  const curve = points.length
    ? h("figure", {}, h("figcaption", {}, h("h2", {}, "Perplexity over size")), scatter([{ name: "sizes", tone: "tone1", points: [...dense, ...points] }], { x: "checkpoint", y: "perplexity", formatX: bytes, formatY: tick }))
    : null;
  const verdict = (one) => (one.folder ? (one.best_of_its_size ? "best of its size" : "") : `not published: ${one.rejected}`);
  const row = (one) => h("tr", {}, h("th", { scope: "row" }, one.name),
    [bytes(one.bytes), change(size.before, one.bytes), count(one.parameters), number(one.perplexity), number(one.perplexity_ratio, 3)].map((text) => h("td", { class: "num" }, text)),
    h("td", {}, verdict(one)));
  const first = h("tr", {}, h("th", { scope: "row" }, "dense"),
    [bytes(size.before), "–", count(parameters.before), number(perplexity?.before), "–"].map((text) => h("td", { class: "num" }, text)), h("td", {}, ""));
  const head = ["Checkpoint", "Change", "Parameters", "Perplexity", "Ratio"].map((text) => h("th", { scope: "col", class: "num" }, text));
  return h("div", { class: "stack" }, curve, h("section", { class: "card" }, h("h2", {}, "Sizes"),
    h("p", { class: "hint" }, `Each lies in the folder of its name, with a report of its own. ${duration(seconds)} in all phases.`),
    h("p", {}, h("a", { class: "button", href: `#/new?extend=${id}` }, "Add sizes")),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Sizes" }, h("table", {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Size"), head, h("th", { scope: "col" }, ""))),
      h("tbody", {}, first, sizes.map(row))))));
}

/** What was measured of each size, beside the dense model. */
function detailsOfSizes(report) {
  const having = (part) => report.sizes.filter((one) => one[part]);
  return [notes(report), accuracyCurve(report), speedCurve(report), tasksOfSizes(having("tasks")), speedOfSizes(having("speed")), samplesOfSizes(report.sizes.filter((one) => one.samples?.length))].filter(Boolean);
}

/** A figure of each size over the size of its checkpoint; the dense model's is 1. */
function curveOfSizes({ before, sizes }, title, valueOf, format) {
  const known = sizes.filter((one) => valueOf(one) !== null);
  if (!known.length) return null;
  const point = (name, size, value, hollow) => ({ x: size, y: value, label: name, hollow, text: `${name}: ${bytes(size)}, ${format(value)}` });
  const points = [point("dense", before.bytes, 1, true), ...known.map((one) => point(one.name, one.after.bytes, valueOf(one), false))];
  return h("figure", {}, h("figcaption", {}, h("h2", {}, title)), scatter([{ name: "sizes", tone: "tone1", points }], { x: "checkpoint", y: title.toLowerCase(), formatX: bytes, formatY: format }));
}

const accuracyCurve = (report) => curveOfSizes(report, "Accuracy kept on tasks", (one) => one.task_retention ?? null, (value) => percent(value, 0));
const speedCurve = (report) => curveOfSizes(report, "Speed while writing, dense = 1", (one) => one.speed?.decode_gain ?? null, (value) => `× ${number(value, 3)}`);

const wideTable = (title, hint, head, rows) => h("section", { class: "card" }, h("h2", {}, title), h("p", { class: "hint" }, hint), table(title, head, rows));

function tasksOfSizes(sizes) {
  if (!sizes.length) return null;
  const { harness, dense } = sizes[0].tasks;
  const rows = dense.flatMap((task, place) => task.metrics.map((metric, index) => [
    `${task.task}, ${words(metric.name)}`, metricText(metric), ...sizes.map((one) => metricText(one.tasks.pruned[place].metrics[index])),
  ]));
  return wideTable("Tasks", `lm-evaluation-harness ${harness}, with its standard errors.`, ["Task", "Dense", ...sizes.map((one) => one.name)], rows);
}

function speedOfSizes(sizes) {
  if (!sizes.length) return null;
  const rows = sizes.map(({ name, speed }) => [name,
    number(speed.pruned.prefill_tokens_per_second.median, 3), `× ${number(speed.prefill_gain, 3)}`,
    number(speed.pruned.decode_tokens_per_second.median, 3), `× ${number(speed.decode_gain, 3)}`, bytes(speed.pruned.peak_bytes)]);
  const { runtime, device } = sizes[0].speed;
  return wideTable("Speed", `Each size and the dense model whole in ${runtime} on ${device}, in turns. Gains are against the dense model in the same turns.`,
    ["Size", "Prefill, tokens/s", "Gain", "Decode, tokens/s", "Gain", "Memory"], rows);
}

/** How all models continue prompts. A model may write anything: it stays text, and is seen. */
function samplesOfSizes(sizes) {
  if (!sizes.length) return null;
  const written = (name, text) => h("div", { class: "sample" }, h("h4", {}, name), h("p", { class: "written", dir: "auto" }, visible(text)));
  const whole = (same, own) => same + own.token + own.rest;
  return h("section", { class: "card" }, h("h2", {}, "Samples"),
    h("p", { class: "hint" }, "All models continue the same prompts with the most probable token each time."),
    sizes[0].samples.map(({ prompt, same, dense }, place) => [
      h("p", { class: "written prompt", dir: "auto" }, visible(prompt)),
      h("div", { class: "pair" }, written("Dense", whole(same, dense)), sizes.map((one) => written(one.name, whole(one.samples[place].same, one.samples[place].pruned)))),
    ]));
}

function details(report) {
  const warnings = notes(report);
  const { memory } = report;
  const figures = layerFigures();
  figures.update(report.layers);
  return [warnings, report.tasks ? taskTable(report.tasks) : null, speedOf(report.speed), predictedOf(report), samplesOf(report), ...figures.nodes, exportTable(report.exports), h("section", { class: "card" },
    h("h2", {}, "Memory and time"),
    h("dl", {}, [
      ["Host, predicted", bytes(memory.host_peak_bytes.predicted)],
      ["Host, measured", bytes(memory.host_peak_bytes.measured)],
      ...(memory.device_peak_bytes.measured === null ? [] : [["Device, predicted", bytes(memory.device_peak_bytes.predicted)], ["Device, measured", bytes(memory.device_peak_bytes.measured)]]),
      ["Dense weights alone", bytes(memory.whole_model_bytes)],
      ...report.phases.map((phase) => [phase.name, phaseTime(phase)]),
    ].map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])))].filter(Boolean);
}

const phaseTime = ({ seconds, predicted_seconds: predicted }) =>
  `${duration(seconds)}${predicted === null || predicted === undefined ? "" : `, ${duration(predicted)} predicted`}`;

/** How fast both models are: medians, with the least and the most. */
function speedOf(speed) {
  if (!speed) return null;
  const spread = ({ median, least, most }) => `${number(median, 3)} (${number(least, 3)} to ${number(most, 3)})`;
  const { dense, pruned } = speed;
  const rows = [
    ["Prefill, tokens per second", spread(dense.prefill_tokens_per_second), spread(pruned.prefill_tokens_per_second), `× ${number(speed.prefill_gain, 3)}`],
    ["Decode, tokens per second", spread(dense.decode_tokens_per_second), spread(pruned.decode_tokens_per_second), `× ${number(speed.decode_gain, 3)}`],
    ["First token", `${number(1000 * dense.first_token_seconds.median, 3)} ms`, `${number(1000 * pruned.first_token_seconds.median, 3)} ms`, ""],
    ["Peak memory", bytes(dense.peak_bytes), bytes(pruned.peak_bytes), change(dense.peak_bytes, pruned.peak_bytes)],
  ];
  return h("section", { class: "card" }, h("h2", {}, "Speed"),
    h("p", { class: "hint" }, `Both models whole in ${speed.runtime}, ${speed.dtype}, on ${speed.device} with ${count(speed.threads)} threads, in turns: a prompt of ${count(speed.prompt_tokens)} tokens and ${count(speed.new_tokens)} new ones. Medians, with the least and the most.`),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Speed" }, h("table", {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, ""), ["Dense", "Pruned", "Pruned / dense"].map((text) => h("th", { scope: "col", class: "num" }, text)))),
      h("tbody", {}, rows.map(([name, ...cells]) => h("tr", {}, h("th", { scope: "row" }, name), cells.map((text) => h("td", { class: "num" }, text))))))));
}

/** How fast the result is by a device's table, beside what was measured. */
function predictedOf({ predicted_speed: speed, speed: measured }) {
  if (!speed) return null;
  const gain = measured && (speed.of === "decode" ? measured.decode_gain : measured.prefill_gain);
  const rows = [
    ["Asked for", `${speed.of} × ${number(speed.asked, 3)}`],
    ...predicted(speed),
    ["Measured in this job", gain ? `× ${number(gain, 3)}` : "not"],
  ];
  return h("section", { class: "card" }, h("h2", {}, "Predicted speed"),
    h("p", { class: "hint" }, `By table ${speed.table}, measured on ${speed.measured_on} in ${speed.runtime}: ${count(speed.sequences)} × ${count(speed.tokens)} new tokens after ${count(speed.context_tokens)} in the KV cache.`),
    h("dl", {}, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
}

/** How both models continue prompts. A model may write anything: it stays text, and is seen. */
function samplesOf({ samples = [] }) {
  if (!samples.length) return null;
  const written = (name, same, own) => h("div", { class: "sample" },
    h("h4", {}, name, " ", h("span", { class: "soft" }, `${count(own.tokens)} ${own.tokens === 1 ? "token" : "tokens"}${own.ended ? ", ended" : ""}`)),
    h("p", { class: "written", dir: "auto" }, visible(same), own.token ? h("mark", {}, visible(own.token).replaceAll("\n", "↵\n")) : null, visible(own.rest)));
  return h("section", { class: "card" }, h("h2", {}, "Samples"),
    h("p", { class: "hint" }, "Both models continue the same prompts with the most probable token each time. Where they part, the first different token is marked."),
    samples.map(({ prompt, same, dense, pruned }) => [
      h("p", { class: "written prompt", dir: "auto" }, visible(prompt)),
      h("div", { class: "pair" }, written("Dense", same, dense), written("Pruned", same, pruned)),
    ]));
}

/** Exports with their size, and the perplexity of those in 8 bits. */
function exportTable(exports) {
  if (!exports.length) return null;
  return h("section", { class: "card" },
    h("h2", {}, "Exports"),
    h("dl", {}, exports.map(({ name, folder, bytes: size, perplexity }) => [
      h("dt", {}, words(name)),
      h("dd", {}, `${bytes(size)} in ${folder}${typeof perplexity === "number" ? `, perplexity ${number(perplexity)}` : ""}`),
    ])));
}

/** The files with download links, renewed before they expire, as long as the page is open. */
async function showFiles(box, id, signal) {
  const heading = box.firstElementChild;
  for (;;) {
    try {
      const { data, expires_seconds: seconds } = await getArtifacts(id, signal);
      box.replaceChildren(heading, fileTable(data));
      if (!seconds) return;
      await pause(1000 * seconds * RENEW_AT, signal);
    } catch (error) {
      if (!signal.aborted) box.replaceChildren(heading, problemBox(error));
      return;
    }
    if (signal.aborted) return;
  }
}

const metricText = ({ value, standard_error: error }) => (error === null ? number(value) : `${number(value)} ± ${number(error, 2)}`);

/** Every metric of every task, of both models, with the standard errors. */
function taskTable({ harness, dense, pruned }) {
  const rows = dense.flatMap((task, place) => task.metrics.map((metric, index) => h("tr", {},
    h("th", { scope: "row" }, task.task), h("td", {}, metric.name),
    h("td", { class: "num" }, metricText(metric)), h("td", { class: "num" }, metricText(pruned[place].metrics[index])),
    h("td", { class: "num" }, `${count(task.documents)} of ${count(task.available_documents)}`))));
  const head = h("tr", {}, ["Task", "Metric"].map((name) => h("th", { scope: "col" }, name)), ["Dense", "Pruned", "Documents"].map((name) => h("th", { scope: "col", class: "num" }, name)));
  return h("section", { class: "card" }, h("h2", {}, "Tasks"), h("p", { class: "hint" }, `lm-evaluation-harness ${harness}, with its standard errors.`),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Tasks" }, h("table", {}, h("thead", {}, head), h("tbody", {}, rows))));
}

function fileTable(files) {
  const name = (file) => (file.url ? h("a", { href: file.url, ...(file.name.endsWith(".html") ? {} : { download: file.name.split("/").pop() }), rel: "noreferrer", target: "_blank" }, file.name) : h("span", { title: file.uri }, file.name));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Files" }, h("table", {},
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "File"), h("th", { scope: "col", class: "num" }, "Size"), h("th", { scope: "col" }, "SHA-256"))),
    h("tbody", {}, files.map((file) => h("tr", {}, h("th", { scope: "row" }, name(file)), h("td", { class: "num" }, bytes(file.bytes)), h("td", { class: "mono digest", title: file.sha256 }, `${file.sha256.slice(0, 16)}…`))))));
}
