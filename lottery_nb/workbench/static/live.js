// Shows Plotly figures that grow: Python sends each chart whole once, then only what is new.
// One model may have several views (the same cell shown twice, two tabs): they share the charts, each draws for itself.

const LOOK = {  // Plotly's colours, from those of the page
  ink: ['--jp-ui-font-color1', '#212121', '#e0e0e0'],
  soft: ['--jp-ui-font-color2', '#616161', '#9e9e9e'],
  grid: ['--jp-border-color2', '#e0e0e0', '#424242'],
  paper: ['--jp-layout-color0', '#ffffff', '#111111'],
};

function isDark() {
  const said = document.body.dataset.jpThemeLight;
  return said ? said === 'false' : matchMedia('(prefers-color-scheme: dark)').matches;
}

function colour(name) {
  const [variable, light, dark] = LOOK[name];
  return getComputedStyle(document.body).getPropertyValue(variable).trim() || (isDark() ? dark : light);
}

// ---- Plotly itself: it comes gzipped with the widget, so the page needs no network, and is unpacked once a page.

async function unpack(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  const code = await new Response(stream).text();
  const hidden = 'const module = undefined, exports = undefined, define = undefined;\n';  // it must not find a module loader
  const url = URL.createObjectURL(new Blob([hidden, code], { type: 'text/javascript' }));
  const before = globalThis.Plotly;
  await import(url);
  URL.revokeObjectURL(url);
  const mine = globalThis.Plotly;
  if (before) globalThis.Plotly = before;
  return mine;
}

const plotly = bytes => (globalThis.lotteryPlotly ??= unpack(bytes));

// ---- The charts of a model, as Python last sent them.

// Numbers travel as float64 in binary buffers, as {"$": index of the buffer}; everything else as JSON.
function numbers(value, buffers) {
  if (!value || typeof value !== 'object' || !('$' in value)) return value;
  const view = buffers[value.$];
  const bytes = view.buffer ? view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength) : view;
  return Array.from(new Float64Array(bytes));
}

function put(trace, path, value) {  // 'error_y.array' -> trace.error_y.array
  const names = path.split('.');
  const last = names.pop();
  let at = trace;
  for (const name of names) at = at[name] ??= {};
  at[last] = value;
}

function read(trace, path) {
  return path.split('.').reduce((at, name) => at?.[name], trace);
}

function apply(charts, message, buffers) {
  const touched = [];
  for (const change of message.charts) {
    touched.push(change.name);
    if (change.whole) {
      const { traces, ...chart } = change.whole;
      chart.data = traces.map(({ props, arrays }) => {
        const trace = {};
        for (const [path, value] of Object.entries(props)) put(trace, path, value);
        for (const [path, value] of Object.entries(arrays)) put(trace, path, numbers(value, buffers));
        return trace;
      });
      charts.set(change.name, chart);
      continue;
    }
    const chart = charts.get(change.name);
    for (const [trace, path, from, left, value] of change.splices) {  // from `from` on, all but the last `left` are replaced
      const old = read(chart.data[trace], path);
      const tail = left ? old.slice(old.length - left) : [];
      put(chart.data[trace], path, old.slice(0, from).concat(numbers(value, buffers), tail));
    }
    for (const [trace, path, value] of change.props) put(chart.data[trace], path, value);
    for (const [key, value] of Object.entries(change.layout)) value === null ? delete chart.layout[key] : (chart.layout[key] = value);
  }
  return touched;
}

// ---- Drawing.

function template() {
  const axis = { gridcolor: colour('grid'), linecolor: colour('grid'), zerolinecolor: colour('grid'), automargin: true };
  const bar = { outlinewidth: 0, thickness: 10 };
  return {
    layout: {
      paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', font: { color: colour('ink') }, xaxis: axis, yaxis: axis,
      hoverlabel: { bgcolor: colour('paper'), bordercolor: colour('grid'), font: { color: colour('ink') } },
      modebar: { bgcolor: 'rgba(0,0,0,0)', color: colour('soft'), activecolor: colour('ink') },
    },
    data: { heatmap: [{ colorbar: bar }] },
  };
}

let revision = 0;  // tells Plotly that arrays have changed

function layoutOf(name, chart) {
  const { title, height, width, ...layout } = chart.layout;
  return { ...layout, template: template(), autosize: true, uirevision: `${name} ${chart.data.length > 0}`, datarevision: ++revision };
}

async function save(name, chart, bytes) {
  const Plotly = await plotly(bytes);
  const lines = chart.subtitle.split(' · ');  // as the figure had them below each other
  const title = { text: chart.title, subtitle: { text: lines.join('<br>') } };
  const paper = { paper_bgcolor: colour('paper'), plot_bgcolor: colour('paper') };
  const layout = { ...layoutOf(name, chart), ...paper, title, margin: { ...chart.layout.margin, t: 74 + 16 * lines.length } };
  const uri = await Plotly.toImage({ data: chart.data, layout }, { format: 'png', width: 900, height: 560, scale: 2 });
  Object.assign(document.createElement('a'), { href: uri, download: `${name}.png` }).click();
}

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) key === 'click' ? node.addEventListener(key, value) : node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// A card: title, buttons that the keyboard reaches, the plot in a box whose size does not depend on its content.
function card(name, state, bytes) {
  const chart = () => state.charts.get(name);
  const plot = make('div', { class: 'lottery-plot', role: 'img' });
  const title = make('h3'), subtitle = make('p');
  const reset = make('button', { type: 'button', title: 'Show the whole plot again', 'aria-label': 'Reset the view', click: () => reframe(plot) }, 'Reset');
  const picture = make('button', { type: 'button', title: 'Save the plot as a PNG picture', 'aria-label': 'Save as a picture', click: () => save(name, chart(), bytes) }, 'Save');
  const node = make('section', { class: 'lottery-card', 'data-chart': name }, make('header', {}, title, reset, picture, subtitle), plot);
  return { node, plot, title, subtitle };
}

async function reframe(plot) {
  const Plotly = await globalThis.lotteryPlotly;
  const layout = plot.layout;
  layout.uirevision = `${Date.now()}`;  // forget what was zoomed
  await Plotly.react(plot, plot.data, { ...layout, ...plot.whole });
}

async function paint(view, name, state, bytes) {
  const Plotly = await plotly(bytes);
  const chart = state.charts.get(name);
  let shown = view.cards.get(name);
  if (!shown) {
    shown = card(name, state, bytes);
    view.cards.set(name, shown);
  }
  shown.title.textContent = chart.title;
  shown.subtitle.textContent = shown.subtitle.title = chart.subtitle;
  shown.node.style.gridColumn = chart.wide ? '1 / -1' : '';
  shown.plot.style.height = `${chart.height}px`;
  shown.plot.setAttribute('aria-label', `${chart.title}: ${chart.label}`);
  if (shown.node.parentNode !== view.grid) {
    view.grid.append(shown.node);
    view.size.observe(shown.plot);
  }
  const layout = layoutOf(name, chart);
  shown.plot.whole = Object.fromEntries(Object.entries(structuredClone(chart.layout)).filter(([key]) => /^[xy]axis/.test(key)));
  await Plotly.react(shown.plot, chart.data, structuredClone(layout), { displaylogo: false, responsive: true });
}

// Draw what changed in the group of charts that is shown; not while nobody can see it.
function draw(view, state, model) {
  if (view.queued || document.hidden) return;
  view.queued = true;
  requestAnimationFrame(async () => {
    try {
      const group = view.grid.dataset.group = model.get('group');
      const wanted = [...state.charts].filter(([, chart]) => chart.group === group).map(([name]) => name);
      for (const [name, shown] of view.cards) shown.node.hidden = !wanted.includes(name);
      const now = wanted.filter(name => view.dirty.delete(name));
      for (const name of now) await paint(view, name, state, model.get('plotly_js'));
      wanted.forEach((name, place) => { if (view.cards.has(name)) view.cards.get(name).node.style.order = place; });  // Python's order
      view.note.textContent = wanted.length ? '' : state.heard ? '' : 'Waiting for the charts from the kernel …';
    } catch (error) {
      view.note.textContent = `The charts cannot be drawn: ${error.message}. They need JupyterLab 4, Notebook 7 or Voilà in a browser of 2023 or newer.`;
    } finally {
      view.queued = false;
    }
    if (view.again) { view.again = false; draw(view, state, model); }
  });
}

// ---- The panel around the charts.

// Call `then` with the panel that a view stands in, once it stands there; charts on their own stand in none.
function within(el, then, tries = 600) {
  const bench = el.closest('.lottery-bench');
  if (bench) then(bench);
  else if (tries) requestAnimationFrame(() => within(el, then, tries - 1));
}

// What ipywidgets leaves out for those who hear a page: names of sliders, and whether a heading is open.
function announce(bench) {
  for (const slider of bench.querySelectorAll('.lottery-field .widget-slider')) {
    const label = slider.querySelector('.widget-label')?.textContent ?? '';
    slider.querySelector('[role=slider]')?.setAttribute('aria-label', label);
    slider.querySelector('.widget-readout')?.setAttribute('aria-label', `${label}, as a number`);
  }
  for (const head of bench.querySelectorAll('.lottery-fold > button')) head.setAttribute('aria-expanded', head.classList.contains('mod-active'));
}

function freeze(bench, gone) {
  for (const part of bench.querySelectorAll('.lottery-bar, .lottery-side')) part.inert = gone;
}

export default () => {
  const state = { charts: new Map(), seq: -1, heard: false, gone: false };
  const views = new Set();
  const redraw = (model, names) => {
    for (const view of views) {
      for (const name of names) view.dirty.add(name);
      if (view.queued) view.again = true;
      draw(view, state, model);
    }
  };
  const say = gone => {
    state.gone = gone;
    for (const view of views) {
      view.gone.hidden = !gone;
      within(view.el, bench => freeze(bench, state.gone));
    }
  };

  function initialize({ model }) {
    const ask = () => { if (!state.gone) model.send({ ask: 'all' }); };
    model.on('msg:custom', (message, buffers) => {
      if (message.charts === undefined) return;
      if (!message.all && message.seq !== state.seq + 1) return message.seq > state.seq ? ask() : undefined;  // something was missed
      if (message.all) state.charts.clear();
      state.seq = message.seq;
      state.heard = true;
      say(false);
      redraw(model, apply(state.charts, message, buffers ?? []));
    });
    model.on('change:group', () => redraw(model, []));
    model.on('comm:close', () => say(true));
    // ipywidgets marks the views of a model whose kernel has gone by a class; the model itself is not shown to us.
    model.on('comm_live_update', () => setTimeout(() => say([...views].some(view => view.el.closest('.jupyter-widgets-disconnected'))), 0));
    let tries = 0;
    const first = setInterval(() => { state.heard || ++tries > 20 ? clearInterval(first) : ask(); }, 3000);
    ask();
    return () => clearInterval(first);
  }

  function render({ model, el }) {
    const note = make('p', { class: 'lottery-note', role: 'status' });
    const gone = make('p', { class: 'lottery-gone', role: 'alert' }, 'The kernel of this view is gone: what it shows is its last state. The run goes on by itself; run the cell again to come back to it.');
    const grid = make('div', { class: 'lottery-grid' });
    gone.hidden = !state.gone;
    el.classList.add('lottery-live');
    el.append(gone, note, grid);
    const named = new MutationObserver(() => within(el, announce));
    within(el, bench => {
      bench.prepend(gone);  // above all, not above the charts
      announce(bench);
      named.observe(bench.querySelector('.lottery-side') ?? bench, { childList: true, subtree: true, attributeFilter: ['class'] });
      freeze(bench, state.gone);
    });
    const size = new ResizeObserver(changes => {
      for (const { target } of changes) if (target.data && target.offsetParent) plotly().then(Plotly => Plotly.Plots.resize(target)).catch(() => {});  // hidden meanwhile
    });
    const view = { el, grid, note, gone, size, cards: new Map(), dirty: new Set(state.charts.keys()), queued: false, again: false };
    views.add(view);
    const all = () => redraw(model, [...state.charts.keys()]);
    const here = () => { if (!document.hidden && !state.gone) model.send({ ask: 'here' }); };
    const back = () => { if (!document.hidden) { here(); redraw(model, []); } };
    const beat = setInterval(here, 20000);
    const theme = new MutationObserver(all);
    theme.observe(document.body, { attributes: true, attributeFilter: ['data-jp-theme-light', 'data-jp-theme-name'] });
    document.addEventListener('visibilitychange', back);
    here();
    all();
    return () => {
      views.delete(view);
      clearInterval(beat);
      theme.disconnect();
      named.disconnect();
      gone.remove();
      size.disconnect();
      document.removeEventListener('visibilitychange', back);
      plotly().then(Plotly => { for (const { plot } of view.cards.values()) Plotly.purge(plot); });
    };
  }

  return { initialize, render };
};
