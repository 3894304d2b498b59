// Which of the files somebody dropped or chose make up an adapter. The server looks again; this spares a vain upload.

const CONFIG = "adapter_config.json";
const WEIGHTS = "adapter_model.safetensors";
// The weights last, so that a server can refuse the rest before they are on their way.
const OF_AN_ADAPTER = [CONFIG, "medley.json", "card.md", "README.md", WEIGHTS];
const ARCHIVE = /\.(zip|tar|tar\.gz|tgz)$/i;

// Returns { archive, files, left, numBytes, problem }; problem is "" when they can be sent.
export function sortOut(all) {
  const archives = all.filter((file) => ARCHIVE.test(file.name));
  const files = OF_AN_ADAPTER.flatMap((name) => all.filter((file) => file.name === name));
  const left = all.filter((file) => !archives.includes(file) && !files.includes(file));
  if (archives.length === 1 && files.length === 0) {
    return { archive: archives[0], files, left, numBytes: archives[0].size, problem: "" };
  }
  const numBytes = files.reduce((sum, file) => sum + file.size, 0);
  return { archive: null, files, left: [...left, ...archives], numBytes, problem: problemOf(files, archives) };
}

function problemOf(files, archives) {
  if (archives.length > 1) return "One archive at a time.";
  if (archives.length && files.length) return "Either the files or an archive of them.";
  const names = files.map((file) => file.name);
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice) return `There is more than one ${twice}; send one adapter at a time.`;
  const missing = [CONFIG, WEIGHTS].filter((name) => !names.includes(name));
  return missing.length ? `${missing.join(" and ")} ${missing.length > 1 ? "are" : "is"} missing.` : "";
}

// Returns the files of a drop, those in dropped folders too.
export async function fileNames(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (entries.length === 0) return [...transfer.files];
  return (await Promise.all(entries.map((entry) => filesOf(entry, 0)))).flat();
}

async function filesOf(entry, depth) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  // PEFT puts an adapter with a name one folder deeper; nothing of ours lies further down.
  if (depth > 1) return [];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (some.length === 0) break;
    found.push(...some);
  }
  return (await Promise.all(found.map((inner) => filesOf(inner, depth + 1)))).flat();
}
