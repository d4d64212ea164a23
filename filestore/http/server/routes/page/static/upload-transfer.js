// One upload: what has arrived is asked for, what is stored already is copied at the server, and the rest is sent.

import { forget, remember } from "./upload-memory.js";
import { Problem, ask, put, retried } from "./upload-requests.js";

const SMALLEST_PART = 8 * 1024 * 1024;
const PARTS_WANTED = 2_000; // the server takes 10,000
const SENDERS = 4;
const MISSES = 3; // after so many in a row, a copy is asked for more and more rarely
const LONGEST_LEAP = 64;
const FILES = "/v3/pipeline_files";

/** Return the size of the parts of a content. It depends on nothing but the size, so an upload can be resumed. */
export function partSizeOf(size) {
  let partSize = SMALLEST_PART;
  while (size > partSize * PARTS_WANTED) partSize *= 2;
  return partSize;
}

/** Return the parts of a full name, `OWNER/NAME` or `NAME`, as the server takes them. */
function splitName(fullName) {
  const slash = fullName.indexOf("/");
  return slash < 0 ? { name: fullName } : { owner: fullName.slice(0, slash), name: fullName.slice(slash + 1) };
}

/** Speaks with the worker that reads and hashes. */
export class Reader {
  #worker;
  #calls = new Map();
  #number = 0;
  #started;

  constructor(url, scripts) {
    this.#worker = new Worker(url);
    this.#worker.onmessage = ({ data }) => this.#take(data);
    this.#worker.onerror = () => this.#fail("The script that reads files could not be loaded. Reload the page.");
    this.#started = this.#send("start", { scripts });
    this.#started.catch(() => {}); // each call says it
  }

  /** Throws Error with a sentence for the user. */
  async call(verb, values, onProgress = () => {}) {
    await this.#started;
    return this.#send(verb, values, onProgress);
  }

  #send(verb, values, onProgress) {
    this.#number += 1;
    const id = this.#number;
    return new Promise((resolve, reject) => {
      this.#calls.set(id, { resolve, reject, onProgress });
      this.#worker.postMessage({ id, verb, ...values });
    });
  }

  #take({ id, result, failure, progress }) {
    const call = this.#calls.get(id);
    if (call === undefined) return;
    if (progress !== undefined) {
      call.onProgress(progress);
      return;
    }
    this.#calls.delete(id);
    if (failure === undefined) call.resolve(result);
    else call.reject(new Error(failure));
  }

  #fail(sentence) {
    for (const { reject } of this.#calls.values()) reject(new Error(sentence));
    this.#calls.clear();
  }
}

/** Whether an error is what the server says of a request, and not that it does not answer or that the session is over. */
function isAnswer(error) {
  return error instanceof Problem && !error.isPassing && error.status !== 401;
}

/** A part of the upload has arrived with other bytes than those of now, although the file looks the same. */
class OtherContent extends Error {}

/** The transfer of one source. `onChange` is called whenever one of the values has changed that a page shows. */
export class Transfer {
  #reader;
  #source;
  #namespace;
  #onChange;
  #abort = new AbortController();
  #known; // the entry in the memory of the browser, or null
  #ended = Promise.resolve();
  #isPrepared = false;
  #version = null; // the newest version of the name, or null
  #misses = 0;
  #leap = 0;
  #moving = new Map(); // bytes on the way, by the number of their part

  /** "reading" for checksums, "sending", "storing" at the server. */
  phase = "reading";
  /** Bytes that were read for checksums. */
  read = 0;
  /** Bytes of the parts that are at the server. */
  done = 0;
  /** Bytes of those that were sent since `run` was called. */
  sent = 0;
  /** The number of requests that failed and wait for another try. */
  waiting = 0;

  /** `source` has `id`, `kind`, `name`, `identity` and `size`; `known` is an unfinished upload of it, or null. */
  constructor(source, { reader, namespace, known, onChange }) {
    this.#source = source;
    this.#reader = reader;
    this.#namespace = namespace;
    this.#known = known;
    this.#onChange = onChange;
    this.size = source.size;
    this.partSize = partSizeOf(source.size);
  }

  /** The unfinished upload of the source, or null. */
  get known() {
    return this.#known;
  }

  /** Bytes that are at the server, or on the way to it. */
  get moved() {
    return this.done + this.#sum();
  }

  /**
   * Upload everything under a name, and return the record. It may be called again after a failure. Throws Error with a
   * sentence for the user, and anything after `cancel`.
   */
  run(name) {
    this.name = name;
    this.#abort = new AbortController();
    const ended = this.#run();
    this.#ended = ended.catch(() => {});
    return ended;
  }

  /** Stop, and remove what has arrived. Throws Problem if the server cannot be told; then the upload is still known. */
  async cancel() {
    this.#abort.abort();
    await this.#reader.call("stop", { source: this.#source.id });
    await this.#ended;
    await this.#remove(new AbortController().signal);
  }

  async #run() {
    await this.#reader.call("goOn", { source: this.#source.id });
    if (this.#source.kind === "directory" && !this.#isPrepared) {
      this.#enter("reading");
      await this.#reader.call("prepare", { source: this.#source.id }, (read) => {
        this.read = read;
        this.#onChange();
      });
      this.#isPrepared = true;
    }
    this.#signal.throwIfAborted();
    this.#enter("sending");
    try {
      return await this.#upload();
    } catch (error) {
      if (!(error instanceof OtherContent)) throw error;
      // The parts that arrived can never be used. So their upload is removed, and another one begins.
      await this.#remove(this.#signal);
      return this.#upload();
    }
  }

  get #signal() {
    return this.#abort.signal;
  }

  #enter(phase) {
    this.phase = phase;
    this.#onChange();
  }

  #sum() {
    let sum = 0;
    for (const size of this.#moving.values()) sum += size;
    return sum;
  }

  /** Ask again and again, for some minutes. */
  #retried(work, signal = this.#signal) {
    const onWait = (isWaiting) => {
      this.waiting += isWaiting ? 1 : -1;
      this.#onChange();
    };
    return retried(work, { signal, onWait });
  }

  #ask(method, path, message, signal = this.#signal) {
    return this.#retried(() => ask(method, path, { message, signal }), signal);
  }

  get #place() {
    return `${FILES}/uploads/${encodeURIComponent(this.#known.uploadId)}`;
  }

  async #upload() {
    this.done = this.sent = 0;
    const arrived = await this.#begin();
    this.#version = await this.#newestVersion();
    const listed = await this.#sendParts(arrived);
    this.#enter("storing");
    const message = {
      upload_id: this.#known.uploadId,
      file_id: this.#known.fileId,
      multipart_metadata: listed,
      ...(this.#source.kind === "directory" ? { kind: "directory" } : {}),
    };
    let record;
    try {
      record = await this.#ask("POST", `${FILES}/finalise-multipart-upload`, message);
    } catch (error) {
      this.#forgetIfGone(error);
      throw error;
    }
    this.#forget();
    return record;
  }

  /** Begin an upload, or resume the one that is known. Return the parts that have arrived, by their numbers. */
  async #begin() {
    if (this.#known !== null) {
      try {
        const arrived = await this.#arrivedParts();
        if (arrived !== null) return arrived;
        this.#forget();
      } catch (error) {
        if (!this.#forgetIfGone(error)) throw error;
      }
    }
    const begun = await this.#ask("POST", `${FILES}/initiate-multipart-upload`, splitName(this.name));
    this.#known = {
      namespace: this.#namespace,
      kind: this.#source.kind,
      source: this.#source.name,
      identity: this.#source.identity,
      size: this.size,
      partSize: this.partSize,
      name: this.name,
      uploadId: begun.upload_id,
      fileId: begun.file_id,
      begun: Date.now(),
    };
    remember(this.#known);
    return new Map();
  }

  /** Return the parts that have arrived, by their numbers, or null if the upload was finished. */
  async #arrivedParts() {
    const { parts, record_id: recordId } = await this.#ask("GET", `${this.#place}/parts`);
    return recordId === null ? new Map(parts.map((part) => [part.PartNumber, { tag: part.ETag, size: part.Size }])) : null;
  }

  #forget() {
    forget(this.#known.uploadId);
    this.#known = null;
  }

  /** Forget the upload if `error` says that it is gone, and return whether it does. */
  #forgetIfGone(error) {
    if (error.slug !== "upload-not-found" || this.#known === null) return false;
    this.#forget();
    return true;
  }

  async #newestVersion() {
    try {
      const { id, size } = await this.#ask("GET", `/native/v1/files/find?name=${encodeURIComponent(this.name)}`);
      return { id, size };
    } catch (error) {
      // Without a version to copy from, everything is sent. It is no reason to fail.
      if (!isAnswer(error)) throw error;
      return null;
    }
  }

  async #sendParts(arrived) {
    const count = Math.ceil(this.size / this.partSize);
    const listed = [];
    const failing = new AbortController();
    const signal = AbortSignal.any([this.#signal, failing.signal]);
    let next = 1;
    const sendSome = async () => {
      while (next <= count) {
        const number = next;
        next += 1;
        try {
          listed.push({ PartNumber: number, ETag: await this.#settle(number, arrived.get(number), signal) });
        } catch (error) {
          failing.abort(error);
          throw error;
        }
      }
    };
    const ended = await Promise.allSettled(Array.from({ length: SENDERS }, sendSome));
    this.#moving.clear();
    this.#signal.throwIfAborted();
    if (failing.signal.aborted) {
      this.#forgetIfGone(failing.signal.reason);
      throw failing.signal.reason;
    }
    for (const { reason } of ended) if (reason !== undefined) throw reason;
    return listed;
  }

  async #readPart(number) {
    const start = (number - 1) * this.partSize;
    const end = Math.min(start + this.partSize, this.size);
    return this.#reader.call("part", { source: this.#source.id, start, end });
  }

  /** See that the server has a part, and return its ETag. */
  async #settle(number, there, signal) {
    const { digest, blob } = await this.#readPart(number);
    signal.throwIfAborted();
    if (there !== undefined) {
      if (there.tag !== digest || there.size !== blob.size) throw new OtherContent();
    } else if (!(await this.#copy(number, digest, blob.size, signal))) {
      await this.#send(number, digest, blob, signal);
    }
    this.#moving.delete(number);
    this.done += blob.size;
    this.#onChange();
    return digest;
  }

  /** Let the server make a part of the newest version, and return whether that has the same bytes at this place. */
  async #copy(number, digest, size, signal) {
    const offset = (number - 1) * this.partSize;
    if (this.#version === null || offset + size > this.#version.size) return false;
    if (this.#leap > 0) {
      this.#leap -= 1;
      return false;
    }
    const message = { file_id: this.#version.id, offset, size, tag: digest };
    try {
      await this.#ask("POST", `${this.#place}/parts/${number}/copy`, message, signal);
    } catch (error) {
      if (!isAnswer(error) || error.slug === "upload-not-found") throw error;
      if (error.slug === "part-refused") throw new OtherContent();
      this.#misses += 1;
      this.#leap = this.#misses < MISSES ? 0 : Math.min(2 ** (this.#misses - MISSES), LONGEST_LEAP);
      return false;
    }
    this.#misses = 0;
    return true;
  }

  async #send(number, digest, blob, signal) {
    let content = blob;
    const onSent = (size) => {
      this.#moving.set(number, Math.min(size, blob.size));
      this.#onChange();
    };
    const tag = await this.#retried(async (attempt) => {
      onSent(0);
      if (attempt > 0) {
        // The answer may be what was lost. The file may also have changed, which looks like a lost connection.
        const there = (await ask("GET", `${this.#place}/parts`, { signal })).parts;
        const found = there.find((part) => part.PartNumber === number);
        if (found !== undefined) return found.ETag;
        content = (await this.#readPart(number)).blob;
      }
      return put(`${this.#place}/parts/${number}`, content, { signal, onSent });
    }, signal).catch((error) => {
      throw error.slug === "part-refused" ? new OtherContent() : error;
    });
    if (tag !== digest) throw new Error(`“${this.#source.name}” changed while it was sent. Choose it again.`);
    this.sent += blob.size;
  }

  async #remove(signal) {
    if (this.#known === null) return;
    try {
      await ask("DELETE", this.#place, { signal });
    } catch (error) {
      if (error.slug !== "upload-not-found") throw error;
    }
    this.#forget();
  }
}
