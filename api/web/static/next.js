// What a reader of a finished job does next: get the result, and load it.

import { copyBlock } from "./copy.js";
import { h } from "./dom.js";
import { leaf } from "./format.js";

/** A card with commands to copy. `loading` is the report's: how runtimes load the result. */
export function nextSteps(job, loading) {
  const folder = leaf(job.spec.output.uri_prefix) || "result";
  const several = job.summary?.sizes;
  const fetched = `export STRUCPRUNE_URL=${location.origin}\nstrucprune jobs download ${job.id} --to ${quoted(folder)}`;
  const first = several?.find((one) => one.folder);
  const inside = several ? `${folder}/${first?.folder ?? ""}` : folder;
  return h("section", { class: "card" }, h("h2", {}, "Use the result"),
    h("p", { class: "hint" }, "It lies in ", h("span", { class: "mono" }, job.spec.output.uri_prefix), several ? ", each size in a folder of its own." : "."),
    copyBlock("Download all files", "Goes on where it broke off, and verifies every file. The key is in STRUCPRUNE_API_KEY.", fetched),
    loading.map(({ runtime, note, example }) => copyBlock(`Load in ${runtime}`, `In the folder ${inside}: ${note}.`, example)));
}

/** As one word of a shell. */
const quoted = (text) => (/^[\w.@%+=:,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
