// Copies what the console uses of its libraries out of node_modules, with their licences, and writes down what came from where.
// `make console` runs it after `npm ci`. The copies are committed: nobody needs npm to run the server.

import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const HERE = dirname(fileURLToPath(import.meta.url));
const FILES = [
  { package: "preact", from: "dist/preact.mjs", to: "preact.js" },
  { package: "preact", from: "hooks/dist/hooks.mjs", to: "hooks.js" },
  { package: "preact", from: "LICENSE", to: "preact.LICENSE" },
  { package: "htm", from: "dist/htm.mjs", to: "htm.js" },
  { package: "htm", from: "LICENSE", to: "htm.LICENSE" },
  { package: "uplot", from: "dist/uPlot.esm.js", to: "uplot.js" },
  { package: "uplot", from: "dist/uPlot.min.css", to: "uplot.css" },
  { package: "uplot", from: "LICENSE", to: "uplot.LICENSE" },
];

// A browser finds modules by address only, and an import map would have to be an inline script, which the page forbids itself.
const asServed = (text) =>
  text.replaceAll('from"preact"', 'from"./preact.js"').replace(/\n?\/\/# sourceMappingURL=.*\s*$/, "\n");

const vendored = FILES.map((file) => {
  const folder = join(HERE, "node_modules", file.package);
  const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const original = readFileSync(join(folder, file.from), "utf8");
  const served = file.to.endsWith(".js") ? asServed(original) : original;
  writeFileSync(join(HERE, file.to), served);
  const sha256 = createHash("sha256").update(served).digest("hex");
  return { file: file.to, package: file.package, version, license, from: file.from, sha256 };
});
writeFileSync(join(HERE, "vendored.json"), `${JSON.stringify(vendored, null, 2)}\n`);
