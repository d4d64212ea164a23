"use strict";

// The zip file of a directory, as docs/format.md says (section "Directories"). It is never in memory as a whole: `ZipLayout`
// says of which bytes and which slices of files any range of it consists. The worker loads this script.

const U16_MAX = 0xffff;
const U32_MAX = 0xffffffff;
const NAME_LIMIT = U16_MAX;
const ENTRIES_LIMIT = 200_000;
const LOCAL_SIZE = 30;
const LOCAL_ZIP64_SIZE = 20;
const CENTRAL_SIZE = 46;
const END_SIZE = 22;
const END64_SIZE = 56;
const LOCATOR_SIZE = 20;
const MADE_BY = 0x032d;
const FLAG_UTF8 = 0x0800;
const DATE = 0x0021; // 1980-01-01
const FILE_MODE = 0o100644;
const FOLDER_MODE = 0o040755;
const DOS_FOLDER = 0x10;

/** Something that a user can put right, as a whole sentence. */
class Refusal extends Error {}

/** Compare two names in the order of their code points, which is that of their UTF-8. Code units have another order. */
function compareNames(one, other) {
  const shared = Math.min(one.length, other.length);
  for (let at = 0; at < shared; at += 1) {
    const left = one.charCodeAt(at);
    const right = other.charCodeAt(at);
    if (left !== right) {
      const isLeftPair = left >= 0xd800 && left <= 0xdfff;
      const isRightPair = right >= 0xd800 && right <= 0xdfff;
      return isLeftPair === isRightPair ? left - right : isLeftPair ? 1 : -1;
    }
  }
  return one.length - other.length;
}

/** Return why nothing may be stored at a path, or "". */
function pathProblem(path) {
  if (path.includes("\0")) return "it holds a NUL";
  if (/^[A-Za-z]:/.test(path)) return "it begins with a drive letter";
  if (/^[/\\]/.test(path)) return "it is absolute";
  if (path.split(/[/\\]/).includes("..")) return "it leads out of its folder";
  if (path.split("/").some((part) => part === "" || part === ".")) return "a part of it is empty or `.`";
  return "";
}

/** Throw a Refusal unless all paths may be in one archive. `entries` have `path` and `isFolder`. */
function checkPaths(entries) {
  const kinds = new Map(); // true: a folder that only paths imply or that is empty; false: a file
  const refuse = (path, reason) => {
    const shown = path.length <= 200 ? path : `${path.slice(0, 160)}...${path.slice(-30)}`;
    throw new Refusal(`The folder cannot be stored because of “${shown}”: ${reason}. Leave it out, or rename it.`);
  };
  if (entries.length > ENTRIES_LIMIT) {
    throw new Refusal(`The folder has ${entries.length} files; a directory can have at most ${ENTRIES_LIMIT}.`);
  }
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  for (const { path, isFolder, nameBytes } of entries) {
    if (decoder.decode(nameBytes) !== (isFolder ? `${path}/` : path)) refuse(path, "its name is not UTF-8");
    if (nameBytes.length > NAME_LIMIT) refuse(path, `its name has ${nameBytes.length} bytes; allowed are ${NAME_LIMIT}`);
    const problem = pathProblem(path);
    if (problem) refuse(path, problem);
    if (kinds.has(path)) refuse(path, "its path occurs twice");
    kinds.set(path, isFolder);
  }
  for (const { path } of entries) {
    for (let end = path.lastIndexOf("/"); end >= 0; end = path.lastIndexOf("/", end - 1)) {
      const parent = path.slice(0, end);
      const isFolder = kinds.get(parent);
      if (isFolder === false) refuse(path, "the path of a file is part of it");
      if (isFolder) break;
      kinds.set(parent, true);
    }
  }
}

/** Return the zip64 extra field with these numbers, or nothing if there are none. */
function zip64Field(values) {
  if (values.length === 0) return new Uint8Array(0);
  const field = new DataView(new ArrayBuffer(4 + 8 * values.length));
  field.setUint16(0, 1, true);
  field.setUint16(2, 8 * values.length, true);
  values.forEach((value, place) => field.setBigUint64(4 + 8 * place, BigInt(value), true));
  return new Uint8Array(field.buffer);
}

function joined(head, ...parts) {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, head.byteLength));
  whole.set(new Uint8Array(head.buffer), 0);
  let at = head.byteLength;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** Write the fields that both headers of an entry have, from the needed version on. */
function putSharedFields(head, at, entry, crc, extra) {
  const size = Math.min(entry.size, U32_MAX);
  head.setUint16(at, extra.length ? 45 : entry.isFolder ? 20 : 10, true);
  head.setUint16(at + 2, entry.nameBytes.some((byte) => byte > 0x7f) ? FLAG_UTF8 : 0, true);
  head.setUint16(at + 4, 0, true);
  head.setUint16(at + 6, 0, true);
  head.setUint16(at + 8, DATE, true);
  head.setUint32(at + 10, crc, true);
  head.setUint32(at + 14, size, true);
  head.setUint32(at + 18, size, true);
  head.setUint16(at + 22, entry.nameBytes.length, true);
  head.setUint16(at + 24, extra.length, true);
}

function localHeaderSize(entry) {
  return LOCAL_SIZE + entry.nameBytes.length + (entry.size >= U32_MAX ? LOCAL_ZIP64_SIZE : 0);
}

function localHeader(entry, crc) {
  const extra = zip64Field(entry.size >= U32_MAX ? [entry.size, entry.size] : []);
  const head = new DataView(new ArrayBuffer(LOCAL_SIZE));
  head.setUint32(0, 0x04034b50, true);
  putSharedFields(head, 4, entry, crc, extra);
  return joined(head, entry.nameBytes, extra);
}

function centralNumbers(entry, offset) {
  return [...(entry.size >= U32_MAX ? [entry.size, entry.size] : []), ...(offset >= U32_MAX ? [offset] : [])];
}

function centralHeaderSize(entry, offset) {
  const numbers = centralNumbers(entry, offset);
  return CENTRAL_SIZE + entry.nameBytes.length + (numbers.length ? 4 + 8 * numbers.length : 0);
}

function centralHeader(entry, crc, offset) {
  const extra = zip64Field(centralNumbers(entry, offset));
  const head = new DataView(new ArrayBuffer(CENTRAL_SIZE));
  head.setUint32(0, 0x02014b50, true);
  head.setUint16(4, MADE_BY, true);
  putSharedFields(head, 6, entry, crc, extra);
  // Sizes of the comment, disk number and internal attributes are 0.
  head.setUint16(38, entry.isFolder ? DOS_FOLDER : 0, true);
  head.setUint16(40, entry.isFolder ? FOLDER_MODE : FILE_MODE, true);
  head.setUint32(42, Math.min(offset, U32_MAX), true);
  return joined(head, entry.nameBytes, extra);
}

function needsZip64End(count, size, offset) {
  return count >= U16_MAX || size >= U32_MAX || offset >= U32_MAX;
}

function endRecords(count, size, offset) {
  let wide = new Uint8Array(0);
  if (needsZip64End(count, size, offset)) {
    const records = new DataView(new ArrayBuffer(END64_SIZE + LOCATOR_SIZE));
    records.setUint32(0, 0x06064b50, true);
    records.setBigUint64(4, BigInt(END64_SIZE - 12), true);
    records.setUint16(12, MADE_BY, true);
    records.setUint16(14, 45, true);
    [count, count, size, offset].forEach((value, place) => records.setBigUint64(24 + 8 * place, BigInt(value), true));
    records.setUint32(END64_SIZE, 0x07064b50, true);
    records.setBigUint64(END64_SIZE + 8, BigInt(offset + size), true);
    records.setUint32(END64_SIZE + 16, 1, true);
    wide = new Uint8Array(records.buffer);
  }
  const end = new DataView(new ArrayBuffer(END_SIZE));
  end.setUint32(0, 0x06054b50, true);
  end.setUint16(8, Math.min(count, U16_MAX), true);
  end.setUint16(10, Math.min(count, U16_MAX), true);
  end.setUint32(12, Math.min(size, U32_MAX), true);
  end.setUint32(16, Math.min(offset, U32_MAX), true);
  const whole = new Uint8Array(wide.length + END_SIZE);
  whole.set(wide, 0);
  whole.set(new Uint8Array(end.buffer), wide.length);
  return whole;
}

/** The bytes of one file, as they are. It has the methods of ZipLayout. */
class FileLayout {
  constructor(file) {
    this.entries = [{ path: file.name, file, size: file.size }];
    this.size = file.size;
    this.crcs = null;
  }

  pieces(start, end) {
    return [{ part: this.entries[0].file.slice(start, end), size: end - start, place: 0, from: start }];
  }
}

/** The zip file of a directory. */
class ZipLayout {
  /** Plan the zip. No file is read. `found` has `path` and `file`; `file` is null for an empty folder. Throws Refusal. */
  constructor(found) {
    const encoder = new TextEncoder();
    this.entries = found.map(({ path, file }) => {
      const isFolder = file === null;
      const name = isFolder ? `${path}/` : path;
      return { path, name, nameBytes: encoder.encode(name), file, isFolder, size: isFolder ? 0 : file.size };
    });
    checkPaths(this.entries);
    this.entries.sort((one, other) => compareNames(one.name, other.name));
    /** The checksum of each content. They are set after the files were read. */
    this.crcs = new Uint32Array(this.entries.length);
    /** The offset of each local header, and then that of the central directory. */
    this.offsets = new Float64Array(this.entries.length + 1);
    let directorySize = 0;
    this.entries.forEach((entry, place) => {
      this.offsets[place + 1] = this.offsets[place] + localHeaderSize(entry) + entry.size;
      directorySize += centralHeaderSize(entry, this.offsets[place]);
    });
    this.contentEnd = this.offsets[this.entries.length];
    const isWide = needsZip64End(this.entries.length, directorySize, this.contentEnd);
    this.size = this.contentEnd + directorySize + (isWide ? END64_SIZE + LOCATOR_SIZE : 0) + END_SIZE;
    this.directory = null;
  }

  /**
   * Return what the bytes from `start` to `end` consist of: parts of a Blob, each with its size. Content of a file has the
   * place of its entry and where it begins in this; anything else has the place -1.
   */
  pieces(start, end) {
    const pieces = [];
    let place = this.#placeAt(start);
    for (let at = start; at < end; place += 1) {
      if (place === this.entries.length) {
        const part = this.#tail().slice(at - this.contentEnd, end - this.contentEnd);
        pieces.push({ part, size: end - at, place: -1, from: 0 });
        break;
      }
      const entry = this.entries[place];
      const contentStart = this.offsets[place] + localHeaderSize(entry);
      if (at < contentStart) {
        const header = localHeader(entry, this.crcs[place]);
        const headerEnd = Math.min(end, contentStart);
        const part = header.subarray(at - this.offsets[place], headerEnd - this.offsets[place]);
        pieces.push({ part, size: part.length, place: -1, from: 0 });
        at = headerEnd;
      }
      const contentEnd = Math.min(end, this.offsets[place + 1]);
      if (at < contentEnd) {
        const part = entry.file.slice(at - contentStart, contentEnd - contentStart);
        pieces.push({ part, size: contentEnd - at, place, from: at - contentStart });
        at = contentEnd;
      }
    }
    return pieces;
  }

  /** Return the place of the entry that has the byte at `offset`. After the last content, it is the number of entries. */
  #placeAt(offset) {
    let low = 0;
    let high = this.entries.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.offsets[middle + 1] <= offset) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Return the central directory and the end records. */
  #tail() {
    if (this.directory === null) {
      const headers = this.entries.map((entry, place) => centralHeader(entry, this.crcs[place], this.offsets[place]));
      const size = headers.reduce((sum, header) => sum + header.length, 0);
      this.directory = new Blob([...headers, endRecords(headers.length, size, this.contentEnd)]);
    }
    return this.directory;
  }
}
