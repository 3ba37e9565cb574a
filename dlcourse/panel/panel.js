// The live panel of dlcourse. Plain DOM: every number is text or a data-value that a test can read.
// One call of the default export for each pool: initialize() keeps its history, render() makes a
// view of it.

const MARKS = { idle: "○", running: "●", waiting: "◐", dead: "✕", lost: "?", stopped: "–" };
const RUNS = 300; // pieces of one rank's timeline that are kept
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

// As human_bytes() in units.py writes them.
const human = (bytes) => {
  let unit = 0;
  while (bytes >= (unit ? 1000 : 1024) && unit < UNITS.length - 1) (bytes /= 1024), unit++;
  const places = bytes >= 99.95 ? 0 : bytes >= 9.995 ? 1 : bytes >= 0.9995 ? 2 : 3;
  const exact = Number.isInteger(bytes);
  return `${exact ? bytes.toLocaleString("en") : bytes.toFixed(places)} ${UNITS[unit]}`;
};

const make = (tag, cls, parent, data = {}) => {
  const node = document.createElement(tag);
  if (cls) node.className = cls;
  Object.assign(node.dataset, data);
  parent?.append(node);
  return node;
};

const write = (node, text) => {
  if (node.textContent !== text) node.textContent = text;
};

const hide = (node, hidden) => {
  if (node.hidden !== hidden) node.hidden = hidden;
};

// History: for each rank, pieces [end, state] of the running cell, and of the one that is kept to
// be shown after cells that measure nothing.
function remember(past, now) {
  if (past.cell !== now.cell || now.t < past.t) {
    const kept = { [past.cell]: past, ...past.kept }[now.kept] ?? {};
    const again = now.cell === now.kept && !now.busy ? kept : {};
    past.kept = { [now.kept]: { rows: kept.rows, t: kept.t } };
    Object.assign(past, { cell: now.cell, rows: again.rows ?? {}, t: again.t ?? 0 });
  }
  if (now.busy || now.t > past.t) {
    for (const { r, s } of now.ranks) {
      const row = (past.rows[r] ??= []);
      const last = row[row.length - 1];
      // The last state of a cell is the idle one after it: it has no length.
      const state = !now.busy && s === "idle" ? (last?.[1] ?? "running") : s;
      if (last?.[1] === state) last[0] = now.t;
      else row.push([now.t, state]);
      if (row.length > RUNS) past.rows[r] = row.filter((_, i) => i % 2 || i === row.length - 1);
    }
  }
  past.t = now.t;
}

function draw(canvas, row, end, states) {
  const ratio = globalThis.devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * ratio);
  const height = Math.round(canvas.clientHeight * ratio);
  if (!width) return;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, width, height);
  let from = 0;
  for (const [to, state] of row ?? []) {
    const [x, w] = [(from / end) * width, ((to - from) / end) * width];
    pen.fillStyle = states[state];
    // Height as well as colour tells the state: running is tall, waiting low, idle a thread.
    const share = { running: 1, waiting: 0.5, idle: 0.12 }[state] ?? 1;
    pen.fillRect(x, height * (1 - share), Math.max(w, ratio), height * share);
    from = to;
  }
}

function initialize({ model }, past) {
  const take = () => remember(past, model.get("now"));
  take();
  // A page that was loaded again has not seen what the ranks did before.
  for (const row of Object.values(past.rows)) row[0][1] = "idle";
  model.on("change:now", take);
  return () => model.off("change:now", take);
}

function render({ model, el }, past) {
  const words = model.get("words");
  const { categories, states, ranks: rankColors, size } = model.get("look");
  const root = make("section", "dlc-panel", el);
  root.setAttribute("role", "region");
  root.setAttribute("aria-label", words.label.replace("{}", size));
  // A click leaves the focus where it was, so that Shift+Enter still runs the cell.
  root.addEventListener("mousedown", (event) => event.target.closest("button") && event.preventDefault());

  // Header: one line that says everything when the rest is folded away.
  const head = make("div", "dlc-head", root);
  const fold = make("button", "dlc-fold", head, { field: "fold" });
  fold.type = "button";
  fold.setAttribute("aria-label", words.collapse);
  make("span", "dlc-title", head, { field: "title" }).textContent = words.title.replace("{}", size);
  const dots = make("span", "dlc-dots", head);
  dots.setAttribute("aria-hidden", "true");
  const where = make("span", "dlc-where", head, { field: "cell" });
  const status = make("span", "dlc-status", head, { field: "status" });
  const facts = make("span", "dlc-facts", head);
  const shut = make("button", "dlc-shut", head, { field: "close" });
  shut.type = "button";
  shut.setAttribute("aria-label", words.close);
  shut.title = words.close;
  shut.textContent = "×";
  const alert = make("div", "dlc-alert", root, { field: "alert" });
  const live = make("div", "dlc-live", root, { field: "say" });
  live.setAttribute("role", "status"); // read aloud when it changes: it holds no running numbers

  const body = make("div", "dlc-body", root);
  const table = make("table", "dlc-table", body);
  const top = make("tr", "", make("thead", "", table));
  // The heading stands above the number: where there is no room, the bar goes and it stays.
  const kinds = ["dlc-rank", "dlc-state", "dlc-room", "dlc-num", "dlc-time", "dlc-num"];
  const heads = ["", "", "", words.memory, words.timeline, words.bytes].map((text, i) => {
    const cell = make("th", kinds[i], top);
    cell.scope = "col";
    cell.textContent = text;
    return cell;
  });
  heads[3].title = words["memory.help"];
  heads[4].title = words["timeline.help"];
  heads[5].title = words["bytes.help"];
  const span = make("span", "dlc-span", heads[4], { field: "span" });
  const rows = make("tbody", "", table);
  const more = make("div", "dlc-more", body, { field: "more" });
  const legend = make("div", "dlc-foot", body);
  for (const [name, color] of categories) {
    const item = make("span", "dlc-key", legend);
    make("i", "", item).style.background = color;
    item.append(words[`category.${name}`]);
  }
  for (const name of ["running", "waiting"]) {
    const item = make("span", `dlc-key dlc-key-${name}`, legend);
    make("i", "", item).style.background = states[name];
    item.append(words[`state.${name}`]);
  }
  const comm = make("div", "dlc-foot dlc-comm", body);
  make("b", "", comm).textContent = words.comm;
  const commList = make("span", "", comm);

  const lines = new Map();
  const line = (r) => {
    if (lines.has(r)) return lines.get(r);
    const tr = make("tr", "", rows, { rank: r });
    const name = make("th", "dlc-rank", tr);
    name.scope = "row";
    make("i", "", name).style.background = rankColors[r % rankColors.length];
    name.append(words.rank.replace("{}", r));
    const at = make("small", "dlc-at", name, { rank: r, field: "machine" });
    const state = make("td", "dlc-state", tr, { rank: r, field: "state" });
    const bar = make("div", "dlc-bar", make("td", "dlc-room", tr), { rank: r, field: "bar" });
    bar.setAttribute("role", "img");
    const pieces = categories.map(([key, background, color]) => {
      const piece = make("span", "", bar, { rank: r, field: `memory.${key}` });
      Object.assign(piece.style, { background, color });
      return piece;
    });
    const peak = make("b", "dlc-peak", bar, { rank: r, field: "peak" });
    const total = make("td", "dlc-num", tr, { rank: r, field: "memory" });
    const canvas = make("canvas", "", make("td", "dlc-time", tr), { rank: r, field: "timeline" });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${words.timeline}, ${words.rank.replace("{}", r)}`);
    const moved = make("td", "dlc-num", tr, { rank: r, field: "bytes" });
    const dot = make("span", "", dots);
    lines.set(r, { tr, at, state, bar, pieces, peak, total, canvas, moved, dot });
    return lines.get(r);
  };

  function show() {
    const now = model.get("now");
    root.dataset.busy = now.busy;
    root.dataset.cell = now.cell;
    write(status, now.status);
    write(where, now.where);
    hide(where, !now.where);
    write(live, now.say);
    write(alert, now.alert);
    hide(alert, !now.alert);
    write(more, now.more);
    hide(more, !now.more);
    const known = now.facts.map(([field]) => field).join();
    if (facts.dataset.known !== known) {
      facts.dataset.known = known;
      facts.replaceChildren();
      for (const [field, label] of now.facts) {
        const item = make("span", "", facts);
        item.append(`${label} `);
        make("b", "", item, { field });
      }
    }
    now.facts.forEach(([, , text], i) => write(facts.children[i].lastChild, text));
    const widest = Math.max(1, ...now.ranks.map((rank) => rank.peak));
    const end = Math.max(1, now.t);
    write(span, now.t ? ` 0–${end < 100 ? end.toFixed(1) : Math.round(end)} s` : "");
    // Room for the machines' names, where there are several; longer ones are cut.
    const longest = Math.max(0, ...now.ranks.map((rank) => (rank.at ?? "").length));
    heads[0].style.width = longest ? `${Math.min(70 + 7 * longest, 200)}px` : "";
    for (const rank of now.ranks) {
      const row = line(rank.r);
      row.tr.dataset.state = row.dot.dataset.state = rank.s;
      write(row.at, rank.at ? ` ${rank.at}` : "");
      row.at.title = rank.at ?? "";
      row.dot.textContent = MARKS[rank.s] ?? "";
      row.dot.style.color = states[rank.s];
      row.dot.title = `${words.rank.replace("{}", rank.r)}: ${rank.text}`;
      if (row.state.dataset.text !== rank.text) {
        row.state.dataset.text = row.state.title = rank.text;
        row.state.replaceChildren();
        const mark = make("i", "", row.state);
        mark.setAttribute("aria-hidden", "true");
        mark.textContent = MARKS[rank.s] ?? "";
        mark.style.color = states[rank.s];
        make("span", "", row.state).textContent = rank.text;
      }
      const parts = [];
      const room = row.bar.clientWidth;
      rank.m.forEach((bytes, i) => {
        const piece = row.pieces[i];
        const [share, size] = [bytes / widest, human(bytes)];
        const text = `${words[`category.${categories[i][0]}`]} ${size}`;
        if (bytes) parts.push(text);
        piece.style.width = `${100 * share}%`;
        piece.dataset.value = bytes;
        piece.title = text;
        write(piece, share * room > 58 ? size : "");
      });
      row.bar.setAttribute("aria-label", parts.join(", ") || human(0));
      row.peak.style.left = `${(100 * rank.peak) / widest}%`;
      row.peak.dataset.value = rank.peak;
      hide(row.peak, !rank.peak);
      const notes = [words.peak.replace("{}", human(rank.peak))];
      if (rank.pss) notes.push(words.process.replace("{}", human(rank.pss)));
      row.total.title = [...notes, ...parts].join("\n");
      const total = rank.m.reduce((a, b) => a + b, 0);
      write(row.total, human(total));
      row.total.dataset.value = total;
      write(row.moved, human(rank.b));
      row.moved.dataset.value = rank.b;
      draw(row.canvas, past.rows[rank.r], end, states);
    }
    for (const [r, row] of lines) {
      if (!now.ranks.some((rank) => rank.r === r)) {
        row.tr.remove();
        row.dot.remove();
        lines.delete(r);
      }
    }
    const seen = now.comm.map(([op]) => op).join();
    if (commList.dataset.seen !== seen) {
      commList.dataset.seen = seen;
      commList.replaceChildren();
      for (const [op] of now.comm) {
        const item = make("span", "dlc-op", commList);
        make("code", "", item).textContent = op;
        make("span", "", item, { op, field: "comm" });
      }
      if (!now.comm.length) commList.textContent = words["comm.none"];
    }
    for (const [op, bytes, calls] of now.comm) {
      const item = commList.querySelector(`[data-op="${op}"]`);
      Object.assign(item.dataset, { value: bytes, calls });
      write(item, `${human(bytes)} · ${calls.toLocaleString("en")}×`);
    }
  }

  // When its cell scrolls out of sight, the panel becomes a strip at the foot of the notebook.
  let docked = false;
  const folded = { true: true, false: false };
  const setFold = () => {
    root.classList.toggle("dlc-folded", folded[docked]);
    fold.setAttribute("aria-expanded", String(!folded[docked]));
  };
  const unfold = () => {
    folded[docked] = !folded[docked];
    setFold();
    show();
  };
  fold.addEventListener("click", unfold);
  let host = null;
  const dock = (away) => {
    host ??= el.closest(".jp-NotebookPanel");
    if (!host || away === docked) return;
    if (away && host.querySelector(":scope > .dlc-docked")) return;
    docked = away;
    root.classList.toggle("dlc-docked", docked);
    el.style.minHeight = docked ? `${el.offsetHeight}px` : ""; // the page must not jump
    (docked ? host : el).append(root);
    setFold();
    show();
  };
  let closed = false;
  // Ranks that were ended have no more to tell: their strip would stand before the next pool's.
  const going = () => model.get("now").ranks.some((rank) => rank.s !== "stopped");
  const view = {
    seen: null, // not known yet
    place: () => {
      const away = [...past.views].every((other) => other.seen === false);
      dock(away && !closed && going());
    },
  };
  past.views.add(view);
  const watch = new IntersectionObserver((entries) => {
    view.seen = entries[entries.length - 1].isIntersecting;
    if (view.seen) closed = false;
    for (const each of past.views) each.place(); // one strip at most, and none beside a panel
  });
  watch.observe(el);
  shut.addEventListener("click", () => {
    closed = true;
    dock(false);
  });
  const resize = new ResizeObserver(() => show());
  resize.observe(body);

  // While a button has the focus, Lab's keys must not act on the cell: x would cut it. Lab looks
  // for this on what has the focus, before it looks further up.
  for (const button of [fold, shut]) button.dataset.lmSuppressShortcuts = "true";
  setFold();
  show();
  model.on("change:now", show);
  model.on("change:now", view.place);
  return () => {
    model.off("change:now", show);
    model.off("change:now", view.place);
    watch.disconnect();
    past.views.delete(view);
    resize.disconnect();
    root.remove();
  };
}

export default () => {
  const past = { cell: null, t: 0, rows: {}, views: new Set() };
  return {
    initialize: (context) => initialize(context, past),
    render: (context) => render(context, past),
  };
};
