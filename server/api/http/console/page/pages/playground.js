// One text through several adapters at once, side by side, with what each took.

import { useEffect, useRef, useState } from "../vendor/hooks.js";
import * as api from "../api.js";
import { readyOf, useAdapters } from "../adapters_data.js";
import { useMay } from "../session.js";
import { Button, ErrorNote, Field, Heading, html, Note, say, Select } from "../view.js";
import { count, duration, isPrompt, score } from "../words.js";
import { metricName } from "./quality.js";

const MAX_NUM_LANES = 4;
const EXAMPLE = `#Person1#: Did you book the room for Friday?
#Person2#: Not yet, the big one is taken. Shall I take the small one?
#Person1#: Yes, please. We are only six.
#Person2#: Good. I will send the invitation this afternoon.`;
const EXAMPLE_REFERENCE = "#Person2# will book the small room for Friday and send the invitation.";

export function Playground({ rest }) {
  const mayNot = useMay("infer");
  const adapters = useAdapters(0);
  const [text, setText] = useState("");
  const [reference, setReference] = useState("");
  const [settings, setSettings] = useState({ tokens: "64", temperature: "0", seed: "" });
  const [lanes, setLanes] = useState(null);
  const [results, setResults] = useState([]);
  const stop = useRef(null);
  const options = optionsOf(adapters.data ?? []);
  const shown = lanes ?? firstLanes(options, rest[0]);
  const isRunning = results.some((result) => result.at === "running");
  useEffect(() => () => stop.current?.abort(), []);
  const change = (index, lane) => setLanes(shown.map((old, i) => (i === index ? lane : old)));
  const run = async (event) => {
    event.preventDefault();
    if (why || isRunning) return;
    stop.current = new AbortController();
    setLanes(shown);
    setResults(shown.map(() => ({ at: "running", text: "" })));
    const update = (index, change) => setResults((before) => before.map((old, i) => (i === index ? { ...old, ...change(old) } : old)));
    await Promise.all(shown.map((lane, i) => ask(bodyOf(text, reference, settings, lane), (c) => update(i, c), stop.current.signal)));
    say("All answers are there.");
  };
  const why = mayNot || (text.trim() ? "" : "Give it a text first.");
  return html`<${Heading} title="Playground" />
    ${mayNot && html`<${Note}>${mayNot}<//>`}
    <form class="playground" onSubmit=${run}>
      <section class="card">
        <${Field} label="Text" wide>
          ${(props) => html`<textarea ...${props} rows="6" value=${text} onInput=${(event) => setText(event.target.value)}></textarea>`}
        <//>
        <${Field} label="Reference (optional)" hint="What a good answer says; the answers are scored against it." wide>
          ${(props) => html`<textarea ...${props} rows="2" value=${reference} onInput=${(event) => setReference(event.target.value)}></textarea>`}
        <//>
        <${Settings} settings=${settings} onChange=${setSettings} />
        <div class="actions">
          <${Button} kind="quiet" onClick=${() => [setText(EXAMPLE), setReference(EXAMPLE_REFERENCE)]}>Use an example<//>
          <span class="spring"></span>
          ${shown.length < MAX_NUM_LANES && html`<${Button} busy=${false} reason=${isRunning ? "Wait for the answers." : ""} onClick=${() => setLanes([...shown, { weights: "", prompt: "" }])}>Add a lane<//>`}
          ${isRunning && html`<${Button} onClick=${() => stop.current.abort()}>Stop<//>`}
          <${Button} kind="primary" type="submit" busy=${isRunning} reason=${isRunning ? "" : why}>Run<//>
        </div>
      </section>
      <div class="lanes" data-num=${shown.length}>
        ${shown.map(
          (lane, i) => html`<${Lane}
            key=${i}
            number=${i + 1}
            lane=${lane}
            options=${options}
            result=${results[i]}
            isLocked=${isRunning}
            onChange=${(next) => change(i, next)}
            onRemove=${shown.length > 1 ? () => [setLanes(shown.filter((_, j) => j !== i)), setResults(results.filter((_, j) => j !== i))] : null}
          />`,
        )}
      </div>
    </form>`;
}

function Settings({ settings, onChange }) {
  const field = (key, label, props) => html`<${Field} label=${label}>
    ${(given) => html`<input ...${given} ...${props} type="number" value=${settings[key]} onInput=${(event) => onChange({ ...settings, [key]: event.target.value })} />`}
  <//>`;
  return html`<div class="form-grid three tight">
    ${field("tokens", "Most tokens", { min: 1, max: 1024, required: true })}
    ${field("temperature", "Temperature", { min: 0, max: 2, step: "0.1", required: true })}
    ${field("seed", "Seed", { min: 0 })}
  </div>`;
}

function Lane({ number, lane, options, result, isLocked, onChange, onRemove }) {
  const title = [lane.weights, lane.prompt].filter(Boolean).join(" + ") || "base";
  return html`<section class="card lane" aria-label=${`Lane ${number}: ${title}`}>
    <div class="lane-head">
      <${Select} label="Adapter" value=${lane.weights} options=${[["", "base"], ...options.weights]} onChange=${(weights) => onChange({ ...lane, weights })} />
      ${options.prompts.length > 0 &&
      html`<${Select} label="Soft prompt" value=${lane.prompt} options=${[["", "none"], ...options.prompts]} onChange=${(prompt) => onChange({ ...lane, prompt })} />`}
      ${onRemove && html`<${Button} kind="quiet small" reason=${isLocked ? "Wait for the answers." : ""} aria-label=${`Remove lane ${number}`} onClick=${onRemove}>Remove<//>`}
    </div>
    <${Result} result=${result} />
  </section>`;
}

function Result({ result }) {
  if (!result) return html`<p class="answer waiting">The answer comes here.</p>`;
  const { at, text, error, last } = result;
  const usage = last?.usage;
  return html`<p class=${`answer ${at}`} aria-busy=${at === "running" ? "true" : "false"}>${text || (at === "done" ? html`<em class="fine">an empty answer</em>` : "")}</p>
    <${ErrorNote} error=${error} />
    ${at === "stopped" && html`<p class="fine">Stopped.</p>`}
    <dl class="timings">
      <div><dt>First token</dt><dd>${timing(last, "ttft_ms")}</dd></div>
      <div><dt>End to end</dt><dd>${timing(last, "e2e_ms")}</dd></div>
      <div><dt>In the queue</dt><dd>${timing(last, "queue_ms")}</dd></div>
      <div><dt>Tokens in / out</dt><dd>${usage ? `${count(usage.prompt_tokens)} / ${count(usage.completion_tokens)}` : "–"}</dd></div>
      <div><dt>Ended by</dt><dd>${last?.finish_reason ?? "–"}</dd></div>
      ${Object.entries(last?.scores ?? {}).map(([metric, value]) => html`<div key=${metric}><dt>${metricName(metric)}</dt><dd>${score(value)}</dd></div>`)}
    </dl>
    ${result.adapters && html`<p class="fine served">Served by ${result.adapters.length ? result.adapters.map((use) => `${use.name}:${use.version}`).join(" + ") : "the base"}</p>`}`;
}

// As the server measures them: what the network and the wait for scores take is in none of them.
const timing = (last, name) => duration(last?.timings ? last.timings[name] / 1000 : null);

async function ask(body, update, signal) {
  const onEvent = (event) =>
    update((old) => ({
      text: old.text + event.delta,
      adapters: event.adapters ?? old.adapters,
      last: event.finish_reason ? event : null,
    }));
  try {
    await api.stream("/v1/summarize", body, onEvent, signal);
    update(() => ({ at: "done" }));
  } catch (error) {
    update(() => (error.name === "AbortError" ? { at: "stopped" } : { at: "failed", error }));
  }
}

function bodyOf(text, reference, settings, lane) {
  const body = {
    text,
    adapters: [lane.weights, lane.prompt].filter(Boolean),
    max_new_tokens: Number(settings.tokens),
    temperature: Number(settings.temperature),
    stream: true,
  };
  if (settings.seed !== "") body.seed = Number(settings.seed);
  if (reference.trim()) body.references = [reference];
  return body;
}

// Everything that can be named: each adapter by its bare name, then by its aliases and versions.
function optionsOf(adapters) {
  const weights = [];
  const prompts = [];
  for (const adapter of adapters) {
    const ready = readyOf(adapter);
    if (ready.length === 0) continue;
    const isPrompts = isPrompt(ready.at(-1).kind);
    const names = [adapter.name];
    for (const alias of Object.keys(adapter.aliases).sort()) if (alias !== "stable") names.push(`${adapter.name}@${alias}`);
    if (ready.length > 1) names.push(...ready.map((version) => `${adapter.name}:${version.version}`));
    (isPrompts ? prompts : weights).push(...names.map((name) => [name, name]));
  }
  return { weights, prompts };
}

function firstLanes(options, wanted) {
  const isKnown = (name) => options.weights.some(([known]) => known === name);
  const lane = (name) => (isKnown(name) ? { weights: name, prompt: "" } : { weights: "", prompt: "" });
  const named = [wanted, wanted?.split(":")[0]].find((name) => isKnown(name) || options.prompts.some(([known]) => known === name));
  if (named) return [isKnown(named) ? lane(named) : { weights: "", prompt: named }, lane("")];
  return [lane(""), ...options.weights.slice(0, 1).map(([name]) => lane(name))];
}
