// Draws a chart when it is first seen open; SVG, so that text and lines take the page's colours.

const curves = document.getElementById("curves").textContent;
const kinds = {differences, figure, explorer};
// Without a background: the page's shows through in light and in dark.
const config = {background: "transparent", font: "system-ui, sans-serif", view: {strokeOpacity: 0}};
const options = {renderer: "svg", actions: false, tooltip: {theme: "custom"}};

function draw(place) {
  if (place.dataset.drawn) return;
  place.dataset.drawn = "yes";
  const chart = JSON.parse(place.dataset.chart);
  const spec = {width: "container", config, datasets: {curves}, ...kinds[chart.kind](chart)};
  const bind = document.getElementById(place.id + "-menus") ?? undefined;
  vegaEmbed(place, spec, {...options, bind}).catch(error => {
    place.textContent = error.message;
    console.error(error);
  });
}

for (const fold of document.querySelectorAll("details"))
  fold.addEventListener("toggle", () => fold.querySelectorAll(".chart").forEach(draw));
for (const place of document.querySelectorAll(".chart")) if (!place.closest("details:not([open])")) draw(place);
