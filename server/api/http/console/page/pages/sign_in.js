// Asks for an API key.

import { useEffect, useRef, useState } from "../vendor/hooks.js";
import { asksForKey, resume, session, signIn } from "../session.js";
import { useStore } from "../store.js";
import { Button, Field, html, sentence } from "../view.js";

export function SignIn({ problem }) {
  const { isNew } = useStore(session);
  const [token, setToken] = useState("");
  const [busy, setBusy] = useState(false);
  const input = useRef(null);
  useEffect(() => {
    document.title = "Sign in · Medley console";
    input.current?.focus();
  }, []);
  const submit = async (event) => {
    event.preventDefault();
    if (busy || !token.trim()) return;
    setBusy(true);
    const isTaken = await signIn(token.trim());
    if (!isTaken) setBusy(false);
  };
  if (!asksForKey()) {
    return html`<main class="alone">
      <div class="card sign-in">
        <h1>Medley console</h1>
        <div class="note bad" role="alert"><p><strong>${sentence(problem)}</strong></p></div>
        <${Button} kind="primary" onClick=${() => resume()}>Try again<//>
      </div>
    </main>`;
  }
  return html`<main class="alone">
    <form class="card sign-in" onSubmit=${submit}>
      <img src="/console/icon.svg" alt="" width="40" height="40" />
      <h1>Medley console</h1>
      <p class="fine">
        This server asks for an API key. It stays in this tab until you sign out or close it. Keys are made on the server:
        <code>medley keys create --name you --scope operate</code>
      </p>
      ${problem && html`<div class="note bad" role="alert"><p><strong>${sentence(problem)}.</strong>${!isNew && " Sign in again."}</p></div>`}
      <${Field} label="API key">
        ${(props) => html`<input
          ...${props}
          ref=${input}
          type="password"
          autocomplete="off"
          spellcheck="false"
          value=${token}
          onInput=${(event) => setToken(event.target.value)}
          aria-invalid=${problem ? "true" : undefined}
          required
        />`}
      <//>
      <${Button} kind="primary" type="submit" busy=${busy}>Sign in<//>
    </form>
  </main>`;
}
