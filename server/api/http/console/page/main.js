// The console's frame: sign-in, navigation, the server's state, the theme; one page inside, chosen by the address's hash.

import { useEffect, useState } from "./vendor/hooks.js";
import * as api from "./api.js";
import { forgetFeed } from "./feed.js";
import { icon } from "./icons.js";
import { Adapters } from "./pages/adapters.js";
import { Adapter } from "./pages/adapter.js";
import { Live } from "./pages/live.js";
import { Playground } from "./pages/playground.js";
import { Quality } from "./pages/quality.js";
import { Rollouts } from "./pages/rollouts.js";
import { SignIn } from "./pages/sign_in.js";
import { Upload } from "./pages/upload.js";
import { resume, session, signOut, useMaySeeAll } from "./session.js";
import { usePoll, useStore } from "./store.js";
import { Button, html, Loading, render, Said } from "./view.js";

const PAGES = [
  ["adapters", "Adapters", Adapters],
  ["live", "Live", Live],
  ["quality", "Quality", Quality],
  ["rollouts", "Rollouts", Rollouts],
  ["upload", "Upload", Upload],
  ["playground", "Playground", Playground],
];

function useRoute() {
  const read = () => location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  const [route, setRoute] = useState(read);
  useEffect(() => {
    const onChange = () => setRoute(read());
    window.addEventListener("hashchange", onChange);
    return () => window.removeEventListener("hashchange", onChange);
  }, []);
  return route;
}

function Console() {
  const { state, problem } = useStore(session);
  useEffect(() => {
    resume();
  }, []);
  useEffect(() => {
    if (state !== "signed-in") forgetFeed();
  }, [state]);
  if (state === "starting") return html`<main class="alone"><${Loading} what="the console" /></main>`;
  if (state === "signed-out") return html`<${SignIn} problem=${problem} />`;
  return html`<${Frame} />`;
}

function Frame() {
  const [page = "", ...rest] = useRoute();
  const [name, , View] = PAGES.find(([key]) => key === page) ?? PAGES[0];
  const isDetail = name === "adapters" && rest.length > 0;
  return html`<div class="frame">
    <a
      class="skip"
      href="#main"
      onClick=${(event) => {
        event.preventDefault();
        document.querySelector("h1").focus();
      }}
      >Skip to the page</a
    >
    <header class="bar">
      <a class="brand" href="#/adapters" aria-label="Medley: to the adapters"><img src="/console/icon.svg" alt="" width="24" height="24" /><span>Medley</span></a>
      <${ServerState} />
      <div class="bar-end"><${Who} /><${Theme} /></div>
    </header>
    <nav aria-label="Pages" class="nav">
      ${PAGES.map(
        ([key, title]) => html`<a key=${key} href=${`#/${key}`} aria-current=${key === name ? "page" : undefined}>
          ${icon(key)}<span>${title}</span>
        </a>`,
      )}
    </nav>
    <main id="main">${isDetail ? html`<${Adapter} key=${rest[0]} name=${rest[0]} />` : html`<${View} key=${name} rest=${rest} />`}</main>
    <${Said} />
  </div>`;
}

function ServerState() {
  const isHidden = useMaySeeAll();
  const ask = (signal) => api.call("GET", isHidden ? "/readyz" : "/v1/status", { signal });
  const { data, error } = usePoll(ask, 5000, [isHidden]);
  const reason = error ? error.message : (data?.reason ?? "");
  const tone = error || reason ? "bad" : data ? "good" : "";
  const word = error ? "not answering" : reason ? "not ready" : data ? "ready" : "…";
  return html`<p class="server" title=${reason}>
    ${data?.base && html`<span class="server-base">${data.base}</span> <span class="server-engine">${data.engine} · ${data.device} · ${data.dtype}</span>`}
    <span class=${`state ${tone}`}>${word}</span>
  </p>`;
}

function Who() {
  const { key } = useStore(session);
  if (key.is_open) {
    return html`<span class="who" title="No API key was ever made: everybody who reaches this server may do everything.">
      ${icon("open")}<span>no keys</span>
    </span>`;
  }
  return html`<span class="who" title=${`${key.who}: ${key.scopes.join(", ")} on ${key.adapters.join(", ")}`}>${key.name}</span>
    <${Button} kind="quiet" onClick=${() => signOut()}>Sign out<//>`;
}

const THEMES = [
  ["system", "System theme"],
  ["light", "Light theme"],
  ["dark", "Dark theme"],
];

export function Theme() {
  const [choice, setChoice] = useState(window.medleyTheme.read());
  const index = THEMES.findIndex(([key]) => key === choice);
  const next = THEMES[(index + 1) % THEMES.length];
  const change = () => {
    window.medleyTheme.choose(next[0]);
    setChoice(next[0]);
  };
  const words = `${THEMES[index][1]}; switch to ${next[1].toLowerCase()}`;
  return html`<button class="button quiet icon-only" aria-label=${words} title=${words} onClick=${change}>${icon(choice)}</button>`;
}

render(html`<${Console} />`, document.getElementById("root"));
