"""The style sheet of a report's page, and with its variables also of the figures on it. Standard library only."""

SHEET = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --surface: #ffffff; --ink: #1b1f25; --muted: #5c6671; --grid: #dfe3e8;
  --s1: #0067a5; --s2: #d55e00; --s3: #00845f; --s4: #b0468f; --s5: #a67c00; --s6: #454f59;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #101317; --surface: #181c22; --ink: #e7eaee; --muted: #9aa5b1; --grid: #2d343d;
    --s1: #58b3ec; --s2: #ff9a57; --s3: #35c598; --s4: #e695cb; --s5: #e2bd3f; --s6: #c3ccd6;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 78rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
}
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .35rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .9rem; }
h3 { font-size: 1rem; margin: 0 0 .6rem; }
p { margin: 0 0 .6rem; max-width: 46rem; }
a { color: var(--s1); }
code { font-family: ui-monospace, SFMono-Regular, Menlo, "Liberation Mono", monospace; font-size: .875em; overflow-wrap: anywhere; }
.quiet, figcaption { color: var(--muted); }
nav { margin: 1.1rem 0 0; font-size: .9rem; display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
.answer { margin: .35rem 0 0; max-width: 70rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 1rem; margin: 1.75rem 0 0; }
.tile, figure, .table { background: var(--surface); border: 1px solid var(--grid); border-radius: 8px; }
.tile { padding: .85rem 1.1rem; }
.tile b { display: block; font-size: 1.55rem; line-height: 1.25; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { color: var(--muted); font-size: .84rem; display: block; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 32rem), 1fr)); gap: 1.25rem; }
figure { margin: 0; padding: 1.1rem 1.25rem 1rem; display: flex; flex-direction: column; }
figure svg { width: 100%; height: auto; display: block; }
figcaption { font-size: .84rem; margin-top: auto; padding-top: .7rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .45rem .8rem; border-bottom: 1px solid var(--grid); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--muted); font-weight: 500; font-size: .8rem; white-space: nowrap; vertical-align: bottom; }
tbody th { font-weight: 500; }
#environment-section th { width: 14rem; }
#failures-section tbody th { white-space: nowrap; }
#failures-section td:nth-child(3) { min-width: 17rem; }
.number { text-align: right; white-space: nowrap; }
ul { padding-left: 1.2rem; margin: 0; }
li { margin: 0 0 .3rem; max-width: 60rem; }
footer { margin-top: 3rem; color: var(--muted); font-size: .84rem; }
@media print { body { background: none; padding: 0; } figure, .tile { break-inside: avoid; } }
"""
