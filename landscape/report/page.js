"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const drawing = read("drawing");
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`)?.value;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;

  // Theme: the system's until the reader chooses; a redraw swaps the template, nothing else.
  const theme = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const toggle = document.getElementById("theme");

  function showTheme() {
    toggle.setAttribute("aria-pressed", String(theme() === "dark"));
    for (const plot of drawn()) draw(plot.id.slice(5));
  }
  toggle.addEventListener("click", () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    showTheme();
  });
  dark.addEventListener("change", () => { if (!root.dataset.theme) showTheme(); });

  // Figures.
  const place = (name) => document.getElementById(`plot-${name}`);
  const drawn = () => all(".plot").filter((plot) => plot.data);
  const webgl = (() => {
    try {
      const context = document.createElement("canvas").getContext("webgl");
      context?.getExtension("WEBGL_lose_context")?.loseContext();
      return Boolean(context);
    } catch { return false; }
  })();

  function draw(name, width) {
    const figure = drawing.figures[name];
    const layout = { ...figure.layout, template: drawing.templates[printing ? "light" : theme()] };
    if (width) Object.assign(layout, { width, autosize: false });
    return Plotly.react(place(name), figure.data, layout, drawing.config);
  }

  const mapped = (z, change) => z.map((row) => row.map((v) => (v === null ? null : change(v))));
  const logarithm = (v) => (v > 0 ? Math.log10(v) : null);

  // Where the loss of one plane is drawn: its contour, and its trajectory where it has one.
  const panels = (id) => [`contour-${id}`, `trajectory-${id}`].filter((name) => drawing.figures[name]?.data[0].type === "contour");

  function setContour(id) {
    const view = drawing.views[id][`${chosen("contour-scale")} ${chosen("contour-shared")}`];
    const { x, y, z } = drawing.surfaces[id];
    for (const name of panels(id)) {
      const filled = drawing.figures[name].data[0];
      Object.assign(filled, {
        x, y, z: view.log ? mapped(z, logarithm) : z, customdata: z, zmin: view.low, zmax: view.high,
        contours: { ...filled.contours, start: view.low, end: view.high, size: (view.high - view.low) / 16 },
        colorbar: { ...filled.colorbar, tickvals: view.ticks, ticktext: view.labels },
      });
    }
  }

  function setSurface(cell) {
    const id = cell.querySelector("select").value;
    const scale = chosen("surface-scale");
    const view = drawing.views[id][`${scale === "log" ? "log" : "linear"} ${chosen("surface-shared")}`];
    const { x, y, z } = drawing.surfaces[id];
    const figure = drawing.figures[`surface-${cell.dataset.cell}`];
    const clipped = scale === "clipped" && drawing.clip > view.low;
    const high = clipped ? Math.min(drawing.clip, view.high) : view.high;
    const ticks = view.ticks.map((t, i) => [t, view.labels[i]]).filter(([t]) => t <= high);
    const height = view.log ? mapped(z, logarithm) : clipped ? mapped(z, (v) => Math.min(v, high)) : z;
    Object.assign(figure.data[0], { x, y, z: height, customdata: z, cmin: view.low, cmax: high });
    ["x", "y"].forEach((axis, i) => { figure.layout.scene[`${axis}axis`].range = drawing.ranges[id][i]; });
    Object.assign(figure.layout.scene.zaxis, {
      range: [view.low, high], tickvals: ticks.map((t) => t[0]), ticktext: ticks.map((t) => t[1]),
    });
    cell.querySelector("figcaption").innerHTML = drawing.captions[id];
    if (!webgl) {
      const picture = document.querySelector(`.static-surfaces [data-surface="${id}"]`).cloneNode();
      cell.querySelector(".static-place").replaceChildren(picture);
    }
  }

  const contours = Object.keys(drawing.surfaces);
  const cells = all("figure.space");
  contours.forEach(setContour);
  cells.forEach(setSurface);
  for (const input of all('input[name^="contour-"]')) {
    input.addEventListener("change", () => {
      contours.forEach((id) => { setContour(id); panels(id).forEach((name) => draw(name)); });
    });
  }
  const drawCell = (cell) => { setSurface(cell); if (webgl) draw(`surface-${cell.dataset.cell}`); };
  for (const input of all('input[name^="surface-"]')) input.addEventListener("change", () => cells.forEach(drawCell));
  for (const cell of cells) cell.querySelector("select").addEventListener("change", () => drawCell(cell));
  if (!webgl && cells.length) {
    document.querySelector("#surfaces .controls").hidden = true;
    for (const cell of cells) {
      cell.querySelector(".no-webgl").hidden = false;
      cell.querySelector(".plot").remove();
      cell.querySelector(".save").remove();
    }
  }

  // Many variants: those chosen in colour, the others in grey behind them.
  const curves = all("[data-curve]");
  const coloured = Object.keys(drawing.figures).filter((name) => name.startsWith("training-"));
  const looks = new Map(coloured.flatMap((name) => drawing.figures[name].data).map((trace) => [trace, trace.line]));

  function setCurves() {
    const chosen = new Set(curves.filter((b) => b.getAttribute("aria-pressed") === "true").map((b) => Number(b.dataset.curve)));
    for (const [trace, line] of looks) {
      if (!trace.meta) continue;
      const { curve, lead } = trace.meta;
      const on = chosen.has(curve);
      Object.assign(trace, {
        line: on ? line : { color: "#8a8f98", width: 1, dash: "solid" },
        opacity: on ? 1 : 0.35, zorder: on ? 1 : 0, visible: on || lead,
        marker: { color: on ? line.color : "#8a8f98", size: on ? 8 : 5 },
      });
    }
  }
  function drawCurves() {
    setCurves();
    for (const name of coloured) draw(name);
  }
  if (curves.length) {
    const first = new Set(curves.filter((button) => button.getAttribute("aria-pressed") === "true"));
    const press = (button, on) => button.setAttribute("aria-pressed", String(on));
    for (const button of curves) {
      button.addEventListener("click", () => {
        press(button, button.getAttribute("aria-pressed") !== "true");
        drawCurves();
      });
    }
    const sets = { best: (b) => first.has(b), all: () => true, none: () => false };
    for (const button of all("[data-curves]")) {
      button.addEventListener("click", () => {
        for (const curve of curves) press(curve, sets[button.dataset.curves](curve));
        drawCurves();
      });
    }
    setCurves();
  }

  // Crosshair: one point in all planes, its row and its column below.
  const nearest = (axis, value) => axis.reduce((best, v, i) => (Math.abs(v - value) < Math.abs(axis[best] - value) ? i : best), 0);
  const sliders = { x: document.getElementById("cross-x"), y: document.getElementById("cross-y") };
  const spans = {};
  for (const axis of ["x", "y"]) {
    const values = contours.flatMap((id) => drawing.surfaces[id][axis]);
    spans[axis] = [Math.min(...values), Math.max(...values)];
  }
  // The crosshair starts at theta, the origin, wherever the window has it.
  for (const axis of contours.length ? ["x", "y"] : []) {
    const [low, high] = spans[axis];
    sliders[axis].value = Math.min(1000, Math.max(0, (-1000 * low) / (high - low)));
  }
  const at = (axis) => spans[axis][0] + (sliders[axis].value / 1000) * (spans[axis][1] - spans[axis][0]);

  function placeCross() {
    const [x, y] = [at("x"), at("y")];
    for (const axis of ["x", "y"]) document.getElementById(`cross-${axis}-value`).textContent = at(axis).toFixed(2).replace(/^-(0\.00)$/, "$1");
    contours.forEach((id, i) => {
      const surface = drawing.surfaces[id];
      const row = nearest(surface.y, y);
      const column = nearest(surface.x, x);
      drawing.figures["cross-x"].data[i].y = surface.z[row];
      drawing.figures["cross-y"].data[i].y = surface.z.map((values) => values[column]);
      const line = { type: "line", line: { color: "rgba(255,255,255,0.75)", width: 1, dash: "dot" } };
      drawing.figures[`contour-${id}`].layout.shapes = [
        { ...line, x0: surface.x[column], x1: surface.x[column], yref: "paper", y0: 0, y1: 1 },
        { ...line, y0: surface.y[row], y1: surface.y[row], xref: "paper", x0: 0, x1: 1 },
      ];
    });
  }

  function moveCross() {
    placeCross();
    for (const name of [...contours.map((id) => `contour-${id}`), "cross-x", "cross-y"]) draw(name);
  }

  function linkContours() {
    for (const id of contours) {
      const plot = place(`contour-${id}`);
      plot.on("plotly_click", (event) => {
        for (const axis of ["x", "y"]) {
          const [low, high] = spans[axis];
          sliders[axis].value = (1000 * (event.points[0][axis] - low)) / (high - low);
        }
        moveCross();
      });
      if (!drawing.sharedAxes) continue;
      plot.on("plotly_relayout", (change) => {
        // Zooming one plane zooms all: they share their axes.
        const keys = Object.keys(change).filter((key) => /^[xy]axis\.(range|autorange)/.test(key));
        if (!keys.length) return;
        for (const other of contours) {
          const layout = drawing.figures[`contour-${other}`].layout;
          for (const axis of ["xaxis", "yaxis"]) layout[axis].range = [...plot.layout[axis].range];
          if (other !== id) draw(`contour-${other}`);
        }
      });
    }
  }

  function linkCameras() {
    let busy = false;
    for (const cell of cells) {
      place(`surface-${cell.dataset.cell}`).on("plotly_relayout", (change) => {
        const camera = change["scene.camera"];
        if (!camera || busy) return;
        busy = true;
        const moves = cells.map((other) => {
          drawing.figures[`surface-${other.dataset.cell}`].layout.scene.camera = camera;
          return other === cell ? null : Plotly.relayout(place(`surface-${other.dataset.cell}`), { "scene.camera": camera });
        });
        Promise.all(moves).finally(() => { busy = false; });
      });
    }
  }

  // Drawn one after the other, so that the page answers in between.
  async function drawAll() {
    if (contours.length) placeCross();
    for (const name of Object.keys(drawing.figures)) {
      if (place(name)) {
        await draw(name);
        await new Promise((resolve) => setTimeout(resolve));
      }
    }
    if (contours.length) {
      for (const slider of Object.values(sliders)) slider.addEventListener("input", moveCross);
      linkContours();
      if (webgl) linkCameras();
    }
    root.dataset.drawn = "all";
  }

  // Tables: a head sorts by its column, missing values last.
  for (const head of all("table.sortable thead th")) {
    head.querySelector("button").addEventListener("click", () => {
      const table = head.closest("table");
      const descending = head.getAttribute("aria-sort") === "ascending";
      for (const other of all("thead th", table)) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const sign = descending ? -1 : 1;
      const key = (row) => {
        const cell = row.cells[head.cellIndex];
        return cell.tagName === "TH" ? cell.textContent : cell.dataset.value === undefined ? NaN : Number(cell.dataset.value);
      };
      const order = (a, b) => {
        const [left, right] = [key(a), key(b)];
        if (typeof left === "string") return sign * left.localeCompare(right, undefined, { numeric: true });
        return Number.isNaN(left) - Number.isNaN(right) || sign * (left - right);
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
    });
  }

  // A wide table that has been scrolled: its first column lies on top of the others.
  for (const frame of all(".scroll")) {
    frame.addEventListener("scroll", () => frame.classList.toggle("moved", frame.scrollLeft > 0), { passive: true });
  }

  // Copies and downloads.
  const contents = {
    csv: () => [new TextEncoder().encode("\ufeff" + read("csv")), "text/csv"],
    json: () => [new TextEncoder().encode(document.getElementById("findings").textContent), "application/json"],
    arrays: () => [
      Uint8Array.from(atob(document.getElementById("arrays").textContent), (c) => c.charCodeAt(0)),
      "application/x-netcdf",
    ],
  };
  const say = (button, words) => {
    const status = button.parentElement.querySelector(".said");
    if (status) status.textContent = words; else button.textContent = words;
  };
  for (const button of all("[data-save]")) {
    button.addEventListener("click", () => {
      const name = button.dataset.save;
      // A WebGL picture has no vectors to save.
      const format = name.startsWith("surface-") ? "png" : "svg";
      Plotly.downloadImage(place(name), { format, filename: name, scale: format === "png" ? 2 : 1 });
    });
  }
  for (const button of all("[data-download]")) {
    button.addEventListener("click", () => {
      const [bytes, type] = contents[button.dataset.download]();
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([bytes], { type }));
      link.download = drawing.names[button.dataset.download];
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
      say(button, `Saved ${link.download}`);
    });
  }
  function copyByHand(text) {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "hidden";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
  for (const button of all("[data-copy]")) {
    button.addEventListener("click", async () => {
      const text = button.dataset.copy === "csv" ? read("csv") : document.getElementById("command").textContent;
      let done = true;
      try { await navigator.clipboard.writeText(text); } catch { done = copyByHand(text); button.focus(); }
      say(button, done ? "Copied" : "This browser does not let pages copy");
    });
  }

  // Contents: the section in view.
  const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-10% 0px -80% 0px" });
  for (const section of all("main section")) watcher.observe(section);

  // Print: light, and as wide as paper; afterwards as before.
  let printing = false;
  const flat = () => drawn().filter((plot) => !plot.closest("figure.space"));
  window.addEventListener("beforeprint", () => {
    printing = true;
    for (const plot of flat()) {
      const columns = plot.closest(".grid.three") ? 3 : plot.closest(".grid.two") ? 2 : 1;
      draw(plot.id.slice(5), Math.floor(680 / columns) - 14);
    }
  });
  window.addEventListener("afterprint", () => {
    printing = false;
    for (const plot of flat()) { draw(plot.id.slice(5)); Plotly.Plots.resize(plot); }
  });

  toggle.setAttribute("aria-pressed", String(theme() === "dark"));
  drawAll();
})();
