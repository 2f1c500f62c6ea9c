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
