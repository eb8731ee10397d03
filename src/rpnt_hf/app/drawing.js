// What the views of `rpnt app` are drawn with: canvases, axes, traces, maps. Nothing here knows what it draws.
(() => {
  "use strict";
  if (window.rpntDrawing) return;

  // After Okabe and Ito (2008), as in rpnt_hf.analysis.plots; lighter ones on a dark page. Orange is decoded movement
  // and nothing else.
  const LIGHT = {
    ink: "#1a1a1a", muted: "#5c6066", line: "#dfe2e6", panel: "#ffffff", truth: "#8a8f96", band: "rgba(0,114,178,0.10)",
    decoded: "#D55E00", changed: "#0072B2", trial: "rgba(0,0,0,0.045)", failed: "rgba(0,0,0,0.10)", gap: "rgba(0,0,0,0.18)",
    sites: ["#0072B2", "#009E73", "#B3568F", "#8A6A00", "#2F86B8", "#5B4FA0"],
  };
  const DARK = {
    ink: "#f1f3f5", muted: "#a4abb4", line: "#3a4048", panel: "#1b1f24", truth: "#9aa3ad", band: "rgba(86,180,233,0.16)",
    decoded: "#FF8A3D", changed: "#6CC3F2", trial: "rgba(255,255,255,0.055)", failed: "rgba(255,255,255,0.13)", gap: "rgba(255,255,255,0.22)",
    sites: ["#6CC3F2", "#3CCB9B", "#E3A0C8", "#F0C24B", "#8FB8FF", "#B8A9F5"],
  };
  // Viridis at nine places (CC0), and blue to white to orange for differences.
  const VIRIDIS = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129],
    [92, 200, 99], [170, 220, 50], [253, 231, 37]];
  const DIVERGING = [[0, 86, 145], [92, 158, 206], [240, 240, 240], [233, 150, 92], [190, 80, 0]];
  const FONT = getComputedStyle(document.documentElement).getPropertyValue("--font") || "system-ui, sans-serif";

  const colors = () => (document.body.classList.contains("dark") ? DARK : LIGHT);

  function unpack(text, kind) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new kind(bytes.buffer);
  }

  function ramp(stops, fraction) {
    const x = Math.min(Math.max(fraction, 0), 1) * (stops.length - 1);
    const i = Math.min(Math.floor(x), stops.length - 2);
    return stops[i].map((low, k) => Math.round(low + (stops[i + 1][k] - low) * (x - i)));
  }

  function ticks(low, high, about) {
    const power = Math.pow(10, Math.floor(Math.log10((high - low) / Math.max(about, 1))));
    const off = (s) => Math.abs((high - low) / s - about);
    const step = [1, 2, 5, 10].map((m) => m * power).reduce((best, s) => (off(s) < off(best) ? s : best));
    const found = [];
    for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-9; v += step) found.push(Math.abs(v) < step * 1e-9 ? 0 : v);
    return found;
  }

  const shown = (v) => String(Number(v.toPrecision(6)));

  // A canvas that keeps the size of its place on the screen, sharp on any display.
  function makeCanvas(root, height, label) {
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", label);
    root.appendChild(canvas);
    const surface = { canvas, ctx: canvas.getContext("2d"), width: 0, height: 0 };
    surface.fit = () => {
      const width = root.clientWidth;
      const tall = typeof height === "function" ? height(width) : height;
      const ratio = window.devicePixelRatio || 1;
      if (width !== surface.width || tall !== surface.height || ratio !== surface.ratio) {
        Object.assign(surface, { width, height: tall, ratio });
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(tall * ratio);
        canvas.style.width = width + "px";
        canvas.style.height = tall + "px";
      }
      surface.ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
      surface.ctx.clearRect(0, 0, width, tall);
      return width > 0;
    };
    return surface;
  }

  function text(ctx, string, x, y, options = {}) {
    const { size = 12, color = colors().muted, align = "left", weight = "400", baseline = "alphabetic" } = options;
    ctx.font = `${weight} ${size}px ${FONT}`;
    ctx.fillStyle = color;
    ctx.textAlign = align;
    ctx.textBaseline = baseline;
    ctx.fillText(string, x, y);
    return ctx.measureText(string).width;
  }

  function line(ctx, x0, y0, x1, y1, color, width = 1) {
    ctx.strokeStyle = color;
    ctx.lineWidth = width;
    ctx.beginPath();
    ctx.moveTo(x0, y0);
    ctx.lineTo(x1, y1);
    ctx.stroke();
  }

  function legend(ctx, entries, right, y) {
    let x = right;
    for (const [name, color, width, dash] of [...entries].reverse()) {
      ctx.font = `400 12px ${FONT}`;
      x -= ctx.measureText(name).width;
      text(ctx, name, x, y, { color: colors().ink });
      ctx.setLineDash(dash || []);
      line(ctx, x - 26, y - 4, x - 6, y - 4, color, width);
      ctx.setLineDash([]);
      x -= 42;
    }
  }

  function timeAxis(ctx, box, start, stop, labelled) {
    for (const t of ticks(start, stop, Math.max(box.w / 90, 2))) {
      const x = box.x + ((t - start) / (stop - start)) * box.w;
      line(ctx, x, box.y + box.h, x, box.y + box.h + 4, colors().muted);
      if (labelled) text(ctx, shown(t), x, box.y + box.h + 17, { align: "center", size: 11 });
    }
    if (labelled) text(ctx, "time (s)", box.x + box.w, box.y + box.h + 32, { align: "right", size: 11 });
  }

  function valueAxis(ctx, box, low, high, name, unit) {
    const c = colors();
    for (const v of ticks(low, high, Math.max(box.h / 30, 3.5))) {
      const y = box.y + box.h - ((v - low) / (high - low)) * box.h;
      line(ctx, box.x, y, box.x + box.w, y, c.line);
      text(ctx, shown(v), box.x - 6, y, { align: "right", baseline: "middle", size: 11 });
    }
    text(ctx, name, box.x, box.y - 6, { weight: "600", color: c.ink });
    ctx.font = `600 12px ${FONT}`;
    const wide = ctx.measureText(name).width;
    if (unit) text(ctx, `(${unit})`, box.x + wide + 5, box.y - 6);
  }

  // A line through samples that breaks where a value is missing or `breaks` says so.
  function trace(ctx, box, xs, ys, stride, offset, count, xOf, low, high, color, width, breaks, dash) {
    ctx.save();
    ctx.beginPath();
    ctx.rect(box.x, box.y - 2, box.w, box.h + 4);
    ctx.clip();
    ctx.beginPath();
    ctx.strokeStyle = color;
    ctx.lineWidth = width;
    ctx.lineJoin = "round";
    ctx.setLineDash(dash || []);
    let open = false;
    for (let i = 0; i < count; i++) {
      const v = ys[i * stride + offset];
      if (!Number.isFinite(v) || (breaks && breaks(i))) open = false;
      if (!Number.isFinite(v)) continue;
      const x = xOf(xs, i), y = box.y + box.h - ((v - low) / (high - low)) * box.h;
      if (open) ctx.lineTo(x, y); else ctx.moveTo(x, y);
      open = true;
    }
    ctx.stroke();
    ctx.restore();
  }

  function extent(values) {
    let most = 0;
    for (const v of values) if (Number.isFinite(v) && Math.abs(v) > most) most = Math.abs(v);
    return most || 1;
  }

  // Site colours beside the rows of a raster; gives the colour of each row.
  function siteBars(ctx, box, sites, rows) {
    const c = colors(), rowColor = [];
    const pitch = box.h / rows;
    let first = 0;
    sites.forEach((site, index) => {
      const color = c.sites[index % c.sites.length];
      const y = box.y + first * pitch, tall = site.units * pitch;
      ctx.fillStyle = color;
      ctx.fillRect(box.x - 9, y + 0.5, 4, Math.max(tall - 1, 1));
      if (tall > 13) text(ctx, site.name.length > 9 ? site.name.slice(0, 8) + "." : site.name, box.x - 13, y + tall / 2, { align: "right", baseline: "middle", size: 11, color, weight: "600" });
      for (let r = 0; r < site.units; r++) rowColor.push(color);
      first += site.units;
    });
    return rowColor;
  }

  // Columns are bins and rows are lags: what would lie before the first bin stays empty.
  function heatmap(ctx, box, values, columns, rows, colorOf) {
    const image = document.createElement("canvas");
    image.width = columns;
    image.height = rows;
    const pixels = image.getContext("2d"), data = pixels.createImageData(columns, rows);
    for (let i = 0; i < columns * rows; i++) {
      if (i % columns < Math.floor(i / columns)) continue; // before the window
      const [r, g, b] = colorOf(values[i]);
      data.data.set([r, g, b, 255], 4 * i);
    }
    pixels.putImageData(data, 0, 0);
    ctx.imageSmoothingEnabled = false;
    ctx.drawImage(image, box.x, box.y, box.w, box.h);
  }

  function colorBar(ctx, x, y, w, stops, low, high, name) {
    for (let i = 0; i < w; i++) {
      ctx.fillStyle = `rgb(${ramp(stops, i / (w - 1)).join(",")})`;
      ctx.fillRect(x + i, y, 1.5, 8);
    }
    text(ctx, low, x, y + 21, { size: 11 });
    text(ctx, high, x + w, y + 21, { size: 11, align: "right" });
    text(ctx, name, x + w + 10, y + 8, { size: 11 });
  }

  function empty(surface, message) {
    let size = 14;
    for (surface.ctx.font = `400 ${size}px ${FONT}`; size > 9 && surface.ctx.measureText(message).width > surface.width - 8; ) surface.ctx.font = `400 ${--size}px ${FONT}`;
    text(surface.ctx, message, surface.width / 2, surface.height / 2, { align: "center", size });
  }

  window.rpntDrawing = {
    LIGHT, DARK, VIRIDIS, DIVERGING, FONT, colors, unpack, ramp, ticks, shown, makeCanvas, text, line, legend, timeAxis, valueAxis, trace, extent, siteBars, heatmap, colorBar, empty,
  };
})();
