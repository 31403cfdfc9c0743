"use strict";
// The page of the explorer: what is on, where the sliders are, and everything that follows from it.
(() => {
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("data").textContent);
  const model = Model.load(data, find("logits").textContent.trim());
  const names = data.tasks.map((task) => task.name);
  const AXIS = Array.from({ length: 21 }, (_, i) => (i - 5) / 10);
  const state = {
    coefficients: names.map(() => 0), // as the sliders stand
    on: names.map(() => true), // what is fused: a task that is not counts as 0
    split: "validation",
    preset: null,
    apart: null, // a preset with coefficients per layer, which no slider has
    reference: null,
  };
  const effective = () => state.coefficients.map((value, k) => (state.on[k] ? value : 0));
  const number = (value) => String(Number(value.toPrecision(6)));
  const score = (value) => value.toFixed(3).replace(/^(-?)0\./, "$1.").replace("-", "−");
  const percent = (value) => (value === null ? "–" : `${(100 * value).toFixed(1)}\u00a0%`);
  const lambda = (value) => value.toFixed(2).replace("-", "−");
  const { make } = Changes;
  const changes = Changes.create(data);

  const rows = [...document.querySelectorAll(".tasks li")].map((row) => ({
    row,
    check: row.querySelector("[type=checkbox]"),
    slider: row.querySelector("[type=range]"),
    lambda: row.querySelector(".lambda"),
    bar: row.querySelector(".bar-now"),
    score: row.querySelector(".score .figure"),
    share: row.querySelector(".share .figure"),
    ticks: Object.fromEntries(["zero", "expert", "pin"].map((name) => [name, row.querySelector(`.${name}`)])),
  }));
  const place = (tick, value) => { tick.style.left = `${100 * Math.max(0, value)}%`; };

  const along = ({ value, min, max }) => (value - min) / (max - min);

  // -- every move -----------------------------------------------------------------------------------------------------

  const evaluate = () => {
    const at = effective();
    const scored = (split) => (table, task) => (state.apart ? table.show(state.apart.predictions[split][task]) : table.move(at));
    return Object.fromEntries(Object.entries(model.tables).map(([split, tables]) => [split, tables.map(scored(split))]));
  };

  const update = () => {
    const begun = performance.now();
    const scores = evaluate();
    show(scores);
    performance.measure("update", { start: begun });
    return scores;
  };

  const show = (scores) => {
    const { split, on } = state;
    const own = scores[split];
    const kept = model.keptMean(split, own, on);
    const shares = own.map((value, task) => model.kept(split, task, value));
    const before = state.reference ? model.keptMean(split, state.reference.scores[split], on) : null;
    const known = shares.map((share, task) => [share, names[task]]).filter(([share], task) => on[task] && share !== null);
    const [low, weakest] = known.length ? known.reduce((a, b) => (b[0] < a[0] ? b : a)) : [null, ""];
    find("kept").textContent = percent(kept);
    find("gain").textContent = gain(kept, before);
    find("mean").textContent = figure(model.mean(own, on));
    find("expert-mean").textContent = figure(model.mean(model.experts[split], on));
    find("weakest").textContent = percent(low);
    find("weakest-name").textContent = weakest;
    find("test-kept").textContent = percent(model.keptMean("test", scores.test, on));
    find("test-mean").textContent = figure(model.mean(scores.test, on));
    rows.forEach((row, k) => {
      row.bar.style.width = `${100 * Math.max(0, own[k])}%`;
      row.score.textContent = figure(own[k]);
      row.share.textContent = percent(shares[k]);
      row.lambda.textContent = state.apart ? "–" : lambda(effective()[k]);
      row.slider.value = state.coefficients[k];
      row.slider.style.setProperty("--at", along(row.slider));
      const said = state.apart ? "per layer" : lambda(state.coefficients[k]);
      row.slider.setAttribute("aria-valuetext", `${said}, score ${figure(own[k])}`);
    });
    const out = model.leftOut(split, on).map((task) => names[task]);
    find("unshared").hidden = !out.length;
    find("unshared").textContent =
      `Kept leaves out ${out.join(", ")}: on ${split} rows the expert is worse than the base alone, or worth nothing.`;
    find("apart").hidden = !state.apart;
    if (state.apart) find("layers").textContent = state.apart.sites;
  };
  const figure = (value) => (value === null ? "–" : score(value));
  const gain = (kept, before) => {
    if (kept === null || before === null) return "–";
    const points = (100 * (kept - before)).toFixed(1).replace("-", "−");
    return `${kept >= before ? "+" : ""}${points} points`;
  };

  const busy = (id, is) => find(id).setAttribute("aria-busy", String(is));
  let frame = 0;
  let timer = 0;
  const moved = (preset = null, apart = null) => {
    state.preset = preset;
    state.apart = apart;
    busy("figures", true);
    frame ||= requestAnimationFrame(() => { frame = 0; update(); });
    clearTimeout(timer);
    timer = setTimeout(settle, 150);
  };

  /** What may come a moment after the hand has stopped. */
  const settle = () => {
    if (frame) { cancelAnimationFrame(frame); frame = 0; update(); }
    const test = find("test-kept").textContent;
    find("spoken").textContent =
      `On ${state.split}: kept ${find("kept").textContent} of the experts, mean score ${find("mean").textContent}. Test: kept ${test}.`;
    for (const button of find("presets").children) button.setAttribute("aria-pressed", String(button.dataset.label === state.preset));
    find("command").textContent = command();
    find("copied").textContent = "";
    const { split, on, reference } = state;
    changes.show({ split, on, tables: model.tables[split], reference: reference.predictions[split] });
    busy("figures", false);
    planes();
  };

  // -- presets --------------------------------------------------------------------------------------------------------

  const fused = () => names.filter((_, k) => state.on[k]);
  const subset = () => fused().join("+");
  const constant = (value) => state.on.map((on) => (on ? value : 0));
  const presets = () => {
    const own = data.presets.filter((preset) => preset.tasks.join("+") === subset());
    const found = [
      { label: "zero-shot", source: "the base model", weights: () => constant(0) },
      { label: "average", source: "1 / number of tasks", weights: () => constant(1 / (fused().length || 1)) },
      ...own.map((preset) => ({ ...preset, weights: () => preset.weights })),
    ];
    if (!own.some((preset) => preset.label === data.single)) {
      const weights = () => constant(model.single(state.on));
      found.splice(2, 0, { label: data.single, source: "found here, on validation rows", weights });
    }
    return found;
  };
  const apply = (preset) => {
    state.coefficients = [...preset.weights()];
    moved(preset.label, preset.predictions ? preset : null);
  };
  const offer = () => {
    const buttons = presets().map((preset) => {
      const button = make("button", { type: "button", "data-label": preset.label, title: preset.source, "aria-pressed": "false" }, preset.label);
      button.addEventListener("click", () => apply(preset));
      return button;
    });
    find("presets").replaceChildren(...buttons);
  };
  const choose = (on) => {
    state.on = on;
    rows.forEach((row, k) => {
      row.check.checked = on[k];
      row.slider.disabled = !on[k];
      row.row.classList.toggle("out", !on[k]);
    });
    const select = find("subset");
    select.value = [...select.options].some((option) => option.value === subset()) ? subset() : "";
    offer();
  };

  // -- the reference, and what differs from it ------------------------------------------------------------------------

  const pin = (name) => {
    const predictions = {};
    const scores = evaluate();
    for (const [split, tables] of Object.entries(model.tables)) {
      predictions[split] = tables.map((table) => table.predictions?.slice() ?? null);
    }
    state.reference = { name, predictions, scores };
    for (const node of document.querySelectorAll(".reference")) node.textContent = name;
    marks();
  };
  const marks = () => rows.forEach((row, k) => {
    place(row.ticks.zero, model.zeroShot[state.split][k]);
    place(row.ticks.expert, model.experts[state.split][k]);
    place(row.ticks.pin, state.reference.scores[state.split][k]);
  });

  // -- the plane ------------------------------------------------------------------------------------------------------

  const drawn = { kept: Plane.create(find("kept-plane"), AXIS), error: Plane.create(find("error-plane"), AXIS) };
  let drawing = 0;
  const planes = () => {
    const pair = [Number(find("plane-a").value), Number(find("plane-b").value)];
    drawing += 1;
    find("go-best").disabled = pair[0] === pair[1];
    const at = (k) => (state.apart ? Infinity : effective()[k]); // coefficients per layer are nowhere in the plane
    for (const plane of Object.values(drawn)) plane.frame(pair.map((k) => names[k]), pair.map(at));
    busy("planes", pair[0] !== pair[1]);
    if (pair[0] === pair[1]) return;
    const token = drawing;
    const { split, on } = state;
    const work = [
      [drawn.kept, model.keptPlane(split, pair, effective(), on, AXIS), (low, high) => `From ${percent(low)} to ${percent(high)}.`],
      [drawn.error, model.errorPlane(split, pair, AXIS), (low, high, unit) => `Up to ${high.toFixed(2)}; mean over [0, 1]² ${unit.toFixed(2)}.`],
    ];
    const step = () => {
      const until = performance.now() + 12;
      while (token === drawing && work.length && performance.now() < until) {
        const [plane, steps, format] = work[0];
        const { value, done } = steps.next();
        if (done) { plane.fill(plane.values, format); work.shift(); } else plane.values = value;
      }
      if (token !== drawing) return;
      if (work.length) setTimeout(step); else busy("planes", false);
    };
    step();
  };
  const go = (i, j) => {
    const pair = [Number(find("plane-a").value), Number(find("plane-b").value)];
    if (pair[0] === pair[1]) return;
    choose(state.on.map((on, k) => on || pair.includes(k)));
    [state.coefficients[pair[0]], state.coefficients[pair[1]]] = [AXIS[i], AXIS[j]];
    moved();
  };

  // -- the command ----------------------------------------------------------------------------------------------------

  const command = () => {
    if (state.apart) return state.apart.command;
    const chosen = effective().map((value, k) => [data.adapters[k], value]).filter(([, value]) => value);
    if (!chosen.length) return "# every coefficient is 0: this is the base model";
    const weights = chosen.map(([, value]) => number(value)).join(",");
    return `tangora fuse ${chosen.map(([path]) => path).join(" ")} --method task_arithmetic --weights=${weights} --out fused`;
  };
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(find("command").textContent);
      find("copied").textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren(find("command"));
      find("copied").textContent = "Selected: copy it with your keyboard.";
    }
  };

  // -- wiring ---------------------------------------------------------------------------------------------------------

  rows.forEach((row, k) => {
    row.slider.addEventListener("input", () => { state.coefficients[k] = Number(row.slider.value); moved(); });
    row.check.addEventListener("change", () => { choose(state.on.map((on, at) => (at === k ? row.check.checked : on))); moved(); });
  });
  find("subset").addEventListener("change", (event) => {
    const chosen = event.target.value.split("+");
    const label = state.preset;
    choose(names.map((name) => chosen.includes(name)));
    const same = presets().find((preset) => preset.label === label);
    if (same) apply(same); else moved();
  });
  for (const radio of document.querySelectorAll("[name=split]")) {
    radio.addEventListener("change", () => { look(radio.value); update(); settle(); });
  }
  const look = (split) => {
    state.split = split;
    find("warning").hidden = split !== "test";
    for (const node of document.querySelectorAll(".of")) node.textContent = split;
    marks();
  };
  for (const id of ["plane-a", "plane-b"]) find(id).addEventListener("change", planes);
  for (const plane of Object.values(drawn)) plane.clicked = go;
  find("go-best").addEventListener("click", () => { if (drawn.kept.best) go(...drawn.kept.best); });
  find("pin").addEventListener("click", () => { pin(state.preset ?? "the pinned coefficients"); update(); settle(); });
  find("copy").addEventListener("click", copy);

  find("precision").textContent = `${data.bits}-bit numbers`;
  choose(names.map(() => true));
  state.coefficients = constant(1 / names.length);
  pin("average");
  look("validation");
  state.coefficients = [...presets()[2].weights()];
  state.preset = presets()[2].label;
  update();
  settle();
})();
