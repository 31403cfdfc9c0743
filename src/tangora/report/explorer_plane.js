"use strict";
// A heat map over two coefficients, as SVG: colours are the page's, so that the theme changes them.
const Plane = (() => {
  const LEFT = 46;
  const TOP = 8;
  const SIZE = 300;
  const element = (parent, tag, attributes, text = "") => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.textContent = text;
    parent.append(node);
    return node;
  };

  const create = (svg, axis) => {
    const n = axis.length;
    const cell = SIZE / n;
    const x = (value) => LEFT + ((value - axis[0]) / (axis[n - 1] - axis[0])) * (SIZE - cell) + cell / 2;
    const y = (value) => TOP + SIZE - (x(value) - LEFT);
    const cells = axis.flatMap((a) => axis.map((b) => element(svg, "rect", {
      class: "cell", x: x(a) - cell / 2, y: y(b) - cell / 2, width: cell + 0.3, height: cell + 0.3, "fill-opacity": 0,
    })));
    for (const tick of [-0.5, 0, 0.5, 1, 1.5]) {
      const text = String(tick).replace("-", "−");
      element(svg, "text", { x: x(tick), y: TOP + SIZE + 16, "text-anchor": "middle" }, text);
      element(svg, "text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, text);
    }
    element(svg, "path", { class: "axis", d: `M${x(0)} ${TOP}v${SIZE}M${LEFT} ${y(0)}h${SIZE}` });
    const across = element(svg, "text", { x: LEFT + SIZE / 2, y: TOP + SIZE + 34, "text-anchor": "middle" });
    const up = element(svg, "text", { transform: `translate(12 ${TOP + SIZE / 2}) rotate(-90)`, "text-anchor": "middle" });
    const best = element(svg, "rect", { class: "best", width: cell, height: cell, visibility: "hidden" });
    const rings = ["halo", "here"].map((name) => element(svg, "circle", { class: name, r: 6 }));
    const caption = svg.parentNode.querySelector(".ends");

    const plane = { values: null, best: null, clicked: () => {} };
    plane.frame = (names, point) => {
      caption.textContent = "";
      [across.textContent, up.textContent] = names.map((name) => `λ of ${name}`);
      const inside = point.every((value) => value >= axis[0] && value <= axis[n - 1]);
      for (const ring of rings) {
        ring.setAttribute("visibility", inside ? "visible" : "hidden");
        if (!inside) continue;
        ring.setAttribute("cx", x(point[0]));
        ring.setAttribute("cy", y(point[1]));
      }
    };
    /** Colour the cells; `told` makes words of the lowest and highest value and the mean over [0, 1]². */
    plane.fill = (values, told) => {
      const low = Math.min(...values);
      const high = Math.max(...values);
      const known = high > low;
      values.forEach((value, i) => cells[i].setAttribute("fill-opacity", known ? (0.04 + (0.96 * (value - low)) / (high - low)).toFixed(3) : 0));
      const at = values.indexOf(high);
      plane.best = Number.isNaN(high) ? null : [Math.floor(at / n), at % n];
      const inside = axis.map((value) => value >= 0 && value <= 1);
      const unit = Array.from(values).filter((_, i) => inside[Math.floor(i / n)] && inside[i % n]);
      caption.textContent = Number.isNaN(high) ? "" : told(low, high, unit.reduce((a, b) => a + b, 0) / unit.length);
      if (svg.id === "kept-plane" && plane.best) {
        best.setAttribute("x", x(axis[plane.best[0]]) - cell / 2);
        best.setAttribute("y", y(axis[plane.best[1]]) - cell / 2);
        best.setAttribute("visibility", "visible");
      }
    };
    svg.addEventListener("click", (event) => {
      const box = svg.getBoundingClientRect();
      const scale = svg.viewBox.baseVal.width / box.width;
      const i = Math.floor(((event.clientX - box.left) * scale - LEFT) / cell);
      const j = Math.floor((TOP + SIZE - (event.clientY - box.top) * scale) / cell);
      if (i >= 0 && i < n && j >= 0 && j < n) plane.clicked(i, j);
    });
    return plane;
  };

  return { create };
})();
