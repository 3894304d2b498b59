// Sets the theme before anything is drawn, so that a dark page never flashes white. A plain script: modules come too late.
// The choice is "system", "light" or "dark" and is remembered by the browser.
(() => {
  const KEY = "medley-theme";
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const read = () => {
    try {
      return localStorage.getItem(KEY) ?? "system";
    } catch {
      return "system"; // storage is forbidden here; the page works without
    }
  };
  let chosen = read();
  const apply = () => {
    const theme = chosen === "system" ? (prefersDark.matches ? "dark" : "light") : chosen;
    document.documentElement.setAttribute("data-theme", theme);
    window.dispatchEvent(new Event("medley-theme"));
  };
  window.medleyTheme = {
    read,
    choose(choice) {
      try {
        localStorage.setItem(KEY, choice);
      } catch {
        // then it lasts as long as the page
      }
      chosen = choice;
      apply();
    },
  };
  prefersDark.addEventListener("change", apply);
  apply();
})();
