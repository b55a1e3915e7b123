"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const figures = read("figures");
  const texts = read("texts");
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
      if ("group" in meta) trace.hovertext = texts[meta.group];
    }
    return made;
  }

  function draw(place) {
    const figure = figures[place.dataset.layer][place.dataset.figure];
    const { data, layout } = themed(figure);
    place.dataset.drawn = "yes";
    Plotly.react(place, data, layout, { responsive: true, displaylogo: false, displayModeBar: false });
  }

  // A button in the caption puts another view of the same data in the figure's place, and back.
  document.querySelectorAll(".swap").forEach((button) => {
    const place = button.closest("figure").querySelector(".plot");
    const [first, words] = [place.dataset.figure, button.textContent];
    button.addEventListener("click", () => {
      const swapped = place.dataset.figure === first;
      place.dataset.figure = swapped ? button.dataset.other : first;
      button.textContent = swapped ? "Back to PHATE" : words;
      button.setAttribute("aria-pressed", String(swapped));
      draw(place);
    });
  });

  const places = [...document.querySelectorAll(".plot")];
  const shown = (place) => place.offsetParent !== null;
  const waiting = () => places.filter((place) => !place.dataset.drawn && shown(place));

  // What is in sight is drawn at once, the rest of the open layers when the page is idle.
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

  function open(id) {
    const layer = document.getElementById(id);
    if (layer && layer.matches("details.layer")) { layer.open = true; layer.scrollIntoView(); }
  }
  addEventListener("hashchange", () => open(location.hash.slice(1)));
  document.querySelectorAll("details.layer").forEach((layer) => layer.addEventListener("toggle", () => later(next)));
  document.querySelectorAll(".answer a").forEach((link) => link.addEventListener("click", () => open(link.hash.slice(1))));
  dark.addEventListener("change", () => places.filter((place) => place.dataset.drawn).forEach(draw));
  addEventListener("beforeprint", () => { document.querySelectorAll("details.layer").forEach((layer) => { layer.open = true; }); waiting().forEach(draw); });
  if (location.hash) open(location.hash.slice(1));
})();
