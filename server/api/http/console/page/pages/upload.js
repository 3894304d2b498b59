// Takes one new version: the files of a PEFT folder, or one archive of it, dropped or chosen.

import { useRef, useState } from "../vendor/hooks.js";
import * as api from "../api.js";
import { adapterPath, makeOf, useAdapters } from "../adapters_data.js";
import { fileNames, sortOut } from "../folder.js";
import { useMay } from "../session.js";
import { Button, ErrorNote, Field, Heading, html, Note, say } from "../view.js";
import { bytes } from "../words.js";

export function Upload({ rest }) {
  const mayNot = useMay("operate");
  const adapters = useAdapters(0);
  const [name, setName] = useState(rest[0] ?? "");
  const [alias, setAlias] = useState("");
  const [tags, setTags] = useState("");
  const [chosen, setChosen] = useState(null);
  const [state, setState] = useState({ at: "choosing" });
  const sending = useRef(null);
  const choose = (files) => {
    setState({ at: "choosing" });
    setChosen(sortOut(files));
  };
  const submit = async (event) => {
    event.preventDefault();
    if (why || state.at === "sending") return;
    setState({ at: "sending", sent: 0, total: chosen.numBytes });
    sending.current = api.upload(`${adapterPath(name)}/versions`, formOf(chosen, alias, tags), (sent, total) => setState({ at: "sending", sent, total }));
    try {
      const version = await sending.current.done;
      setState({ at: "done", version });
      setChosen(null);
      say(`${version.name}:${version.version} is ready.`);
    } catch (error) {
      setState({ at: "failed", error });
    }
  };
  const why = mayNot || (chosen ? chosen.problem : "Choose the files first.") || (name ? "" : "Give it a name first.");
  return html`<${Heading} title="Upload" />
    ${mayNot && html`<${Note}>${mayNot}<//>`}
    <form class="card upload" onSubmit=${submit}>
      <${Drop} onFiles=${choose} isOff=${Boolean(mayNot) || state.at === "sending"} />
      ${chosen && html`<${Chosen} chosen=${chosen} onClear=${() => setChosen(null)} />`}
      <div class="form-grid three">
        <${Field} label="Name" hint="A name that is there gets its next version.">
          ${(props) =>
            html`<input ...${props} list="names" value=${name} onInput=${(event) => setName(event.target.value.trim())} placeholder="my-adapter" autocomplete="off" required />`}
        <//>
        <${Field} label="Alias (optional)" hint="Points at the new version as soon as it is ready.">
          ${(props) => html`<input ...${props} list="upload-aliases" value=${alias} onInput=${(event) => setAlias(event.target.value.trim())} />`}
        <//>
        <${Field} label="Tags (optional)" hint="Several with commas between.">
          ${(props) => html`<input ...${props} value=${tags} onInput=${(event) => setTags(event.target.value)} />`}
        <//>
        <datalist id="names">${(adapters.data ?? []).map((adapter) => html`<option key=${adapter.name} value=${adapter.name} />`)}</datalist>
        <datalist id="upload-aliases"><option value="stable" /><option value="canary" /></datalist>
      </div>
      <${Progress} state=${state} />
      ${state.at === "failed" && html`<${ErrorNote} error=${state.error} />`}
      ${state.at === "done" && html`<${Done} version=${state.version} />`}
      <div class="actions">
        ${state.at === "sending" && html`<${Button} onClick=${() => sending.current.abort()}>Cancel<//>`}
        <${Button} type="submit" kind="primary" busy=${state.at === "sending"} reason=${state.at === "sending" ? "" : why}>Upload<//>
      </div>
    </form>`;
}

function formOf(chosen, alias, tags) {
  const form = new FormData();
  // Labels first: a server reads a form as it comes, and can refuse these before the weights are on their way.
  if (alias) form.append("alias", alias);
  if (tags.trim()) form.append("tags", tags);
  if (chosen.archive) form.append("archive", chosen.archive, chosen.archive.name);
  for (const file of chosen.files) form.append("files", file, file.name);
  return form;
}

function Drop({ onFiles, isOff }) {
  const [isOver, setIsOver] = useState(false);
  const input = useRef(null);
  const over = (event) => {
    event.preventDefault();
    setIsOver(!isOff);
  };
  const drop = async (event) => {
    event.preventDefault();
    setIsOver(false);
    if (!isOff) onFiles(await fileNames(event.dataTransfer));
  };
  return html`<div class=${`drop ${isOver ? "over" : ""}`} onDragOver=${over} onDragLeave=${() => setIsOver(false)} onDrop=${drop}>
    <p class="drop-title">Drop a PEFT folder, its files, or one archive of it here</p>
    <p class="fine">
      <code>adapter_config.json</code> and <code>adapter_model.safetensors</code>, with <code>medley.json</code>, <code>card.md</code> or${" "}
      <code>README.md</code> if you have them; or a <code>.zip</code>, <code>.tar</code> or <code>.tar.gz</code>.
    </p>
    <input
      ref=${input}
      id="upload-files"
      class="sr-only"
      type="file"
      multiple
      tabindex="-1"
      aria-hidden="true"
      onChange=${(event) => {
        onFiles([...event.target.files]);
        event.target.value = "";
      }}
    />
    <${Button} busy=${isOff} onClick=${() => input.current.click()}>Choose files…<//>
  </div>`;
}

function Chosen({ chosen, onClear }) {
  const sent = chosen.archive ? [chosen.archive] : chosen.files;
  return html`<div class="chosen" role="group" aria-label="Chosen files">
    <ul>
      ${sent.map((file) => html`<li key=${file.name}><code>${file.name}</code> <span class="fine">${bytes(file.size)}</span></li>`)}
      ${chosen.left.map((file) => html`<li key=${file.name} class="left"><code>${file.name}</code> <span class="fine">stays here: not a file of an adapter</span></li>`)}
    </ul>
    ${chosen.problem && html`<${Note} tone="warn">${chosen.problem}<//>`}
    <${Button} kind="quiet" onClick=${onClear}>Clear<//>
  </div>`;
}

function Progress({ state }) {
  if (state.at !== "sending") return null;
  const isSent = state.sent >= state.total;
  return html`<div class="progress">
    <progress aria-label="Upload" max=${state.total || 1} value=${isSent ? undefined : state.sent}></progress>
    <span role="status">${isSent ? "All sent; the server checks it and runs it once…" : `${bytes(state.sent)} of ${bytes(state.total)}`}</span>
  </div>`;
}

function Done({ version }) {
  return html`<${Note} tone="good">
    <p><strong>${version.name}:${version.version} is ready</strong> (${makeOf(version)}, ${bytes(version.size_bytes)}).</p>
    <p class="fine">
      <a href=${`#/adapters/${encodeURIComponent(version.name)}`}>Look at it</a> · <a href=${`#/playground/${encodeURIComponent(`${version.name}:${version.version}`)}`}>Try it</a>
    </p>
  <//>`;
}
