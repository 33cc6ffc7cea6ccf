"use strict";
// Draws the charts in the colours of the page, sorts the table, switches the theme.
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const charts = [...document.querySelectorAll(".chart")];
  const boxes = [...document.querySelectorAll("input[data-method]")];
  const methods = new Set(boxes.map((box) => box.dataset.method));
  const few = new Set(boxes.filter((box) => box.checked).map((box) => box.dataset.method));
  let shown = new Set(few);

  // Colours: figures name those of the style sheet, as in "var(--blue, 0.2)" with an opacity.

  const probe = document.body.appendChild(document.createElement("span"));
  probe.hidden = true;

  function colour(name, opacity) {
    probe.style.color = `var(${name})`;
    const plain = getComputedStyle(probe).color;
    return opacity ? plain.replace("rgb(", "rgba(").replace(")", `, ${opacity})`) : plain;
  }

  function painted(value) {
    if (typeof value === "string") {
      const token = /^var\((--[\w-]+)(?:, ([\d.]+))?\)$/.exec(value);
      return token ? colour(token[1], token[2]) : value;
    }
    if (Array.isArray(value)) return value.map(painted);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, painted(inner)]));
  }

  // Charts

  function draw(chart) {
    if (!chart.checkVisibility()) return; // in a part that is folded away
    const width = chart.clientWidth;
    const figure = painted(figures[chart.id]);
    for (const trace of figure.data) {
      if (methods.has(trace.meta)) trace.visible = shown.has(trace.meta);
    }
    const layout = { ...figure.layout, width, height: chart.clientHeight };
    // Names of classes would overlap on a narrow screen; the y axis has the same. It takes 230 px, with the scale.
    layout.xaxis.showticklabels = !(width - 230 < 13 * layout.xaxis.ticktext?.length);
    Plotly.react(chart, figure.data, layout, { displayModeBar: false });
    chart.dataset.width = width;
  }

  const drawAll = () => charts.forEach(draw);

  document.addEventListener("toggle", ({ target }) => {
    target.querySelectorAll(".chart").forEach(draw);
  }, true);

  // Watching sizes serves the first drawing and windows that change.
  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target.clientWidth !== Number(target.dataset.width)) draw(target);
    }
  });
  charts.forEach((chart) => sizes.observe(chart));

  // Methods that are shown, the same in every chart

  function show(wanted) {
    shown = wanted;
    for (const box of boxes) box.checked = shown.has(box.dataset.method);
    drawAll();
  }

  for (const box of boxes) {
    box.addEventListener("change", () => {
      const wanted = new Set(shown);
      if (box.checked) wanted.add(box.dataset.method);
      else wanted.delete(box.dataset.method);
      show(wanted);
    });
  }
  for (const button of document.querySelectorAll("[data-pick]")) {
    button.addEventListener("click", () => show(button.dataset.pick === "all" ? methods : few));
  }

  // Theme: the system's until the button is used

  const system = matchMedia("(prefers-color-scheme: dark)");
  const theme = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);

  function themed() {
    theme.textContent = isDark() ? "Light theme" : "Dark theme";
    drawAll();
  }

  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    themed();
  });
  system.addEventListener("change", themed);
  theme.textContent = isDark() ? "Light theme" : "Dark theme";

  // On paper: light, and as wide as the sheet

  let before;
  addEventListener("beforeprint", () => {
    before = root.dataset.theme;
    root.dataset.theme = "light";
    root.classList.add("printing");
    drawAll();
  });
  addEventListener("afterprint", () => {
    if (before) root.dataset.theme = before;
    else delete root.dataset.theme;
    root.classList.remove("printing");
    drawAll();
  });

  // Sorting: what has no value stays below

  function compare(one, other) {
    const numbers = [Number(one), Number(other)];
    if (numbers.every((number) => !Number.isNaN(number))) return numbers[0] - numbers[1];
    return one.localeCompare(other);
  }

  function sort(head) {
    const column = [...head.parentNode.children].indexOf(head);
    const number = head.classList.contains("number");
    const now = head.getAttribute("aria-sort");
    const upward = now === "none" ? !number : now === "descending";
    for (const other of head.parentNode.children) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", upward ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    const value = (row) => row.children[column].dataset.value;
    const rows = [...body.rows].sort((a, b) => {
      const [one, other] = [value(a), value(b)];
      if (one === "" || other === "") return (one === "") - (other === "");
      return upward ? compare(one, other) : compare(other, one);
    });
    body.append(...rows);
  }

  for (const button of document.querySelectorAll(".sortable thead button")) {
    button.addEventListener("click", () => sort(button.closest("th")));
  }
})();
