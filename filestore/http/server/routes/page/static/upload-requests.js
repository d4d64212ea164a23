// Requests of an upload: what a failed one means, and when it is sent again.

const FIRST_DELAY = 1_000; // milliseconds, as all times here
const LONGEST_DELAY = 30_000;
const LONGEST_WISH = 120_000;
const PATIENCE = 300_000;
const ANSWER_LIMIT = 300_000;
const STALL_LIMIT = 60_000;
const SLUG_START = "urn:filestore:error:";

const SESSION_OVER = ["unauthorized", "token-expired", "url-refused"];

/** Return a sentence for the user. What the server says of a session is meant for programs, which have a token. */
function sentenceOf(status, detail, slug) {
  if (SESSION_OVER.includes(slug)) return "Your session has ended. Sign in again in another tab, and then try again here.";
  if (!detail) return status ? `The server answered with status ${status}.` : "The server cannot be reached.";
  return `${detail[0].toUpperCase()}${detail.slice(1)}${/[.!?]$/.test(detail) ? "" : "."}`;
}

/** The server refused a request, or did not answer. `status` is 0 without an answer. */
export class Problem extends Error {
  constructor(status, { detail = "", slug = "", delay = null } = {}) {
    super(sentenceOf(status, detail, slug));
    this.status = status;
    this.slug = slug;
    this.delay = delay;
  }

  /** Whether the same request may succeed later, without anybody doing something. */
  get isPassing() {
    return [0, 408, 429, 502, 503, 504].includes(this.status) && this.slug !== "too-many-uploads";
  }
}

/** Return the Problem in an answer. `header` returns the value of a header, or null. */
function problemOf(status, text, header) {
  const seconds = Number(header("Retry-After") ?? Number.NaN);
  const delay = Number.isFinite(seconds) ? Math.min(seconds * 1_000, LONGEST_WISH) : null;
  try {
    const { detail, type } = JSON.parse(text);
    const slug = typeof type === "string" && type.startsWith(SLUG_START) ? type.slice(SLUG_START.length) : "";
    return new Problem(status, { detail: typeof detail === "string" ? detail : "", slug, delay });
  } catch {
    return new Problem(status, { delay });
  }
}

/** Send a request with a small JSON body, and return the JSON of the answer, or null. Throws Problem, AbortError. */
export async function ask(method, url, { message, signal }) {
  const limited = AbortSignal.any([signal, AbortSignal.timeout(ANSWER_LIMIT)]);
  const headers = { Accept: "application/json" };
  const body = message === undefined ? undefined : JSON.stringify(message);
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  let text;
  try {
    response = await fetch(url, { method, headers, body, signal: limited, redirect: "error", cache: "no-store" });
    text = await response.text();
  } catch {
    signal.throwIfAborted();
    throw new Problem(0);
  }
  if (!response.ok) throw problemOf(response.status, text, (name) => response.headers.get(name));
  try {
    return text ? JSON.parse(text) : null;
  } catch {
    throw new Problem(0, { detail: "The answer is not one of this server." });
  }
}

/** Send the bytes of a part, and return its ETag. `onSent` gets the number of bytes so far. Throws Problem, AbortError. */
export function put(url, blob, { signal, onSent }) {
  return new Promise((resolve, reject) => {
    // Not by `fetch`, which does not say how much was sent.
    const request = new XMLHttpRequest();
    let watch = 0;
    const expect = (limit) => {
      clearTimeout(watch);
      watch = setTimeout(() => request.abort(), limit);
    };
    const abort = () => request.abort();
    const end = (settle, value) => {
      clearTimeout(watch);
      signal.removeEventListener("abort", abort);
      settle(value);
    };
    request.open("PUT", url);
    request.setRequestHeader("Accept", "application/json");
    request.upload.onprogress = ({ loaded }) => {
      expect(STALL_LIMIT);
      onSent(loaded);
    };
    request.upload.onload = () => expect(ANSWER_LIMIT);
    request.onload = () => {
      const tag = request.getResponseHeader("ETag");
      const isStored = request.status >= 200 && request.status < 300 && tag !== null;
      if (isStored) end(resolve, tag.replaceAll('"', ""));
      else end(reject, problemOf(request.status, request.responseText, (name) => request.getResponseHeader(name)));
    };
    request.onerror = () => end(reject, new Problem(0));
    request.onabort = () => end(reject, signal.aborted ? signal.reason : new Problem(0));
    signal.addEventListener("abort", abort);
    if (signal.aborted) {
      end(reject, signal.reason);
      return;
    }
    expect(STALL_LIMIT);
    request.send(blob);
  });
}

/** Wait, at the most until the browser has a connection again. Throws when `signal` is aborted. */
function pause(delay, signal) {
  return new Promise((resolve, reject) => {
    const end = (settle, value) => {
      clearTimeout(timer);
      window.removeEventListener("online", goOn);
      signal.removeEventListener("abort", stop);
      settle(value);
    };
    const goOn = () => end(resolve);
    const stop = () => end(reject, signal.reason);
    const timer = setTimeout(goOn, delay);
    window.addEventListener("online", goOn);
    signal.addEventListener("abort", stop);
    if (signal.aborted) stop();
  });
}

/** Call `work` until it succeeds, for some minutes. `onWait` is called with true before a pause and with false after it. */
export async function retried(work, { signal, onWait }) {
  let waited = 0;
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await work(attempt);
    } catch (error) {
      if (!(error instanceof Problem) || !error.isPassing || waited >= PATIENCE) throw error;
      const growing = Math.min(FIRST_DELAY * 2 ** attempt, LONGEST_DELAY) * (0.5 + Math.random() / 2);
      const delay = Math.max(growing, error.delay ?? 0);
      waited += delay;
      onWait(true, error);
      try {
        await pause(delay, signal);
      } finally {
        onWait(false, error);
      }
    }
  }
}
