// Draws the views of `rpnt app`. Each view is a gr.HTML whose value is a message made by views.py, live.py or
// probe.py; arrays come as base64. Nothing is fetched: no library, no font, no other address.
(() => {
  "use strict";
  if (window.rpnt) return;
  const { VIRIDIS, DIVERGING, FONT, colors, unpack, ramp, ticks, shown, makeCanvas, text, line, legend, timeAxis, valueAxis, trace, extent, siteBars, heatmap, colorBar, empty } = window.rpntDrawing;

  // --- live ---------------------------------------------------------------------------------------------------------

  function liveView(root) {
    let run = null, frame = 0;
    const tiles = document.createElement("div");
    tiles.className = "rpnt-tiles";
    root.appendChild(tiles);
    const surface = makeCanvas(root, (w) => (!run ? 120 : w < 640 ? 720 : 470), "Decoded and true movement, drawn bin by bin");
    const scrub = document.createElement("input");
    Object.assign(scrub, { type: "range", min: 0, max: 1000, value: 1000, className: "rpnt-scrub", hidden: true });
    scrub.setAttribute("aria-label", "Moment of the decoded stretch");
    root.appendChild(scrub);

    function begin(setup) {
      const K = setup.names.length, units = setup.sites.reduce((sum, site) => sum + site.units, 0);
      run = {
        setup, K, units, have: 0, head: 0, last: 0, done: false, scrubbed: null, status: null,
        times: unpack(setup.times, Float32Array), restarts: unpack(setup.restarts, Uint8Array), fitted: unpack(setup.fitted, Uint8Array),
        predicted: new Float32Array(setup.bins * K).fill(NaN), truth: new Float32Array(setup.bins * K).fill(NaN),
        latency: new Float32Array(setup.bins), counts: setup.bins * units < 6e7 ? new Uint8Array(setup.bins * units) : null,
        scale: [...setup.scale], reach: 1,
      };
      scrub.hidden = true;
    }

    function take(message) {
      if (!message || !message.setup) { run = null; scrub.hidden = true; tiles.innerHTML = ""; draw(); return; }
      if (!run || run.setup.run !== message.setup.run) begin(message.setup);
      const { tail, status } = message, { K } = run;
      run.status = status;
      if (tail.bins > tail.first) {
        run.predicted.set(unpack(tail.predicted, Float32Array), tail.first * K);
        run.truth.set(unpack(tail.true, Float32Array), tail.first * K);
        run.latency.set(unpack(tail.latency, Float32Array), tail.first);
        if (run.counts) run.counts.set(unpack(tail.counts, Uint8Array), tail.first * run.units);
      }
      run.have = Math.max(run.have, tail.bins);
      for (let k = 0; k < K; k++) {
        for (let i = tail.first; i < tail.bins; i++) {
          for (const v of [run.predicted[i * K + k], run.truth[i * K + k]]) if (Number.isFinite(v)) run.scale[k] = Math.max(run.scale[k], Math.abs(v));
        }
      }
      if (message.finished && !run.done) { run.done = true; scrub.hidden = run.have * run.setup.bin_size < 4; scrub.value = 1000; }
      showTiles();
      if (!frame) frame = requestAnimationFrame(step);
    }

    function tile(name, value, note, kind) {
      return `<div class="rpnt-tile ${kind || ""}"><span>${name}</span><b>${value}</b><small>${note}</small></div>`;
    }

    function showTiles() {
      const { setup, status } = run, ms = 1000 * setup.bin_size;
      const latency = status.latency_ms;
      const cells = [];
      if (status.scores) {
        for (const [i, [name, value, note]] of status.scores.entries()) cells.push(tile(name, value, note, i ? "minor" : "main"));
      } else {
        const r2 = status.running_r2;
        cells.push(tile("R2 so far, new bins", r2 === null ? "-" : r2.toFixed(3), status.running_bins ? `${status.running_bins} bins not trained or chosen on` : "no such bins yet", "main"));
      }
      cells.push(tile("step latency, median", latency ? `${latency.p50.toFixed(2)} ms` : "-", latency ? `p99 ${latency.p99.toFixed(2)}, longest ${latency.max.toFixed(1)} ms` : ""));
      cells.push(tile("bins that came late", String(status.late), `of ${run.have} bins, ${shown(ms)} ms each`));
      cells.push(tile("decoded", `${status.decoded_seconds.toFixed(1)} s`, `of ${(setup.bins * setup.bin_size).toFixed(0)} s${status.backend ? ", " + status.backend : ""}`));
      tiles.innerHTML = cells.join("");
      root.dataset.bins = run.have;
      root.dataset.finished = run.done;
    }

    // The head of the drawing runs at the speed of the stream, a little behind it, whatever the messages do.
    function step(now) {
      frame = 0;
      if (!run) return;
      const rate = run.setup.speed / run.setup.bin_size, elapsed = run.last ? Math.min((now - run.last) / 1000, 0.25) : 0;
      run.last = now;
      if (!rate || run.done) {
        run.head = run.done && rate ? Math.min(run.head + elapsed * rate * 3 + 1, run.have) : run.have;
      } else {
        const behind = run.have - run.head - 0.15 * rate;
        run.head = Math.min(run.head + Math.max(elapsed * rate * (1 + behind / rate), 0), run.have);
      }
      draw();
      root.dataset.head = run.head.toFixed(2);
      if (run.head < run.have || !run.done) frame = requestAnimationFrame(step);
    }

    function draw() {
      if (!surface.fit()) return;
      const { ctx, width, height } = surface, c = colors();
      if (!run) { empty(surface, "Press Decode: spikes go in bin by bin, movement comes out."); return; }
      const { setup, K } = run, head = run.scrubbed === null ? run.head : run.scrubbed * run.have;
      const narrow = width < 640, side = setup.path ? (narrow ? Math.min(width - 20, 300) : Math.min(height - 40, width * 0.36)) : 0;
      const left = narrow || !side ? 62 : side + 90, top = narrow && side ? side + 62 : 26;
      if (side) drawPath({ x: narrow ? (width - side) / 2 : 10, y: 26, w: side, h: side }, head);
      const span = Math.min(10, setup.bins * setup.bin_size), stop = Math.max(head * setup.bin_size, span), start = stop - span;
      const wide = width - left - 12, room = height - top - 40;
      const rasterBox = { x: left, y: top, w: wide, h: room * 0.42 };
      drawRaster(rasterBox, head, start, stop);
      const each = (room - rasterBox.h - 24 * K) / K;
      for (let k = 0; k < K; k++) {
        const box = { x: left, y: rasterBox.y + rasterBox.h + 24 + k * (each + 24), w: wide, h: each };
        drawTrace(box, k, head, start, stop, k === K - 1);
      }
      legend(ctx, [["true", c.truth, 3], ["decoded", c.decoded, 2]], width - 12, 14);
    }

    const place = (box, t, start, stop) => box.x + ((t - start) / (stop - start)) * box.w;

    function drawRaster(box, head, start, stop) {
      const { ctx } = surface, c = colors(), size = run.setup.bin_size;
      text(ctx, `spikes of ${run.units} units`, box.x, box.y - 6, { weight: "600", color: c.ink });
      const rowColor = siteBars(ctx, box, run.setup.sites, run.units);
      line(ctx, box.x, box.y + box.h + 0.5, box.x + box.w, box.y + box.h + 0.5, c.line);
      if (!run.counts) { text(ctx, "too many to show", box.x + 10, box.y + 20); return; }
      const pitch = box.h / run.units, wide = Math.max((size / (stop - start)) * box.w - 0.6, 1);
      const first = Math.max(Math.floor(start / size), 0), last = Math.min(Math.ceil(head), run.have);
      for (let r = 0; r < run.units; r++) {
        ctx.fillStyle = rowColor[r];
        for (let i = first; i < last; i++) {
          const n = run.counts[i * run.units + r];
          if (!n) continue;
          ctx.globalAlpha = Math.min(0.4 + 0.25 * n, 1);
          ctx.fillRect(place(box, i * size, start, stop), box.y + r * pitch, wide, Math.max(pitch * 0.8, 0.7));
        }
      }
      ctx.globalAlpha = 1;
    }

    function drawTrace(box, k, head, start, stop, last) {
      const { ctx } = surface, c = colors(), { setup, K } = run, size = setup.bin_size, most = 1.05 * Math.max(...run.scale.filter((_, i) => setup.units[i] === setup.units[k]));
      const first = Math.max(Math.floor(start / size) - 1, 0), count = Math.min(Math.ceil(head), run.have) - first;
      ctx.fillStyle = c.band;
      let from = null;
      for (let i = first; i <= Math.min(Math.ceil(stop / size), setup.bins); i++) {
        const fitted = i < setup.bins && run.fitted[i];
        if (fitted && from === null) from = i;
        if (!fitted && from !== null) {
          const x0 = Math.max(place(box, from * size, start, stop), box.x), x1 = Math.min(place(box, i * size, start, stop), box.x + box.w);
          ctx.fillRect(x0, box.y, Math.max(x1 - x0, 0), box.h);
          from = null;
        }
      }
      if (from !== null) { const x0 = Math.max(place(box, from * size, start, stop), box.x); ctx.fillRect(x0, box.y, box.x + box.w - x0, box.h); }
      valueAxis(ctx, box, -most, most, setup.names[k], setup.units[k]);
      if (k === 0) {
        ctx.font = `400 11px ${FONT}`;
        const note = "shaded: bins it was fitted to", w = ctx.measureText(note).width;
        if (box.w > 330) { text(ctx, note, box.x + box.w, box.y - 6, { size: 11, align: "right" }); ctx.fillStyle = c.band; ctx.fillRect(box.x + box.w - w - 20, box.y - 16, 14, 11); }
      }
      const broken = (i) => run.restarts[first + i] && first + i > 0 && run.times[first + i] - run.times[first + i - 1] > 1.5 * size;
      const x = (_, i) => place(box, (first + i + 0.5 + setup.lag) * size, start, stop);
      trace(ctx, box, null, run.truth.subarray(first * K), K, k, count, x, -most, most, c.truth, 3, broken);
      trace(ctx, box, null, run.predicted.subarray(first * K), K, k, count, x, -most, most, c.decoded, 1.8, broken);
      const now = place(box, head * size, start, stop);
      line(ctx, now, box.y, now, box.y + box.h, c.muted, 1);
      const origin = setup.first_time;
      timeAxis(ctx, box, start + origin, stop + origin, last);
    }

    function path(values, until) {
      const { setup, K } = run, paths = [];
      let points = [], x = 0, y = 0;
      const first = Math.max(Math.floor(until) - Math.round(12 / setup.bin_size), 0);
      let begin = first;
      while (begin > 0 && !run.restarts[begin]) begin--;
      for (let i = begin; i < Math.min(Math.ceil(until), run.have); i++) {
        const share = Math.min(until - i, 1), a = values[i * K], b = values[i * K + 1];
        if (!Number.isFinite(a) || !Number.isFinite(b)) continue;
        if (run.restarts[i]) { if (points.length) paths.push(points); points = []; x = y = 0; if (setup.path === "velocity") points.push([0, 0]); }
        if (setup.path === "velocity") { x += a * setup.bin_size * share; y += b * setup.bin_size * share; } else { x = a; y = b; }
        points.push([x, y]);
        run.reach = Math.max(run.reach, Math.abs(x), Math.abs(y));
      }
      if (points.length) paths.push(points);
      return paths;
    }

    function drawPath(box, head) {
      const { ctx } = surface, c = colors(), unit = run.setup.units[0].replace("/s", "");
      const both = [[path(run.truth, head), c.truth, 4], [path(run.predicted, head), c.decoded, 2.4]];
      const most = run.reach * 1.12;
      const at = ([x, y]) => [box.x + ((x / most + 1) / 2) * box.w, box.y + ((1 - y / most) / 2) * box.h];
      text(ctx, run.setup.path === "velocity" ? "path of this trial" : "position", box.x, box.y - 6, { weight: "600", color: c.ink });
      ctx.strokeStyle = c.line;
      ctx.lineWidth = 1;
      ctx.strokeRect(box.x + 0.5, box.y + 0.5, box.w - 1, box.h - 1);
      const [cx, cy] = at([0, 0]);
      line(ctx, cx, box.y, cx, box.y + box.h, c.line);
      line(ctx, box.x, cy, box.x + box.w, cy, c.line);
      for (const v of ticks(-most, most, 4).filter((v) => v)) {
        const [x, y] = at([v, v]);
        text(ctx, shown(v), x, cy + 13, { size: 10, align: "center" });
        text(ctx, shown(v), cx - 5, y, { size: 10, align: "right", baseline: "middle" });
      }
      text(ctx, unit, box.x + box.w - 6, cy - 6, { size: 11, align: "right" });
      ctx.save();
      ctx.beginPath();
      ctx.rect(box.x, box.y, box.w, box.h);
      ctx.clip();
      ctx.lineCap = ctx.lineJoin = "round";
      for (const [paths, color, width] of both) {
        paths.slice(-5).forEach((points, index, few) => {
          const age = few.length - 1 - index;
          ctx.globalAlpha = age ? 0.34 / age : 1;
          ctx.strokeStyle = color;
          ctx.lineWidth = age ? width * 0.6 : width;
          ctx.beginPath();
          points.forEach((p, i) => { const [x, y] = at(p); if (i) ctx.lineTo(x, y); else ctx.moveTo(x, y); });
          ctx.stroke();
          if (!age && points.length) { const [x, y] = at(points[points.length - 1]); ctx.fillStyle = color; ctx.beginPath(); ctx.arc(x, y, width + 2.2, 0, 7); ctx.fill(); }
        });
      }
      ctx.globalAlpha = 1;
      ctx.restore();
    }

    scrub.addEventListener("input", () => { run.scrubbed = scrub.value / 1000; draw(); });
    return { take, draw };
  }

  // --- recording ----------------------------------------------------------------------------------------------------

  function recordingView(root) {
    const surface = makeCanvas(root, (w) => (w < 640 ? 460 : 520), "Spikes by site, trials and behaviour");
    let view = null, arrays = null;

    function take(message) {
      view = message;
      arrays = view && {
        spikes: unpack(view.spikes, Uint16Array), perRow: unpack(view.spikes_per_row, Uint32Array),
        times: view.behavior && unpack(view.behavior.times, Float32Array), values: view.behavior && unpack(view.behavior.values, Float32Array),
      };
      draw();
    }

    function draw() {
      if (!surface.fit()) return;
      const { ctx, width, height } = surface, c = colors();
      if (!view) { empty(surface, "Choose a recording."); return; }
      const units = arrays.perRow.length, K = view.behavior ? view.behavior.dimensions.length : 0;
      const room = height - 74 - (K ? 26 : 0), box = { x: 66, y: 26, w: width - 82, h: K ? room * 0.66 : room };
      const place = (t) => box.x + Math.min(Math.max((t - view.start) / (view.stop - view.start), 0), 1) * box.w;
      const below = { x: box.x, y: box.y + box.h + 26, w: box.w, h: room * 0.34 };
      view.trials.forEach(([from, to, rewarded]) => {
        const x0 = place(from), x1 = place(to);
        ctx.fillStyle = rewarded === 0 ? c.failed : c.trial;
        for (const one of K ? [box, below] : [box]) ctx.fillRect(x0 + 0.5, one.y, Math.max(x1 - x0 - 1, 0), one.h);
      });
      text(ctx, `spikes of ${units} units`, box.x, 18, { weight: "600", color: c.ink });
      const hidden = view.observed.some(([, to], i) => (i + 1 < view.observed.length ? view.observed[i + 1][0] : view.stop) > to + 1e-6);
      const bands = [view.trials.length && "grey bands: trials, darker where not rewarded", hidden && "darkest: not observed"].filter(Boolean);
      if (width > 560) text(ctx, bands.join("; "), box.x + box.w, 18, { align: "right", size: 11 });
      const rowColor = siteBars(ctx, box, view.sites, units), pitch = box.h / units;
      let i = 0;
      for (let r = 0; r < units; r++) {
        ctx.fillStyle = rowColor[r];
        const y = box.y + r * pitch, tall = Math.max(pitch * 0.82, 0.8);
        for (const last = i + arrays.perRow[r]; i < last; i++) ctx.fillRect(box.x + (arrays.spikes[i] / 65535) * box.w, y, 1.1, tall);
      }
      let at = view.start;
      ctx.fillStyle = c.gap;
      for (const [from, to] of [...view.observed, [view.stop, view.stop]]) { if (from > at + 1e-6) ctx.fillRect(place(at), box.y, place(from) - place(at), box.h); at = Math.max(at, to); }
      if (K) {
        const most = extent(arrays.values) * 1.05, count = arrays.times.length;
        valueAxis(ctx, below, -most, most, view.behavior.name.replace(/_/g, " "), view.behavior.unit);
        const step = count > 2 ? arrays.times[1] - arrays.times[0] : 1;
        for (let k = 0; k < K; k++) {
          trace(ctx, below, arrays.times, arrays.values, K, k, count, (xs, j) => place(view.start + xs[j]), -most, most, [c.ink, c.truth, c.decoded][k % 3], k ? 2.2 : 1.6,
            (j) => j && arrays.times[j] - arrays.times[j - 1] > 5 * step);
        }
        legend(ctx, view.behavior.dimensions.map((name, k) => [name || "value", [c.ink, c.truth, c.decoded][k % 3], k ? 2.2 : 1.6]), width - 16, below.y - 8);
      } else {
        text(ctx, "no behaviour in this file", box.x, box.y + box.h + 33, { size: 12 });
      }
      timeAxis(ctx, K ? below : box, view.start, view.stop, true);
    }
    return { take, draw };
  }

  // --- attention ----------------------------------------------------------------------------------------------------

  function lagMap(ctx, box, values, view, colorOf, title, labelled) {
    ctx.fillStyle = colors().line;
    ctx.fillRect(box.x, box.y, box.w, box.h);
    heatmap(ctx, box, values, view.bins, view.lags, colorOf);
    text(ctx, title, box.x, box.y - 6, { weight: "600", color: colors().ink });
    const far = view.lags * view.bin_size;
    for (const t of ticks(0, far, box.h / 40)) {
      const y = box.y + (t / far) * box.h;
      text(ctx, shown(t), box.x - 6, Math.min(y + 5, box.y + box.h), { size: 11, align: "right" });
    }
    ctx.save();
    ctx.translate(box.x - 42, box.y + box.h / 2);
    ctx.rotate(-Math.PI / 2);
    text(ctx, "how long ago (s)", 0, 0, { size: 11, align: "center" });
    ctx.restore();
    timeAxis(ctx, box, view.start, view.start + view.bins * view.bin_size, labelled);
  }

  function attentionView(root) {
    const surface = makeCanvas(root, (w) => (w < 640 ? 560 : 430), "Attention over time");
    let view = null, arrays = null;
    function take(message) {
      view = message;
      arrays = view && { weights: unpack(view.weights, Uint8Array), profile: unpack(view.profile, Float32Array), anchors: unpack(view.anchors, Float32Array), movement: unpack(view.movement, Float32Array) };
      draw();
    }
    function draw() {
      if (!surface.fit()) return;
      const { ctx, width, height } = surface, c = colors();
      if (!view) { empty(surface, "Choose a recording that the decoder knows."); return; }
      const narrow = width < 640, side = narrow ? 0 : 190;
      const box = { x: 62, y: 30, w: width - 78 - side, h: narrow ? 190 : 220 };
      lagMap(ctx, box, arrays.weights, view, (v) => ramp(VIRIDIS, v / 255), `attention of each bin to earlier ones${view.site ? ", " + view.site : ""}`, false);
      const small = { x: box.x, y: box.y + box.h + 34, w: box.w, h: narrow ? 60 : 74 };
      const x = (_, i) => small.x + ((i + 0.5) / view.bins) * small.w;
      const most = extent(arrays.movement) * 1.05;
      valueAxis(ctx, small, 0, most, "size of the movement", view.unit);
      trace(ctx, small, null, arrays.movement, 1, 0, view.bins, x, 0, most, c.truth, 2.4);
      timeAxis(ctx, small, view.start, view.start + view.bins * view.bin_size, true);
      colorBar(ctx, box.x, height - 32, 130, VIRIDIS, "0", view.scale.toPrecision(2), "weight of one bin");
      const right = narrow ? { x: 62, y: small.y + small.h + 66, w: width - 90, h: 90 } : { x: width - side + 30, y: box.y, w: side - 46, h: box.h };
      const top = extent(arrays.profile) * 1.08, n = arrays.profile.length;
      const share = `${(100 * view.anchor_share).toFixed(1)} %`;
      text(ctx, narrow ? `mean by lag; ${share} of it goes to anchors` : "mean by lag", right.x, right.y - 6, { weight: "600", color: c.ink });
      ctx.strokeStyle = c.changed;
      ctx.lineWidth = 2.2;
      ctx.beginPath();
      for (let i = 0; i < n; i++) {
        const px = narrow ? right.x + (i / Math.max(n - 1, 1)) * right.w : right.x + (arrays.profile[i] / top) * right.w;
        const py = narrow ? right.y + right.h - (arrays.profile[i] / top) * right.h : right.y + ((i + 0.5) / n) * right.h;
        if (i) ctx.lineTo(px, py); else ctx.moveTo(px, py);
      }
      ctx.stroke();
      line(ctx, right.x, right.y, right.x, right.y + right.h, c.line);
      line(ctx, right.x, right.y + right.h, right.x + right.w, right.y + right.h, c.line);
      text(ctx, narrow ? `0 to ${shown(n * view.bin_size)} s ago` : top.toPrecision(2), right.x + right.w, right.y + right.h + 16, { size: 11, align: "right" });
      if (!narrow) {
        text(ctx, share, right.x, small.y + 22, { size: 24, weight: "600", color: c.ink });
        text(ctx, "of it goes to anchors,", right.x, small.y + 42, { size: 11 });
        text(ctx, "where metadata act", right.x, small.y + 57, { size: 11 });
      }
    }
    return { take, draw };
  }

  // --- sites --------------------------------------------------------------------------------------------------------

  function sitesView(root) {
    let view = null;
    const surface = makeCanvas(root, (w) => {
      const panels = view && view.maps ? view.maps.length : 1;
      return !view || !view.maps ? 90 : w < 640 ? 346 * panels : 394;
    }, "How strongly sites go together");
    function take(message) { view = message; draw(); }
    function draw() {
      if (!surface.fit()) return;
      const { ctx, width } = surface, c = colors();
      if (!view || !view.maps) { empty(surface, (view && view.message) || "Choose this tab again to draw it."); return; }
      const narrow = width < 640, each = narrow ? width : width / view.maps.length;
      view.maps.forEach((map, index) => {
        const ox = narrow ? 0 : index * each, oy = narrow ? index * 346 : 0, n = map.sites.length;
        const side = Math.min(each - 120, 230), box = { x: ox + 70, y: oy + 72, w: side, h: side }, cell = side / n;
        text(ctx, map.title, ox + 10, oy + 20, { weight: "600", color: c.ink });
        map.note.split("; ").forEach((part, line) => text(ctx, part, ox + 10, oy + 37 + 15 * line, { size: 11 }));
        const off = map.weights.flatMap((row, i) => row.filter((v, j) => (i !== j || map.diagonal) && v !== null));
        const low = Math.min(0, ...off), high = Math.max(...off, low + 1e-9);
        for (let i = 0; i < n; i++) {
          for (let j = 0; j < n; j++) {
            const v = map.weights[i][j], x = box.x + j * cell, y = box.y + i * cell;
            if (v === null || (i === j && !map.diagonal)) { ctx.fillStyle = c.line; ctx.fillRect(x, y, cell - 1, cell - 1); continue; }
            const fraction = (v - low) / (high - low), rgb = ramp(VIRIDIS, fraction);
            ctx.fillStyle = `rgb(${rgb.join(",")})`;
            ctx.fillRect(x, y, cell - 1, cell - 1);
            const dark = 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2] < 140;
            const star = map.significant && map.significant[i][j] ? " *" : "";
            text(ctx, v.toFixed(2) + star, x + cell / 2, y + cell / 2, { align: "center", baseline: "middle", color: dark ? "#fff" : "#111", size: 12 });
          }
          const color = c.sites[i % c.sites.length];
          text(ctx, map.sites[i], box.x - 8, box.y + (i + 0.5) * cell, { align: "right", baseline: "middle", color, weight: "600" });
          text(ctx, map.sites[i], box.x + (i + 0.5) * cell, box.y + side + 16, { align: "center", color, weight: "600" });
        }
      });
    }
    return { take, draw };
  }

  // --- metadata -----------------------------------------------------------------------------------------------------

  function metadataView(root) {
    const tiles = document.createElement("div");
    tiles.className = "rpnt-tiles";
    root.appendChild(tiles);
    const surface = makeCanvas(root, (w) => (w < 640 ? 930 : 560), "What metadata change");
    let view = null, arrays = null;
    function take(message) {
      view = message;
      arrays = view && { maps: view.maps.map((m) => unpack(m, Uint8Array)), difference: unpack(view.difference, Int8Array), truth: unpack(view.true, Float32Array), predicted: view.predicted.map((p) => unpack(p, Float32Array)) };
      tiles.innerHTML = "";
      if (view) {
        const score = (v) => (v === null ? "-" : v.toFixed(3));
        const cell = (name, value, note, kind) => `<div class="rpnt-tile ${kind || ""}"><span>${name}</span><b>${value}</b><small>${note}</small></div>`;
        tiles.innerHTML = cell("output moves by", `${view.moved.toFixed(2)} ${view.unit}`, "root mean square over this window", "main")
          + cell("attention on anchors", `${(100 * view.anchor_share[1]).toFixed(1)} %`, `${(100 * view.anchor_share[0]).toFixed(1)} % as recorded`)
          + cell("R2 in this window, variance weighted", score(view.r2[1]), `${score(view.r2[0])} as recorded; a few seconds, no test`);
      }
      draw();
    }
    function draw() {
      if (!surface.fit()) return;
      const { ctx, width, height } = surface, c = colors();
      if (!view) { empty(surface, "Choose a recording that the decoder knows."); return; }
      const narrow = width < 640, titles = ["attention as recorded", "with these metadata", "difference"];
      const each = narrow ? width - 70 : (width - 66 - 2 * 56) / 3, tall = narrow ? 110 : 190;
      titles.forEach((title, i) => {
        const box = narrow ? { x: 60, y: 26 + i * (tall + 52), w: each, h: tall } : { x: 60 + i * (each + 56), y: 26, w: each, h: tall };
        const values = i < 2 ? arrays.maps[i] : arrays.difference;
        lagMap(ctx, box, values, view, i < 2 ? (v) => ramp(VIRIDIS, v / 255) : (v) => ramp(DIVERGING, v / 254 + 0.5), title, true);
      });
      const top = narrow ? 26 + 3 * (tall + 52) + 30 : tall + 116;
      if (!narrow) {
        colorBar(ctx, 60, tall + 66, 110, VIRIDIS, "0", view.scale.toPrecision(2), "weight");
        if (view.spread > 1e-4) colorBar(ctx, 60 + 2 * (each + 56), tall + 66, 110, DIVERGING, (-view.spread).toPrecision(2), view.spread.toPrecision(2), "change");
      }
      const K = view.names.length, room = (height - top - 46 - 28 * (K - 1)) / K;
      for (let k = 0; k < K; k++) {
        const box = { x: 60, y: top + k * (room + 28), w: width - 76, h: room };
        const most = Math.max(...[arrays.truth, ...arrays.predicted].map(extent)) * 1.05;
        valueAxis(ctx, box, -most, most, view.names[k], view.unit);
        const x = (_, i) => box.x + ((i + 0.5) / view.bins) * box.w;
        trace(ctx, box, null, arrays.truth, K, k, view.bins, x, -most, most, c.truth, 3);
        trace(ctx, box, null, arrays.predicted[0], K, k, view.bins, x, -most, most, c.decoded, 1.8);
        trace(ctx, box, null, arrays.predicted[1], K, k, view.bins, x, -most, most, c.changed, 1.8, null, [5, 3]);
        timeAxis(ctx, box, view.start, view.start + view.bins * view.bin_size, k === K - 1);
      }
      legend(ctx, narrow ? [["true", c.truth, 3], ["recorded", c.decoded, 2], ["changed", c.changed, 2, [5, 3]]]
        : [["true", c.truth, 3], ["decoded, metadata as recorded", c.decoded, 2], ["decoded, these metadata", c.changed, 2, [5, 3]]], width - 16, top - 8 - (narrow ? 14 : 0));
    }
    return { take, draw };
  }

  // --- training -----------------------------------------------------------------------------------------------------

  function trainingView(root) {
    const bar = document.createElement("div");
    bar.className = "rpnt-progress";
    root.appendChild(bar);
    let view = null;
    const surface = makeCanvas(root, (w) => (!view ? 60 : w < 640 ? 360 : 210), "Loss and validation R2 over training");
    function take(message) {
      view = message;
      if (!view) { bar.innerHTML = ""; draw(); return; }
      const share = view.num_passes ? (100 * view.passes) / view.num_passes : 0;
      bar.innerHTML = `<div class="rpnt-bar"><div style="width:${share.toFixed(1)}%"></div></div><span></span>`;
      bar.lastChild.textContent = view.message;
      root.dataset.passes = view.passes;
      root.dataset.state = view.state;
      draw();
    }
    function draw() {
      if (!surface.fit()) return;
      const { ctx, width, height } = surface, c = colors();
      if (!view || !view.curve.length) { empty(surface, view ? "The first pass over the data is under way." : "Loss and validation R2 appear here while it trains."); return; }
      const narrow = width < 640, curve = view.curve, n = curve.length;
      const passes = Math.max(curve[n - 1][0], 2);
      [["loss on training windows", 1, c.muted], ["R2 on validation trials", 2, c.decoded]].forEach(([name, column, color], i) => {
        const box = narrow ? { x: 48, y: 26 + i * 176, w: width - 64, h: 110 } : { x: 52 + i * (width / 2), y: 28, w: width / 2 - 76, h: height - 76 };
        const values = Float32Array.from(curve.map((row) => row[column]));
        const low = Math.min(0, ...values.map((v) => Math.max(v, -1))), high = column === 2 ? 1 : extent(values) * 1.05;
        valueAxis(ctx, box, low, high, name, "");
        trace(ctx, box, null, values, 1, 0, n, (_, j) => box.x + (curve[j][0] / passes) * box.w, low, high, color, 2.2);
        const last = values[n - 1];
        text(ctx, last.toFixed(3), box.x + box.w, box.y - 6, { align: "right", weight: "600", color });
        for (const t of ticks(0, passes, 5)) text(ctx, shown(t), box.x + (t / passes) * box.w, box.y + box.h + 16, { size: 11, align: "center" });
        text(ctx, "passes over the data", box.x + box.w, box.y + box.h + 32, { size: 11, align: "right" });
      });
    }
    return { take, draw };
  }

  function textView(root) {
    return { take: (message) => { root.innerHTML = (message && message.html) || ""; }, draw() {} };
  }

  const VIEWS = { text: textView, live: liveView, recording: recordingView, attention: attentionView, sites: sitesView, metadata: metadataView, training: trainingView };

  window.rpnt = {
    attach(element, props, watch) {
      const root = element.querySelector(".rpnt-view");
      const view = VIEWS[root.dataset.kind](root);
      root.dataset.drawn = 0;
      const update = () => {
        const message = props.value || null;
        if (message && message.keep) return;
        view.take(message);
        root.dataset.modelMs = (message && message.model_ms) || 0;
        root.dataset.drawn = Number(root.dataset.drawn) + 1;
      };
      watch("value", update);
      update();
      new ResizeObserver(() => view.draw()).observe(root);
      new MutationObserver(() => view.draw()).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    },
  };
})();
