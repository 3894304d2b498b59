// Sets the theme before anything is drawn, so that a dark page never flashes white. A plain script: modules come too late.
// The choice is "system", "light" or "dark" and is remembered by the browser.
(() => {
  const KEY = "medley-theme";
  const root = document.documentElement;
  const read = () => {
    try {
      return localStorage.getItem(KEY) ?? "system";
    } catch {
      return "system"; // storage is forbidden here; the page works without
    }
  };
  const apply = (choice) => {
    if (choice === "system") root.removeAttribute("data-theme");
    else root.setAttribute("data-theme", choice);
  };
  window.medleyTheme = {
    read,
    choose(choice) {
      try {
        localStorage.setItem(KEY, choice);
      } catch {
        // then it lasts as long as the page
      }
      apply(choice);
      window.dispatchEvent(new Event("medley-theme"));
    },
  };
  apply(read());
})();
