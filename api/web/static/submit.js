// The submit form, with errors at their fields and an estimate while the user fills it in.

import { capabilities, getJob, submit, validate } from "./api.js";
import { h, problemBox } from "./dom.js";
import { showEstimate } from "./estimate.js";
import { fieldOf, HOW, sections, setValue, TARGETS, valueAt } from "./fields.js";
import { inheritedCard, pathOf, template } from "./inherited.js";
import { control } from "./inputs.js";
import { mendButtons } from "./mends.js";
import { suggestModels } from "./suggestions.js";
import { timeLines } from "./times.js";
import { consequence, settingsOf, WHERE } from "./where.js";

const QUIET_MILLISECONDS = 500;

/** Show the form; `?from=<job>` fills it with that job's specification, `?extend=<job>` to add sizes to that job. */
export async function showSubmit(main, signal, query) {
  let known;
  let origin = null;
  const extended = query.get("extend");
  const from = extended ?? query.get("from");
  try {
    known = await capabilities(signal);
    if (from) origin = await getJob(from, signal);
  } catch (error) {
    if (!signal.aborted) main.append(h("h1", { tabindex: "-1" }, "New job"), problemBox(error));
    return;
  }
  const controls = [];
  const parts = sections(known).map((section) => sectionNode(section, controls, known.defaults));
  const base = origin ? template(origin, controls.map((one) => one.field.pointer), known.defaults) : {};
  if (extended) {
    base.extends = extended;
    setValue(base, "/pruning/sizes", undefined); // those that are there already
  }
  const inherited = inheritedCard(known.defaults, (pointer) => apply(pointer, undefined));
  const whatFollows = h("div", { "aria-live": "polite" });
  const ways = h("div", {});
  find(WHERE).node.append(whatFollows, ways);
  suggestModels(find("/model/uri").node.querySelector("input"), signal);
  const problems = h("div", {});
  const estimate = h("div", { "aria-live": "polite" });
  const button = h("button", { class: "primary" }, "Submit job");
  const times = h("div", { class: "times", "aria-live": "polite" });
  const form = h("form", { class: "submit", novalidate: true },
    h("div", {}, problems, parts, inherited.node, h("div", { class: "actions" }, button, times)),
    h("aside", { class: "card estimate", "aria-label": "Estimate" }, h("h2", {}, "Estimate"), estimate));
  main.append(h("div", { class: "headline" }, h("h1", { tabindex: "-1" }, extended ? "Add sizes" : "New job")), form);

  const touched = new Set();
  let attempted = false;
  let attempt = newAttempt();
  let asking = new AbortController();
  let timer;
  if (origin) {
    for (const one of controls) {
      const value = valueAt(base, one.field.pointer) ?? undefined;
      one.fill(value);
      if (value !== undefined) touched.add(one.field.pointer);
    }
    if (extended) find(HOW).fill("several_sizes");
  } else showWhatFollows();
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
    if (pointer === WHERE) set(settingsOf(find(WHERE).read(), known));
    if (pointer === WHERE) showWhatFollows();
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
    inherited.update(spec(), controls.map((one) => one.field.pointer));
  }

  function set(values) {
    for (const [pointer, value] of Object.entries(values)) {
      find(pointer).fill(value);
      touched.add(pointer);
    }
  }

  /** Set a field, or a setting that the form has no field for, as a button says. */
  function apply(pointer, value) {
    const own = find(pointer);
    if (own) set({ [pointer]: value });
    else setValue(base, pointer, value);
    changed(null);
    (own ?? find(WHERE)).focus();
  }

  /** What a button may change: a field that applies, or a setting of the template. */
  function changeable(pointer) {
    const own = find(pointer);
    if (own) return own.node.hidden ? undefined : own;
    const value = valueAt(base, pointer);
    return value === undefined ? undefined : { field: { label: pathOf(pointer) }, read: () => value, show: String };
  }

  function buttons(mends) { return mendButtons(mends, { find: changeable, apply }); }

  /** What the choice of a runtime sets, and then whether it loads the result of a valid job. */
  function showWhatFollows(runtimes = []) {
    const choice = find(WHERE).read();
    const verdict = runtimes.find(({ runtime, loads }) => runtime === choice && !loads);
    const text = verdict ? `${choice} will not load the result: ${verdict.reason}.` : consequence(choice, known);
    // The same text is not put in again, since screen readers would read it again.
    if (whatFollows.textContent !== text) whatFollows.replaceChildren(h("p", { class: verdict ? "field-error" : "hint" }, text));
    ways.replaceChildren(...[buttons(verdict?.mends)].filter(Boolean));
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
    if (target && TARGETS.every((name) => target[name] == null)) delete body.pruning.target;
    for (const part of ["model", "output", "pruning", "calibration"]) body[part] ??= {};
    return body;
  }

  async function ask() {
    asking = new AbortController();
    const mine = asking.signal;
    const body = spec();
    if (!touched.size && !attempted) {
      estimate.replaceChildren(h("p", { class: "hint" }, "Name a model, an output and a text, and this shows sizes, memory and which runtimes will load the result."));
      return;
    }
    estimate.setAttribute("aria-busy", "true");
    try {
      const answer = await validate(body, mine);
      showErrors(answer.issues);
      if (touched.has(WHERE)) showWhatFollows(answer.runtimes ?? []);
      times.replaceChildren(...(answer.valid ? timeLines(answer) : []));
      if (answer.valid) showEstimate(estimate, answer, buttons);
      else estimate.replaceChildren(incomplete(answer.issues));
    } catch (error) {
      if (mine.aborted) return;
      times.replaceChildren();
      showErrors(error.errors);
      if (touched.has(WHERE)) showWhatFollows();
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
      if (wrong) wrong.focus();
      else problems.scrollIntoView({ block: "center" });
    }
    button.disabled = false;
  }

  /** Show each error at its field. Before the first attempt, only at fields that the user has changed. */
  function showErrors(errors) {
    problems.replaceChildren();
    for (const one of controls) {
      const { pointer } = one.field;
      const own = attempted || touched.has(pointer) ? errors.filter((error) => fieldOf(error, pointers()) === pointer) : [];
      one.fail(own.map((error) => error.detail).join(" "), buttons(own.flatMap((error) => error.mends ?? [])));
    }
  }

  function incomplete(errors) {
    const rest = errors.filter((one) => !fieldOf(one, pointers()));
    const labels = new Set(errors.filter((one) => !rest.includes(one)).map((one) => find(fieldOf(one, pointers())).field.label));
    return h("div", {},
      h("p", { class: "hint" }, "Shown once the job is complete and valid. Still to do:"),
      h("ul", { class: "todo" }, [...labels].map((label) => h("li", {}, label)), rest.map((one) => h("li", {}, one.detail, buttons(one.mends)))));
  }

  function find(pointer) { return controls.find((one) => one.field.pointer === pointer); }
  function pointers() { return controls.filter((one) => !one.node.hidden).map((one) => one.field.pointer); }
}

function sectionNode(section, controls, defaults) {
  const own = section.fields.map((field) => control(field, defaults));
  controls.push(...own);
  const fields = h("div", { class: "fields" }, own.map((one) => one.node));
  return section.folded
    ? h("details", { class: "card" }, h("summary", {}, section.title), fields)
    : h("section", { class: "card" }, section.title ? h("h2", {}, section.title) : null, fields);
}

/** A second click, or a retry after a lost answer, submits the same job. */
function newAttempt() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
