// Where the result is to run: what a choice sets, from the service's table of what loads where.

import { words } from "./format.js";

/** A field of the form alone: it sets the layout and the exports. */
export const WHERE = "#where";
const ANY = "any";

/** The field, with the runtimes of the table. */
export const whereField = ({ runtimes }) => ({
  pointer: WHERE, label: "Where will it run?", kind: "choice", initial: ANY, wide: true,
  options: [ANY, ...runtimes.map(({ name }) => name)], names: { [ANY]: "any, not decided yet" },
});

/** Values of fields that a choice sets, by pointer. Without a runtime: the defaults. */
export function settingsOf(choice, { runtimes, layouts }) {
  const form = bestForm(choice, runtimes)?.form;
  const isLayout = layouts.includes(form);
  return {
    "/pruning/layout": isLayout ? form : undefined,
    "/pruning/exports": form && !isLayout ? [form] : [],
  };
}

/** What follows from a choice, in one sentence. */
export function consequence(choice, { runtimes, layouts }) {
  const byLayer = (runtime) => runtime.loads.find(({ form }) => form === "per_layer");
  const best = bestForm(choice, runtimes);
  if (!best) {
    const names = runtimes.filter(byLayer).map(({ name }) => name).join(" and ");
    return `Each layer keeps a width of its own, which gives the best quality and loads in ${names}; the estimate says what else loads the result.`;
  }
  const what = layouts.includes(best.form) ? `Layout ${words(best.form)} is set` : `Export ${words(best.form)} is added`;
  const other = best.form === "per_layer" ? null : byLayer(runtimes.find(({ name }) => name === choice));
  const better = other ? `; layout per layer gives better quality, and loads there too (${how(other)})` : "";
  return `${what}, which ${choice} loads ${best.note === "as it is" ? "as it is" : `(${how(best)})`}${ofFamilies(best)}${better}.`;
}

// The table lists the best form first.
const bestForm = (choice, runtimes) => runtimes.find(({ name }) => name === choice)?.loads[0];
const how = ({ note }) => note.split(";")[0].replaceAll("`", "");
const ofFamilies = ({ families }) => (families.length > 3 ? "" : `, of ${families.join(" and ")} models`);
