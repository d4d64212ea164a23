// The page for uploads: what a user chose or dropped, one upload after the other, and what became of it.

import { formatCount, formatMoment, formatSize } from "./page.js";
import { forget, unfinished } from "./upload-memory.js";
import { ask } from "./upload-requests.js";
import { chosenFiles, chosenFolder, dropped } from "./upload-sources.js";
import { Reader, Transfer, partSizeOf } from "./upload-transfer.js";

const NEWS_STEP = 0.25; // the part of an upload after which its progress is announced again

const page = document.getElementById("upload");
const { namespace, prefix } = page.dataset;
const reader = new Reader(page.dataset.worker, page.dataset.scripts.split(" "));
const items = new Set();
const queue = [];
let active = null;
let count = 0;

function element(id) {
  return document.getElementById(id);
}

/** Say something to readers of the page who do not see it. */
function announce(text) {
  element("news").textContent = text;
}

/** One file or folder on the page. */
class Item {
  #node = element("item").content.firstElementChild.cloneNode(true);
  #source;
  #transfer = null;
  #state = "looking";
  #problem = "";
  #record = null;
  #announced = 0;

  constructor(source) {
    count += 1;
    this.#source = { ...source, id: count };
    this.#part("title").textContent = source.name;
    this.#part("field").value = this.#suggestedName();
    for (const [name, act] of [
      ["begin", () => this.begin()],
      ["cancel", () => this.cancel()],
      ["remove", () => this.#remove(`${this.#source.name} was removed from the list.`)],
    ]) {
      const button = this.#part(name);
      button.setAttribute("aria-label", `${button.textContent}: ${source.name}`);
      button.addEventListener("click", act);
    }
    this.#part("field").addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.begin();
    });
    this.#part("progress").setAttribute("aria-label", `Progress of ${source.name}`);
    element("items").append(this.#node);
    this.#show();
  }

  get isReady() {
    return this.#state === "ready" || this.#state === "failed";
  }

  get isBusy() {
    return ["queued", "running", "cancelling"].includes(this.#state);
  }

  /** The id of the unfinished upload that this item resumes, or undefined. */
  get uploadId() {
    return this.#transfer?.known?.uploadId;
  }

  /** Find out how large it is, and whether an upload of it is unfinished. */
  async look() {
    try {
      const { id, kind, entries, name } = this.#source;
      const { size, contentSize, identity } = await reader.call("identify", { source: id, kind, entries });
      const source = { id, kind, name, size, contentSize, identity };
      this.#source = source; // without the list of all files, which the worker has
      const known = unfinishedOf(source);
      const onChange = () => this.#show();
      this.#transfer = new Transfer(source, { reader, namespace, known, onChange });
      if (known !== null) this.#part("field").value = known.name;
      this.#state = "ready";
    } catch (error) {
      this.#state = "refused";
      this.#problem = error.message;
      announce(error.message);
    }
    this.#show();
    showUnfinished();
  }

  begin() {
    if (!this.isReady) return;
    this.#problem = "";
    this.#state = "queued";
    queue.push(this);
    this.#show();
    runNext();
  }

  async run() {
    this.#state = "running";
    this.#announced = 0;
    announce(`The upload of ${this.#source.name} has begun.`);
    try {
      this.#record = await this.#transfer.run(this.#part("field").value);
      this.#state = "done";
      reader.call("forget", { source: this.#source.id });
      announce(`${this.#source.name} is stored.`);
    } catch (error) {
      if (this.#state === "cancelling") return; // `cancel` says what became of it
      this.#state = "failed";
      this.#problem = error.message;
      announce(`The upload of ${this.#source.name} failed. ${error.message}`);
    }
    this.#show();
  }

  async cancel() {
    if (this.#state !== "queued" && !isSure(this.#source.name)) return;
    const place = queue.indexOf(this);
    if (place >= 0) queue.splice(place, 1);
    this.#state = "cancelling";
    this.#show();
    try {
      await this.#transfer.cancel();
      if (this.#record !== null) return; // it was stored just before
      this.#remove(`The upload of ${this.#source.name} was cancelled.`);
    } catch (error) {
      this.#state = "failed";
      this.#problem = `The server could not be told that the upload was cancelled. ${error.message}`;
      announce(this.#problem);
      this.#show();
    }
  }

  #part(name) {
    return this.#node.querySelector(`.${name}`);
  }

  #suggestedName() {
    const { kind, name } = this.#source;
    const stored = kind === "directory" ? `${name}.zip` : name;
    return stored.startsWith(prefix) ? stored : prefix + stored;
  }

  #remove(text) {
    const hadFocus = this.#node.contains(document.activeElement);
    reader.call("forget", { source: this.#source.id });
    items.delete(this);
    this.#node.remove();
    if (hadFocus) element("files").focus();
    announce(text);
    showAll();
    showUnfinished();
  }

  #show() {
    const hadFocus = this.#node.contains(document.activeElement);
    const state = this.#state;
    const isRunning = state === "running" || state === "cancelling";
    const resumes = this.#transfer !== null && this.#transfer.known !== null;
    const isWorking = isRunning && this.#transfer.phase !== "storing";
    this.#part("field").readOnly = !this.isReady || resumes;
    this.#part("kind").textContent = this.#facts();
    this.#part("name").hidden = ["done", "refused"].includes(state);
    this.#part("progress").hidden = !isRunning;
    if (isRunning) this.#showProgress();
    this.#part("begin").hidden = !this.isReady;
    this.#part("begin").textContent = state === "failed" ? "Try again" : resumes ? "Go on" : "Upload";
    this.#part("begin").setAttribute("aria-label", `${this.#part("begin").textContent}: ${this.#source.name}`);
    this.#part("cancel").hidden = !(isWorking || state === "queued" || (this.isReady && resumes));
    this.#part("cancel").disabled = state === "cancelling";
    this.#part("remove").hidden = !(state === "refused" || state === "done" || (this.isReady && !resumes));
    this.#part("text").textContent = this.#text();
    this.#part("problem").textContent = this.#problem;
    this.#part("problem").hidden = this.#problem === "";
    this.#part("link").hidden = state !== "done";
    if (this.#record !== null) {
      this.#part("link").href = `/ui/file?id=${encodeURIComponent(this.#record.id)}`;
      const { owner, name } = this.#record;
      this.#part("link").textContent = `Show ${owner === undefined ? name : `${owner}/${name}`}`;
    }
    if (hadFocus) this.#keepFocus();
    showAll();
  }

  /** Give the focus to what can be done now, if the button that had it is gone. */
  #keepFocus() {
    const isAble = (each) => !each.hidden && !each.disabled;
    if (this.#part("field") === document.activeElement && !this.#part("name").hidden) return;
    if (document.activeElement.matches("a, button") && isAble(document.activeElement)) return;
    const able = [...this.#node.querySelectorAll("a, button")].find(isAble);
    (able ?? this.#part("title")).focus();
  }

  #facts() {
    const what = this.#source.kind === "directory" ? "folder" : "file";
    return this.#source.size === undefined ? what : `${what}, ${formatSize(this.#source.size)}`;
  }

  #showProgress() {
    const { phase, read, moved } = this.#transfer;
    const isReading = phase === "reading";
    const size = isReading ? this.#source.contentSize : this.#source.size;
    const value = isReading ? read : moved;
    const progress = this.#part("progress");
    progress.max = Math.max(size, 1);
    if (phase === "storing") progress.removeAttribute("value");
    else progress.value = value;
    const reached = Math.floor(value / (Math.max(size, 1) * NEWS_STEP));
    if (phase === "sending" && reached > this.#announced && value < size) {
      this.#announced = reached;
      announce(`${Math.round(reached * NEWS_STEP * 100)} % of ${this.#source.name}.`);
    }
  }

  #text() {
    const transfer = this.#transfer;
    switch (this.#state) {
      case "looking":
        return "Its size is being found out.";
      case "ready":
        return transfer.known === null ? "" : "An upload of it is unfinished. It goes on where it stopped.";
      case "queued":
        return "It waits for the upload before it.";
      case "cancelling":
        return "It is being cancelled.";
      case "done":
        return transfer.sent === 0
          ? "It is stored. Nothing had to be sent."
          : `It is stored. ${formatSize(transfer.sent)} of ${formatSize(transfer.size)} had to be sent.`;
      case "running":
        break;
      default:
        return "";
    }
    if (transfer.waiting > 0) return "The server does not answer, or asks to wait. It will be asked again.";
    if (transfer.phase === "reading") {
      return `${formatSize(transfer.read)} of ${formatSize(this.#source.contentSize)} are read.`;
    }
    if (transfer.phase === "storing") return "Everything has arrived. The server is storing it.";
    return `${formatSize(transfer.moved)} of ${formatSize(transfer.size)} are at the server.`;
  }
}

/** Return the unfinished upload of a source that no item resumes, or null. */
function unfinishedOf(source) {
  const taken = new Set([...items].map((item) => item.uploadId));
  const isSame = (entry) =>
    ["kind", "identity", "size"].every((key) => entry[key] === source[key]) &&
    entry.source === source.name &&
    entry.partSize === partSizeOf(source.size);
  return unfinished(namespace, prefix).find((entry) => isSame(entry) && !taken.has(entry.uploadId)) ?? null;
}

async function runNext() {
  if (active !== null || queue.length === 0) return;
  active = queue.shift();
  try {
    await active.run();
  } finally {
    active = null;
    runNext();
  }
}

function addAll(sources) {
  const added = sources.map((source) => new Item(source));
  for (const item of added) items.add(item);
  const name = added.length === 1 ? sources[0].name : `${formatCount(added.length)} files and folders`;
  announce(added.length ? `${name} can be uploaded now.` : "Nothing was chosen.");
  showAll();
  return Promise.all(added.map((item) => item.look()));
}

function showAll() {
  element("chosen").hidden = items.size === 0;
  element("all").hidden = [...items].filter((item) => item.isReady).length < 2;
}

/** List the uploads that were begun and that nothing on the page resumes. */
function showUnfinished() {
  const resumed = new Set([...items].map((item) => item.uploadId));
  const waiting = unfinished(namespace, prefix).filter((entry) => !resumed.has(entry.uploadId));
  element("unfinished").hidden = waiting.length === 0;
  element("waiting").replaceChildren(...waiting.map(unfinishedNode));
}

function unfinishedNode(entry) {
  const node = element("unfinished-item").content.firstElementChild.cloneNode(true);
  const begun = new Date(entry.begun);
  node.querySelector(".title").textContent = entry.source;
  node.querySelector(".text").textContent =
    `${formatSize(entry.size)}, to be stored as ${entry.name}, begun ${formatMoment(begun)}`;
  const button = node.querySelector("button");
  button.setAttribute("aria-label", `Cancel: ${entry.source}`);
  button.addEventListener("click", async () => {
    if (!isSure(entry.source)) return;
    button.disabled = true;
    try {
      await removeUpload(entry);
      announce(`The upload of ${entry.source} was cancelled.`);
      showUnfinished();
      element("files").focus();
    } catch (error) {
      button.disabled = false;
      node.querySelector(".problem").textContent = error.message;
      node.querySelector(".problem").hidden = false;
      announce(error.message);
    }
  });
  return node;
}

function isSure(name) {
  return window.confirm(`Cancel the upload of ${name}? The server removes what has arrived of it.`);
}

async function removeUpload({ uploadId }) {
  const url = `/v3/pipeline_files/uploads/${encodeURIComponent(uploadId)}`;
  try {
    await ask("DELETE", url, { signal: new AbortController().signal });
  } catch (error) {
    if (error.slug !== "upload-not-found") throw error;
  }
  forget(uploadId);
}

/** Forget the uploads that the server does not have any more. */
async function forgetEnded() {
  for (const { uploadId } of unfinished(namespace, prefix)) {
    const url = `/v3/pipeline_files/uploads/${encodeURIComponent(uploadId)}/parts`;
    try {
      const { record_id: recordId } = await ask("GET", url, { signal: new AbortController().signal });
      if (recordId !== null) forget(uploadId);
    } catch (error) {
      if (error.slug === "upload-not-found") forget(uploadId);
    }
  }
  showUnfinished();
}

function tell(text) {
  element("collecting").textContent = text;
}

element("files").addEventListener("change", ({ target }) => {
  const sources = chosenFiles(target.files);
  target.value = ""; // so that the same file can be chosen again
  addAll(sources);
});

element("folder").addEventListener("change", ({ target }) => {
  const files = [...target.files];
  target.value = "";
  tell(files.length ? "" : "The folder has no files. Drop it on this page to store it as an empty directory.");
  if (files.length) addAll([chosenFolder(files)]);
});

element("all").addEventListener("click", () => {
  for (const item of items) item.begin();
});

// Anywhere on the page, as a browser would open a file that misses its place.
window.addEventListener("dragover", (event) => {
  event.preventDefault();
  element("drop").classList.add("over");
});
for (const name of ["dragleave", "drop"]) {
  window.addEventListener(name, () => element("drop").classList.remove("over"));
}
window.addEventListener("drop", async (event) => {
  event.preventDefault();
  try {
    const sources = await dropped(event.dataTransfer, (found) => tell(`${formatCount(found)} files were found so far.`));
    tell("");
    await addAll(sources);
  } catch (error) {
    tell(error.message);
  }
});

window.addEventListener("beforeunload", (event) => {
  if ([...items].some((item) => item.isBusy)) event.preventDefault();
});

element("without-script").hidden = true;
page.hidden = false;
showUnfinished();
forgetEnded();
