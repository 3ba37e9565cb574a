// Figures, diagrams, and their colours in both themes. Libraries come from this site alone.
const SHARED = new URL("../shared/", document.baseURI);

const load = (name) => new Promise((resolve, reject) => {
  const script = document.createElement("script");
  Object.assign(script, { src: new URL(name, SHARED), onload: resolve, onerror: reject });
  document.head.append(script);
});

async function figures() {
  const places = document.querySelectorAll("div.drawn-here");
  if (!places.length) return;
  await load("plotly.min.js");
  const settings = { responsive: true, displayModeBar: false };
  // Drawn when it comes near the screen: a lesson may have twenty of them.
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      const { data, layout } = JSON.parse(target.querySelector("script").textContent);
      delete layout.width;
      Plotly.newPlot(target, data, { ...layout, autosize: true }, settings);
    }
  }, { rootMargin: "600px" });
  places.forEach((place) => seen.observe(place));
}

async function diagrams() {
  if (!document.querySelector("pre.mermaid")) return;
  await load("mermaid.js");
  mermaid.initialize({ startOnLoad: false });
  await mermaid.run({ querySelector: "pre.mermaid" });
}

figures();
diagrams();
