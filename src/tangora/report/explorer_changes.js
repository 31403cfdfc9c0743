"use strict";
// Rows whose predicted class differs from the reference's: found, counted, and shown one by one.
const Changes = (() => {
  const FIRST = 12;
  const find = (id) => document.getElementById(id);
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };

  const differing = (tables, reference, wanted) => tables.flatMap((table, task) => {
    if (!wanted(task) || !table.predictions || !reference[task]) return [];
    const found = [];
    table.predictions.forEach((after, row) => {
      const before = reference[task][row];
      const truth = table.labels[row];
      const kind = after === truth ? "gained" : before === truth ? "lost" : "other";
      if (after !== before) found.push({ task, row, before, after, truth, kind });
    });
    return found;
  });

  const summary = (all, split) => {
    if (!all.length) return `No ${split} row changes class.`;
    const count = (kind) => all.filter((change) => change.kind === kind).length;
    const words = all.length === 1 ? "row changes" : "rows change";
    return `${all.length} ${split} ${words} class: ${count("gained")} wrong → right, ${count("lost")} right → wrong, ` +
      `${count("other")} from one wrong class to another.`;
  };

  /** One of each task in turn: the first few then show every task. */
  const mixed = (list) => {
    const seen = new Map();
    const turns = list.map((change) => {
      seen.set(change.task, (seen.get(change.task) ?? 0) + 1);
      return [seen.get(change.task), change];
    });
    return turns.sort((a, b) => a[0] - b[0]).map((turn) => turn[1]);
  };

  const item = (data, split, { task, row, before, after, truth, kind }) => {
    const { name, classes, splits } = data.tasks[task];
    const shown = splits[split].examples?.[row];
    const picture = shown?.startsWith("data:image/");
    const words = picture || !shown ? `${name}, row ${splits[split].rows[row]}` : shown;
    const said = make("p", { class: "said" }, `${name}: `, make("b", {}, classes[truth]), `, said ${classes[before]} → ${classes[after]}`);
    const text = make("div", {}, make("p", {}, words), said);
    return make("li", { class: kind }, ...(picture ? [make("img", { src: shown, alt: "" })] : []), text);
  };

  /** Keep the section up to date: `show` with what is computed, again by itself when a filter changes. */
  const create = (data) => {
    let last = null;
    let most = FIRST;
    const show = (given = last) => {
      last = given;
      const { split, on, tables, reference } = given;
      const only = find("flip-task").value;
      const kind = find("flip-kind").value;
      const all = differing(tables, reference, (task) => (only === "" ? on[task] : Number(only) === task));
      const chosen = mixed(all.filter((change) => !kind || change.kind === kind));
      find("flip-counts").textContent = summary(all, split);
      find("flip-list").replaceChildren(...chosen.slice(0, most).map((change) => item(data, split, change)));
      find("flip-more").hidden = chosen.length <= most;
    };
    const anew = (given) => { most = FIRST; show(given); };
    for (const id of ["flip-task", "flip-kind"]) find(id).addEventListener("change", () => anew());
    find("flip-more").addEventListener("click", () => { most += FIRST; show(); });
    return { show: anew };
  };

  return { create, make };
})();
