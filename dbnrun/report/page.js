// Draws a chart when it is first seen open; SVG, so that text and lines take the page's colours.
{
const specs = JSON.parse(document.getElementById("specs").textContent);
const curves = document.getElementById("curves").textContent;
const options = {renderer: "svg", actions: false, tooltip: {theme: "custom"}};
function draw(chart) {
  if (chart.dataset.drawn) return;
  chart.dataset.drawn = "yes";
  const spec = specs[chart.id];
  if (chart.dataset.curves) spec.datasets = {...spec.datasets, curves};
  const bind = document.getElementById(chart.id + "-menus") ?? undefined;
  vegaEmbed(chart, spec, {...options, bind}).catch(error => {
    chart.textContent = error.message;
    console.error(error);
  });
}
for (const fold of document.querySelectorAll("details"))
  fold.addEventListener("toggle", () => fold.querySelectorAll(".chart").forEach(draw));
for (const chart of document.querySelectorAll(".chart")) if (!chart.closest("details:not([open])")) draw(chart);
}
