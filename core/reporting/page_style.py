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
button { font: inherit; color: inherit; }
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
.key { font-size: .9rem; max-width: none; overflow-wrap: anywhere; }
.swatch { display: inline-block; width: .75em; height: .75em; border-radius: 2px; margin: 0 .35em 0 .7em; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
figure { margin: 0; padding: 1rem .75rem; display: flex; flex-direction: column; min-width: 0; }
figure svg { width: 100%; max-width: 36rem; height: auto; display: block; }
figure use:hover { stroke-width: 3px; }
.picked { font-size: .84rem; overflow-wrap: anywhere; }
figcaption { font-size: .84rem; margin-top: auto; padding-top: .7rem; }
.table { overflow: auto; max-height: 85vh; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .45rem .8rem; border-bottom: 1px solid var(--grid); }
tbody tr:last-child > * { border-bottom: 0; }
thead th {
  color: var(--muted); font-weight: 500; font-size: .8rem; white-space: nowrap; vertical-align: bottom;
  position: sticky; top: 0; background: var(--surface); box-shadow: 0 1px var(--grid);
}
thead button { border: 0; padding: 0; background: none; cursor: pointer; }
thead button:hover { color: var(--ink); text-decoration: underline; }
thead th[aria-sort=ascending] button::after { content: " \\2191"; }
thead th[aria-sort=descending] button::after { content: " \\2193"; }
.filter { font-size: .875rem; }
.filter input { font: inherit; max-width: 100%; width: 16rem; padding: .2rem .4rem; margin-right: .6rem; }
.copy { font-size: .8rem; padding: 0 .5rem; border: 1px solid var(--muted); border-radius: 4px; background: none; cursor: pointer; }
.copy, .repeat { display: none; }
.scripted .copy { display: inline-block; }
.scripted .repeat { display: table-cell; }
.long { max-height: 9rem; overflow: auto; min-width: 14rem; }
tbody th { font-weight: 500; }
#environment-section th { width: 14rem; }
#measurements-section td { white-space: nowrap; }
#failures-section tbody th { white-space: nowrap; }
#failures-section td:nth-child(3) { min-width: 17rem; }
.number { text-align: right; white-space: nowrap; }
ul { padding-left: 1.2rem; margin: 0; }
li { margin: 0 0 .3rem; max-width: 60rem; }
footer { margin-top: 3rem; color: var(--muted); font-size: .84rem; }
@media (max-width: 40rem) {
  body { padding: 1.25rem .75rem 3rem; }
  h1 { font-size: 1.4rem; }
  h1, h2, h3, p, li, footer { overflow-wrap: anywhere; }
  .tiles { grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; }
  .tile { padding: .7rem .8rem; }
  th, td { padding: .4rem .6rem; }
  #environment-section th { width: auto; }
}
@media print {
  body { background: none; padding: 0; }
  figure, .tile { break-inside: avoid; }
  .table { max-height: none; }
  .filter, .scripted .copy, .scripted .repeat { display: none; }
}
"""
