"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const axis = document.getElementById("axis");
  const progress = document.getElementById("progress");
  const scale = document.getElementById("scale");
  const palette = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#000000", "#ee7733", "#009988"];

  for (const a of data.axes) axis.add(new Option(a.label, a.key));
  axis.value = "warm";

  // one colour per optimizer, the same on every chart
  const names = [...new Set(data.problems.flatMap(p => p.curves.map(c => c.name)))];
  const colour = name => palette[names.indexOf(name) % palette.length];

  const charts = data.problems.map(problem => {
    const div = document.createElement("div");
    div.className = "chart";
    div.dataset.problem = problem.label;
    document.getElementById("charts").append(div);
    return div;
  });

  function draw() {
    const key = axis.value, y = progress.value, log = scale.value === "log";
    const chosen = data.axes.find(a => a.key === key);
    document.getElementById("meaning").textContent = chosen.meaning;
    data.problems.forEach((problem, i) => {
      const traces = problem.curves.map(curve => {
        // a logarithmic axis has no zero: the start is drawn half a snapshot before the second
        const cost = curve.cost[key];
        const least = Math.min(...cost.filter(v => v > 0));
        return {
          name: curve.name.replaceAll("<", "&lt;"),
          x: cost.map(v => (log && v === 0 && Number.isFinite(least) ? least / 2 : v)),
          y: curve[y],
          mode: "lines+markers",
          marker: { size: 4 },
          line: { color: colour(curve.name), width: 2, dash: curve.second ? "solid" : "dot" },
          hovertemplate: "%{y:.2e} at %{x:.4g}<extra>%{fullData.name}</extra>",
        };
      });
      Plotly.react(charts[i], traces, {
        title: { text: problem.label.replaceAll("<", "&lt;"), x: 0.02, font: { size: 15 } },
        margin: { l: 64, r: 12, t: 40, b: 48 },
        xaxis: { title: { text: chosen.label }, type: log ? "log" : "linear", exponentformat: "power", gridcolor: "#e8ecf2" },
        yaxis: { type: "log", exponentformat: "power", gridcolor: "#e8ecf2", title: { text: progress.selectedOptions[0].text } },
        legend: { font: { size: 11 }, orientation: "h", y: -0.2 },
        plot_bgcolor: "#fff",
      }, { responsive: true, displaylogo: false });
    });
  }

  for (const control of [axis, progress, scale]) control.addEventListener("change", draw);
  draw();
})();
