// The REST API: requests with the key, problems as errors, and event streams.

import { getKey } from "./session.js";

const JOBS = "v1/pruning-jobs";

/** An error answer of the API, or no answer (`status` 0). */
export class ApiProblem extends Error {
  constructor(status, problem, retryAfterSeconds = null) {
    super(problem.detail);
    this.status = status;
    this.code = problem.code;
    this.errors = problem.errors ?? [];
    this.requestId = problem.request_id ?? null;
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

export const capabilities = (signal) => json("v1/capabilities", { signal });
export const listModels = (prefix, signal) => json(`v1/models?${new URLSearchParams({ prefix })}`, { signal });
export const getQuota = (signal) => json("v1/quota", { signal });
/** For keys with the scope admin. */
export const getWorkers = (signal) => json("v1/workers", { signal });
export const getJob = (id, signal) => json(path(id), { signal });
export const getReport = (id, signal) => json(`${path(id)}/report?format=json`, { signal });
/** All files, page by page, with download links. */
export async function getArtifacts(id, signal) {
  const files = [];
  for (let after = null; ;) {
    const query = new URLSearchParams({ presign: true, ...(after ? { after } : {}) });
    const page = await json(`${path(id)}/artifacts?${query}`, { signal });
    files.push(...page.data);
    after = page.next_after;
    if (!after) return { data: files, expires_seconds: page.expires_seconds };
  }
}

export const getLogs = (id, after, signal) => json(`${path(id)}/logs?${new URLSearchParams({ after })}`, { signal });
const getEvents = async (id, after, signal) =>
  (await json(`${path(id)}/events?${new URLSearchParams({ after, limit: 1000 })}`, { signal })).data;
export const validate = (spec, signal) => json(`${JOBS}/validate`, { method: "POST", body: spec, signal });

/** One page of jobs. Filters: state, label, created_after, created_before, cursor, limit. */
export function listJobs(filters, signal) {
  const given = Object.entries(filters).filter(([, value]) => value);
  return json(`${JOBS}?${new URLSearchParams(given)}`, { signal });
}

export const submit = (spec, idempotencyKey) =>
  json(JOBS, { method: "POST", body: spec, headers: { "Idempotency-Key": idempotencyKey } });

/** `cancel`, `pause`, `resume` or `retry`. */
export const control = (id, verb) => json(`${path(id)}/${verb}`, { method: "POST" });
export const remove = (id, outputs) => request(`${path(id)}?outputs=${outputs}`, { method: "DELETE" });

/**
 * Events of a job after a given one ("0" for all) as they happen, until the job ends or `signal` aborts.
 * If the connection breaks, it continues after the last event. `EventSource` cannot send the key, so the stream is read here.
 */
export async function* events(id, after, signal) {
  while (!signal.aborted) {
    try {
      const response = await request(`${path(id)}/events`, {
        headers: { Accept: "text/event-stream", "Last-Event-ID": after },
        signal,
      });
      for await (const event of parseStream(response.body)) {
        after = event.id;
        yield event;
      }
      // Streams end with the job, but servers stop too, and a job may be retried at any time. The job is
      // read first: if it has ended, its last event is among those read next.
      const over = ENDED.has((await getJob(id, signal)).state);
      const missed = await getEvents(id, after, signal);
      for (const event of missed) {
        after = event.id;
        yield event;
      }
      if (over && missed.length === 0) return;
    } catch (error) {
      if (signal.aborted || [401, 403, 404].includes(error.status)) return;
    }
    await pause(2000, signal);
  }
}

export const ENDED = new Set(["succeeded", "failed", "cancelled"]);

/** Resolves after this many milliseconds, or at once when aborted. */
export function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}

async function* parseStream(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").find((line) => line.startsWith("data: "));
      if (data) yield JSON.parse(data.slice("data: ".length));
    }
  }
}

const path = (id) => `${JOBS}/${encodeURIComponent(id)}`;

async function json(url, options) {
  return (await request(url, options)).json();
}

async function request(url, { method = "GET", body, headers = {}, signal } = {}) {
  let response;
  try {
    response = await fetch(url, {
      method,
      signal,
      cache: "no-store",
      headers: {
        Authorization: `Bearer ${getKey()}`,
        ...(body ? { "Content-Type": "application/json" } : {}),
        ...headers,
      },
      body: body && JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiProblem(0, { code: "unreachable", detail: "The service does not answer. Is the network up?" });
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({ code: "unknown", detail: `The service answered ${response.status}.` }));
  if (response.status === 401) window.dispatchEvent(new CustomEvent("key-refused", { detail: problem.detail }));
  throw new ApiProblem(response.status, problem, Number(response.headers.get("Retry-After")) || null);
}
