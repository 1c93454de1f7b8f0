// The submit form as data: the part of the job that each field sets, as a JSON pointer.

import { whereField } from "./where.js";

const GB = 1e9;

/** A field of the form alone: it chooses which of the job's fields are shown. */
export const HOW = "#how";
const WAYS = ["sparsity", "several_sizes", "parameters", "checkpoint_size", "memory", "perplexity", "speedup"];
const WAY_OF = { parameters: "parameters", bytes: "checkpoint_size", memory_bytes: "memory", max_perplexity_ratio: "perplexity", speedup: "speedup" };

/** The kinds of targets. */
export const TARGETS = Object.keys(WAY_OF);

/** What a job names: the value of the field `HOW`. */
export function wayOf({ pruning }) {
  if (pruning?.sizes?.length) return "several_sizes";
  const kind = TARGETS.find((name) => pruning?.target?.[name] != null);
  return kind ? WAY_OF[kind] : "sparsity";
}

/** Device memory of a job that names none. */
function usualMemory({ gpu_memory_bytes: usual }) {
  return usual ? `of a GPU ${(usual / GB).toFixed(1)}` : "small pieces";
}

/** Sections of fields. `capabilities` names the choices that this deployment has. */
export function sections(capabilities) {
  return [
    { fields: [whereField(capabilities)] },
    { title: "Model", fields: [
      { pointer: "/model/uri", label: "Model", kind: "text", required: true, placeholder: "s3://bucket/models/llama", hint: "Prefix with config.json, tokenizer.json and safetensors, or hf://org/name." },
      { pointer: "/model/adapter_uri", label: "Adapter", kind: "text", placeholder: "none", hint: "A LoRA adapter of PEFT, merged into the model as it is read." },
      { pointer: "/output/uri_prefix", label: "Output", kind: "text", required: true, placeholder: "s3://bucket/pruned/run-1", hint: "Where the result goes. Must hold nothing yet." },
      { pointer: "/name", label: "Name", kind: "text", placeholder: "none", hint: "What the job is called in lists, its report and webhooks." },
      { pointer: "/output/dtype", label: "Dtype", kind: "choice", options: ["bfloat16", "float16", "float32"], hint: "What weights are stored in. Default: as in the model; of a quantised model bfloat16." },
    ] },
    { title: "Pruning", fields: [
      { pointer: HOW, label: "How much", kind: "choice", options: WAYS, initial: "sparsity", hint: "What you name; the sparsity follows from it, and the estimate says it." },
      { pointer: "/pruning/sparsity", label: "Sparsity", kind: "share", initial: 0.3, when: [HOW, "sparsity"], hint: "Share that goes of all parameters of the chosen structures. Empty where experts are counted." },
      { pointer: "/pruning/sizes", label: "Several sizes", kind: "shares", placeholder: "0.2, 0.3, 0.5", when: [HOW, "several_sizes"], hint: "The model is measured once, and each size is published." },
      { pointer: "/pruning/target/parameters", label: "Parameters at most, millions", kind: "number", scale: 1e6, when: [HOW, "parameters"] },
      { pointer: "/pruning/target/bytes", label: "Checkpoint at most, GB", kind: "number", scale: GB, when: [HOW, "checkpoint_size"] },
      { pointer: "/pruning/target/memory_bytes", label: "Memory at most, GB", kind: "number", scale: GB, when: [HOW, "memory"], hint: "Weights and KV cache together." },
      { pointer: "/pruning/target/speedup", label: "Times as fast", kind: "number", placeholder: "1.3", when: [HOW, "speedup"], hint: "By times that were measured on a device, in transformers." },
      { pointer: "/pruning/target/of", label: "Of what", kind: "choice", options: ["checkpoint", ...capabilities.exports, "decode", "prefill"], when: [HOW, "checkpoint_size", "speedup"], hint: "Of a size the checkpoint (default) or an export; of speed decode, one token at a time (default), or prefill, a prompt." },
      { pointer: "/pruning/target/device", label: "Device of the times", kind: "choice", options: capabilities.device_tables, when: [HOW, "speedup"], hint: "Choose one. For another device, submit with the command and a file of bench-device." },
      { pointer: "/pruning/target/context_tokens", label: "Context length", kind: "number", when: [HOW, "memory", "speedup"] },
      { pointer: "/pruning/target/batch_sequences", label: "Batch size", kind: "number", when: [HOW, "memory", "speedup"] },
      { pointer: "/pruning/target/max_perplexity_ratio", label: "Perplexity may grow by a factor of", kind: "number", placeholder: "1.1", when: [HOW, "perplexity"], hint: "On the evaluation text. The job looks for the smallest model that keeps it." },
      { pointer: "/pruning/target/tries", label: "Tries", kind: "number", when: [HOW, "perplexity"], hint: "Sparsities that are pruned and measured before the result." },
      { pointer: "/pruning/structures", label: "Structures", kind: "several", options: capabilities.structures, initial: ["ffn_channels"], hint: "FFN channels, and of attention at most one kind; whole blocks beside them or alone; or experts, alone or with FFN channels." },
      { pointer: "/pruning/layout", label: "Layout", kind: "choice", options: capabilities.layouts, hint: "per layer: best quality. uniform: loads everywhere as it is; usual for experts." },
      { pointer: "/pruning/exports", label: "Also write", kind: "several", options: capabilities.exports, initial: [], hint: "gguf for llama.cpp, gguf q8 0 in 8 bits; fp8 for vLLM; block configs for vLLM and MLX." },
    ] },
    { title: "Calibration", fields: [
      { pointer: "/calibration/source", label: "Text", kind: "choice", options: ["file", "self"], initial: "file", hint: "self: the model writes the text, no data needed." },
      { pointer: "/calibration/uri", label: "Calibration text", kind: "text", placeholder: "s3://bucket/text.jsonl", when: ["/calibration/source", "file"], hint: "Plain text, JSON lines or Parquet; hf://datasets/org/name/file of a hub." },
      { pointer: "/calibration/samples", label: "Sequences", kind: "number" },
      { pointer: "/calibration/sequence_length", label: "Tokens each", kind: "number" },
      { pointer: "/calibration/allow_degenerate", label: "Allow degenerate text", kind: "flag", hint: "A text of hardly any distinct tokens is refused otherwise." },
    ] },
    { title: "Evaluation", fields: [
      { pointer: "/evaluation/uri", label: "Evaluation text", kind: "text", placeholder: "s3://bucket/eval.txt", hint: "For perplexity before and after. Leave empty to do without." },
      { pointer: "/evaluation/sequences", label: "Sequences", kind: "number", needs: "/evaluation/uri" },
      { pointer: "/evaluation/sequence_length", label: "Tokens each", kind: "number", needs: "/evaluation/uri" },
      { pointer: "/evaluation/samples", label: "Samples side by side", kind: "flag", needs: "/evaluation/uri", hint: "How both models continue prompts. Reads the weights about once per token." },
      { pointer: "/evaluation/speed", label: "Measure speed", kind: "flag", needs: "/evaluation/uri", hint: "Both models whole in transformers, in turns; left out where memory does not allow that." },
      { pointer: "/evaluation/prompts", label: "Prompts", kind: "lines", needs: "/evaluation/samples", placeholder: "a few short ones", hint: "One in each line, at most 16." },
      { pointer: "/evaluation/tasks", label: "Tasks", kind: "names", placeholder: "piqa, lambada_openai", needs: "/evaluation/uri", hint: "Of lm-evaluation-harness, if this service may download their data, or of task files." },
      { pointer: "/evaluation/task_files", label: "Task files", kind: "text", placeholder: "s3://bucket/tasks", needs: "/evaluation/tasks", hint: "Prefix with NAME.yaml and its data." },
      { pointer: "/evaluation/limit", label: "Documents of each task", kind: "number", placeholder: "all", needs: "/evaluation/tasks" },
      { pointer: "/evaluation/num_fewshot", label: "Examples before each", kind: "number", placeholder: "as the task says", needs: "/evaluation/tasks" },
      { pointer: "/evaluation/min_task_retention", label: "Accuracy to keep", kind: "number", placeholder: "any", needs: "/evaluation/tasks", hint: "Share of the dense accuracy above chance; with less, nothing is published." },
    ] },
    { title: "Text format", folded: true, fields: [
      { pointer: "/calibration/format", label: "File format", kind: "choice", options: ["auto", "text", "jsonl", "parquet"], when: ["/calibration/source", "file"], hint: "Default: by the name." },
      { pointer: "/calibration/field", label: "Field of documents", kind: "text", placeholder: "text", when: ["/calibration/source", "file"], hint: "Of JSON lines or Parquet; of conversations “messages”." },
      { pointer: "/calibration/chat_template", label: "Conversations", kind: "flag", when: ["/calibration/source", "file"], hint: "Each document is written out by the model's chat template." },
      { pointer: "/calibration/seed", label: "Seed", kind: "number", hint: "Of the sequences that are drawn." },
    ] },
    { title: "Quality and limits", folded: true, fields: [
      { pointer: "/evaluation/max_perplexity_ratio", label: "Perplexity ratio at most", kind: "number", needs: "/evaluation/uri", hint: "Pruned / dense; above, nothing is published." },
      { pointer: "/pruning/recover/steps", label: "Recovery steps", kind: "number", placeholder: "none", hint: "Train each pruned layer; 100 is usual." },
      { pointer: "/pruning/distill/steps", label: "Distillation steps", kind: "number", placeholder: "none", hint: "Train all layers together; best, and longest." },
      { pointer: "/pruning/allocation", label: "Allocation", kind: "choice", options: capabilities.allocations },
      { pointer: "/pruning/energy", label: "Energy", kind: "choice", options: capabilities.energies },
      { pointer: "/pruning/solver", label: "Solver", kind: "choice", options: capabilities.solvers },
      { pointer: "/pruning/expert_count", label: "Experts to keep", kind: "number", placeholder: "by sparsity", hint: "Of experts: how many every layer keeps. Leave sparsity empty." },
      { pointer: "/pruning/expert_score", label: "Expert score", kind: "choice", options: ["reap", "output_norm"], hint: "Of experts: which of them stay. The first is the default." },
      { pointer: "/pruning/expert_repair", label: "Repair experts", kind: "flag", hint: "Fit the experts that stay to what the dense layer's put out." },
      { pointer: "/pruning/rounds", label: "Rounds", kind: "number" },
      { pointer: "/pruning/multiple_of", label: "Widths are multiples of", kind: "number" },
      { pointer: "/pruning/max_layer_sparsity", label: "Most from any layer", kind: "number" },
    ] },
    { title: "Running", folded: true, fields: [
      { pointer: "/runtime/device", label: "Device", kind: "choice", options: ["auto", "cpu", "cuda"] },
      { pointer: "/runtime/precision", label: "Precision", kind: "choice", options: ["auto", "float32", "tf32", "bfloat16"], hint: "Of matrix products. Auto: bfloat16 on a GPU for a model stored in 16 bits, else float32." },
      { pointer: "/runtime/device_memory_bytes", label: "Device memory, GB", kind: "number", scale: GB, placeholder: usualMemory(capabilities.limits), hint: "The job runs in the largest pieces that fit." },
      { pointer: "/runtime/host_memory_bytes", label: "Host memory, GB", kind: "number", scale: GB, placeholder: "all" },
      { pointer: "/runtime/max_workers", label: "Workers at most", kind: "number", hint: "Idle workers help with layers that do not depend on each other; the result is the same." },
      { pointer: "/runtime/priority", label: "Priority", kind: "choice", options: ["low", "normal", "high"] },
      { pointer: "/runtime/deadline_seconds", label: "Deadline, hours", kind: "number", scale: 3600, placeholder: "the longest allowed" },
      { pointer: "/labels", label: "Labels", kind: "labels", placeholder: "team=nlp, run=42" },
    ] },
  ];
}

/** Whether a field is no part of a job. */
const isOfForm = (pointer) => pointer.startsWith("#");
const steps = (pointer) => pointer.split("/").slice(1);

/** The value that a pointer names, or undefined. */
export function valueAt(spec, pointer) {
  if (pointer === HOW) return wayOf(spec);
  if (isOfForm(pointer)) return undefined;
  return steps(pointer).reduce((part, step) => part?.[step], spec);
}

/** Set the value that a pointer names; undefined removes it. */
export function setValue(spec, pointer, value) {
  if (isOfForm(pointer)) return;
  const path = steps(pointer);
  const last = path.pop();
  let part = spec;
  for (const step of path) {
    if (part[step] === undefined || part[step] === null) {
      if (value === undefined) return;
      part[step] = {};
    }
    part = part[step];
  }
  if (value === undefined) delete part[last];
  else part[last] = value;
}

/**
 * The pointer of the field that an error belongs to, or null: the named field, or the field that contains
 * it. An error of a whole section begins with the name of the field at fault.
 */
export function fieldOf({ pointer, detail }, pointers) {
  if (pointer === null || pointer === undefined) return null;
  const around = pointers.filter((own) => own === pointer || pointer.startsWith(`${own}/`));
  if (around.length) return around.sort((a, b) => b.length - a.length)[0];
  const inside = pointers.filter((own) => own.startsWith(`${pointer}/`));
  if (inside.length === 1) return inside[0];
  const named = `${pointer}/${detail.split(" ")[0].replaceAll(".", "/")}`;
  return inside.find((own) => own === named || own.startsWith(`${named}/`)) ?? null;
}
