// Settings that a job takes over from its template and that the form has no field for.

import { h } from "./dom.js";

/** The dotted path of a field: `/pruning/damping` is `pruning.damping`. */
export const pathOf = (pointer) => pointer.slice(1).replaceAll("/", ".");

/** A template's specification without its output, and without what the service would set anyway. */
export function template(job, pointers, defaults) {
  const { output, ...spec } = structuredClone(job.spec);
  if (output.dtype) spec.output = { dtype: output.dtype };
  const bare = (part, path) => Object.fromEntries(Object.entries(part)
    .filter(([name, value]) => value !== null && (isShown(`${path}/${name}`, pointers) || !isDefault(`${path}/${name}`, value, defaults)))
    .map(([name, value]) => [name, isSection(`${path}/${name}`, pointers, defaults) ? bare(value, `${path}/${name}`) : value]));
  return bare(spec, "");
}

/** A card with the settings of `spec` that no field shows; each has a button that calls `remove(pointer)`. */
export function inheritedCard(defaults, remove) {
  const list = h("ul", { class: "inherited" });
  const node = h("section", { class: "card", hidden: true, "aria-label": "Taken over from the template" },
    h("h2", {}, "Taken over from the template"),
    h("p", { class: "hint" }, "The form has no field for these. They are sent as they stand here."), list);
  return {
    node,
    update(spec, pointers) {
      const rows = leaves(spec, "", pointers, defaults).filter(([pointer]) => !isShown(pointer, pointers));
      node.hidden = !rows.length;
      list.replaceChildren(...rows.map(([pointer, value]) => row(pointer, value, remove)));
    },
  };
}

function row(pointer, value, remove) {
  const path = pathOf(pointer);
  return h("li", {},
    h("code", { class: "mono" }, path), h("span", { class: "clip" }, typeof value === "string" ? value : JSON.stringify(value)),
    h("button", { type: "button", "aria-label": `Leave out ${path}`, onclick: () => remove(pointer) }, "Leave out"));
}

/** Whether a field of the form sets what a pointer names, or a part of it. */
const isShown = (pointer, pointers) =>
  pointers.some((own) => own === pointer || pointer.startsWith(`${own}/`) || own.startsWith(`${pointer}/`));
const isDefault = (pointer, value, defaults) =>
  JSON.stringify(value) === JSON.stringify(defaults[pathOf(pointer)]);
/** Whether a pointer is of a section, which has fields; other objects are values. */
const isSection = (pointer, pointers, defaults) =>
  pointers.some((own) => own.startsWith(`${pointer}/`)) || Object.keys(defaults).some((path) => path.startsWith(`${pathOf(pointer)}.`));

function leaves(part, path, pointers, defaults) {
  return Object.entries(part).flatMap(([name, value]) => {
    const pointer = `${path}/${name}`;
    if (value === undefined || value === null) return [];
    return isSection(pointer, pointers, defaults) ? leaves(value, pointer, pointers, defaults) : [[pointer, value]];
  });
}
