// The unfinished uploads that this browser began. Each has a key of its own in `localStorage`, so that two tabs do not
// overwrite what the other one noted.

const START = "filestore-upload:";
const TEXTS = ["namespace", "kind", "source", "identity", "name", "uploadId", "fileId"];
const NUMBERS = ["size", "partSize", "begun"];

function isEntry(entry) {
  const isComplete = entry !== null && typeof entry === "object";
  const hasTexts = isComplete && TEXTS.every((key) => typeof entry[key] === "string");
  return hasTexts && NUMBERS.every((key) => Number.isSafeInteger(entry[key]) && entry[key] >= 0) && entry.partSize > 0;
}

/** Return the unfinished uploads in a namespace whose names begin with a prefix, the oldest first. */
export function unfinished(namespace, prefix) {
  const found = [];
  try {
    for (const key of Object.keys(localStorage).filter((name) => name.startsWith(START))) {
      let entry = null;
      try {
        entry = JSON.parse(localStorage.getItem(key));
      } catch {
        // It is removed below.
      }
      if (!isEntry(entry)) localStorage.removeItem(key);
      else if (entry.namespace === namespace && entry.name.startsWith(prefix)) found.push(entry);
    }
  } catch {
    // The browser keeps nothing for this page, so no upload can be resumed after a reload.
  }
  return found.sort((one, other) => one.begun - other.begun);
}

export function remember(entry) {
  try {
    localStorage.setItem(START + entry.uploadId, JSON.stringify(entry));
  } catch {
    // As above, or the storage is full.
  }
}

export function forget(uploadId) {
  try {
    localStorage.removeItem(START + uploadId);
  } catch {
    // As above.
  }
}
