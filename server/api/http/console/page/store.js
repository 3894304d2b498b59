// A value that several parts of the page look at, and the hooks that follow one or ask the server again and again.

import { useCallback, useEffect, useRef, useState } from "./vendor/hooks.js";

export function createStore(value) {
  const listeners = new Set();
  return {
    get: () => value,
    set(next) {
      value = next;
      for (const listener of [...listeners]) listener(value);
    },
    subscribe(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
}

export function useStore(store) {
  const [value, setValue] = useState(store.get);
  useEffect(() => {
    setValue(() => store.get());
    return store.subscribe((next) => setValue(() => next));
  }, [store]);
  return value;
}

// Runs `ask(signal)` now, on `reload()`, and every `everyMs` while the page can be seen; keeps the last answer through errors.
export function usePoll(ask, everyMs, dependencies) {
  const [state, setState] = useState({ data: null, error: null });
  const latest = useRef(() => {});
  useEffect(() => {
    const abort = new AbortController();
    let timer = null;
    let isAsking = false;
    let isAskedAgain = false;
    const run = async () => {
      clearTimeout(timer);
      // What is on its way may have left before the change that somebody wants to see.
      isAskedAgain = isAsking;
      if (isAsking) return;
      isAsking = true;
      try {
        const data = await ask(abort.signal);
        if (!abort.signal.aborted) setState({ data, error: null });
      } catch (error) {
        if (!abort.signal.aborted) setState((before) => ({ data: before.data, error }));
      } finally {
        isAsking = false;
        if (isAskedAgain && !abort.signal.aborted) run();
        else if (everyMs && !abort.signal.aborted) timer = setTimeout(tick, everyMs);
      }
    };
    const tick = () => (document.hidden ? undefined : run());
    const onVisible = () => (document.hidden ? undefined : run());
    latest.current = run;
    setState({ data: null, error: null });
    run();
    document.addEventListener("visibilitychange", onVisible);
    return () => {
      abort.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", onVisible);
    };
  }, dependencies);
  return { ...state, reload: useCallback(() => latest.current(), []) };
}

// What one deliberate act is at: { run, busy, error }. A second run while one is busy does nothing.
export function useAct(act) {
  const [state, setState] = useState({ busy: false, error: null });
  const run = async (...args) => {
    if (state.busy) return undefined;
    setState({ busy: true, error: null });
    try {
      const result = await act(...args);
      setState({ busy: false, error: null });
      return result;
    } catch (error) {
      setState({ busy: false, error });
      return undefined;
    }
  };
  return { ...state, run, clear: () => setState({ busy: false, error: null }) };
}
