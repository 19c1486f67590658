// The map of images, the lists beside it, and what happens on a click, a key or a lasso.
"use strict";

const SMALLEST = 44, LARGEST = 104, REACH = 16; // CSS pixels: of pictures on the map, and how far a pointer may be off
const RANKED = 600, AT_ONCE = 60; // most entries of a ranking, and how many the list shows at a time
const ODD = .05; // share of the images that are listed as outliers
const $ = id => document.getElementById(id);
const data = JSON.parse($("data").textContent), {names, sizes, perImage, side, across, palette, alike: ALIKE, levels: LEVELS} = data, count = names.length;
const [xs, ys, near, distances] = [data.x, data.y, data.neighbours, data.distances].map(numbers);
const columns = data.columns.map(column => ({...column, codes: numbers(column.codes)}));
const root = names.reduce((folder, name) => { // the folder that all are in
  while (!name.startsWith(folder)) folder = folder.slice(0, folder.slice(0, -1).lastIndexOf("/") + 1);
  return folder;
}, names[0].slice(0, names[0].lastIndexOf("/") + 1));
const short = names.map(name => name.slice(root.length)), lower = short.map(name => name.toLowerCase());
const map = $("map"), marks = $("marks"), tip = $("tip"), ratio = devicePixelRatio;
const shown = new Uint8Array(count).fill(1); // 1 for each image that the filter and the legend leave
const mixed = [...shown.keys()].sort((a, b) => a * 0.618034 % 1 - b * 0.618034 % 1); // an order that favours no class
const view = {x: 0, y: 0, scale: 0}; // an image is at x + xs * scale, y + ys * scale, in CSS pixels
const pointers = new Map(); // where fingers and buttons are pressed on the map
let sheets = []; // decoded, so that no picture has to wait
let column = columns[0], only = new Set(); // what colours the images, and the categories that are shown (none: all)
let hovered = -1, selected = -1, pictured = [], pictureSize = SMALLEST; // an image or -1; those with a picture on the map
let outline = null, dragged = 0, due = false; // the lasso, how far the pointer was dragged, whether to paint
let listed = [], drawn = 0; // the groups of images in the list, and how many of them it shows
let refreshing = false; // whether the list is made again because the filter changed
let relist = null; // makes the list again after the filter changed, if it is one of the images shown

function numbers(text) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new Uint16Array(bytes.buffer);
}

const left = i => view.x + xs[i] * view.scale, top_ = i => view.y + ys[i] * view.scale;
const similarity = (i, n) => 1 - distances[i * perImage + n] / 32767;
const neighbours = i => near.subarray(i * perImage, (i + 1) * perImage);
const size = i => `${sizes[i][0]} × ${sizes[i][1]} pixels, ${sizes[i][2].toLocaleString("en")} bytes`;
const value = (each, i) => each.codes[i] ? each.categories[each.codes[i] - 1] : "none";
const visible = () => [...shown.keys()].filter(i => shown[i]);

// ---- elements ----

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function drawPicture(context, i, x, y, size) {
  const sheet = sheets[Math.floor(i / across ** 2)], place = i % across ** 2;
  const [left, top] = [place % across * side + 1, Math.floor(place / across) * side + 1]; // a JPEG's colours run a pixel into others
  context.drawImage(sheet, left, top, side - 2, side - 2, x, y, size, size);
}

function picture(i) {
  const canvas = make("canvas", {width: side, height: side});
  drawPicture(canvas.getContext("2d"), i, 0, 0, side);
  return canvas;
}

function facts(i) {
  const known = columns.filter(each => each.codes[i]);
  const rows = known.map(each => [each.name, value(each, i)]).concat(sizes[i] ? [["size", size(i)]] : []);
  return make("dl", {}, ...rows.flatMap(([name, text]) => [make("dt", {textContent: name}), make("dd", {textContent: text})]));
}

function entry(i, note) {
  const name = make("bdi", {}, ...short[i].split(/(?<=[/_-])/).flatMap(part => [part, make("wbr")])); // where a line may end
  const button = make("button", {className: "image", title: names[i], onclick: () => select(i)}, picture(i), ...note ? [make("span", {textContent: note})] : [], make("span", {className: "name"}, name));
  button.firstChild.style.borderBottom = `3px solid ${colourOf(column.codes[i])}`;
  button.onpointerenter = button.onfocus = () => { hovered = i; paintMarks(); };
  button.onpointerleave = button.onblur = () => { hovered = -1; paintMarks(); };
  return button;
}

// ---- how categories look: a colour, and another shape once the colours are used up ----

const SHAPES = [
  (c, r) => { c.arc(0, 0, r, 0, 7); c.fill(); },
  (c, r) => { c.arc(0, 0, r * .7, 0, 7); c.lineWidth = r * .6; c.stroke(); },
  (c, r) => { c.moveTo(0, -r); c.lineTo(r, r * .8); c.lineTo(-r, r * .8); c.fill(); },
];
const muted = () => getComputedStyle($("text")).color;
const colourOf = code => code ? palette[(code - 1) % palette.length] : muted();

function stamp(code, radius) {
  const size = 2 * Math.ceil(radius * ratio) + 2, canvas = make("canvas", {width: size, height: size});
  const c = canvas.getContext("2d"), shape = code && Math.floor((code - 1) / palette.length) % SHAPES.length;
  c.translate(size / 2, size / 2);
  c.fillStyle = c.strokeStyle = colourOf(code);
  SHAPES[shape](c, (code ? 1 : .7) * radius * ratio);
  return canvas;
}

// ---- painting ----

function repaint() {
  if (!due) requestAnimationFrame(() => { due = false; paint(); paintMarks(); });
  due = true;
}

function cleared(canvas) {
  const c = canvas.getContext("2d");
  c.setTransform(ratio, 0, 0, ratio, 0, 0);
  c.clearRect(0, 0, canvas.width, canvas.height);
  return c;
}

function paint() {
  const c = cleared(map), image = c.createImageData(map.width, map.height);
  paintDots(new Uint32Array(image.data.buffer), image.width, image.height);
  c.putImageData(image, 0, 0);
  pictured = [];
  if ($("pictures").ariaPressed === "true") paintPictures(c);
}

function paintDots(pixels, width, height) { // pixel by pixel, which is fast without a GPU, too
  const radius = Math.min(5, 1.6 + 60 / Math.sqrt(count)) * Math.min(1.8, (view.scale / fitting()) ** .3);
  const dots = [[], []], looks = palette.length * SHAPES.length;
  for (let i = 0; i < count; i++) {
    const code = column.codes[i] && (column.codes[i] - 1) % looks + 1;
    const dot = dots[shown[i]][code] ??= solid(stamp(code, radius), shown[i] ? .85 : .07); // others are a faint ground
    const x = Math.round(left(i) * ratio - dot.size / 2), y = Math.round(top_(i) * ratio - dot.size / 2);
    if (x < 0 || y < 0 || x + dot.size > width || y + dot.size > height) continue;
    for (let n = 0; n < dot.values.length; n++) {
      const at = (y + dot.rows[n]) * width + x + dot.columns[n];
      if (pixels[at] >>> 24 < dot.values[n] >>> 24) pixels[at] = dot.values[n]; // the less transparent one is on top
    }
  }
}

function solid(canvas, opacity) { // the pixels of a stamp that are not transparent
  const size = canvas.width, all = new Uint32Array(canvas.getContext("2d").getImageData(0, 0, size, size).data.buffer);
  const kept = [...all.keys()].filter(n => all[n] >>> 24);
  const values = kept.map(n => (all[n] & 0xffffff | (all[n] >>> 24) * opacity << 24) >>> 0);
  return {size, values, rows: kept.map(n => Math.floor(n / size)), columns: kept.map(n => n % size)};
}

function paintPictures(c) { // those that don't cover another, and larger the fewer there are
  const {clientWidth: width, clientHeight: height} = map;
  const inside = i => shown[i] && left(i) > 0 && left(i) < width && top_(i) > 0 && top_(i) < height;
  pictureSize = Math.min(LARGEST, Math.max(SMALLEST, Math.sqrt(width * height / mixed.filter(inside).length / 2)));
  const across = Math.ceil(width / pictureSize), taken = []; // the picture in each cell of a grid, of which no two fit in one
  for (const i of mixed) {
    const x = left(i), y = top_(i), cell = Math.floor(y / pictureSize) * across + Math.floor(x / pictureSize);
    if (taken[cell] !== undefined || !inside(i)) continue;
    const around = [-1, 0, 1].flatMap(n => [-1, 0, 1].map(m => taken[cell + n * across + m]));
    if (around.some(j => Math.abs(left(j) - x) < pictureSize && Math.abs(top_(j) - y) < pictureSize)) continue;
    taken[cell] = i;
    pictured.push(i);
    c.fillStyle = colourOf(column.codes[i]);
    c.fillRect(x - pictureSize / 2, y - pictureSize / 2, pictureSize - 2, pictureSize - 2);
    drawPicture(c, i, x - pictureSize / 2 + 2, y - pictureSize / 2 + 2, pictureSize - 6);
  }
}

function paintMarks() {
  const c = cleared(marks), ring = (i, radius) => { c.beginPath(); c.arc(left(i), top_(i), radius, 0, 7); c.stroke(); };
  c.strokeStyle = getComputedStyle(document.body).color;
  if (selected >= 0) {
    c.globalAlpha = .45;
    for (const i of neighbours(selected)) { c.beginPath(); c.moveTo(left(selected), top_(selected)); c.lineTo(left(i), top_(i)); c.stroke(); }
    for (const i of neighbours(selected)) ring(i, 6);
    c.globalAlpha = 1;
  }
  c.lineWidth = 2.5;
  for (const i of [selected, hovered]) if (i >= 0) ring(i, 9);
  if (!outline) return;
  c.lineWidth = 1.5;
  c.setLineDash([5, 4]);
  c.beginPath();
  for (const [x, y] of outline) c.lineTo(x, y);
  c.closePath();
  c.stroke();
}

// ---- the view ----

const fitting = () => .92 * Math.min(map.clientWidth / spread(xs), map.clientHeight / spread(ys));
const spread = values => Math.max(1, values.reduce((most, each) => Math.max(most, each), 0));

function showAll() {
  view.scale = fitting();
  view.x = (map.clientWidth - spread(xs) * view.scale) / 2;
  view.y = (map.clientHeight - spread(ys) * view.scale) / 2;
  repaint();
}

function zoom(factor, x = map.clientWidth / 2, y = map.clientHeight / 2) {
  const scale = Math.min(Math.max(view.scale * factor, fitting() / 2), fitting() * 300), change = scale / view.scale;
  Object.assign(view, {scale, x: x - (x - view.x) * change, y: y - (y - view.y) * change});
  repaint();
}

function resize() {
  const before = map.width;
  for (const canvas of [map, marks]) {
    canvas.width = $("ground").clientWidth * ratio;
    canvas.height = $("ground").clientHeight * ratio;
  }
  before === map.width ? repaint() : showAll();
}

// ---- what a pointer or a key means ----

function nearest(x, y, reach = Infinity) {
  let best = -1, least = reach ** 2;
  for (let i = 0; i < count; i++) {
    if (!shown[i]) continue;
    const distance = (left(i) - x) ** 2 + (top_(i) - y) ** 2;
    if (distance < least) [best, least] = [i, distance];
  }
  return best;
}

function pointed(x, y) { // the picture there, or the nearest image
  return pictured.find(i => Math.abs(left(i) - x) < pictureSize / 2 && Math.abs(top_(i) - y) < pictureSize / 2) ?? nearest(x, y, REACH);
}

function hover(i) {
  if (hovered !== i && i >= 0) tip.replaceChildren(picture(i), make("div", {textContent: short[i]}), make("small", {textContent: `${column.name}: ${value(column, i)}`}));
  hovered = i;
  tip.hidden = i < 0;
  if (i >= 0) {
    const {clientWidth: width, clientHeight: height} = map, x = left(i), y = top_(i);
    tip.style.left = `${Math.max(4, x + 18 + tip.offsetWidth > width ? x - 18 - tip.offsetWidth : x + 18)}px`;
    tip.style.top = `${Math.max(4, Math.min(y - 40, height - tip.offsetHeight - 4))}px`;
  }
  paintMarks();
}

function step(dx, dy) { // to the nearest image in a direction
  const from = hovered >= 0 ? hovered : nearest(map.clientWidth / 2, map.clientHeight / 2);
  let best = hovered < 0 ? from : -1, least = Infinity;
  for (let i = 0; i < count && hovered >= 0; i++) {
    const x = xs[i] - xs[from], y = ys[i] - ys[from], ahead = x * dx + y * dy, aside = Math.abs(x * dy) + Math.abs(y * dx);
    if (shown[i] && ahead > 0 && aside <= ahead && ahead + aside < least) [best, least] = [i, ahead + aside];
  }
  if (best < 0) return;
  const x = left(best), y = top_(best);
  view.x += Math.min(0, map.clientWidth - 60 - x) + Math.max(0, 60 - x);
  view.y += Math.min(0, map.clientHeight - 60 - y) + Math.max(0, 60 - y);
  repaint();
  hover(best);
}

const KEYS = {
  ArrowLeft: () => step(-1, 0), ArrowRight: () => step(1, 0), ArrowUp: () => step(0, -1), ArrowDown: () => step(0, 1),
  Enter: () => hovered >= 0 && select(hovered), Escape: () => hover(-1),
  "+": () => zoom(1.5), "-": () => zoom(1 / 1.5), "0": showAll,
};

function press(event) {
  map.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
  dragged = 0;
  const draws = ($("lasso").ariaPressed === "true" || event.shiftKey) && pointers.size === 1;
  outline = draws ? [[event.offsetX, event.offsetY]] : null;
}

function move(event) {
  const {offsetX: x, offsetY: y, pointerId} = event, before = pointers.get(pointerId);
  if (!before) return hover(pointed(x, y));
  dragged += Math.hypot(x - before[0], y - before[1]);
  const [other] = [...pointers].filter(([id]) => id !== pointerId).map(([, at]) => at);
  if (outline) outline.push([x, y]);
  else if (other) zoom(Math.hypot(x - other[0], y - other[1]) / Math.max(1, Math.hypot(before[0] - other[0], before[1] - other[1])), ...other);
  else Object.assign(view, {x: view.x + x - before[0], y: view.y + y - before[1]});
  pointers.set(pointerId, [x, y]);
  outline ? paintMarks() : repaint();
  if (dragged > 4) hover(-1);
}

function release(event) {
  pointers.delete(event.pointerId);
  const drawn = outline, found = pointed(event.offsetX, event.offsetY);
  outline = null;
  if (dragged <= 4 && found >= 0) select(found);
  else if (drawn && dragged > 4) listImages("Lasso", [...shown.keys()].filter(i => within(drawn, left(i), top_(i))));
  paintMarks();
}

function within(corners, x, y) { // by the number of sides to the right of the point
  return corners.reduce((inside, [ax, ay], n) => {
    const [bx, by] = corners[(n || corners.length) - 1];
    return (ay > y) !== (by > y) && x < (bx - ax) * (y - ay) / (by - ay) + ax ? !inside : inside;
  }, false);
}

// ---- the list ----

function list(heading, text, groups, about = -1) {
  const again = refreshing;
  [listed, drawn, selected, relist] = [groups, 0, about, null];
  $("heading").textContent = heading;
  $("text").textContent = text;
  $("about").replaceChildren(...about < 0 ? [] : [picture(about), make("div", {}, make("b", {textContent: short[about]}), facts(about))]);
  $("list").className = groups.some(group => group.images.length > 1) ? "pairs" : "";
  $("list").replaceChildren();
  $("save").hidden = !groups.length;
  more();
  paintMarks();
  if (again) return; // nobody asked for it now
  $("panel").scrollTop = 0;
  if (groups.length && getComputedStyle($("panel")).overflowY === "visible") $(about < 0 ? "heading" : "about").scrollIntoView({block: "start"});
}

function more() {
  const next = listed.slice(drawn, drawn += AT_ONCE);
  $("list").append(...next.map(({images, note}) => make("li", images.length ? {} : {className: "limit", textContent: note}, ...images.map((i, n) => entry(i, n ? "\u00a0" : note)))));
  $("more").hidden = drawn >= listed.length;
}

const images = number => `${number.toLocaleString("en")} image${number === 1 ? "" : "s"}`;

function listImages(heading, rows) { // those that the filter and the legend leave, also when these change
  const left = rows.filter(i => shown[i]);
  list(`${heading}: ${images(left.length)}`, "", left.map(i => ({images: [i], note: ""})));
  relist = () => listImages(heading, rows);
}

function select(i) {
  const groups = [...neighbours(i)].map((j, n) => ({images: [j], note: similarity(i, n).toFixed(3)}));
  list("Nearest images", `The ${perImage} that are most similar to this one, with the cosine similarity of their features. Only the ranking matters; the values themselves differ between encoders.`, groups, i);
}

function tiny(i, c) { // 8 x 8 pixels of a picture, RGBA
  drawPicture(c, i, 0, 0, 8);
  return c.getImageData(0, 0, 8, 8).data;
}

function duplicates() { // an encoder finds different planes in a blue sky alike, and pixels tell them from copies
  const pairs = [], c = make("canvas", {width: 8, height: 8}).getContext("2d", {willReadFrequently: true});
  for (const i of visible()) {
    neighbours(i).forEach((j, n) => { // each pair once: from the lower number, or from the one that lists the other
      if (shown[j] && (i < j || !neighbours(j).includes(i))) pairs.push({images: [i, j], alike: similarity(i, n)});
    });
  }
  pairs.sort((a, b) => b.alike - a.alike).length = Math.min(pairs.length, 5 * RANKED);
  for (const pair of pairs) {
    const [a, b] = pair.images.map(i => tiny(i, c));
    const levels = a.reduce((sum, each, n) => sum + Math.abs(each - b[n]), 0) / 192; // 8 x 8 pixels of 3 colours
    pair.apart = (1 - pair.alike) * levels;
    pair.copies = pair.alike >= ALIKE && levels < LEVELS;
  }
  pairs.sort((a, b) => b.copies - a.copies || a.apart - b.apart);
  const copies = pairs.filter(pair => pair.copies).length, limit = {images: [], note: copies ? "The pairs below are similar, but not copies." : "There are no copies. These pairs are the most similar ones."};
  const groups = pairs.slice(0, RANKED).map(({images, apart, copies}) => ({images, note: apart.toFixed(4), kind: copies ? "copy" : "similar"}));
  if (copies < groups.length) groups.splice(copies, 0, limit);
  list("Possible duplicates", "Pairs of the images shown, copies first. The number tells how much they differ: 1 minus the similarity of their features, times the mean difference of their pixels (0 to 255).", groups);
}

function outliers() {
  const scores = visible().map(i => [neighbours(i).reduce((sum, _, n) => sum + similarity(i, n), 0) / perImage, i]);
  scores.sort((a, b) => a[0] - b[0]);
  const groups = scores.slice(0, Math.min(RANKED, Math.ceil(ODD * scores.length))).map(([value, i]) => ({images: [i], note: value.toFixed(3)}));
  list("Outliers", `Of ${images(scores.length)}, the ${groups.length} that are least similar to any other, with the mean similarity to their ${perImage} nearest.`, groups);
}

function save() { // pairs as a table, and others as names, one in each line
  const groups = listed.filter(group => group.images.length), pairs = groups.some(group => group.images.length > 1);
  const both = name => [`${name} 1`, `${name} 2`], known = i => sizes[i] ? [sizes[i].slice(0, 2).join("x"), sizes[i][2]] : ["", ""];
  const header = [...both("file"), "difference", "kind", ...both("pixels"), ...both("bytes")];
  const rows = groups.map(({images: [a, b], note, kind}) => {
    const [first, second] = pairs ? [known(a), known(b)] : [];
    return pairs ? [names[a], names[b], note, kind, first[0], second[0], first[1], second[1]] : [names[a]];
  });
  const lines = (pairs ? [header, ...rows] : rows).map(row => row.join("\t") + "\n");
  make("a", {href: URL.createObjectURL(new Blob(lines, {type: "text/plain"})), download: pairs ? "duplicates.tsv" : "images.txt"}).click();
}

// ---- what is shown ----

function filter() {
  const text = $("filter").value.toLowerCase();
  for (let i = 0; i < count; i++) shown[i] = lower[i].includes(text) && (!only.size || only.has(column.codes[i]));
  $("count").textContent = `${visible().length.toLocaleString("en")} of ${images(count)} shown`;
  refreshing = true;
  relist?.();
  refreshing = false;
  hover(-1);
  repaint();
}

function named(code) { // a category that is a number says of what
  const name = code ? column.categories[code - 1] : "none";
  return /^\d+$/.test(name) ? `${column.name} ${name}` : name;
}

function legend() {
  const totals = new Map();
  for (const code of column.codes) totals.set(code, (totals.get(code) ?? 0) + 1);
  $("legend").replaceChildren(...[...totals].sort(([a], [b]) => a - b).map(([code, total]) => {
    const button = make("button", {ariaPressed: only.has(code)}, stamp(code, 5), `${named(code)} `, make("small", {textContent: `(${total.toLocaleString("en")})`}));
    button.onclick = () => {
      button.ariaPressed = !only.delete(code) && Boolean(only.add(code));
      filter();
    };
    return make("li", {}, button);
  }));
}

function colour() {
  column = columns[$("colour").value];
  only.clear();
  legend();
  filter();
  drawn = 0; // the list has the colours, too
  $("list").replaceChildren();
  more();
}

function toggle(event) {
  event.target.ariaPressed = event.target.ariaPressed !== "true";
  map.classList.toggle("lasso", $("lasso").ariaPressed === "true");
  repaint();
}

addEventListener("load", async () => {
  sheets = await Promise.all([...$("sheets").children].map(image => createImageBitmap(image)));
  $("sheets").remove();
  $("colour").append(...columns.map((each, n) => make("option", {value: n, textContent: each.name})));
  const clicks = {lasso: toggle, pictures: toggle, duplicates, outliers, save, more, all: showAll, in: () => zoom(1.5), out: () => zoom(1 / 1.5)};
  for (const [id, action] of Object.entries(clicks)) $(id).onclick = action;
  $("shown").onclick = () => listImages("Shown", [...shown.keys()]);
  $("filter").oninput = filter;
  $("colour").onchange = colour;
  Object.assign(map, {onpointerdown: press, onpointermove: move, onpointerup: release, onpointerleave: () => hover(-1)});
  map.onpointercancel = event => pointers.delete(event.pointerId);
  map.onkeydown = event => {
    if (!(event.key in KEYS)) return;
    event.preventDefault();
    KEYS[event.key]();
  };
  map.addEventListener("wheel", event => {
    event.preventDefault();
    zoom(1.0015 ** -event.deltaY, event.offsetX, event.offsetY);
    hover(pointed(event.offsetX, event.offsetY));
  }, {passive: false});
  matchMedia("(prefers-color-scheme: dark)").onchange = () => { legend(); repaint(); };
  new ResizeObserver(resize).observe($("ground"));
  resize();
  colour();
  list("Look closer", "Point at an image to see it, and click to see its nearest images. Drag to move the map, and use the wheel or two fingers to zoom. With the lasso on, or with Shift, a drag selects images.", []);
});
