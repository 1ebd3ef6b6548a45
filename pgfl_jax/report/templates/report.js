"use strict";
// The gallery. Its data are the JSON of pgfl_jax/report/gallery.py:
// query: n row, f file, i identity, c camera, o hidden share, m matches, x junk, p picture,
// l skeleton, r rankings and a maps of each run; gallery item: file, identity, camera, picture.
(() => {
  const data = JSON.parse(document.getElementById("data-json").textContent);
  if (!data.protocols.length) return;
  const PAGE = 24;
  const KINDS = { m: ["✓", "right"], i: ["✗", "another person"], j: ["○", "junk"] };
  const HUES = [45, 0, 205, 225, 115, 145, 290, 270];
  const form = document.getElementById("controls");
  const list = document.getElementById("list");
  const more = document.getElementById("more");
  const viewer = document.getElementById("viewer");
  let protocol = data.protocols[0];
  let shown = [];
  let drawn = 0;

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  const percent = (value) => (value === null || value === undefined ? "–" : (100 * value).toFixed(1));
  const outcome = (ranking) => (ranking.ap === null ? "skipped" : ranking.first === 1 ? "right" : "wrong");
  const address = (query) => `#q=${encodeURIComponent(protocol.name)}/${query.n}`;
  const runName = (place) => data.runs[protocol.runs[place]];
  const scores = (query) => query.r.map((ranking) => ranking.ap ?? 0);
  const spread = (query) => Math.max(...scores(query)) - Math.min(...scores(query));
  const several = () => protocol.runs.length > 1;

  function picture(number, text) {
    if (number === null) return make("span", { class: "none", role: "img", "aria-label": text }, "no picture");
    const image = make("img", { alt: text, loading: "lazy" });
    image.src = `data:image/jpeg;base64,${data.pictures[number]}`;
    return image;
  }

  function facts(query) {
    const hidden = query.o === null ? "" : `, ${Math.round(100 * query.o)} % hidden`;
    return `identity ${query.i}, camera ${query.c}${hidden}`;
  }

  function ranked(query, ranking, captions) {
    const items = make("ol", { class: "top" });
    let rank = 0;
    for (const [number, relation, distance] of ranking.top) {
      const [file, identity, camera, image] = protocol.gallery[number];
      const [mark, word] = KINDS[relation];
      if (relation !== "j") rank += 1;
      const place = relation === "j" ? "junk" : `rank ${rank}`;
      const text = `${place}, ${word}: identity ${identity}, camera ${camera}, distance ${distance.toFixed(3)}`;
      const frame = make("div", { class: `pic frame ${relation}`, title: `${file}: ${text}` }, picture(image, text));
      frame.append(make("span", { class: "badge", "aria-hidden": "true" }, mark));
      const item = make("li", {}, frame);
      if (captions) {
        item.className = "pic";
        item.append(make("small", {}, `${place}`), make("small", {}, `id ${identity}, cam ${camera}`), make("small", {}, distance.toFixed(3)));
      }
      items.append(item);
    }
    return items;
  }

  function rankingTitle(query, place) {
    const ranking = query.r[place];
    const heading = make("h4");
    if (several()) heading.append(make("span", { class: `swatch run${protocol.runs[place] % 6}` }), `${runName(place)}: `);
    if (ranking.ap === null) heading.append("no match in the gallery: not scored");
    else heading.append(make("span", { class: "ap" }, `AP ${percent(ranking.ap)} %`), `, first match at rank ${ranking.first}`);
    return heading;
  }

  function card(query) {
    const link = make("a", { href: address(query) }, make("span", { class: "pic" }, picture(query.p, `Query, ${facts(query)}`)));
    link.append(make("span", { class: "facts" }, facts(query)));
    const rankings = make("div", { class: "rankings" });
    query.r.forEach((ranking, place) => {
      rankings.append(make("div", { class: "ranking" }, rankingTitle(query, place), ranked(query, ranking, false)));
    });
    return make("article", { class: "query", "data-query": query.n }, link, rankings);
  }

  function options(name, entries) {
    const before = form.elements[name].value;
    form.elements[name].replaceChildren(...entries.map(([value, text]) => make("option", { value }, text)));
    if (entries.some(([value]) => value === before)) form.elements[name].value = before;
  }

  const SORTS = {
    difference: (a, b) => spread(b) - spread(a),
    gain: (a, b) => scores(b)[0] - scores(b)[1] - scores(a)[0] + scores(a)[1],
    loss: (a, b) => scores(a)[0] - scores(a)[1] - scores(b)[0] + scores(b)[1],
    worst: (a, b) => (a.r[0].ap ?? 2) - (b.r[0].ap ?? 2),
    best: (a, b) => (b.r[0].ap ?? -1) - (a.r[0].ap ?? -1),
    hidden: (a, b) => (b.o ?? -1) - (a.o ?? -1),
    seen: (a, b) => (a.o ?? 2) - (b.o ?? 2),
    camera: (a, b) => a.c - b.c,
    order: (a, b) => a.n - b.n,
  };

  function fill() {
    const two = several();
    const sorts = [["worst", "AP, worst first"], ["best", "AP, best first"], ["hidden", "occlusion, most first"],
      ["seen", "occlusion, least first"], ["camera", "camera"], ["order", "order of the files"]];
    if (two) {
      sorts.unshift(["difference", "difference of the runs"], ["gain", `${runName(0)} better than ${runName(1)}`],
        ["loss", `${runName(0)} worse than ${runName(1)}`]);
    }
    options("sort", sorts);
    const cameras = [...new Set(protocol.queries.map((query) => query.c))].sort((a, b) => a - b);
    options("camera", [["", "all"], ...cameras.map((camera) => [String(camera), String(camera)])]);
    const outcomes = [["", "any"], ["right", two ? `right in ${runName(0)}` : "right"], ["wrong", two ? `wrong in ${runName(0)}` : "wrong"]];
    if (two) {
      outcomes.push(["only-first", `right in ${runName(0)} alone`], ["only-other", `right in another, not in ${runName(0)}`],
        ["none", "wrong in all"]);
    }
    if (protocol.queries.some((query) => query.r[0].ap === null)) outcomes.push(["skipped", "not scored"]);
    options("outcome", outcomes);
    options("hidden", [["", "any"], ...data.bins.map(([low, high], number) => [String(number), `${100 * low}–${100 * high} %`])]);
  }

  function keeps(query, wanted) {
    const results = query.r.map(outcome);
    const others = results.slice(1);
    const tests = {
      "": () => true,
      right: () => results[0] === "right",
      wrong: () => results[0] === "wrong",
      skipped: () => results[0] === "skipped",
      "only-first": () => results[0] === "right" && others.every((result) => result !== "right"),
      "only-other": () => results[0] !== "right" && others.includes("right"),
      none: () => results.every((result) => result === "wrong"),
    };
    return tests[wanted]();
  }

  function inBin(query, number) {
    const [low, high] = data.bins[number];
    const last = Number(number) === data.bins.length - 1;
    return query.o !== null && query.o >= low && (last ? query.o <= high : query.o < high);
  }

  function update() {
    const { sort, camera, outcome: wanted, hidden, identity } = form.elements;
    const asked = identity.value.trim();
    shown = protocol.queries
      .filter((query) => (!camera.value || String(query.c) === camera.value) && keeps(query, wanted.value)
        && (!hidden.value || inBin(query, hidden.value)) && (!asked || String(query.i) === asked || query.f.includes(asked)))
      .sort((a, b) => SORTS[sort.value](a, b) || a.n - b.n);
    list.replaceChildren();
    drawn = 0;
    draw();
    document.getElementById("count").textContent = `${shown.length} of ${protocol.queries.length} queries. `
      + "Open one by a click; there the arrow keys go on to the next.";
  }

  function draw() {
    list.append(...shown.slice(drawn, drawn + PAGE).map(card));
    drawn = Math.min(shown.length, drawn + PAGE);
    more.hidden = drawn >= shown.length;
  }

  // Values in 0 … 255 of one map after the other.
  const unpack = (text) => (text ? Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)) : null);

  function heat(values, [rows, columns], hue, text) {
    const canvas = make("canvas", { width: columns, height: rows, role: "img", "aria-label": text });
    const context = canvas.getContext("2d");
    const image = context.createImageData(columns, rows);
    const [red, green, blue] = rgb(hue);
    for (let cell = 0; cell < rows * columns; cell += 1) image.data.set([red, green, blue, values[cell]], 4 * cell);
    context.putImageData(image, 0, 0);
    return canvas;
  }

  function rgb(hue) {
    const channel = (offset) => {
      const k = (offset + hue / 30) % 12;
      return Math.round(255 * (0.6 - 0.4 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
    };
    return [channel(0), channel(8), channel(4)];
  }

  function skeleton(query) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 1 1");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    for (const [part, ...ends] of query.l) {
      const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
      ["x1", "y1", "x2", "y2"].forEach((name, place) => line.setAttribute(name, ends[place]));
      line.setAttribute("stroke", `hsl(${HUES[part]} 90% 65%)`);
      svg.append(line);
    }
    return svg;
  }

  function panel(query, height, caption, layers, grey = true) {
    const [rows, columns] = query.a.find(Boolean)?.grid ?? [2, 1];
    if (height > 100 && innerWidth < 640) height = 150;
    const frame = make("span", { class: grey ? "over grey" : "over" });
    frame.style.height = `${height}px`;
    frame.style.width = `${Math.round(height * columns / rows)}px`;
    const image = picture(query.p, caption);
    frame.append(image, ...layers);
    return make("figure", { class: "panel" }, frame, make("figcaption", {}, caption));
  }

  function groupRow(query, title, values, grid, label) {
    const row = make("tr", {}, make("th", { scope: "row" }, title));
    const cells = grid[0] * grid[1];
    const count = values.length / cells;
    for (let part = 0; part < count; part += 1) {
      const map = values.subarray(part * cells, (part + 1) * cells);
      const [caption, text] = label(part);
      const cell = make("td", {}, panel(query, 96, caption, [heat(map, grid, HUES[part % 8], text)]));
      if (count === 1) cell.colSpan = data.parts.length;
      row.append(cell);
    }
    return row;
  }

  function maps(query, place) {
    const found = query.a[place];
    if (!found) return [];
    const head = make("tr", {}, make("td"), ...data.parts.map((part) => make("th", { scope: "col" }, part)));
    const table = make("table", {}, make("thead", {}, head));
    const body = make("tbody");
    body.append(groupRow(query, "energy of the group, share on its part", unpack(found.g), found.grid, (part) => {
      const share = found.gs[part];
      const text = share === undefined || share === null ? "hidden" : `${percent(share)} %`;
      return [text, `Energy of the group of ${data.parts[part]}, share on its part: ${text}`];
    }));
    if (found.q) {
      body.append(groupRow(query, "map it predicts", unpack(found.q), found.grid,
        (part) => ["", `Predicted map of ${data.parts[part] ?? "the foreground"}`]));
    }
    if (found.t) {
      body.append(groupRow(query, "map of the pose", unpack(found.t), found.grid,
        (part) => ["", `The pose's map of ${data.parts[part]}`]));
    }
    table.append(body);
    return [make("div", { class: "maps", tabindex: "0" }, table)];
  }

  function look(query) {
    const panels = make("div", { class: "panels" });
    panels.append(panel(query, 220, "query", [], false));
    if (query.l.length) panels.append(panel(query, 220, "skeleton", [skeleton(query)]));
    query.a.forEach((found, place) => {
      if (!found) return;
      const name = several() ? `${runName(place)}: ` : "";
      const share = found.s === null ? "" : `, ${percent(found.s)} % on the person`;
      const text = `${name}energy${share}`;
      panels.append(panel(query, 220, text, [heat(unpack(found.e), found.grid, 35, `Energy of the main branch, ${text}`)]));
    });
    return panels;
  }

  function open(query) {
    const at = shown.indexOf(query);
    const bar = make("div", { class: "bar-top" });
    const close = make("button", { type: "button", "data-go": "close" }, "Close");
    const before = make("button", { type: "button", "data-go": "-1", "aria-label": "Query before" }, "←");
    const after = make("button", { type: "button", "data-go": "1", "aria-label": "Next query" }, "→");
    before.disabled = at <= 0;
    after.disabled = at < 0 || at >= shown.length - 1;
    const title = make("strong", { id: "viewer-title" }, `${protocol.name}, query ${query.n}: ${facts(query)}`);
    bar.append(title, make("span", {}, before, " ", after, " ", close));
    const file = make("p", {}, `${query.f}; ${query.m} matches under other cameras, ${query.x} junk. `,
      make("a", { href: address(query) }, "Link to this query"));
    viewer.replaceChildren(bar, file, look(query));
    const runs = make("div", { class: "runs" });
    query.r.forEach((ranking, place) => {
      runs.append(make("section", {}, rankingTitle(query, place), ranked(query, ranking, true), ...maps(query, place)));
    });
    viewer.append(runs);
    viewer.dataset.query = query.n;
    if (!viewer.open) viewer.showModal();
    viewer.scrollTop = 0;
  }

  function step(by) {
    const at = shown.findIndex((query) => String(query.n) === viewer.dataset.query);
    const next = shown[at + by];
    if (at >= 0 && next) location.replace(address(next));
  }

  // The address says what is open: a link to a query opens it, and "back" closes it.
  function follow() {
    const match = /^#q=([^/]*)\/(\d+)$/.exec(location.hash);
    const wanted = match && data.protocols.find((one) => one.name === decodeURIComponent(match[1]));
    const query = wanted?.queries.find((one) => String(one.n) === match[2]);
    if (!query) {
      if (viewer.open) viewer.close();
      return;
    }
    if (wanted !== protocol) {
      form.elements.protocol.value = wanted.name;
      change();
    }
    open(query);
  }

  function change() {
    protocol = data.protocols.find((one) => one.name === form.elements.protocol.value);
    fill();
    update();
  }

  viewer.addEventListener("click", (event) => {
    const go = event.target.dataset?.go;
    if (event.target === viewer || go === "close") viewer.close();
    else if (go) step(Number(go));
  });
  viewer.addEventListener("close", () => {
    if (location.hash.startsWith("#q=")) history.replaceState(null, "", location.pathname + location.search);
    list.querySelector(`[data-query="${viewer.dataset.query}"] a`)?.focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, select, .maps, .top")) return;
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!by) return;
    if (viewer.open && (by === 1 || by === -1) && !event.key.endsWith("Down") && !event.key.endsWith("Up")) {
      event.preventDefault();
      step(by);
    } else if (!viewer.open && list.contains(document.activeElement)) {
      const links = [...list.querySelectorAll(".query > a")];
      const next = links[links.indexOf(document.activeElement) + by];
      if (next) {
        event.preventDefault();
        next.focus();
      }
    }
  });
  more.addEventListener("click", draw);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => (event.target.name === "protocol" ? change() : update()));
  window.addEventListener("hashchange", follow);
  options("protocol", data.protocols.map((one) => [one.name, one.name]));
  form.hidden = false;
  fill();
  update();
  follow();
})();
