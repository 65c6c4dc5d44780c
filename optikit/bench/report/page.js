"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = id => document.getElementById(id);
  const [axis, progress, xscale, yscale, seeds, front, target, size] =
    ["axis", "progress", "xscale", "yscale", "seeds", "front", "target", "size"].map(at);
  const palette = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#888888", "#000000", "#ee7733", "#009988"];
  const symbols = ["circle", "square", "triangle-up", "diamond", "x", "cross"];
  const marks = { minimum: "circle-open", saddle: "x-thin-open", maximum: "triangle-up-open", degenerate: "square-open", "not-stationary": "line-ns-open", "non-smooth": "triangle-down-open" };
  const SHOWN_AT_FIRST = 10;
  const plain = text => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  const colour = v => palette[v % palette.length];
  const symbol = v => symbols[Math.floor(v / palette.length) % symbols.length];
  // second order is drawn through, first order is dotted; the second ten methods in longer dashes
  const dash = v => [["dot", "solid"], ["dashdot", "longdash"]][Math.floor(v / palette.length) % 2][+data.variants[v].second];
  const strokes = { solid: "none", dot: "2.5 2.5", longdash: "9 4", dashdot: "6 2.5 2 2.5" };
  const hidden = new Set(data.variants.map((_, v) => v).filter(v => v >= SHOWN_AT_FIRST));
  const several = data.problems.some(p => new Set(p.curves.map(c => c.seed)).size > 1);
  // nothing leaves the page: plotly's own button would upload a chart
  const config = { responsive: true, displaylogo: false, plotlyServerURL: "", modeBarButtonsToRemove: ["sendChartToCloud"] };
  const grid = "#e8ecf2";

  for (const a of data.axes) axis.add(new Option(a.label, a.key));
  axis.value = data.axes.some(a => a.key === "warm") ? "warm" : data.axes[0]?.key;
  for (const t of data.targets) target.add(new Option(t.toExponential(), t));
  target.value = data.target;
  const sizes = [...new Set(Object.values(data.profiles.ecdf).flatMap(Object.keys))].sort((a, b) => a - b);
  for (const n of sizes) size.add(new Option(n, n));
  if (!several) seeds.parentElement.hidden = true;

  // ---- one legend for all charts: colour is the method, solid lines are second order
  function drawLegend() {
    const legend = at("legend");
    legend.replaceChildren();
    data.variants.forEach((variant, v) => {
      const button = document.createElement("button");
      button.setAttribute("aria-pressed", String(!hidden.has(v)));
      button.title = variant.second ? "uses curvature" : "first order";
      button.innerHTML = `<svg width="26" height="8"><line x1="0" x2="26" y1="4" y2="4" stroke="${colour(v)}" stroke-width="2.5" stroke-dasharray="${strokes[dash(v)]}"/></svg>`;
      button.append(variant.name);
      button.onclick = () => { hidden.has(v) ? hidden.delete(v) : hidden.add(v); refresh(); };
      legend.append(button);
    });
    if (data.variants.length > 2) {
      for (const [text, act] of [["all", () => hidden.clear()], ["none", () => data.variants.forEach((_, v) => hidden.add(v))]]) {
        const button = document.createElement("button");
        button.textContent = text;
        button.onclick = () => { act(); refresh(); };
        legend.append(button);
      }
    }
    at("shown").textContent = hidden.size
      ? `${data.variants.length - hidden.size} of ${data.variants.length} methods are drawn: choose above.`
      : "";
  }

  // ---- charts are drawn when they come into view
  const drawers = new Map(), dirty = new Set(), visible = new Set();
  const watch = new IntersectionObserver(entries => {
    for (const entry of entries) {
      if (entry.isIntersecting) { visible.add(entry.target); draw(entry.target); } else visible.delete(entry.target);
    }
  }, { rootMargin: "300px" });
  function draw(div) {
    if (!dirty.delete(div)) return;
    const [traces, layout] = drawers.get(div)();
    for (const [one, values] of [["xaxis", "x"], ["yaxis", "y"]]) if (layout[one].dtick === "D2" && narrow(traces, values)) layout[one].dtick = null;
    Plotly.react(div, traces, layout, config);
  }
  // within a decade there may be neither a 1 nor a 2 nor a 5: plotly's own ticks
  function narrow(traces, of) {
    const values = traces.flatMap(t => t[of] ?? []).filter(v => v > 0);
    const [least, most] = values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, 0]);
    return most < 10 * least;
  }
  function chart(div, drawer) { drawers.set(div, drawer); dirty.add(div); watch.observe(div); }
  function refresh() {
    drawLegend();
    at("meaning").textContent = label("meaning") + (data.problems.some(p => p.curves.some(c => !c.cost[axis.value]))
      ? " Trials of other machines, or with an invalid clock, are not on this axis." : "")
      + (axis.value.startsWith("count_") ? " Methods that never call it are not on a logarithmic scale." : "");
    at("leftout").textContent = left();
    for (const div of drawers.keys()) dirty.add(div);
    for (const div of visible) draw(div);
  }
  const label = field => data.axes.find(a => a.key === axis.value)?.[field] ?? "";
  const layout = (title, x, y) => ({
    title: { text: plain(title), x: 0.02, font: { size: 14 } }, showlegend: false, hovermode: "closest",
    margin: { l: 66, r: 14, t: 34, b: 44 }, plot_bgcolor: "#fff",
    xaxis: { exponentformat: "power", gridcolor: grid, zeroline: false, ...(x.type === "log" ? { dtick: "D2" } : {}), ...x },
    yaxis: { exponentformat: "power", gridcolor: grid, zeroline: false, ...y },
  });
  const titled = text => ({ text, font: { size: 12 } });

  // a logarithmic axis has no zero: the start is drawn at half the least positive cost
  function placed(costs, log) {
    const least = Math.min(...costs.filter(v => v > 0));
    return costs.map(v => (log && v === 0 ? (Number.isFinite(least) ? least / 2 : null) : v));
  }

  // the value each seed had reached at a cost, and what it ended with beyond its last snapshot
  function quantiles(curves, key, y) {
    const all = curves.flatMap(c => c.cost[key]).filter(v => v !== null).sort((a, b) => a - b);
    const wanted = 100, xs = [];
    for (let i = 0; i < wanted; i++) xs.push(all[Math.floor(i * (all.length - 1) / (wanted - 1))]);
    const costs = [...new Set(xs)];
    const quantile = (sorted, q) => {
      const h = (sorted.length - 1) * q, i = Math.floor(h);
      const low = Math.max(sorted[i], 1e-300), high = Math.max(sorted[Math.min(i + 1, sorted.length - 1)], 1e-300);
      return low * (high / low) ** (h - i);
    };
    const at = curves.map(() => 0);
    const rows = costs.map(x => curves.map((c, s) => {
      while (at[s] + 1 < c.cost[key].length && c.cost[key][at[s] + 1] <= x) at[s]++;
      return c[y][at[s]] ?? Infinity;
    }).sort((a, b) => a - b));
    const column = q => rows.map(r => { const v = quantile(r, q); return Number.isFinite(v) ? v : null; });
    return { x: costs, low: column(0.1), mid: column(0.5), high: column(0.9) };
  }

  function convergence(problem) {
    const key = axis.value, y = progress.value, log = xscale.value === "log";
    const traces = [];
    const points = problem.fronts[key] ?? [];
    if (front.checked && y === "gap" && points.length) {
      traces.push({ name: "Pareto front", x: placed(points.map(p => p[0]), log), y: points.map(p => p[1]), mode: "lines",
        line: { color: "rgba(120,130,145,.28)", width: 9, shape: "hv" }, hoverinfo: "skip" });
    }
    const chosen = problem.curves.filter(c => !hidden.has(c.v) && c.cost[key]);
    const shapes = y === "gap" ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: +target.value, y1: +target.value, line: { color: "#9aa5b4", width: 1, dash: "dash" } }] : [];
    const frame = { ...layout(problem.label,
      { title: titled(label("label")), type: xscale.value },
      { title: titled(progress.selectedOptions[0].text), type: yscale.value }), shapes };
    // one number a trial has no curve: a point, at the least that the trial came to
    if (label("whole")) {
      for (const v of new Set(chosen.map(c => c.v))) {
        const own = chosen.filter(c => c.v === v);
        traces.push({ name: plain(data.variants[v].name), x: own.map(c => c.cost[key].at(-1)), y: own.map(c => Math.min(...c[y].filter(g => g !== null))),
          mode: "markers", marker: { size: 9, symbol: symbol(v) + (data.variants[v].second ? "" : "-open"), color: colour(v), line: { width: 1.5 } },
          hovertemplate: "%{y:.2e} with %{x:.4g}<extra>%{fullData.name}</extra>" });
      }
      return [traces, frame];
    }
    for (const v of new Set(chosen.map(c => c.v))) {
      const own = chosen.filter(c => c.v === v), name = plain(data.variants[v].name);
      const style = { color: colour(v), width: 1.8, dash: dash(v) };
      const tip = "%{y:.2e} at %{x:.4g}<extra>%{fullData.name}</extra>";
      if (own.length > 1 && seeds.value === "band") {
        const q = quantiles(own, key, y), x = placed(q.x, log);
        traces.push({ x, y: q.low, mode: "lines", line: { width: 0, shape: "hv" }, hoverinfo: "skip", name: "band" });
        traces.push({ x, y: q.high, mode: "lines", line: { width: 0, shape: "hv" }, fill: "tonexty", fillcolor: colour(v) + "26", hoverinfo: "skip", name: "band" });
        traces.push({ name, x, y: q.mid, mode: "lines", line: { ...style, shape: "hv" }, hovertemplate: tip });
      } else {
        for (const c of own) {
          traces.push({ name: own.length > 1 ? `${name} · seed ${c.seed}` : name, x: placed(c.cost[key], log), y: c[y],
            mode: own.length > 3 ? "lines" : "lines+markers", marker: { size: 4, symbol: symbol(v) },
            line: own.length > 3 ? { ...style, width: 1 } : style, hovertemplate: tip });
        }
      }
    }
    // where trials ended, by what kind of point their certificates say it is
    const ended = chosen.filter(c => c.kind && c.cost[key].at(-1) !== null && c[y].at(-1) !== null);
    if (ended.length) {
      traces.push({ name: "ended at", x: ended.map(c => placed(c.cost[key], log).at(-1)), y: ended.map(c => c[y].at(-1)), mode: "markers",
        marker: { size: 9, symbol: ended.map(c => marks[c.kind] ?? "asterisk-open"), color: ended.map(c => colour(c.v)), line: { width: 1.5 } },
        text: ended.map(c => `${plain(data.variants[c.v].name)}: ${c.kind.replaceAll("-", " ")}`), hovertemplate: "%{text}<extra></extra>" });
    }
    return [traces, frame];
  }

  function profile(kind, title, xtitle, ytitle, pick) {
    return () => {
      const found = (pick(data.profiles[kind][axis.value] ?? {}) ?? []).filter(s => !hidden.has(s.v));
      const last = Math.max(...found.flatMap(s => s.x), 1);
      const first = Math.min(...found.flatMap(s => s.x).filter(v => v > 0), last);
      const traces = found.map(s => ({
        name: plain(data.variants[s.v].name),
        x: [first / 1.5, ...s.x.map(v => (v > 0 ? v : first / 1.5)), last * 1.5], y: [0, ...s.y, s.y.at(-1) ?? 0],
        mode: "lines", line: { color: colour(s.v), width: 1.8, dash: dash(s.v), shape: "hv" },
        hovertemplate: "%{y:.0%} within %{x:.3g}<extra>%{fullData.name}</extra>",
      }));
      return [traces, layout(title, { title: titled(xtitle()), type: "log" },
        { title: titled(ytitle), range: [-0.03, 1.03], tickformat: ".0%" })];
    };
  }
  const left = () => {
    const names = data.profiles.left[axis.value] ?? [];
    return names.length ? `Not in the first two charts: ${names.slice(0, 4).join("; ")}${names.length > 4 ? "; …" : ""}.` : "";
  };

  function tuned(name) {
    const found = data.tuning.filter(t => t.problem === name);
    const traces = found.map((t, i) => ({
      name: plain(t.optimizer), x: t.k, y: t.expected, mode: "lines+markers", marker: { size: 5 },
      line: { color: palette[i % palette.length], width: 1.8 }, customdata: t.reached,
      hovertemplate: "best of %{x}: %{y:.4g}, target met in %{customdata:.0%}<extra>%{fullData.name}</extra>",
    }));
    const met = found.some(t => t.expected.some(v => v !== null));
    const none = { text: "no setting met the target", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 };
    return [traces, { ...layout(name, { title: titled("settings tried, k"), tick0: 1, dtick: Math.ceil(Math.max(...found.flatMap(t => t.k)) / 10), showticklabels: met },
      { title: titled(`expected ${found[0].axis} to ${found[0].target.toExponential()}`), type: "log", dtick: "D2", showticklabels: met }),
      margin: { l: 66, r: 14, t: 34, b: 74 }, annotations: met ? [] : [none],
      showlegend: true, legend: { orientation: "h", y: -0.22, yanchor: "top", x: 0.5, xanchor: "center", font: { size: 11 } } }];
  }

  function spectra(problem) {
    const traces = [];
    const floor = Math.min(...problem.spectra.map(s => s.floor));
    problem.spectra.forEach((s, i) => {
      const lifted = values => values.map(v => Math.max(v, s.floor)), shade = palette[i];
      if (!s.exact) {
        traces.push({ x: s.x, y: lifted(s.low), mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false, name: "band" });
        traces.push({ x: s.x, y: lifted(s.high), mode: "lines", line: { width: 0 }, fill: "tonexty", fillcolor: shade + "33", hoverinfo: "skip", showlegend: false, name: "band" });
      }
      traces.push({ name: s.where, x: s.x, y: lifted(s.mean), mode: "lines", line: { color: shade, width: 1.8 }, hovertemplate: "%{y:.3g} at %{x:.4g}<extra>%{fullData.name}</extra>" });
      const ends = [...s.smallest, ...s.largest];
      traces.push({ x: ends, y: ends.map(() => floor), mode: "markers", marker: { symbol: "line-ns-open", size: 9, color: shade }, showlegend: false, name: "outermost", hovertemplate: "%{x:.6g}<extra>%{fullData.name}</extra>" });
    });
    return [traces, { ...layout(problem.label, { title: titled("eigenvalue") }, { title: titled("density"), type: "log" }),
      margin: { l: 66, r: 14, t: 34, b: 74 }, showlegend: true, legend: { orientation: "h", y: -0.22, yanchor: "top", x: 0.5, xanchor: "center", font: { size: 11 } } }];
  }

  function roofline() {
    const traces = data.variants.flatMap((variant, v) => {
      const own = hidden.has(v) ? [] : data.roofline.filter(p => p.v === v);
      return own.length ? [{ name: plain(variant.name), x: own.map(p => p.x), y: own.map(p => p.y), mode: "markers",
        marker: { size: 8, symbol: symbol(v) + (variant.second ? "" : "-open"), color: colour(v), line: { width: 1.5 } },
        text: own.map(p => `${plain(p.problem)}, seed ${p.seed}: ${p.moved} GB/s`),
        hovertemplate: "%{y:.3g} GFLOP/s at %{x:.3g} FLOPs per byte<br>%{text}<extra>%{fullData.name}</extra>" }] : [];
    });
    return [traces, layout("Rates", { title: titled("model FLOPs per model byte"), type: "log" },
      { title: titled("model GFLOP/s, warm"), type: "log" })];
  }

  for (const problem of data.problems.filter(p => p.spectra.length)) {
    const div = document.createElement("div");
    div.className = "chart";
    div.dataset.spectrum = problem.label;
    at("curvature").hidden = false;
    at("spectra").append(div);
    chart(div, () => spectra(problem));
  }
  for (const problem of data.problems) {
    const div = document.createElement("div");
    div.className = "chart";
    div.dataset.problem = problem.label;
    at("charts").append(div);
    chart(div, () => convergence(problem));
  }
  const byTarget = of => of[Object.keys(of).find(t => +t === +target.value)];
  chart(at("performance"), profile("performance", "Performance profile", () => `${label("label")}, multiple of the least`, "share of problems", byTarget));
  chart(at("data-profile"), profile("data", "Data profile", () => `${label("label")} / (n + 1)`, "share of problems", byTarget));
  chart(at("ecdf"), profile("ecdf", "Targets met", () => label("label"), "share of targets", of => of[size.value]));
  if (data.roofline.length) {
    at("placed").hidden = false;
    chart(at("roofline"), roofline);
  }
  for (const name of new Set(data.tuning.map(t => t.problem))) {
    const div = document.createElement("div");
    div.className = "chart";
    div.dataset.tuned = name;
    at("tuning").append(div);
    chart(div, () => tuned(name));
  }
  for (const control of [axis, progress, xscale, yscale, seeds, front, target, size]) control.addEventListener("change", refresh);
  refresh();

  // ---- the table of trials
  const { columns, rows } = data.trials, step = 100;
  let sorted = { column: -1, up: true }, shownRows = step;
  const numeric = columns.map((_, i) => rows.every(r => r[i] === null || typeof r[i] === "number"));
  const head = at("trials").tHead.insertRow();
  columns.forEach((name, i) => {
    const cell = document.createElement("th"), button = document.createElement("button");
    button.textContent = name;
    button.onclick = () => { sorted = { column: i, up: sorted.column === i ? !sorted.up : true }; table(); };
    cell.append(button);
    head.append(cell);
  });
  function table() {
    const words = at("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = rows.filter(r => { const text = r.join(" ").toLowerCase(); return words.every(w => text.includes(w)); });
    const { column, up } = sorted;
    if (column >= 0) {
      // what is missing comes last, whichever way
      const order = (a, b) => (a === null ? 1 : 0) - (b === null ? 1 : 0) || (up ? 1 : -1) * (numeric[column] ? a - b : String(a).localeCompare(String(b)));
      found = [...found].sort((a, b) => order(a[column], b[column]));
    }
    [...head.cells].forEach((cell, i) => cell.setAttribute("aria-sort", i !== column ? "none" : up ? "ascending" : "descending"));
    const body = at("trials").tBodies[0];
    body.replaceChildren();
    for (const row of found.slice(0, shownRows)) {
      const line = body.insertRow();
      row.forEach((value, i) => {
        const cell = line.insertCell();
        if (numeric[i]) cell.className = "n";
        cell.textContent = value === null ? "-" : typeof value === "number" && (Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3)) ? value.toExponential(2) : value;
      });
    }
    at("counted").textContent = `${Math.min(shownRows, found.length)} of ${found.length} trials shown${found.length < rows.length ? ` (${rows.length} in all)` : ""}`;
    at("more").hidden = found.length <= shownRows;
  }
  at("filter").addEventListener("input", () => { shownRows = step; table(); });
  at("more").addEventListener("click", () => { shownRows += 5 * step; table(); });
  table();
})();
