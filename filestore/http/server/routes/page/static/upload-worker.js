"use strict";

// Reads files, computes digests and checksums, and makes the parts of an upload. The page sends messages
// `{id, verb, ...}`, and gets `{id, result}`, `{id, failure}` or, before these, `{id, progress}`.

const WINDOW = 4 * 1024 * 1024; // bytes read at a time
const PIECES = 32; // a part of more pieces is sent from memory, as a Blob of many files is slow to read
const GROUP = 500; // the most small files that are read at once
const CHANGED = "changed or was removed while it was read. Choose it again to upload what it is now.";

const sources = new Map();

function changed(path) {
  return new Refusal(`“${path}” ${CHANGED}`);
}

/** Read a part of a file whose state must be that of when it was chosen. */
async function bytesOf(blob, path) {
  try {
    const bytes = new Uint8Array(await blob.arrayBuffer());
    if (bytes.length !== blob.size) throw changed(path);
    return bytes;
  } catch (error) {
    if (error instanceof Refusal) throw error;
    if (error.name === "NotReadableError" || error.name === "NotFoundError") throw changed(path);
    throw new Refusal(`“${path}” cannot be read: ${error.message}`);
  }
}

/** Read small files as one content. To read each by itself takes 20 times as long. */
async function bytesOfAll(entries) {
  const files = entries.filter(({ size }) => size > 0);
  try {
    return await bytesOf(new Blob(files.map(({ file, size }) => file.slice(0, size))), "");
  } catch (error) {
    // Find out which file it is.
    for (const { file, size, path } of files) await bytesOf(file.slice(0, size), path);
    throw error;
  }
}

function hexOfTable(entries, hasher) {
  hasher.init();
  for (const { name, size, file } of entries) {
    hasher.update(JSON.stringify([name, size, file === null ? 0 : file.lastModified]));
  }
  return hasher.digest("hex");
}

/** Plan the content of a source, without reading any. */
async function identify({ source, kind, entries }) {
  const layout = kind === "directory" ? new ZipLayout(entries) : new FileLayout(entries[0].file);
  const hasher = await hashwasm.createBLAKE3();
  sources.set(source, { layout, hasher, check: null, isStopped: false, turn: Promise.resolve() });
  const identity =
    kind === "directory" ? hexOfTable(layout.entries, hasher) : `${entries[0].file.size}-${entries[0].file.lastModified}`;
  const contentSize = layout.entries.reduce((sum, entry) => sum + entry.size, 0);
  return { size: layout.size, contentSize, identity };
}

function found(source) {
  const state = sources.get(source);
  if (state === undefined) throw new Refusal("Choose it again; the page has forgotten it.");
  return state;
}

function checkNotStopped(state) {
  if (state.isStopped) throw new Refusal("It was cancelled.");
}

/** Compute the checksum of each file of a directory. A header has it, and comes before the content. */
async function prepare({ source }, tell) {
  const state = found(source);
  const { layout } = state;
  if (layout.crcs === null) return;
  const hasher = await hashwasm.createCRC32();
  let read = 0;
  for (let place = 0; place < layout.entries.length; ) {
    checkNotStopped(state);
    const entry = layout.entries[place];
    if (entry.size > WINDOW) {
      hasher.init();
      for (let at = 0; at < entry.size; at += WINDOW) {
        checkNotStopped(state);
        const bytes = await bytesOf(entry.file.slice(at, Math.min(at + WINDOW, entry.size)), entry.path);
        hasher.update(bytes);
        tell((read += bytes.length));
      }
      layout.crcs[place] = Number.parseInt(hasher.digest("hex"), 16);
      place += 1;
      continue;
    }
    let end = place;
    for (let size = 0; end < layout.entries.length && end - place < GROUP; end += 1) {
      size += layout.entries[end].size;
      if (size > WINDOW) break;
    }
    const bytes = await bytesOfAll(layout.entries.slice(place, end));
    for (let at = 0; place < end; place += 1) {
      const { size } = layout.entries[place];
      hasher.init();
      hasher.update(bytes.subarray(at, at + size));
      layout.crcs[place] = Number.parseInt(hasher.digest("hex"), 16);
      at += size;
    }
    tell((read += bytes.length));
  }
}

/** Compares the content that is hashed with the checksums that the headers have. It needs all content in order. */
class ChecksumCheck {
  constructor(layout, hasher) {
    this.layout = layout;
    this.hasher = hasher;
    this.place = -1;
    this.reached = 0;
  }

  update(place, from, bytes) {
    if (from === 0) {
      this.hasher.init();
      this.place = place;
      this.reached = 0;
    }
    if (place !== this.place || from !== this.reached) return; // a part is read once more
    this.hasher.update(bytes);
    this.reached += bytes.length;
    if (this.reached === this.layout.entries[place].size) {
      if (Number.parseInt(this.hasher.digest("hex"), 16) !== this.layout.crcs[place]) {
        throw changed(this.layout.entries[place].path);
      }
      this.place = -1;
    }
  }
}

/** Return a range of the content as a Blob, which the page sends, and its digest. One part of a source is made at a time. */
function makePart({ source, start, end }) {
  const state = found(source);
  const made = state.turn.then(() => partOf(state, start, end));
  state.turn = made.catch(() => {});
  return made;
}

async function partOf(state, start, end) {
  const { layout, hasher } = state;
  const pieces = layout.pieces(start, end);
  const blob = new Blob(pieces.map((piece) => piece.part));
  if (layout.crcs !== null && start === 0) state.check = new ChecksumCheck(layout, await hashwasm.createCRC32());
  hasher.init();
  const files = pieces.filter((piece) => piece.place >= 0).map((piece) => layout.entries[piece.place].path);
  const shown = files.length === 1 ? files[0] : "a file of the folder";
  const read = [];
  let number = 0;
  let used = 0; // bytes of the piece `number` that were read
  for (let at = 0; at < blob.size; at += WINDOW) {
    checkNotStopped(state);
    const bytes = await bytesOf(blob.slice(at, Math.min(at + WINDOW, blob.size)), shown);
    hasher.update(bytes);
    if (pieces.length > PIECES) read.push(bytes);
    for (let taken = 0; state.check !== null && taken < bytes.length; ) {
      const piece = pieces[number];
      const size = Math.min(piece.size - used, bytes.length - taken);
      if (piece.place >= 0) state.check.update(piece.place, piece.from + used, bytes.subarray(taken, taken + size));
      taken += size;
      used += size;
      if (used === piece.size) {
        number += 1;
        used = 0;
      }
    }
  }
  if (blob.size !== end - start) throw changed(shown);
  return { digest: hasher.digest("hex"), blob: read.length ? new Blob(read) : blob };
}

const VERBS = {
  identify,
  prepare,
  part: makePart,
  stop: async ({ source }) => {
    const state = sources.get(source);
    if (state !== undefined) state.isStopped = true;
  },
  goOn: async ({ source }) => {
    found(source).isStopped = false;
  },
  forget: async ({ source }) => sources.delete(source),
};

self.onmessage = async ({ data }) => {
  const { id, verb } = data;
  try {
    if (verb === "start") {
      importScripts(...data.scripts);
      postMessage({ id, result: true });
      return;
    }
    const result = await VERBS[verb](data, (progress) => postMessage({ id, progress }));
    postMessage({ id, result });
  } catch (error) {
    postMessage({ id, failure: error.message || String(error) });
  }
};
