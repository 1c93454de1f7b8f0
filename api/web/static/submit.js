// The submit form, with errors at their fields and an estimate while the user fills it in.

import { capabilities, getJob, submit, validate } from "./api.js";
import { h, problemBox } from "./dom.js";
import { showEstimate } from "./estimate.js";
import { fieldOf, sections, setValue, valueAt } from "./fields.js";
import { control } from "./inputs.js";

const QUIET_MILLISECONDS = 500;

/** Show the form; `?from=<job>` fills it with that job's specification. */
export async function showSubmit(main, signal, query) {
  let base = {};
  let known;
  try {
    known = await capabilities(signal);
    if (query.get("from")) base = template(await getJob(query.get("from"), signal));
  } catch (error) {
    if (!signal.aborted) main.append(h("h1", { tabindex: "-1" }, "New job"), problemBox(error));
    return;
  }
  const controls = [];
  const parts = sections(known).map((section) => sectionNode(section, controls));
  const problems = h("div", {});
  const estimate = h("div", { "aria-live": "polite" });
  const button = h("button", { class: "primary" }, "Submit job");
  const form = h("form", { class: "submit", novalidate: true },
    h("div", {}, problems, parts, h("div", { class: "actions" }, button)),
    h("aside", { class: "card estimate", "aria-label": "Estimate" }, h("h2", {}, "Estimate"), estimate));
  main.append(h("div", { class: "headline" }, h("h1", { tabindex: "-1" }, "New job")), form);

  const touched = new Set();
  let attempted = false;
  let attempt = newAttempt();
  let asking = new AbortController();
  let timer;
  if (query.get("from")) {
    for (const one of controls) one.fill(valueAt(base, one.field.pointer) ?? undefined);
  }
  changed(null);

  form.addEventListener("input", (event) => changed(event.target));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    attempted = true;
    await send();
  });
  signal.addEventListener("abort", () => { clearTimeout(timer); asking.abort(); });

  function changed(target) {
    const pointer = target?.closest("[data-pointer]")?.dataset.pointer;
    if (pointer) touched.add(pointer);
    attempt = newAttempt();
    showWhatApplies();
    asking.abort();
    clearTimeout(timer);
    timer = setTimeout(ask, QUIET_MILLISECONDS);
  }

  function showWhatApplies() {
    for (const { field, node } of controls) {
      if (field.when) node.hidden = !field.when.slice(1).includes(find(field.when[0]).read());
    }
  }

  /** The job in the form, on top of the job that the form was filled from. */
  function spec() {
    const body = structuredClone(base);
    for (const { field, node, read } of controls) {
      const applies = !node.hidden && (!field.needs || find(field.needs).read());
      setValue(body, field.pointer, applies ? read() : undefined);
    }
    if (!body.evaluation?.uri) delete body.evaluation;
    for (const part of ["recover", "distill"]) {
      if (body.pruning[part]?.steps === undefined) delete body.pruning[part];
    }
    const { target } = body.pruning;
    // A table that came with the job that the form was filled from stays while none is chosen.
    if (target && (target.speedup == null || target.device)) delete target.device_table;
    if (target && ["parameters", "bytes", "memory_bytes", "max_perplexity_ratio", "speedup"].every((name) => target[name] == null)) delete body.pruning.target;
    for (const part of ["model", "output", "pruning", "calibration"]) body[part] ??= {};
    return body;
  }

  async function ask() {
    asking = new AbortController();
    const mine = asking.signal;
    const body = spec();
    if (!body.model.uri) {
      showErrors([]);
      estimate.replaceChildren(h("p", { class: "hint" }, "Name a model, an output and a text, and this shows sizes, memory and which runtimes will load the result."));
      return;
    }
    estimate.setAttribute("aria-busy", "true");
    try {
      const answer = await validate(body, mine);
      showErrors(answer.issues);
      if (answer.valid) showEstimate(estimate, answer);
      else estimate.replaceChildren(incomplete(answer.issues));
    } catch (error) {
      if (mine.aborted) return;
      showErrors(error.errors);
      estimate.replaceChildren(error.errors.length ? incomplete(error.errors) : problemBox(error));
    } finally {
      if (!mine.aborted) estimate.removeAttribute("aria-busy");
    }
  }

  async function send() {
    clearTimeout(timer);
    asking.abort();
    button.disabled = true;
    try {
      const job = await submit(spec(), attempt);
      location.hash = `#/jobs/${job.id}`;
    } catch (error) {
      showErrors(error.errors);
      const homeless = error.errors.filter((one) => !fieldOf(one, pointers()));
      if (error.errors.length) estimate.replaceChildren(incomplete(error.errors));
      if (!error.errors.length) problems.replaceChildren(problemBox(error));
      else if (homeless.length) problems.replaceChildren(problemBox({ message: homeless.map((one) => one.detail).join(" ") }));
      const wrong = controls.find((one) => one.failed);
      wrong?.node.closest("details")?.setAttribute("open", "");
      if (wrong) wrong.focus();
      else problems.scrollIntoView({ block: "center" });
    }
    button.disabled = false;
  }

  /** Show each error at its field. Before the first attempt, only at fields that the user has changed. */
  function showErrors(errors) {
    problems.replaceChildren();
    const texts = new Map();
    for (const error of errors) {
      const own = fieldOf(error, pointers());
      if (own && (attempted || touched.has(own))) texts.set(own, [...(texts.get(own) ?? []), error.detail]);
    }
    for (const one of controls) one.fail(texts.get(one.field.pointer)?.join(" "));
  }

  function incomplete(errors) {
    const rest = errors.filter((one) => !fieldOf(one, pointers()));
    return h("div", {},
      h("p", { class: "hint" }, "Shown once the job is complete and valid. Still to do:"),
      h("ul", { class: "todo" }, errors.filter((one) => !rest.includes(one)).map((one) => h("li", {}, find(fieldOf(one, pointers())).field.label)), rest.map((one) => h("li", {}, one.detail))));
  }

  function find(pointer) { return controls.find((one) => one.field.pointer === pointer); }
  function pointers() { return controls.filter((one) => !one.node.hidden).map((one) => one.field.pointer); }
}

function sectionNode(section, controls) {
  const own = section.fields.map(control);
  controls.push(...own);
  const fields = h("div", { class: "fields" }, own.map((one) => one.node));
  return section.folded
    ? h("details", { class: "card" }, h("summary", {}, section.title), fields)
    : h("section", { class: "card" }, h("h2", {}, section.title), fields);
}

/** A job's specification to begin a new one with; the output must be another. */
function template(job) {
  const spec = structuredClone(job.spec);
  delete spec.output;
  return spec;
}

/** A second click, or a retry after a lost answer, submits the same job. */
function newAttempt() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
