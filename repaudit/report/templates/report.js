"use strict";
(async () => {
  if (!("DecompressionStream" in window)) {
    document.getElementById("unread").hidden = false;
    return;
  }
  const bytes = (text) => Uint8Array.from(atob(text), (byte) => byte.charCodeAt(0));
  const squeezed = new Blob([bytes(document.getElementById("data").textContent)]);
  const unpacked = new Response(squeezed.stream().pipeThrough(new DecompressionStream("gzip")));
  const { figures, lists, shared, texts, pictures, frames, similarity, tables } = await unpacked.json();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // A copy of a figure with its lists in their places.
  const whole = (value) => {
    if (Array.isArray(value)) return value.map(whole);
    if (value === null || typeof value !== "object") return value;
    if ("at" in value) return [...lists[value.at]];
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, whole(item)]));
  };

  // The outline of what lies between the bounds of a curve: forth along the upper, back along the lower.
  function bounds({ x, customdata }, { low, high, from = -Infinity, to = Infinity }) {
    const known = customdata.flatMap((row, k) => (row[low] !== null && row[high] !== null && row[0] >= from && row[0] <= to ? [k] : []));
    const back = known.toReversed();
    return {
      x: [...known, ...back].map((k) => x[k]),
      y: [...known.map((k) => customdata[k][high]), ...back.map((k) => customdata[k][low])],
    };
  }

  // Colours that follow the page's theme; all others are fixed in the figure.
  function themed(figure) {
    const made = whole(figure);
    made.layout.font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--soft") };
    made.layout.hoverlabel = {
      bgcolor: css("--paper"), bordercolor: css("--rule"), align: "left", font: { color: css("--ink"), size: 12 },
    };
    for (const axis of ["xaxis", "yaxis"]) {
      Object.assign(made.layout[axis], { linecolor: css("--rule"), tickcolor: css("--rule"), showline: made.layout[axis].visible !== false });
    }
    if (made.layout.title) made.layout.title.font = { size: 12, color: css("--ink") };
    for (const { name, font } of made.layout.annotations || []) if (name) font.color = css(`--${name}`);
    for (const trace of made.data) {
      const { told } = trace.meta || {};
      if (told) trace.customdata = told[0].map((_, k) => told.map((column) => column[k]));
    }
    for (const trace of made.data) {
      const meta = trace.meta || {};
      if (meta.ink) { trace.line.color = css("--ink"); trace.marker.color = css("--ink"); }
      if (meta.edge) trace.marker.line.color = css("--edge");
      if (meta.shared) Object.assign(trace, shared[meta.shared]);
      if (meta.band) Object.assign(trace, bounds(made.data[meta.band.of], meta.band));
      if ("group" in meta && texts.length) trace.hovertext = texts[meta.group];
    }
    return made;
  }

  // Numbers stay 16 bits in base64 until they are first shown.
  const numbers = (kept) => {
    const value = (code) => (code === 65535 ? NaN : kept.low + code / 65534 * (kept.high - kept.low));
    kept.values ??= Float32Array.from(new Uint16Array(bytes(kept.bdata).buffer), value);
    return kept.values;
  };
  const chosen = (place, name) => place.closest("figure").querySelector(`[name=${name}]`)?.value;

  // Samples of the chosen source at the chosen step, group by group.
  function placeSamples(made, place) {
    const { positions, steps, ranges } = frames.layers[place.dataset.layer];
    const [step, source] = [Number(chosen(place, "frame")), Number(chosen(place, "source") || 0)];
    const values = numbers(positions[source]);
    let at = 2 * positions[source].shape[1] * step;
    [made.layout.xaxis.range, made.layout.yaxis.range] = ranges[source];
    for (const trace of made.data) {
      const pick = frames.pick[trace.meta.group];
      trace.x = pick.map((_, k) => values[at + 2 * k]);
      trace.y = pick.map((_, k) => values[at + 2 * k + 1]);
      trace.hovertext = pick.map((k) => (texts[trace.meta.group] || [])[k]);
      at += 2 * pick.length;
    }
    const words = `step ${steps[step].toLocaleString("en")}`;
    const figure = place.closest("figure");
    figure.querySelector("output").textContent = words;
    figure.querySelector("[name=frame]").setAttribute("aria-valuetext", `${words}, ${step + 1} of ${steps.length}`);
  }

  // Samples of the wanted label whose text has the wanted words stand out in every picture of samples.
  const wanted = { label: "", words: "" };
  const spoken = (text) => new DOMParser().parseFromString(text.replaceAll("<br>", " "), "text/html").body.textContent.toLowerCase();
  const spokenName = (text) => new DOMParser().parseFromString(text, "text/html").body.textContent;
  const plain = [];
  const fits = (group, k) => (wanted.label === "" || Number(wanted.label) === group)
    && (plain[group] ??= texts[group].map(spoken))[k].includes(wanted.words);
  function pickOut(made) {
    if (wanted.label === "" && wanted.words === "") return;
    for (const trace of made.data) {
      const { group } = trace.meta;
      const shown = frames.pick && trace.x.length !== texts[group].length ? frames.pick[group] : texts[group].map((_, k) => k);
      trace.selectedpoints = shown.flatMap((k, at) => (fits(group, k) ? [at] : []));
      trace.selected = { marker: { opacity: 1, size: 9 } };
      trace.unselected = { marker: { opacity: 0.12 } };
    }
  }

  // Rows and columns in the chosen order, for the chosen measure and step.
  function fillMap(made, place) {
    const { index, names, x, y, lines } = similarity.orders[chosen(place, "order") || "model"];
    const step = Number(chosen(place, "step") || 0);
    const at = (Number(chosen(place, "measure") || 0) * similarity.steps.length + step) * index.length ** 2;
    const [values, nulls] = [numbers(similarity.similarity), numbers(similarity.null)];
    const cell = (kept, row, column) => kept[at + row * index.length + column];
    const said = (value, chance) => (Number.isNaN(chance) ? value.toFixed(3)
      : `${value.toFixed(3)}, by chance ${chance.toFixed(3)}<br>${(value - chance).toFixed(3)} above chance`);
    const [trace] = made.data;
    trace.z = index.map((row) => index.map((column) => cell(values, row, column)));
    trace.hoverinfo = "text";
    trace.hovertext = index.map((row, r) => index.map((column, c) => `${names[r]}<br>${names[c]}<br>${said(cell(values, row, column), cell(nulls, row, column))}`));
    Object.assign(made.layout.xaxis, x);
    Object.assign(made.layout.yaxis, y);
    const line = { color: css("--paper"), width: index.length > 60 ? 1 : 2 };
    const last = index.length - 0.5;
    made.layout.shapes = lines.flatMap((where) => [
      { type: "line", x0: where, x1: where, y0: -0.5, y1: last, line },
      { type: "line", y0: where, y1: where, x0: -0.5, x1: last, line },
    ]);
  }

  // As many names beside a square map as have room, upright where they would lie across each other.
  function thinTicks(place, layout) {
    const letters = (text) => String(text).replace(/<[^>]*>/g, "").length;
    const names = 6.5 * Math.max(0, ...(layout.yaxis.ticktext || []).map(letters)); // which leave the map the rest
    const side = Math.max(60, Math.min(place.clientWidth * 0.55, place.clientWidth - names - 110));
    for (const axis of [layout.xaxis, layout.yaxis]) {
      if (!axis.tickvals?.length) continue;
      const each = side / axis.tickvals.length;
      const step = Math.max(1, Math.ceil(13 / each));
      for (const name of ["tickvals", "ticktext"]) axis[name] = axis[name].filter((_, k) => k % step === 0);
      if (axis === layout.xaxis && each * step < 44) axis.tickangle = -90;
    }
  }

  function filled(place) {
    const { layer, figure } = place.dataset;
    const made = themed(figures[figure][layer]);
    if (figure === "similarity") fillMap(made, place);
    if (figure === "embedding") {
      if (frames.layers?.[layer]) placeSamples(made, place);
      if (texts.length) pickOut(made);
    }
    if (pictured(made)) lay(place, made);
    if (made.data[0].type === "heatmap" && made.layout.yaxis.scaleanchor) thinTicks(place, made.layout);
    return made;
  }

  // Pictures whose axes have one unit and no direction of their own lie on their longer side.
  const pictured = ({ layout }) => layout.yaxis?.scaleanchor && layout.yaxis.visible === false;
  const spans = ({ data, layout }) => ["x", "y"].map((axis) => {
    const shown = data.flatMap((trace) => Array.from(trace[axis] || [])).filter((value) => Number.isFinite(value));
    const [low, high] = layout[`${axis}axis`].range || [Math.min(...shown), Math.max(...shown)];
    return high - low;
  });
  const turned = new Map(); // decided once, so that the same picture stays as it lies at every step
  function lay(place, made) {
    const key = `${place.dataset.layer} ${place.dataset.figure}`;
    if (!turned.has(key)) turned.set(key, spans(made)[1] > spans(made)[0]);
    if (!turned.get(key)) return;
    for (const trace of made.data) [trace.x, trace.y] = [trace.y, trace.x];
    const { xaxis, yaxis } = made.layout;
    if (xaxis.range) [xaxis.range, yaxis.range] = [yaxis.range, xaxis.range];
  }

  // They are as high as what they show needs at their width, within limits.
  function fit(place, made) {
    const { data, layout } = made;
    const [wide, high] = spans(made);
    const bar = data.some((trace) => trace.marker?.showscale) ? 110 : 0;
    const key = layout.showlegend ? 20 * Math.ceil(data.filter((trace) => trace.name).length / 4) + 20 : 0;
    const needed = (place.clientWidth - bar) * high / wide * 1.1 + key;
    if (Number.isFinite(needed)) place.style.height = `min(${Math.max(bar ? 190 : 110, Math.round(needed))}px, ${getComputedStyle(place).getPropertyValue("--tall")})`;
  }

  function draw(place) {
    const made = filled(place);
    const { data, layout } = made;
    const first = !place.dataset.drawn;
    if (first && pictured(made)) fit(place, made);
    place.dataset.drawn = "yes";
    const drawn = Plotly.react(place, data, layout, { responsive: true, displaylogo: false, displayModeBar: false });
    if (first && !place.dataset.ready) ready(place);
    return drawn;
  }

  // What a figure can be asked for once it is drawn: a file of it, or one label everywhere.
  function ready(place) {
    place.dataset.ready = "yes";
    const files = document.createElement("div");
    files.className = "files";
    for (const format of ["png", "svg"]) {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: format.toUpperCase() });
      button.setAttribute("aria-label", `Save as ${format.toUpperCase()}: ${place.getAttribute("aria-label")}`);
      button.addEventListener("click", () => save(place, format));
      files.append(button);
    }
    place.closest("figure").append(files);
    place.on("plotly_hover", ({ points: [point] }) => showPicture(place, point));
    place.on("plotly_unhover", () => place.closest("figure").querySelector(".thumbnail")?.remove());
    place.on("plotly_legendclick", ({ curveNumber, data }) => {
      const group = data[curveNumber].meta?.group;
      if (group === undefined || !finder) return true;
      const label = finder.querySelector("[name=label]");
      label.value = label.value === String(group) ? "" : String(group);
      find();
      return false;
    });
  }

  // The picture of the sample under the mouse, where the samples are images.
  function showPicture(place, { data, pointNumber }) {
    const { group } = data.meta || {};
    if (!pictures[group]) return;
    const figure = place.closest("figure");
    figure.querySelector(".thumbnail")?.remove();
    const k = frames.pick && data.x.length !== texts[group].length ? frames.pick[group][pointNumber] : pointNumber;
    const alt = spokenName(texts[group][k].split("<br>")[0]);
    figure.append(Object.assign(new Image(), { className: "thumbnail", alt, src: `data:image/png;base64,${pictures[group][k]}` }));
  }

  function save(place, format) {
    const { data, layout } = filled(place);
    const { width, height } = place.getBoundingClientRect();
    const figure = { data, layout: { ...layout, paper_bgcolor: css("--paper") } };
    const filename = `${place.dataset.layer}-${place.dataset.figure}`;
    return Plotly.downloadImage(figure, { format, filename, width: Math.round(width), height: Math.round(height), scale: format === "png" ? 2 : 1 });
  }

  // Few samples glide from step to step; many jump, and so do all for readers who prefer no motion.
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  function move(place) {
    const { data } = filled(place);
    if (still.matches || data.reduce((sum, { x }) => sum + x.length, 0) > 1000) return draw(place);
    const points = data.map(({ x, y }) => ({ x, y }));
    const pace = { transition: { duration: 300, easing: "cubic-in-out" }, frame: { duration: 300, redraw: false }, mode: "immediate" };
    return Plotly.animate(place, { data: points }, pace).catch(() => undefined);
  }

  document.querySelectorAll(".controls").forEach((controls) => {
    const place = controls.closest("figure").querySelector(".plot");
    controls.addEventListener("input", ({ target }) => {
      if (target.name === "view") place.dataset.figure = target.value;
      if (target.name === "frame") move(place); else draw(place);
    });
  });

  document.querySelectorAll(".play").forEach((button) => {
    const range = button.parentElement.querySelector("[type=range]");
    let beat = 0;
    const stop = () => { clearInterval(beat); beat = 0; button.textContent = "Play"; };
    const go = (step) => { range.value = step; range.dispatchEvent(new Event("input", { bubbles: true })); };
    button.addEventListener("click", () => {
      if (beat) { stop(); return; }
      button.textContent = "Pause";
      go(Number(range.value) < Number(range.max) ? Number(range.value) + 1 : 0);
      beat = setInterval(() => {
        if (Number(range.value) < Number(range.max)) go(Number(range.value) + 1); else stop();
      }, 700);
    });
  });

  const places = [...document.querySelectorAll(".plot")];
  const shown = (place) => place.offsetParent !== null;
  const waiting = () => places.filter((place) => !place.dataset.drawn && shown(place));

  // Visible figures are drawn at once, the rest of the open layers when the page is idle.
  const sight = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting && !target.dataset.drawn) draw(target);
  }, { rootMargin: "300px" });
  places.forEach((place) => sight.observe(place));
  const later = window.requestIdleCallback || ((work) => setTimeout(work, 50));
  function next() {
    const [place] = waiting();
    if (place) { draw(place); later(next); }
  }
  later(next);

  // The labels to choose from are the traces of any picture of samples.
  const finder = document.querySelector(".finder");
  const refreshed = () => places.filter((place) => place.dataset.drawn && place.dataset.figure === "embedding").forEach((place) => {
    if (shown(place)) draw(place); else delete place.dataset.drawn;
  });
  function find() {
    wanted.label = finder.querySelector("[name=label]").value;
    wanted.words = finder.querySelector("[name=find]").value.trim().toLowerCase();
    const found = texts.map((group, g) => group.filter((_, k) => fits(g, k)).length);
    const sum = (counts) => counts.reduce((a, b) => a + b, 0).toLocaleString("en");
    const all = wanted.label === "" && wanted.words === "";
    finder.querySelector("output").textContent = all ? "" : `${sum(found)} of ${sum(texts.map((group) => group.length))} samples`;
    refreshed();
  }
  if (finder) {
    const { data } = Object.values(figures.embedding)[0];
    for (const { meta, name } of data.length > 1 ? data : []) {
      const option = Object.assign(document.createElement("option"), { value: meta.group, textContent: spokenName(name) });
      finder.querySelector("select").append(option);
    }
    document.getElementById("labels").hidden = data.length < 2;
    finder.addEventListener("input", find);
  }

  // The numbers of a layer become a table when they are asked for.
  document.querySelectorAll("details.table").forEach((details) => details.addEventListener("toggle", () => {
    const rows = tables[details.dataset.layer];
    const room = details.querySelector(".scroll");
    if (!details.open || room.firstChild) return;
    const table = document.createElement("table");
    const add = (part, cell, values) => {
      const row = part.insertRow();
      for (const value of values) row.append(Object.assign(document.createElement(cell), { textContent: value }));
    };
    add(table.createTHead(), "th", Object.keys(rows[0]));
    const body = table.createTBody();
    for (const row of rows) add(body, "td", Object.values(row));
    room.append(table);
  }));

  // The chosen scale's figures of a layer; those drawn before may have been hidden while the window changed.
  document.querySelectorAll(".switch").forEach((control) => control.addEventListener("input", ({ target }) => {
    const layer = control.closest("details.layer");
    layer.querySelectorAll(".at-scale").forEach((part) => { part.hidden = part.dataset.scale !== target.value; });
    places.filter((place) => layer.contains(place) && place.dataset.drawn && shown(place)).forEach((place) => Plotly.Plots.resize(place));
    later(next);
  }));

  function open(id) {
    const layer = document.getElementById(id);
    if (layer && layer.matches("details.layer")) { layer.open = true; layer.scrollIntoView(); }
  }
  addEventListener("hashchange", () => open(location.hash.slice(1)));
  document.querySelectorAll("details.layer").forEach((layer) => layer.addEventListener("toggle", () => later(next)));
  document.querySelectorAll(".answer a").forEach((link) => link.addEventListener("click", () => open(link.hash.slice(1))));
  // A hidden figure has no size; it is drawn again when it is shown.
  dark.addEventListener("change", () => places.filter((place) => place.dataset.drawn).forEach((place) => {
    if (shown(place)) draw(place); else delete place.dataset.drawn;
  }));
  addEventListener("beforeprint", () => { document.querySelectorAll("details.layer").forEach((layer) => { layer.open = true; }); waiting().forEach(draw); });
  if (location.hash) open(location.hash.slice(1));
})();
