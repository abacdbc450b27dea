"""The page's style sheet and script. Nothing is loaded from anywhere: both stand in the page."""

CSS = """
:root { --ink:#1c2430; --soft:#5d6878; --line:#dfe4ea; --back:#f5f7f9; --card:#fff; --accent:#2f6fde; --good:#1f8a5d;
  --bad:#c0392b; }
* { box-sizing:border-box; }
body { margin:0; background:var(--back); color:var(--ink); font:15px/1.55 system-ui,"Segoe UI",Roboto,sans-serif; }
header { background:#16202e; color:#fff; padding:34px 0 28px; }
header p { color:#b9c4d3; margin:6px 0 0; max-width:70ch; }
h1 { font-size:27px; margin:0; letter-spacing:-.01em; }
main, header > div, nav > div { max-width:1240px; margin:0 auto; padding:0 24px; }
nav { background:#fff; border-bottom:1px solid var(--line); position:sticky; top:0; z-index:5; }
nav > div { display:flex; gap:20px; overflow-x:auto; }
nav a { color:var(--soft); text-decoration:none; padding:11px 0; font-size:14px; white-space:nowrap; }
nav a:hover { color:var(--accent); }
section { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:22px 26px; margin:22px 0; }
h2 { font-size:19px; margin:0 0 4px; } h3 { font-size:15px; margin:22px 0 6px; }
.lead { color:var(--soft); margin:0 0 14px; max-width:85ch; }
.tiles { display:flex; flex-wrap:wrap; gap:14px; margin:22px 0 0; }
.tile { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:13px 20px; min-width:130px; }
.tile b { display:block; font-size:23px; font-variant-numeric:tabular-nums; line-height:1.25; }
.tile span { color:var(--soft); font-size:13px; }
.scroll { overflow-x:auto; }
table { border-collapse:collapse; font-variant-numeric:tabular-nums; font-size:14px; }
.results th, .results td { padding:6px 10px; text-align:right; border-bottom:1px solid var(--line); white-space:nowrap; }
.results th:first-child { text-align:left; font-weight:500; } .results thead th { color:var(--soft); font-weight:600; }
.results td.best { font-weight:700; } .results small { display:block; color:var(--soft); font-size:11.5px; font-weight:400; }
.results tr.total td, .results tr.total th { border-top:2px solid var(--ink); font-weight:600; }
.up { color:var(--good); } .down { color:var(--bad); } .even { color:var(--soft); }
.heatmap td, .heatmap th { padding:6px 9px; text-align:center; font-size:13px; } .heatmap th { font-weight:500; }
.heatmap tr > th:first-child { text-align:right; color:var(--soft); } .heatmap .corner { font-size:11.5px; color:var(--soft); }
.heatmap td { border:2px solid #fff; border-radius:5px; min-width:54px; } .heat { color:#16202e; }
.empty { background:#f0f2f5; } .row-flex { display:flex; flex-wrap:wrap; gap:26px; align-items:flex-start; }
figure { margin:0; } figcaption { color:var(--soft); font-size:13px; margin:2px 0 6px; }
svg { max-width:100%; height:auto; } svg text { fill:var(--ink); font-family:inherit; }
.grid { stroke:#e8ecf0; } .axis { stroke:#8793a3; } .tick { font-size:11px; fill:var(--soft) !important; }
.label { font-size:12px; fill:var(--soft) !important; } .row { font-size:13.5px; } .dot { fill:#8793a3; opacity:.45; }
line.good { stroke:var(--good); } line.bad { stroke:var(--bad); } line.unclear { stroke:#8793a3; }
circle.good { fill:var(--good); } circle.bad { fill:var(--bad); } circle.unclear { fill:#67727f; }
.mean { stroke:#fff; stroke-width:1.5; }
.legend { margin:4px 0 8px; } .key { margin-right:16px; font-size:13px; color:var(--soft); white-space:nowrap; }
.key i { display:inline-block; width:11px; height:11px; border-radius:3px; margin-right:6px; }
.tabs button { border:1px solid var(--line); background:#fff; padding:5px 14px; font:inherit; font-size:13px; cursor:pointer; }
.tabs button:first-child { border-radius:7px 0 0 7px; } .tabs button:last-child { border-radius:0 7px 7px 0; }
.tabs button[aria-pressed=true] { background:var(--accent); color:#fff; border-color:var(--accent); }
.tabs { margin:0 0 12px; } [hidden] { display:none !important; }
.compare { position:relative; width:512px; max-width:100%; line-height:0; border-radius:8px; overflow:hidden; }
.compare img { width:100%; display:block; } .compare img.top { position:absolute; inset:0; clip-path:inset(0 50% 0 0); }
.compare i { position:absolute; top:0; bottom:0; left:50%; width:2px; background:#fff; box-shadow:0 0 4px #000; }
.example input[type=range] { width:512px; max-width:100%; margin:6px 0 0; display:block; }
.example select { font:inherit; font-size:13px; padding:2px 6px; } .example .choose { display:flex; gap:12px; margin-bottom:6px; }
.note { color:var(--soft); font-size:13px; }
@media print { nav { display:none; } section { break-inside:avoid; } }
"""

JS = """
for (const tabs of document.querySelectorAll('.tabs')) {
  const buttons = [...tabs.querySelectorAll('button')];
  const panes = buttons.map(button => document.getElementById(button.dataset.pane));
  const show = chosen => buttons.forEach((button, index) => {
    button.setAttribute('aria-pressed', index === chosen);
    panes[index].hidden = index !== chosen;
  });
  buttons.forEach((button, index) => button.addEventListener('click', () => show(index)));
  show(0);
}
for (const example of document.querySelectorAll('.example')) {
  const images = JSON.parse(example.querySelector('script').textContent);
  const [left, right] = example.querySelectorAll('select');
  const [below, above] = example.querySelectorAll('img');
  const slider = example.querySelector('input'), bar = example.querySelector('i');
  const draw = () => {
    above.src = images[left.value]; below.src = images[right.value];
    above.style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`; bar.style.left = `${slider.value}%`;
  };
  [left, right, slider].forEach(item => item.addEventListener('input', draw));
  draw();
}
"""
