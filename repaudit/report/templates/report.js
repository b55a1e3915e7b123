"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const figures = read("figures");
  const texts = read("texts");
  const frames = read("frames");
  const similarity = read("similarity");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Colours that follow the page's theme; all others are fixed in the figure.
  function themed(figure) {
    const made = structuredClone(figure);
    made.layout.font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--soft") };
    made.layout.hoverlabel = {
      bgcolor: css("--paper"), bordercolor: css("--rule"), align: "left", font: { color: css("--ink"), size: 12 },
    };
    for (const axis of ["xaxis", "yaxis"]) {
      Object.assign(made.layout[axis], { linecolor: css("--rule"), tickcolor: css("--rule"), showline: made.layout[axis].visible !== false });
    }
    if (made.layout.title) made.layout.title.font = { size: 12, color: css("--ink") };
    for (const trace of made.data) {
      const meta = trace.meta || {};
      if (meta.ink) { trace.line.color = css("--ink"); trace.marker.color = css("--ink"); }
      if (meta.edge) trace.marker.line.color = css("--edge");
      if ("group" in meta && texts.length) trace.hovertext = texts[meta.group];
    }
    return made;
  }

  // Numbers stay base64 until they are first shown.
  const numbers = (kept) => {
    kept.values ??= new Float32Array(Uint8Array.from(atob(kept.bdata), (byte) => byte.charCodeAt(0)).buffer);
    return kept.values;
  };
  const chosen = (place, name) => place.closest("figure").querySelector(`[name=${name}]`)?.value;

  // Samples of the chosen source at the chosen step, group by group.
  function placeSamples(made, place) {
    const { positions, steps, ranges } = frames.layers[place.dataset.layer];
    const values = numbers(positions);
    const [step, source] = [Number(chosen(place, "frame")), Number(chosen(place, "source") || 0)];
    let at = 2 * positions.shape[2] * (source * steps.length + step);
    [made.layout.xaxis.range, made.layout.yaxis.range] = ranges[source];
    for (const trace of made.data) {
      const pick = frames.pick[trace.meta.group];
      trace.x = pick.map((_, k) => values[at + 2 * k]);
      trace.y = pick.map((_, k) => values[at + 2 * k + 1]);
      trace.hovertext = pick.map((k) => (texts[trace.meta.group] || [])[k]);
      at += 2 * pick.length;
    }
    place.closest("figure").querySelector("output").textContent = `step ${steps[step].toLocaleString("en")}`;
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

  function filled(place) {
    const { layer, figure } = place.dataset;
    const made = themed(figures[layer][figure]);
    if (figure === "similarity") fillMap(made, place);
    if (figure === "embedding" && frames.layers?.[layer]) placeSamples(made, place);
    return made;
  }

  function draw(place) {
    const { data, layout } = filled(place);
    place.dataset.drawn = "yes";
    return Plotly.react(place, data, layout, { responsive: true, displaylogo: false, displayModeBar: false });
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
