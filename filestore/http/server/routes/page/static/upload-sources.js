// What a user chose or dropped: files, and folders with all that is in them.

/** Return sources of files that were chosen with the button for files. */
export function chosenFiles(files) {
  return [...files].map(fileSource);
}

/** Return the source of a folder that was chosen with the button for folders. Empty folders in it are not told. */
export function chosenFolder(files) {
  const name = files[0].webkitRelativePath.split("/")[0];
  const entries = [...files].map((file) => ({ path: file.webkitRelativePath.slice(name.length + 1), file }));
  return { kind: "directory", name, entries };
}

/**
 * Return sources of all that was dropped. Call it in the event; what it returns is read after that. `onFound` gets the
 * number of files of a folder that were found so far.
 */
export function dropped(transfer, onFound) {
  const items = [...transfer.items].filter((item) => item.kind === "file");
  // Both calls work only until the event ends.
  const found = items.map((item) => ({ entry: item.webkitGetAsEntry?.() ?? null, file: item.getAsFile() }));
  return Promise.all(
    found.map(async ({ entry, file }) => {
      if (entry?.isDirectory) return { kind: "directory", name: entry.name, entries: await entriesOf(entry, onFound) };
      return file === null ? null : fileSource(file);
    }),
  ).then((sources) => sources.filter((source) => source !== null));
}

function fileSource(file) {
  return { kind: "file", name: file.name, entries: [{ path: file.name, file }] };
}

async function entriesOf(root, onFound) {
  const entries = [];
  const waiting = [{ folder: root, path: "" }];
  while (waiting.length) {
    const { folder, path } = waiting.pop();
    const reader = folder.createReader();
    let isEmpty = true;
    // It gives 100 entries at a time, and none at the end.
    for (let batch = await readEntries(reader); batch.length; batch = await readEntries(reader)) {
      isEmpty = false;
      for (const entry of batch) if (entry.isDirectory) waiting.push({ folder: entry, path: `${path}${entry.name}/` });
      const files = batch.filter((entry) => entry.isFile);
      const read = await Promise.all(files.map(async (entry) => ({ path: path + entry.name, file: await fileOf(entry) })));
      for (const entry of read) entries.push(entry);
      onFound(entries.length);
    }
    if (isEmpty && path) entries.push({ path: path.slice(0, -1), file: null });
  }
  return entries;
}

function readEntries(reader) {
  return new Promise((resolve, reject) => {
    reader.readEntries(resolve, reject);
  });
}

function fileOf(entry) {
  return new Promise((resolve, reject) => {
    entry.file(resolve, (error) => reject(new Error(`“${entry.fullPath}” cannot be read: ${error.message}`)));
  });
}
