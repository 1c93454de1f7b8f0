// A job as it is sent again elsewhere: as JSON, for curl, the command and Python.

import { copyButton } from "./copy.js";
import { freshId, h } from "./dom.js";

const FORMS = [
  ["JSON", (json) => json],
  ["curl", (json) => `curl ${location.origin}/v1/pruning-jobs \\\n  -H "Authorization: Bearer $STRUCPRUNE_API_KEY" -H "Content-Type: application/json" \\\n  -d @- <<'END'\n${json}\nEND`],
  ["Command", (json) => `export STRUCPRUNE_URL=${location.origin}\nstrucprune jobs submit --spec - <<'END'\n${json}\nEND`],
  ["Python", (json) => `import json, os\nfrom strucprune_core.client import StrucPruneClient\n\nspec = json.loads(r'''\n${json.replaceAll("'", "\\u0027")}\n''')\nwith StrucPruneClient("${location.origin}", os.environ["STRUCPRUNE_API_KEY"]) as client:\n    print(client.submit(spec).id)`],
];

/** A folded card that shows the job in a chosen form, to copy. */
export function recipes(job) {
  const id = freshId("recipe");
  const text = h("pre", { id, tabindex: "0", class: "log", "aria-label": "The job" });
  const select = h("select", { "aria-label": "Form", "aria-controls": id }, FORMS.map(([name]) => h("option", { value: name }, name)));
  const copy = copyButton(text, "the job");
  const json = JSON.stringify(withoutNulls(job.spec), null, 2);
  const show = () => {
    text.textContent = FORMS.find(([name]) => name === select.value)[1](json);
    copy.clear();
  };
  select.addEventListener("change", show);
  show();
  return h("details", { class: "card" }, h("summary", {}, "Send this job again"),
    h("p", { class: "hint" }, "With another output: nothing is ever overwritten."),
    h("div", { class: "row" }, select, copy.nodes), text);
}

/** What was left out of the job is null in its record, and is left out again. */
function withoutNulls(value) {
  if (Array.isArray(value)) return value.map(withoutNulls);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).filter(([, one]) => one !== null).map(([name, one]) => [name, withoutNulls(one)]));
}
