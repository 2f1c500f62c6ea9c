"""Style and script of the report's HTML page: kept in the page itself, so that it opens anywhere, offline."""

STYLE = """
:root { color-scheme: light dark;
  --ground: #f6f7f8; --card: #ffffff; --ink: #1b1f23; --faint: #5b646d; --line: #d8dde2; --accent: #0b66c3;
  --alarm: #a32113; --alarm-ground: #fdecea; --tall: 21rem; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #14171a; --card: #1d2125; --ink: #e6e9ec; --faint: #a2abb4; --line: #353b42; --accent: #6db3f8;
  --alarm: #ffab9c; --alarm-ground: #3a1e1a; } }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0 auto; max-width: 96rem; padding: 1.25rem clamp(.75rem, 2.5vw, 2.5rem) 3rem;
  background: var(--ground); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .75rem; }
h3 { font-size: .95rem; margin: 0 0 .4rem; }
p { margin: .3rem 0; }
.over { color: var(--faint); margin: 0 0 .15rem; }
.lead, .hint { color: var(--faint); max-width: 60rem; }
.lead { overflow-wrap: anywhere; }
.warnings { background: var(--alarm-ground); border-left: 4px solid var(--alarm); border-radius: 4px;
  color: var(--alarm); margin: 1rem 0; padding: .6rem 1rem; overflow-wrap: anywhere; }
.warnings ul { margin: .2rem 0 0; padding-left: 1.2rem; }
.tiles { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); margin: 1.25rem 0 0;
  padding: 0; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .55rem .8rem; }
.tiles dt { color: var(--faint); font-size: .85rem; }
.tiles dd { margin: 0; }
.tiles .value { font-size: 1.25rem; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.3; }
.tiles .detail { color: var(--faint); font-size: .85rem; }
.tiles .alarming { border-color: var(--alarm); }
.tiles .alarming .value { color: var(--alarm); }
.gallery { display: grid; gap: 1rem; grid-template-columns: repeat(2, minmax(0, 1fr)); }
figure { margin: 0; background: #101214; color: #e8e8e8; border: 1px solid var(--line); border-radius: 6px;
  overflow: hidden; display: flex; flex-direction: column; }
.planes { display: flex; gap: 4px; align-items: center; justify-content: center; padding: 4px 4px 0; margin: 0 auto;
  width: 100%; max-width: calc(var(--tall) * var(--across)); }
.panel { position: relative; flex: var(--width) var(--width) 0; min-width: 0; }
.panel img { display: block; width: 100%; height: 100%; position: absolute; inset: 0; }
.panel::before { content: ""; display: block; padding-top: calc(100% * var(--ratio)); }
.panel span { position: absolute; color: #ffe36e; font: 600 12px/1 system-ui, sans-serif; text-shadow: 0 0 3px #000,
  0 0 3px #000; }
.panel .t { top: 4px; left: 0; right: 0; text-align: center; }
.panel .b { bottom: 4px; left: 0; right: 0; text-align: center; }
.panel .r { right: 4px; top: calc(50% - 6px); }
.panel .l { left: 4px; top: calc(50% - 6px); }
.gallery .panel .b, .gallery .panel .r { display: none; }
.store { position: absolute; width: 0; height: 0; }
.layer { position: absolute; inset: 0; width: 100%; height: 100%; pointer-events: none; fill: none; stroke-width: 1.2;
  stroke-linejoin: round; stroke-linecap: round; }
.layer.grid { stroke-width: .8; }
.halo { stroke: #000; stroke-opacity: .7; stroke-width: 2.6; }
.no-outlines .outline { display: none; }
figcaption { padding: .5rem .8rem .6rem; display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: .2rem 1.25rem;
  align-items: start; }
figcaption h3 { margin: 0; align-self: center; }
figcaption p { color: #b5b5b5; font-size: .85rem; margin: 0; grid-area: 2 / 1; }
figcaption p:last-child { grid-column: 1 / -1; }
figcaption button { background: #25292e; color: #d5d9dd; border-color: #454b52; font-size: .8rem; padding: .05rem .6rem;
  justify-self: end; grid-area: 1 / 2; }
.bar { grid-area: 2 / 2; width: 10rem; font-size: .78rem; padding-top: .25rem; }
.bar i { display: block; height: 10px; border: 1px solid #555; print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
.bar b { font-weight: 400; display: flex; justify-content: space-between; font-variant-numeric: tabular-nums; }
.enlargeable { cursor: zoom-in; }
.enlarged { position: fixed; inset: 0; z-index: 9; border-radius: 0; --tall: calc(100vh - 6rem); cursor: zoom-out;
  overflow: auto; border: 0; }
.enlarged .planes { margin: auto; }
.enlarged figcaption { width: 100%; max-width: 70rem; margin: 0 auto; }
.compare { --tall: 30rem; }
.enlarged .panel span { display: inline !important; font-size: 15px; }
button, input, label { font: inherit; }
button { background: var(--card); color: var(--ink); border: 1px solid var(--line); border-radius: 5px;
  padding: .25rem .75rem; cursor: pointer; }
button[aria-pressed=true] { background: var(--accent); border-color: var(--accent); color: var(--card); }
.key [data-script] { margin-left: auto; }
.controls { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; align-items: center; margin: 0 0 .75rem; }
.controls fieldset { border: 0; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem .9rem; }
.controls legend { float: left; padding: 0; margin-right: .9rem; color: var(--faint); }
.slide { display: flex; gap: .6rem; align-items: center; flex: 1 1 16rem; max-width: 30rem; }
.slide input { flex: 1; min-width: 6rem; accent-color: var(--accent); }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; align-items: center; margin: .6rem 0 .75rem; padding: 0;
  list-style: none; }
.key i { display: inline-block; width: 1.4rem; border-top: 3px solid; margin-right: .4rem; vertical-align: middle;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.tables { columns: 3 22rem; column-gap: 1rem; }
.table { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem .6rem;
  margin: 0 0 1rem; break-inside: avoid; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
caption { text-align: left; font-weight: 600; font-size: .95rem; padding-bottom: .3rem; }
th { font-weight: 400; color: var(--faint); text-align: left; }
td, thead th { text-align: right; font-variant-numeric: tabular-nums; }
thead th:first-child { text-align: left; }
thead th[colspan] { text-align: center; }
td, th { padding: .22rem 0 .22rem .9rem; border-top: 1px solid var(--line); vertical-align: top; }
td:first-child, th:first-child { padding-left: 0; }
thead tr:first-child th { border-top: 0; }
caption + tbody tr:first-child > * { border-top: 0; }
td { overflow-wrap: anywhere; }
.numbers td { overflow-wrap: normal; white-space: nowrap; }
.words td, .words thead th { text-align: left; }
.words th:first-child { width: 8rem; }
tr.mean td, tr.mean th { font-weight: 600; color: var(--ink); }
dl.reading { display: grid; grid-template-columns: max-content 1fr; gap: .4rem 1.25rem; max-width: 72rem; margin: 0; }
dl.reading dt { font-weight: 600; }
dl.reading dd { margin: 0; }
footer { color: var(--faint); font-size: .85rem; margin-top: 2rem; }
@media screen and (max-width: 760px) {
  .compare .planes, .enlarged .planes { flex-wrap: wrap; }
  .compare .panel, .enlarged .panel { flex: 0 0 calc(100% * var(--part)); }
  .compare .planes, .enlarged .planes { max-width: none; }
  .wide table { font-size: .74rem; }
  .wide td, .wide th { padding-left: .3rem; }
  .words th:first-child { width: 5rem; }
  .gallery { grid-template-columns: minmax(0, 1fr); }
  dl.reading { grid-template-columns: 1fr; gap: .1rem; }
  dl.reading dd { margin-bottom: .5rem; }
  .tables { columns: 1; }
}
@media print {
  :root { color-scheme: light; --ground: #fff; --card: #fff; --ink: #000; --faint: #444; --line: #bbb; --tall: 3.1in; }
  body { font-size: 10pt; padding: 0; max-width: none; }
  .compare, .hint, .key label, button { display: none !important; }
  .gallery { gap: .12in; }
  .bar { width: 6.5rem; }
  .tables { columns: 2; }
  table, figcaption p { font-size: 8.5pt; }
  .layer { stroke-width: .7; }
  .layer.grid { stroke-width: .4; }
  .halo { stroke-width: 1.6; }
  .tiles { grid-template-columns: repeat(4, 1fr); }
  figure, .tiles div { break-inside: avoid; }
  figure { background: #fff; color: #000; }
  figcaption p { color: #333; }
  h2 { break-after: avoid; }
}
"""

SCRIPT = """
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const figures = all('.gallery figure');
  let enlarged = null;
  const enlarge = figure => {
    enlarged = figure;
    document.documentElement.style.overflow = figure ? 'hidden' : '';
    for (const other of figures) {
      other.classList.toggle('enlarged', other === figure);
      other.querySelector('button').textContent = other === figure ? 'Close' : 'Enlarge';
    }
    if (figure) figure.querySelector('button').focus({ preventScroll: true });
  };
  for (const figure of figures) {
    figure.classList.add('enlargeable');
    figure.addEventListener('click', () => enlarge(enlarged === figure ? null : figure));
  }
  document.addEventListener('keydown', event => {
    if (event.key === 'Escape') enlarge(null);
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (enlarged && step) {
      event.preventDefault();
      enlarge(figures[(figures.indexOf(enlarged) + step + figures.length) % figures.length]);
    }
  });

  const outlines = document.getElementById('outlines');
  if (outlines) outlines.addEventListener('change', () =>
    document.body.classList.toggle('no-outlines', !outlines.checked));

  const compare = document.getElementById('compare');
  const source = key => all(`#${key} .panel > img`);
  const panels = all('.panel', compare);
  const tops = panels.map((panel, index) => {
    const below = new Image(), top = new Image();
    below.src = source('fixed')[index].src;
    below.alt = source('fixed')[index].alt;
    panel.prepend(below, top);
    return top;
  });
  const slider = document.getElementById('mix'), flicker = document.getElementById('flicker');
  const choice = name => document.querySelector(`input[name=${name}]:checked`).value;
  const show = part => {
    const curtain = choice('way') === 'curtain' && !timer;
    tops.forEach(top => {
      top.style.opacity = curtain ? 1 : part;
      top.style.clipPath = curtain ? `inset(0 ${100 - 100 * part}% 0 0)` : 'none';
    });
  };
  let timer = null, shown = false;
  const refresh = () => {
    const key = choice('with');
    tops.forEach((top, index) => {
      top.src = source(key)[index].src;
      top.alt = source(key)[index].alt;
    });
    document.getElementById('second').textContent = key;
    show(slider.value / 100);
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    flicker.setAttribute('aria-pressed', 'false');
    show(slider.value / 100);
  };
  flicker.addEventListener('click', () => {
    if (timer) return stop();
    flicker.setAttribute('aria-pressed', 'true');
    timer = setInterval(() => show((shown = !shown) ? 1 : 0), 500);
  });
  slider.addEventListener('input', () => timer ? stop() : show(slider.value / 100));
  all('.compare input[type=radio]').forEach(radio => radio.addEventListener('change', refresh));
  refresh();
  all('[data-script]').forEach(element => { element.hidden = false; });
})();
"""
