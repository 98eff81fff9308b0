// Light or dark, charts that respond to the pointer, and the table of trials. Without scripts the page shows the
// printed charts and table instead.
(() => {
  "use strict";
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const read = (id) => document.getElementById(id)?.textContent;
  const element = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };

  // Charts: drawn when they come near the window, and again in other colours when the theme changes.
  const figures = [...document.querySelectorAll("figure[data-chart]")];
  const darkColours = JSON.parse(read("dark-colours") ?? "{}");
  const views = new Map();
  let redraw = () => {};

  function specification(name) {
    const text = read(`chart-${name}`);
    if (!isDark()) return JSON.parse(text);
    return JSON.parse(text, (key, value) => {
      if (value === "white") return ["fill", "stroke", "background"].includes(key) ? darkColours.white : value;
      return typeof value === "string" ? darkColours[value] ?? value : value;
    });
  }

  async function draw(figure) {
    const theme = isDark() ? "dark" : "light";
    if (figure.dataset.theme === theme) return;
    figure.dataset.theme = theme;
    const place = figure.querySelector(".live");
    const options = { renderer: "svg", actions: false, tooltip: { theme }, defaultStyle: false };
    try {
      views.get(figure)?.finalize();
      views.set(figure, await vegaEmbed(place, specification(figure.dataset.chart), options));
      figure.classList.add("is-live");
    } catch (error) {
      console.error(`chart ${figure.dataset.chart}: ${error}`);
    }
  }

  if (figures.length && window.vegaEmbed) {
    const seen = new Set();
    const watcher = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        seen.add(target);
        draw(target);
      }
    }, { rootMargin: "600px" });
    figures.forEach((figure) => watcher.observe(figure));
    redraw = () => seen.forEach(draw);
  }

  // Light and dark.
  const button = document.getElementById("theme");
  function applyTheme(theme) {
    if (theme) root.dataset.theme = theme;
    button.textContent = isDark() ? "Light" : "Dark";
    redraw();
  }
  let stored = null;
  try { stored = localStorage.getItem("cleanai-theme"); } catch { /* storage may be forbidden */ }
  button.hidden = false;
  button.addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    applyTheme(theme);
    try { localStorage.setItem("cleanai-theme", theme); } catch { /* storage may be forbidden */ }
  });
  system.addEventListener("change", () => applyTheme());
  applyTheme(["light", "dark"].includes(stored) ? stored : undefined);

  // The table of trials: a page of rows at a time, from the rows that pass the filters, sorted by one column.
  const PAGE = 100;
  for (const section of document.querySelectorAll(".trials")) makeTable(section, JSON.parse(read(section.dataset.rows)));

  function makeTable(section, { columns, rows, highlighted }) {
    const state = { sort: null, descending: false, page: 0, filters: new Map(), shown: rows };
    const tools = section.querySelector(".tools");
    const body = element("tbody");
    const heads = columns.map((column, index) => head(column, index));
    const table = element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body);
    section.querySelector(".rows").append(table);
    const count = element("output");
    const [back, forth] = [["Previous", -1], ["Next", 1]].map(([name, step]) =>
      element("button", { type: "button", textContent: name, onclick: () => { state.page += step; fill(); } }));
    const clear = element("button", { type: "button", textContent: "Clear", onclick: () => {
      for (const control of tools.querySelectorAll("input, select")) control.value = "";
      state.filters.clear();
      update();
    } });
    search();
    columns.forEach((column, index) => {
      if (column.filter === "choice") choice(column, index);
      else if (column.filter) limit(column, index);
    });
    tools.append(clear, element("div", { className: "state" }, count, back, forth));
    section.classList.add("is-live");
    update();

    function head(column, index) {
      const press = () => {
        state.descending = state.sort === index ? !state.descending : column.kind === "number" && column.filter !== "most";
        state.sort = index;
        update();
      };
      const title = element("button", { type: "button", textContent: column.title, title: column.hint, onclick: press });
      return element("th", { scope: "col", className: column.kind === "text" ? "" : "number" }, title);
    }

    function control(title, made, test, name) {
      made.addEventListener("input", () => {
        if (made.value === "") state.filters.delete(made);
        else state.filters.set(made, test(made.value));
        update();
      });
      tools.append(element("label", { className: name }, title, made));
    }

    function search() {
      const matches = (text) => {
        const words = text.toLowerCase().split(/\s+/).filter(Boolean);
        return (row) => words.every((word) => row.some((cell) => String(cell ?? "").toLowerCase().includes(word)));
      };
      control("search", element("input", { type: "search", placeholder: "words in any column" }), matches, "");
    }

    function choice(column, index) {
      const found = [...new Set(rows.map((row) => row[index]))].filter((value) => value !== null);
      if (found.length < 2) return;
      const natural = (a, b) => String(a).localeCompare(String(b), "en", { numeric: true });
      const options = found.sort(natural).map((value) => element("option", { value, textContent: value }));
      const list = element("select", {}, element("option", { value: "", textContent: "all" }), ...options);
      control(column.title, list, (value) => (row) => String(row[index]) === value, "short");
    }

    function limit(column, index) {
      const passes = column.filter === "least" ? (a, b) => a >= b : (a, b) => a <= b;
      const test = (value) => (row) => row[index] !== null && passes(row[index], Number(value));
      control(`${column.title}, at ${column.filter}`, element("input", { type: "number", step: "any" }), test, "short");
    }

    function compare(a, b) {
      const [first, second] = [a[state.sort], b[state.sort]].map((cell) => (Array.isArray(cell) ? cell[0] : cell));
      if (first === null || second === null) return (first === null) - (second === null);
      const order = typeof first === "number" ? first - second : String(first).localeCompare(String(second), "en");
      return state.descending ? -order : order;
    }

    function update() {
      const tests = [...state.filters.values()];
      state.shown = rows.filter((row) => tests.every((test) => test(row)));
      if (state.sort !== null) state.shown.sort(compare);
      state.page = 0;
      heads.forEach((cell, index) => {
        if (index === state.sort) cell.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
        else cell.removeAttribute("aria-sort");
      });
      clear.disabled = tests.length === 0;
      fill();
    }

    function fill() {
      const { shown, page } = state;
      const first = page * PAGE;
      const part = shown.slice(first, first + PAGE);
      body.replaceChildren(...part.map((row) => element(
        "tr", { className: rows.indexOf(row) === highlighted ? "highlight" : "" },
        ...columns.map((column, index) => cellOf(column, row[index])))));
      const range = shown.length > PAGE ? `${first + 1}\u2013${first + part.length} of ` : "";
      const total = `${rows.length} ${rows.length === 1 ? "trial" : "trials"}`;
      count.textContent = range + (shown.length === rows.length ? total : `${shown.length} of ${total}`);
      back.disabled = page === 0;
      forth.disabled = first + PAGE >= shown.length;
    }

    function cellOf(column, value) {
      const text = written(column, value);
      const name = column.kind !== "text" ? "number" : text.length > 40 ? "long" : "";
      return element("td", { className: name, title: name === "long" ? text : "" , textContent: text });
    }

    function written(column, value) {
      if (value === null) return "\u2013";
      if (column.kind === "text") return String(value);
      const least = 10 ** -column.digits;
      const isTiny = (number) => number > 0 && number < least / 2;
      const digits = (number) => isTiny(number) ? `< ${least}` : number.toFixed(column.digits).replace("-", "\u2212");
      return Array.isArray(value) ? value.map(digits).join("\u2013") : digits(value);
    }
  }
})();
