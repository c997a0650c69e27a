"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const panel = byId("site");
  const ROW = 19, CONTEXT = 2, SVG = "http://www.w3.org/2000/svg";

  // Every string of the record reaches the page as text, never as markup.
  function el(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) if (value !== null) made.setAttribute(name, value);
    made.append(...children.filter((c) => c !== null && c !== ""));
    return made;
  }
  function svg(tag, attributes, text) {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }
  const size = (n) => n >= 1 << 30 ? (n / (1 << 30)).toFixed(1) + " GiB" : n >= 1 << 20 ? (n / (1 << 20)).toFixed(1) + " MiB"
    : n >= 1024 ? (n / 1024).toFixed(1) + " KiB" : n + " B";

  // --- graphs: rows of before and after, aligned where they are the same ------------------------------------------
  const graphs = data.graphs.map((g) => {
    const node = (r) => ({ name: r[0], code: r[1], inputs: r[2], type: g.types[r[3]], module: g.modules[r[4]],
      line: g.lines[r[5]][0], text: g.lines[r[5]][1] });
    const before = g.before.map(node);
    const after = g.after.map((r) => (typeof r === "number" ? before[r] : node(r)));
    return { ...g, before, after, beforeAt: new Map(before.map((n) => [n.name, n])), afterAt: new Map(after.map((n) => [n.name, n])) };
  });
  // An input is called by the end of its path in the model, where its own name is made of that path.
  const calls = new Map();
  for (const g of graphs) for (const n of g.before) {
    if (n.code.startsWith("input ") && n.name.length > 24) calls.set(n.name, n.code.slice(6).split(".").slice(-5).join("."));
  }
  const called = (name) => calls.get(name) || name;
  function aligned(g) {
    if (g.rows) return g.rows;
    const rows = [], place = new Map(g.before.map((n, i) => [n, i]));
    const names = new Map(g.before.map((n, i) => [n.name, i]));
    let left = 0, fresh = [];
    // What went away and what came in its place stand side by side.
    const flush = (end) => {
      const old = g.before.slice(left, end);
      for (let i = 0; i < Math.max(old.length, fresh.length); i++) rows.push([old[i] || null, fresh[i] || null, false]);
      left = end; fresh = [];
    };
    for (const node of g.after) {
      const at = place.has(node) ? place.get(node) : names.has(node.name) ? names.get(node.name) : -1;
      if (at >= left) { flush(at); rows.push([g.before[at], node, true]); left = at + 1; } else fresh.push(node);
    }
    flush(g.before.length);
    g.rows = rows;
    return rows;
  }

  // --- what is hovered, in all panes at once ------------------------------------------------------------------------
  let current = null, graph = null, marks = [];
  // Whose rewrite a node went away with, or came with: as the rewriter recorded it.
  function owners(g, number) {
    if (g.owners) return g.owners;
    g.owners = { made: new Map(), gone: new Map() };
    data.sites.forEach((site, i) => {
      if (site.graph !== number) return;
      for (const name of site.new) g.owners.made.set(name, i);
      for (const name of site.erased) g.owners.gone.set(name, i);
    });
    return g.owners;
  }
  function clearMarks() { for (const [node, name] of marks) node.classList.remove(name); marks = []; }
  function mark(nodes, name) { for (const node of nodes) { node.classList.add(name); marks.push([node, name]); } }
  const quoted = (text) => CSS.escape(text);
  function hover(name, side, row) {
    clearMarks();
    if (name === null) return;
    mark(panel.querySelectorAll(`[data-n="${quoted(name)}"]`), "hot");
    const g = graph === null ? null : graphs[graph];
    const node = g && g[side === "after" ? "afterAt" : "beforeAt"].get(name);
    if (g) {
      const owner = owners(g, graph)[side === "after" ? "made" : "gone"].get(row || name);
      const others = owner === undefined ? [] : side === "after" ? data.sites[owner].erased : data.sites[owner].new;
      for (const other of others) mark(panel.querySelectorAll(`[data-n="${quoted(other)}"]`), "pair");
    }
    if (node && node.line) mark(panel.querySelectorAll(`[data-l="${quoted(node.line)}"]`), "hot");
    mark(panel.querySelectorAll(`path[data-from="${quoted(name)}"],path[data-to="${quoted(name)}"]`), "hot");
  }
  panel.addEventListener("mouseover", (event) => {
    const over = event.target.closest("[data-n]");
    if (over) {
      const row = over.closest(".row");
      hover(over.getAttribute("data-n"), sideOf(over), row && row.getAttribute("data-n"));
      return;
    }
    const line = event.target.closest("[data-l]");
    clearMarks();
    if (line && current && current.graph !== null) {
      const where = line.getAttribute("data-l");
      mark(panel.querySelectorAll(`[data-l="${quoted(where)}"]`), "hot");
      for (const name of current.nodes) {
        const node = graphs[current.graph].beforeAt.get(name);
        if (node && node.line === where) mark(panel.querySelectorAll(`[data-n="${quoted(name)}"]`), "hot");
      }
    }
  });
  panel.addEventListener("mouseleave", () => hover(null));
  const sideOf = (node) => { const box = node.closest("[data-side]"); return box ? box.getAttribute("data-side") : "before"; };
  panel.addEventListener("focusin", (event) => {
    const on = event.target.closest("[data-n]");
    if (on) hover(on.getAttribute("data-n"), sideOf(on));
  });

  // --- one line of a pane -------------------------------------------------------------------------------------------
  function line(node, kind, extra) {
    if (node === null) return el("div", { class: "row" }, "");
    const made = el("div", { class: `row ${kind} ${extra || ""}`, "data-n": node.name, title: [node.module, node.line, node.text].filter(Boolean).join("   ") });
    made.append(el("span", { class: "s" }, { gone: "-", new: "+", changed: "~" }[kind] || " "));
    made.append(el("span", {}, node.code.startsWith("return") ? "" : called(node.name) + " = "));
    const names = new Set(node.inputs);
    for (const piece of node.code.split(/(\w+)/)) {
      made.append(names.has(piece) ? el("span", { class: "n", "data-n": piece, title: piece }, called(piece)) : piece);
    }
    if (node.type) made.append(el("span", { class: "c" }, "# " + node.type));
    return made;
  }
  function panes(rows, classes) {
    const left = el("div", { class: "rows", tabindex: "0", role: "group", "aria-label": "before" });
    const right = el("div", { class: "rows", tabindex: "0", role: "group", "aria-label": "after" });
    const box = el("div", { class: "panes" }, el("div", { "data-side": "before" }, el("div", { class: "cap" }, "before: as captured"), left),
      el("div", { "data-side": "after" }, el("div", { class: "cap" }, "after: as compiled"), right));
    const kinds = ([b, a, same]) => same ? (b === a ? ["", ""] : ["changed", "changed"]) : [b ? "gone" : "", a ? "new" : ""];
    const make = (row, open) => {
      if (row.cut) {
        const words = `… ${row.cut} more lines that stay as they are`;
        return [el("div", { class: "row cut", role: "button", tabindex: "0" }, words), el("div", { class: "row cut" }, words)].map((n) => {
          n.addEventListener("click", () => open(row)); n.addEventListener("keydown", (e) => { if (e.key === "Enter") open(row); }); return n; });
      }
      const [kb, ka] = kinds(row);
      return [line(row[0], kb, row[0] ? classes(row[0], "before") : ""), line(row[1], ka, row[1] ? classes(row[1], "after") : "")];
    };
    return { box, left, right, make };
  }
  function syncScroll(a, b, also) {
    let busy = false;
    for (const [from, to] of [[a, b], [b, a]]) from.addEventListener("scroll", () => {
      if (busy) return;
      busy = true; to.scrollTop = from.scrollTop; also && also();
      requestAnimationFrame(() => { busy = false; });
    }, { passive: true });
  }
  function hunks(rows, wanted, context) {
    const keep = new Uint8Array(rows.length);
    rows.forEach((row, i) => { if (wanted(row)) for (let k = Math.max(0, i - context); k <= Math.min(rows.length - 1, i + context); k++) keep[k] = 1; });
    const out = [];
    let i = 0;
    while (i < rows.length) {
      if (keep[i]) { out.push(rows[i]); i += 1; continue; }
      let end = i;
      while (end < rows.length && !keep[end]) end += 1;
      if (end - i <= 2) out.push(...rows.slice(i, end));
      else if (out.length && end < rows.length) out.push({ cut: end - i, start: i, end });
      i = end;
    }
    return out;
  }
  function small(rows, all, classes) {
    const made = panes(rows, classes);
    // Where nothing changes, one side says it all, in full lines.
    const same = all.every(([b, a]) => b === a) || rows.every((row) => row.cut || row[0] === row[1]);
    made.box.classList.toggle("same", same);
    if (same) made.box.querySelector(".cap").textContent = "as captured, and as compiled: nothing changes here";
    const fill = () => {
      made.left.replaceChildren(); made.right.replaceChildren();
      for (const row of rows) {
        const [l, r] = made.make(row, (cut) => { rows.splice(rows.indexOf(cut), 1, ...all.slice(cut.start, cut.end)); fill(); });
        made.left.append(l); made.right.append(r);
      }
    };
    fill();
    syncScroll(made.left, made.right);
    arrows(made.left); arrows(made.right);
    return made.box;
  }
  function arrows(pane) {
    let at = -1;
    pane.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
      const rows = [...pane.querySelectorAll(":scope > .row[data-n], :scope > div > .row[data-n]")];
      if (!rows.length) return;
      at = Math.min(rows.length - 1, Math.max(0, at + (event.key === "ArrowDown" ? 1 : -1)));
      hover(rows[at].getAttribute("data-n"), sideOf(rows[at]));
      rows[at].scrollIntoView({ block: "nearest" });
      event.preventDefault();
    });
  }
  // Only what is in sight is in the document, so that ten thousand nodes scroll as ten do.
  function large(rows, classes) {
    const made = panes(rows, classes);
    const inner = [made.left, made.right].map((pane) => { const box = el("div", { style: `position:relative;height:${rows.length * ROW}px` }); pane.append(box); return box; });
    let shown = [-1, -1];
    const draw = () => {
      const start = Math.max(0, Math.floor(made.left.scrollTop / ROW) - 20);
      const end = Math.min(rows.length, start + Math.ceil((made.left.clientHeight || 700) / ROW) + 40);
      if (start === shown[0] && end === shown[1]) return;
      shown = [start, end];
      const parts = [document.createDocumentFragment(), document.createDocumentFragment()];
      for (let i = start; i < end; i++) made.make(rows[i], () => {}).forEach((row, k) => {
        row.style.position = "absolute"; row.style.top = `${i * ROW}px`; parts[k].append(row); });
      inner.forEach((box, k) => box.replaceChildren(parts[k]));
    };
    syncScroll(made.left, made.right, draw);
    requestAnimationFrame(draw);
    made.reveal = (name) => {
      const i = rows.findIndex((r) => !r.cut && ((r[0] && r[0].name === name) || (r[1] && r[1].name === name)));
      if (i >= 0) { made.left.scrollTop = Math.max(0, i * ROW - 120); made.right.scrollTop = made.left.scrollTop; draw(); hover(name, "before"); }
    };
    arrows(made.left); arrows(made.right);
    return made;
  }

  // --- drawings -----------------------------------------------------------------------------------------------------
  function drawing(drawn, site, side, title) {
    const plan = data.drawings[drawn.drawing];
    const root = svg("svg", { width: plan.w, height: plan.h, viewBox: `0 0 ${plan.w} ${plan.h}`, role: "img", "aria-label": title });
    for (const [from, to, path] of plan.edges) root.append(svg("path", { d: path, "data-from": drawn.names[from], "data-to": drawn.names[to] }));
    plan.boxes.forEach(([x, y, w], i) => {
      const name = drawn.names[i];
      const kind = i < drawn.outer ? "outer" : side === "after" ? "new" : site.erasedSet.has(name) ? "gone" : "";
      const missed = side === "before" && site.detail && site.detail.graph_node === name ? " miss" : "";
      const box = svg("g", { class: kind + missed, "data-n": name, tabindex: "0" });
      box.append(svg("title", {}, name), svg("rect", { x: x - w / 2, y: y - 17, width: w, height: 34, rx: 6 }));
      const [head, type] = plan.labels[i].split("\n");
      box.append(svg("text", { x, y: type ? y - 2 : y + 4 }, head));
      if (type) box.append(svg("text", { x, y: y + 11, class: "t" }, type));
      root.append(box);
    });
    return el("figure", { "data-side": side }, root, el("figcaption", {}, title));
  }
  function derivedDrawing(one) {
    const rows = one.paths.length, width = 660, height = Math.max(2, rows) * 44 + 8, middle = height / 2;
    const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": one.transform });
    const box = (x, y, w, head, type, kind) => {
      const g = svg("g", { class: kind });
      g.append(svg("rect", { x, y: y - 18, width: w, height: 36, rx: 6 }), svg("title", {}, head));
      g.append(svg("text", { x: x + w / 2, y: y - 2 }, head.length > 40 ? "…" + head.slice(-39) : head), svg("text", { x: x + w / 2, y: y + 12, class: "t" }, type));
      root.append(g);
    };
    one.paths.forEach((path, i) => {
      const y = (height / rows) * (i + 0.5);
      root.append(svg("path", { d: `M274 ${y}C310 ${y} 310 ${middle} 346 ${middle}` }));
      box(4, y, 270, path, one.types[i], "outer");
    });
    root.append(svg("text", { x: 420, y: middle - 24 }, one.transform));
    box(346, middle, 150, one.name, one.type || "symbolic sizes", "new");
    root.append(svg("text", { x: 570, y: middle + 4, class: "t" }, `${one.placement}, ${size(one.bytes)}`));
    return el("figure", {}, root);
  }

  // --- one site -----------------------------------------------------------------------------------------------------
  const rowOf = (label, ...parts) => el("tr", {}, el("td", {}, label), el("td", {}, ...parts));
  const code = (text) => el("code", {}, text);
  function reasonBox(site) {
    const d = site.detail, box = el("div", { class: `reason ${site.outcome}` });
    box.append(el("b", {}, el("code", { class: "code" }, site.code)), " ", site.reason);
    const table = el("table");
    if (d) {
      if (d.expected) table.append(rowOf("expected", code(d.expected)));
      if (d.found) table.append(rowOf("found", code(d.found)));
      if (d.pattern_line) table.append(rowOf("pattern", code(d.pattern_line), " ", code(d.pattern_text || "")));
      if (d.graph_node) table.append(rowOf("graph", code(d.graph_node + (d.graph_type ? ": " + d.graph_type : "")), " ", code(d.graph_path || ""), " ", code(`${d.graph_line || ""}  ${d.graph_text || ""}`)));
      if (d.reader_node && d.reader_node !== d.graph_node) table.append(rowOf(site.code === "MUTATION" ? "writer" : "reader", code(d.reader_node), " ", code(d.reader_path || ""), " ", code(`${d.reader_line || ""}  ${d.reader_text || ""}`)));
    }
    box.append(table);
    const also = site.also.filter((r) => r.sentence !== (d && d.sentence));
    if (also.length) box.append(el("details", {}, el("summary", {}, `also in the way: ${also.length}`), el("ul", {}, ...also.map((r) => el("li", {}, code(r.code), " ", r.sentence)))));
    if (d && d.tried.length) box.append(el("details", {}, el("summary", {}, `alternatives that were not taken: ${d.tried.length}`),
      el("ul", {}, ...d.tried.map((r) => el("li", {}, code(r.alternative || ""), ` ${r.matched || 0} operations fit; stopped: `, code(r.code), " ", r.sentence)))));
    return box;
  }
  function sources(site) {
    const g = site.graph === null ? null : graphs[site.graph];
    const two = el("div", { class: "two" });
    if (g) {
      const lines = new Map();
      for (const name of site.nodes) { const n = g.beforeAt.get(name); if (n && n.line) lines.set(n.line, n.text); }
      const box = el("div", { class: "src", tabindex: "0", "aria-label": "source of the model" });
      const files = new Map();
      for (const where of lines.keys()) { const at = where.lastIndexOf(":"); const f = where.slice(0, at); if (!files.has(f)) files.set(f, new Set()); files.get(f).add(+where.slice(at + 1)); }
      for (const [file, numbers] of files) {
        const known = new Map();
        for (const s of g.sources) if (s.file === file) s.lines.forEach((t, i) => known.set(s.start + i, t));
        for (const n of numbers) if (!known.has(n)) known.set(n, lines.get(`${file}:${n}`));
        const wanted = [...known.keys()].filter((n) => [...numbers].some((m) => Math.abs(m - n) <= 3)).sort((a, b) => a - b);
        box.append(el("div", { class: "quiet" }, file));
        wanted.forEach((n, i) => {
          if (i && n !== wanted[i - 1] + 1) box.append(el("div", { class: "quiet" }, "      …"));
          const at = `${file}:${n}`;
          box.append(el("div", { class: (numbers.has(n) ? "in" : "") + (site.detail && site.detail.graph_line === at ? " at" : ""), "data-l": at }, el("span", { class: "no" }, String(n)), known.get(n)));
        });
      }
      if (lines.size) two.append(el("div", {}, el("h3", {}, "The model's lines"), box));
    }
    const pattern = data.patterns.find((p) => p.name === site.pattern);
    if (pattern && pattern.source) {
      const box = el("div", { class: "src", tabindex: "0", "aria-label": "source of the pattern" }, el("div", { class: "quiet" }, pattern.source.file));
      const at = site.detail && site.detail.pattern_line;
      pattern.source.lines.forEach((text, i) => {
        const n = pattern.source.start + i;
        box.append(el("div", { class: at === `${pattern.source.file}:${n}` ? "at" : "" }, el("span", { class: "no" }, String(n)), text));
      });
      two.append(el("div", {}, el("h3", {}, "The pattern"), box));
    }
    return two;
  }
  function prepared(site) { site.erasedSet = site.erasedSet || new Set(site.erased); site.newSet = site.newSet || new Set(site.new); site.nodeSet = site.nodeSet || new Set(site.nodes); return site; }
  function show(number) {
    const site = current = prepared(data.sites[number]);
    graph = site.graph;
    const out = [el("h2", {}, site.modules.map((m) => m || "(top level)").join(" + ") || "(top level)"),
      el("div", { class: "quiet" }, `site ${number} · ${site.pattern} · `, el("a", { href: `#site-${number}` }, "link"))];
    const chips = [site.outcome, ...Object.entries(site.variant).map(([k, v]) => `${k}=${v}`)];
    if (site.kernel) chips.push(`kernel ${site.kernel}`, `weights ${site.weights}`);
    if (site.why) chips.push(site.why);
    if (site.device) chips.push(site.device);
    if (site.extra) chips.push(`+${size(site.extra)}`);
    if (site.matched[1]) chips.push(`${site.matched[0]} of ${site.matched[1]} nodes matched`);
    if (site.line) chips.push(site.line);
    out.push(el("div", { class: "chips" }, ...chips.map((c) => el("span", { class: "chip" }, c))));
    for (const note of site.notes) out.push(el("p", { class: "note" }, `note: ${note}`));
    if (site.code) out.push(reasonBox(site));
    const g = site.graph === null ? null : graphs[site.graph];
    const d = site.detail;
    const classes = (node, side) => (side === "before" && d && d.graph_node === node.name ? "miss " : "") + (d && d.reader_node === node.name && d.reader_node !== d.graph_node ? "reader " : "") +
      (side === "before" && site.nodeSet.has(node.name) && !site.erasedSet.has(node.name) ? (site.outcome === "rewritten" ? "stay" : "part") : "");
    const inside = (row) => (row[0] && (site.nodeSet.has(row[0].name) || (d && (d.graph_node === row[0].name || d.reader_node === row[0].name)))) || (row[1] && site.newSet.has(row[1].name));
    const rows = g ? hunks(aligned(g), inside, CONTEXT) : [];
    out.push(el("h3", {}, site.outcome === "rewritten" ? "Before and after" : "In the graph"));
    if (rows.length) {
      out.push(small(rows, aligned(g), classes));
      const legend = site.outcome === "rewritten" ? "- goes away   + comes in its place   ~ reads it   brown bar: stays, because others read it" : "blue bar: part of the site   red: where it differs   brown: who else reads it";
      out.push(el("p", { class: "quiet legend" }, legend));
    }
    else {
      const twin = data.sites.findIndex((s) => s.pattern === site.pattern && s.graph === site.graph && g && s.nodes.some((n) => g.beforeAt.has(n)));
      out.push(el("p", { class: "quiet" }, "The nodes of this site were not kept: nobody had asked for a report before this compile. fxfuse.explain and report_dir keep them all. ",
        twin >= 0 ? el("a", { href: `#site-${twin}` }, `Site ${twin} is one like it.`) : ""));
    }
    if (site.before || site.after) {
      const figures = el("div", { class: "draw" });
      if (site.before) figures.append(drawing(site.before, site, "before", "before"));
      if (site.after) figures.append(drawing(site.after, site, "after", "after"));
      out.push(el("h3", {}, "Drawn"), figures);
    }
    if (site.derived.length) out.push(el("h3", {}, "Derived weights"), ...site.derived.map(derivedDrawing));
    if (site.captures.length) out.push(el("h3", {}, "Captured values"), el("table", {}, el("thead", {}, el("tr", {}, ...["capture", "is", "value", "type"].map((h) => el("th", {}, h)))),
      el("tbody", {}, ...site.captures.map(([name, kind, node, path, type, value]) => el("tr", node ? { "data-n": node } : {}, el("td", {}, code(name)), el("td", {}, kind), el("td", {}, code(path || value || node)), el("td", {}, code(type)))))));
    if (site.numbers) { const n = site.numbers; out.push(el("h3", {}, "Against float64"), el("p", {}, `fused: max ${n.fused_max.toExponential(1)}, rms ${n.fused_rms.toExponential(1)}; eager: max ${n.eager_max.toExponential(1)}, rms ${n.eager_rms.toExponential(1)}; allowed: max ${n.allowed_max.toExponential(1)}, rms ${n.allowed_rms.toExponential(1)}; on ${n.inputs}${n.nearer ? `; nearer to float64: ${n.nearer}` : ""}`));
      const most = Math.max(1, ...Object.values(n.ulps || {}));
      if (n.ulps && Object.keys(n.ulps).length) out.push(el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "units in the last place"), el("th", {}, "elements"))), el("tbody", {}, ...Object.entries(n.ulps).map(([k, v]) =>
        el("tr", {}, el("td", {}, code(k)), el("td", {}, el("meter", { min: "0", max: String(most), value: String(v) }), ` ${v}`)))))); }
    if (site.steps.length) out.push(el("h3", {}, "How it was read"), el("table", {}, el("tbody", {}, ...site.steps.map(([op, node, steps]) => el("tr", { "data-n": node }, el("td", {}, code(node)), el("td", {}, "is ", code(op)), el("td", {}, steps.join(", ")))))));
    out.push(sources(site));
    if (g && g.whole) { const button = el("button", { type: "button" }, "Show the whole graph (g)"); button.addEventListener("click", () => { location.hash = `#graph-${site.graph}-${site.root}`; }); out.push(el("p", {}, button)); }
    panel.replaceChildren(...out);
    if (location.hash) panel.scrollIntoView({ block: "start" });
  }
  function showGraph(number, node) {
    const g = graphs[number];
    current = null;
    graph = number;
    const out = [el("h2", {}, `Graph ${g.number}${g.body ? " / " + g.body : ""}`), el("p", { class: "quiet" }, `${g.before.length} nodes before, ${g.after.length} after`)];
    const only = el("input", { type: "checkbox", id: "only" });
    out.push(el("label", {}, only, " only what changed"));
    const place = el("div", { class: "whole" });
    out.push(place);
    panel.replaceChildren(...out);
    const changed = ([b, a]) => b !== a;
    const fill = () => { const rows = only.checked ? hunks(aligned(g), changed, CONTEXT) : aligned(g); const made = large(rows, () => ""); place.replaceChildren(made.box); if (node) requestAnimationFrame(() => made.reveal(node)); };
    only.addEventListener("change", fill);
    fill();
  }

  // --- the list: filters, keys, links -------------------------------------------------------------------------------
  const groups = [...document.querySelectorAll(".group")].map((box) => ({ box, head: box.querySelector(".head"), ones: [...box.querySelectorAll(".one")],
    numbers: box.querySelector(".head").dataset.sites.split(" ").map(Number) }));
  const search = byId("search"), selects = { outcome: byId("by-outcome"), pattern: byId("by-pattern"), code: byId("by-code") };
  let visible = [];
  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean).map((w) => w.replace(/^(op|module|pattern|outcome|code):/, ""));
    visible = [];
    let shown = 0;
    for (const group of groups) {
      const fits = Object.entries(selects).every(([key, select]) => !select.value || group.box.dataset[key] === select.value);
      let count = 0;
      group.ones.forEach((one, i) => {
        const hit = fits && words.every((w) => one.dataset.words.includes(w));
        if (one.tagName === "A") one.parentNode.hidden = !hit;
        if (hit) { if (!count) group.head.setAttribute("href", `#site-${group.numbers[i]}`); count += 1; visible.push(group.numbers[i]); }
      });
      group.box.hidden = !count;
      shown += count;
    }
    byId("shown").textContent = `${shown} of ${data.sites.length} sites`;
  }
  search.addEventListener("input", filter);
  for (const select of Object.values(selects)) select.addEventListener("change", filter);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  function route() {
    const hash = decodeURIComponent(location.hash), site = /^#site-(\d+)$/.exec(hash), whole = /^#graph-(\d+)(?:-(.*))?$/.exec(hash);
    if (whole && graphs[+whole[1]]) { showGraph(+whole[1], whole[2]); return; }
    const number = site ? +site[1] : visible[0];
    if (number === undefined || !data.sites[number]) {
      panel.replaceChildren(el("p", { class: "quiet" }, data.sites.length ? `There is no site ${number}.` : "No sites."));
      return;
    }
    for (const group of groups) {
      const here = group.numbers.includes(number);
      group.box.classList.toggle("current", here);
      group.ones.forEach((one, i) => one.classList.toggle("current", group.numbers[i] === number));
      if (here) { if (document.activeElement && document.activeElement.closest("nav")) group.box.scrollIntoView({ block: "nearest" }); group.head.setAttribute("aria-current", "true"); } else group.head.removeAttribute("aria-current");
    }
    show(number);
  }
  window.addEventListener("hashchange", route);
  const numberNow = () => { const m = /^#site-(\d+)$/.exec(location.hash); return m ? +m[1] : visible[0]; };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") { search.value = ""; for (const s of Object.values(selects)) s.value = ""; filter(); search.blur(); hover(null); return; }
    if (event.target.matches("input, select, textarea")) return;
    if (event.key === "/") { search.focus(); event.preventDefault(); }
    else if (event.key === "t") flip();
    else if (event.key === "g") { const s = data.sites[numberNow()]; if (s && s.graph !== null && graphs[s.graph].whole) location.hash = `#graph-${s.graph}-${s.root}`; }
    else if ((event.key === "j" || event.key === "k") && visible.length) {
      const at = visible.indexOf(numberNow());
      location.hash = `#site-${visible[Math.min(visible.length - 1, Math.max(0, at + (event.key === "j" ? 1 : -1)))]}`;
    }
  });
  const root = document.documentElement;
  function flip() {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("fxfuse-theme", root.dataset.theme); } catch { /* a page from a file may have no storage */ }
  }
  try { const kept = localStorage.getItem("fxfuse-theme"); if (kept) root.dataset.theme = kept; } catch { /* as above */ }
  byId("theme").addEventListener("click", flip);
  filter();
  route();
})();
