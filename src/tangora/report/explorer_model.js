"use strict";
// The numbers of the explorer, without a page: logits are linear in the coefficients, so adding columns up is exact.
const Model = (() => {
  const bytesOf = (text) => {
    const raw = atob(text);
    const bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i += 1) bytes[i] = raw.charCodeAt(i);
    return bytes;
  };

  /** Origin and columns of one split: block floating point, as _pack.py describes it. */
  const columnsOf = (bytes, start, count, rows, classes, bits) => {
    const extra = bits - 16;
    const blocks = count * rows;
    const numbers = blocks * classes;
    const exponents = new Int8Array(bytes.buffer, start, blocks);
    const high = new Int16Array(bytes.slice(start + blocks, start + blocks + 2 * numbers).buffer);
    const low = start + blocks + 2 * numbers;
    const values = new Float32Array(numbers);
    for (let block = 0, i = 0; block < blocks; block += 1) {
      const unit = 2 ** exponents[block];
      for (const end = i + classes; i < end; i += 1) {
        let mantissa = high[i];
        if (extra === 8) mantissa = mantissa * 256 + bytes[low + i];
        if (extra === 4) mantissa = mantissa * 16 + ((bytes[low + (i >> 1)] >> (4 * (i & 1))) & 15);
        values[i] = mantissa * unit;
      }
    }
    return Array.from({ length: count }, (_, k) => values.subarray(k * rows * classes, (k + 1) * rows * classes));
  };

  /** The first class with the largest value of base + factor * column, for every row. */
  const argmax = (base, column, factor, classes, out) => {
    for (let row = 0, i = 0; row < out.length; row += 1) {
      let best = -Infinity;
      let winner = 0;
      for (let c = 0; c < classes; c += 1, i += 1) {
        const value = base[i] + factor * column[i];
        if (value > best) { best = value; winner = c; }
      }
      out[row] = winner;
    }
    return out;
  };

  const add = (base, column, factor, out) => {
    for (let i = 0; i < out.length; i += 1) out[i] = base[i] + factor * column[i];
    return out;
  };

  const accuracy = (predictions, labels) => {
    let right = 0;
    for (let row = 0; row < labels.length; row += 1) if (predictions[row] === labels[row]) right += 1;
    return right / labels.length;
  };

  const counts = (predictions, labels, classes) => {
    const found = { right: new Float64Array(classes), said: new Float64Array(classes), are: new Float64Array(classes) };
    for (let row = 0; row < labels.length; row += 1) {
      found.said[predictions[row]] += 1;
      found.are[labels[row]] += 1;
      if (predictions[row] === labels[row]) found.right[labels[row]] += 1;
    }
    return found;
  };

  /** The mean of F1 over the classes that occur, as scikit-learn has it. */
  const macroF1 = (predictions, labels, classes) => {
    const { right, said, are } = counts(predictions, labels, classes);
    let sum = 0;
    let seen = 0;
    for (let c = 0; c < classes; c += 1) {
      if (said[c] + are[c] > 0) { seen += 1; sum += (2 * right[c]) / (said[c] + are[c]); }
    }
    return sum / seen;
  };

  /** Matthews correlation of any number of classes (Gorodkin's R_K). */
  const matthews = (predictions, labels, classes) => {
    const { right, said, are } = counts(predictions, labels, classes);
    const dot = (a, b) => a.reduce((sum, value, c) => sum + value * b[c], 0);
    const n = labels.length;
    const hits = right.reduce((a, b) => a + b, 0);
    const spread = Math.sqrt((n * n - dot(said, said)) * (n * n - dot(are, are)));
    return spread > 0 ? (hits * n - dot(said, are)) / spread : 0;
  };
  const METRICS = { accuracy, exact_match: accuracy, macro_f1: macroF1, matthews };

  /** One split of one task: its logits follow the coefficients, and where one alone moves, by one column. */
  class Table {
    constructor(task, split, bytes, count, bits) {
      this.classes = task.classes.length;
      this.labels = Uint16Array.from(split.labels);
      this.columns = columnsOf(bytes, split.start, count, this.labels.length, this.classes, bits);
      this.logits = new Float64Array(this.columns[0]);
      this.at = new Float64Array(count - 1);
      this.buffer = new Uint16Array(this.labels.length);
      this.predictions = this.buffer; // null where they are not known
      this.metric = METRICS[task.metric];
    }

    score(predictions) { return this.metric(predictions, this.labels, this.classes); }

    /** Logits at other coefficients, in a new array. */
    sum(coefficients) {
      const logits = new Float64Array(this.columns[0]);
      coefficients.forEach((value, k) => { if (value) add(logits, this.columns[k + 1], value, logits); });
      return logits;
    }

    predict(logits) { return argmax(logits, logits, 0, this.classes, new Uint16Array(this.labels.length)); }

    /** Move to these coefficients; the score there. */
    move(coefficients) {
      const changed = [...coefficients.keys()].filter((k) => coefficients[k] !== this.at[k]);
      if (changed.length === 1) {
        const [k] = changed;
        add(this.logits, this.columns[k + 1], coefficients[k] - this.at[k], this.logits);
      } else if (changed.length) this.logits = this.sum(coefficients);
      this.at.set(coefficients);
      this.predictions = argmax(this.logits, this.logits, 0, this.classes, this.buffer);
      return this.score(this.predictions);
    }

    /** Show predictions that are not of coefficients; the score of these, null where there are none. */
    show(predictions) {
      this.predictions = predictions && Uint16Array.from(predictions);
      return predictions && this.score(this.predictions);
    }
  }

  /** Every table of a page, the experts' and the base's scores, and what can be computed of them. */
  const load = (data, text) => {
    const bytes = bytesOf(text);
    const n = data.tasks.length;
    const unit = (k) => Float64Array.from({ length: n }, (_, i) => Number(i === k));
    const tables = {};
    const experts = {};
    const zeroShot = {};
    for (const split of ["validation", "test"]) {
      tables[split] = data.tasks.map((task) => new Table(task, task.splits[split], bytes, n + 1, data.bits));
      experts[split] = tables[split].map((table, k) => table.score(table.predict(table.sum(unit(k)))));
      zeroShot[split] = tables[split].map((table) => table.score(table.predict(table.columns[0])));
    }

    const ratio = (split, task, score) => (score !== null && experts[split][task] > 0 ? score / experts[split][task] : null);
    /** Whether there is a share of an expert: not of one that is worse than the base, or worth nothing. */
    const shared = (split, task) => experts[split][task] > 0 && experts[split][task] >= zeroShot[split][task];
    const kept = (split, task, score) => (shared(split, task) ? ratio(split, task, score) : null);
    /** The mean over the fused tasks; null where a value is unknown. */
    const mean = (values, on) => {
      const chosen = values.filter((_, task) => on[task]);
      return !chosen.length || chosen.includes(null) ? null : chosen.reduce((a, b) => a + b, 0) / chosen.length;
    };
    /** The mean share over the fused tasks whose experts have one; null if none has. */
    const keptMean = (split, scores, on) =>
      mean(scores.map((score, task) => kept(split, task, score)), on.map((is, task) => is && shared(split, task)));
    /** The fused tasks that the mean leaves out. */
    const leftOut = (split, on) => data.tasks.map((_, task) => task).filter((task) => on[task] && !shared(split, task));

    /** The λ, one for all fused tasks, that keeps most on validation rows; of equals the smallest. */
    const single = (on) => {
      const split = "validation";
      const sums = tables[split].map((table) => table.sum(on.map(Number)));
      tables[split].forEach((table, t) => add(sums[t], table.columns[0], -1, sums[t]));
      let best = { kept: -Infinity, value: 0 };
      for (let step = 1; step <= 30; step += 1) {
        const shares = tables[split].map((table, t) => {
          const predictions = new Uint16Array(table.labels.length);
          if (!on[t]) return 0;
          const score = table.score(argmax(table.columns[0], sums[t], step / 20, table.classes, predictions));
          return ratio(split, t, score) ?? score; // as a run compares candidates where an expert is worth nothing
        });
        const found = mean(shares, on);
        if (found > best.kept + 1e-12) best = { kept: found, value: step / 20 };
      }
      return best.value;
    };

    /** What is kept, over the plane of two coefficients with the others as they are; yields after each column. */
    function* keptPlane(split, [a, b], coefficients, on, axis) {
      const rest = Float64Array.from(coefficients, (value, k) => (k === a || k === b ? 0 : value));
      const chosen = tables[split].map((table, t) => ({ table, t })).filter(({ t }) => on[t] && shared(split, t));
      const bases = chosen.map(({ table }) => table.sum(rest));
      const values = new Float64Array(axis.length ** 2).fill(NaN);
      for (const [i, x] of axis.entries()) {
        const lines = chosen.map(({ table }, at) => add(bases[at], table.columns[a + 1], x, new Float64Array(bases[at])));
        for (const [j, y] of axis.entries()) {
          let sum = 0;
          chosen.forEach(({ table, t }, at) => {
            const predictions = argmax(lines[at], table.columns[b + 1], y, table.classes, new Uint16Array(table.labels.length));
            sum += kept(split, t, table.score(predictions)) ?? NaN;
          });
          values[i * axis.length + j] = sum / chosen.length;
        }
        yield values;
      }
    }

    /** ξ(λ₁, λ₂) of two tasks, every other coefficient 0: the share of rows of the first that the second's vector
     * moves to another class, plus the same the other way round (Ortiz-Jimenez et al. 2023). */
    function* errorPlane(split, pair, axis) {
      const differing = (p, q) => p.reduce((sum, value, row) => sum + (value !== q[row]), 0) / p.length;
      const values = new Float64Array(axis.length ** 2).fill(0);
      for (const side of [0, 1]) {
        const table = tables[split][pair[side]];
        const [origin, own, other] = [table.columns[0], table.columns[pair[side] + 1], table.columns[pair[1 - side] + 1]];
        for (const [i, x] of axis.entries()) {
          const line = add(origin, own, x, new Float64Array(origin));
          const alone = table.predict(line);
          for (const [j, y] of axis.entries()) {
            const both = argmax(line, other, y, table.classes, new Uint16Array(alone.length));
            values[side === 0 ? i * axis.length + j : j * axis.length + i] += differing(alone, both);
          }
          yield values;
        }
      }
    }

    return { tables, experts, zeroShot, kept, leftOut, mean, keptMean, single, keptPlane, errorPlane };
  };

  return { load };
})();
