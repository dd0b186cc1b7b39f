"use strict";
// Adds to a page that is whole without it: tips, arrow keys inside charts, pictures of the front's points, the theme.
(() => {
  const root = document.documentElement;
  const tip = document.getElementById("tip");
  root.classList.add("js");

  // Tips: what browsers would show as a title after a while, at once and by keyboard.
  for (const mark of document.querySelectorAll(".mark")) {
    const title = mark.querySelector(":scope > title");
    if (!title) continue;
    mark.dataset.tip = title.textContent;
    mark.setAttribute("role", mark.dataset.shows ? "button" : "img");
    mark.setAttribute("aria-label", title.textContent.replaceAll("\n", ", "));
    title.remove();
  }
  let shown = null;
  const show = (mark) => {
    if (shown) shown.classList.remove("at");
    shown = mark;
    tip.hidden = !mark;
    if (!mark) return;
    mark.classList.add("at");
    tip.textContent = mark.dataset.tip;
    moveTip(mark);
  };
  const moveTip = (mark) => {
    const at = mark.getBoundingClientRect(), own = tip.getBoundingClientRect();
    const left = Math.min(Math.max(at.left + at.width / 2 - own.width / 2, 12), innerWidth - own.width - 12);
    const above = at.top - own.height - 10;
    tip.style.left = `${Math.max(left, 12)}px`;
    tip.style.top = `${above > 58 ? above : Math.min(at.bottom + 10, innerHeight - own.height - 8)}px`;
  };
  const point = (event) => {
    const mark = event.target.closest(".mark[data-tip]");
    if (mark !== shown) show(mark);
  };
  document.addEventListener("pointerover", point);
  document.addEventListener("pointermove", point, { passive: true });
  const follow = () => {
    if (shown) moveTip(shown);
  };
  document.addEventListener("scroll", follow, { passive: true, capture: true });
  addEventListener("resize", follow);
  document.addEventListener("focusin", (event) => {
    const mark = event.target.closest(".mark[data-tip]");
    if (mark && mark.matches(":focus-visible")) show(mark);
  });
  document.addEventListener("focusout", () => show(null));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") show(null);
  });

  // One tab stop per chart; arrows go to the nearest mark that way.
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  for (const chart of document.querySelectorAll("svg[data-marks]")) {
    const marks = [...chart.querySelectorAll(".mark[data-tip]")];
    const place = (mark) => [Number(mark.dataset.row), Number(mark.dataset.column)];
    marks.forEach((mark, index) => mark.setAttribute("tabindex", index ? "-1" : "0"));
    chart.addEventListener("keydown", (event) => {
      const here = event.target.closest(".mark");
      const step = steps[event.key];
      if (!here || !step) return;
      const [row, column] = place(here);
      const rows = new Set(marks.map((mark) => mark.dataset.row));
      const turned = rows.size === 1 && step[0] ? [0, step[0]] : step;
      let best = null, least = Infinity;
      for (const mark of marks) {
        const [otherRow, otherColumn] = place(mark);
        const ahead = (otherRow - row) * turned[0] + (otherColumn - column) * turned[1];
        const aside = Math.abs((otherRow - row) * turned[1]) + Math.abs((otherColumn - column) * turned[0]);
        if (ahead > 0 && ahead + 40 * aside < least) [best, least] = [mark, ahead + 40 * aside];
      }
      event.preventDefault();
      if (!best) return;
      here.setAttribute("tabindex", "-1");
      best.setAttribute("tabindex", "0");
      best.focus();
    });
  }

  // The front: the point that is pointed at or focused shows its layers; a tap or Enter does too.
  const pictures = [...document.querySelectorAll(".pane > figure")];
  const choose = (name) => {
    if (!pictures.some((picture) => picture.dataset.for === name)) return;
    for (const picture of pictures) picture.hidden = picture.dataset.for !== name;
    for (const mark of document.querySelectorAll(".mark[data-shows]")) {
      mark.classList.toggle("shown", mark.dataset.shows === name);
      mark.setAttribute("aria-pressed", String(mark.dataset.shows === name));
    }
  };
  const chooseFrom = (event) => {
    const mark = event.target.closest(".mark[data-shows]");
    if (mark) choose(mark.dataset.shows);
  };
  for (const kind of ["pointerover", "focusin", "click"]) document.addEventListener(kind, chooseFrom);
  if (pictures.length) choose(pictures[0].dataset.for);

  // The menu says where the reader is.
  const links = new Map([...document.querySelectorAll("nav li a")].map((link) => [link.hash.slice(1), link]));
  if ("IntersectionObserver" in window) {
    const watch = new IntersectionObserver(
      (entries) => {
        for (const entry of entries) {
          if (!entry.isIntersecting) continue;
          for (const [name, link] of links) link.classList.toggle("here", name === entry.target.id);
        }
      },
      { rootMargin: "-20% 0px -70% 0px" },
    );
    for (const part of document.querySelectorAll("main > section, main > header")) watch.observe(part);
  }

  // Light or dark: the system's, unless the reader says otherwise. Files may have no storage; then it is forgotten.
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = dark() ? "Light" : "Dark"; };
  try {
    const kept = localStorage.getItem("puzzlebench-theme");
    if (kept === "light" || kept === "dark") root.dataset.theme = kept;
  } catch { /* forgotten */ }
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("puzzlebench-theme", root.dataset.theme); } catch { /* forgotten */ }
    label();
  });
  system.addEventListener("change", label);
  button.hidden = false;
  label();

  // Paper has no tables to open; those too wide for it stay as they are.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not(.wide):not([open])")];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
})();
