// The actions on a job in each state. Those that cannot be undone ask for confirmation.

import { control, ENDED, remove } from "./api.js";
import { h } from "./dom.js";

const ACTIONS = [
  { verb: "pause", label: "Pause", states: ["queued", "running"] },
  { verb: "resume", label: "Resume", states: ["paused", "pausing"] },
  { verb: "retry", label: "Retry", states: ["failed", "cancelled"] },
  { verb: "cancel", label: "Cancel job", states: ["queued", "running", "pausing", "paused"], ask: "Cancel this job? Finished layers are kept, so it can be retried later." },
];

/** Buttons for a job. `done(job)` gets the job afterwards, `failed(error)` gets the error. */
export function actionBar(id, { done, failed, deleted }) {
  const buttons = ACTIONS.map((action) => {
    const button = h("button", { type: "button" }, action.label);
    button.addEventListener("click", async () => {
      if (action.ask && !(await confirm(action.ask, action.label))) return;
      await run(button, async () => done(await control(id, action.verb)));
    });
    return { ...action, button };
  });
  const again = h("a", { class: "button", href: `#/new?from=${id}` }, "Use as template");
  const removal = h("button", { type: "button", class: "danger" }, "Delete");
  removal.addEventListener("click", async () => {
    const box = h("input", { type: "checkbox" });
    const more = h("label", { class: "check" }, box, "Also delete the files that it has published");
    if (!(await confirm("Delete this job, its log and its workspace? This cannot be undone.", "Delete", more))) return;
    await run(removal, async () => { await remove(id, box.checked); deleted(); });
  });

  async function run(button, act) {
    button.disabled = true;
    try {
      await act();
    } catch (error) {
      failed(error);
    }
    button.disabled = false;
  }

  return {
    node: h("div", { class: "actions", role: "group", "aria-label": "Actions" }, buttons.map((one) => one.button), again, removal),
    update(state) {
      for (const { button, states } of buttons) button.hidden = !states.includes(state);
      removal.hidden = !ENDED.has(state);
    },
  };
}

/** Ask in a dialog. Resolves to whether the user agreed. */
function confirm(question, label, more = null) {
  return new Promise((resolve) => {
    const dialog = h("dialog", { "aria-label": label },
      h("form", { method: "dialog" },
        h("p", {}, question), more,
        h("div", { class: "actions" },
          h("button", { value: "no", autofocus: true }, "Keep"),
          h("button", { value: "yes", class: "danger" }, label))));
    dialog.addEventListener("close", () => { dialog.remove(); resolve(dialog.returnValue === "yes"); });
    document.body.append(dialog);
    dialog.showModal();
  });
}
