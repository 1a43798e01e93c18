"""The report's style sheet: light and dark, readable on a phone, without any external resource."""

CSS = """
:root { color-scheme: light dark; --ink: #1c2128; --soft: #5d6672; --line: #d9dee5; --page: #ffffff; --card: #f6f7f9;
  --accent: #c2451f; --right: #1a8a5f; --wrong: #d0382b; --tint: 194, 69, 31; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa4b1; --line: #353c46; --page: #14171b;
  --card: #1d2127; --accent: #ff8a5c; --right: #3fc08d; --wrong: #ff6b5e; --tint: 255, 138, 92; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2.2rem 1.1rem 4rem; }
h1 { font-size: clamp(1.5rem, 4.5vw, 2.2rem); line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 3rem 0 .4rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p, li { max-width: 46rem; }
p { margin: .5rem 0 .9rem; }
.lead { font-size: 1.06rem; color: var(--soft); }
.note { color: var(--soft); font-size: .9rem; }
nav { margin: 1rem 0 1.6rem; font-size: .92rem; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; }
a { color: var(--accent); text-underline-offset: .2em; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .8rem; margin: 1.4rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .86rem; line-height: 1.35; display: block; }
.scroll { overflow-x: auto; margin: .8rem -1.1rem; padding: 0 1.1rem; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .42rem .65rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--page);
  padding-left: 0; }
table.dense th, table.dense td { padding-left: .45rem; padding-right: .45rem; } table.dense small { font-size: .7rem; }
table.dense th:first-child { padding-left: 0; }
tbody th { color: var(--ink); font-weight: 500; vertical-align: middle; }
tr.accent th, tr.accent td { font-weight: 650; }
tr.accent th { color: var(--accent); }
tr.recorded th, tr.recorded td { font-style: italic; }
small { display: block; color: var(--soft); font-weight: 400; font-size: .78rem; }
figure { margin: 1rem 0; }
figure { overflow-x: auto; }
figure svg { width: 100%; min-width: 25rem; height: auto; display: block; }
.maps figure svg { min-width: 0; }
figcaption { color: var(--soft); font-size: .88rem; max-width: 46rem; margin-top: .4rem; }
.maps { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
.maps h3 { margin: 0 0 .2rem; }
.queries { overflow-x: auto; margin: 0 -1.1rem; padding: .2rem 1.1rem; }
.strip { display: flex; gap: .35rem; align-items: center; margin: .25rem 0; min-width: max-content; }
.strip .who { width: 5.6rem; font-size: .82rem; color: var(--soft); text-align: right;
  padding-right: .3rem; flex: none; }
.strip img { display: block; width: 52px; height: 52px; image-rendering: pixelated; border-radius: 3px; }
.strip.photo img { image-rendering: auto; }
.tile { border: 3px solid transparent; border-radius: 7px; padding: 1px; position: relative; flex: none; }
.tile.right { border-color: var(--right); }
.tile.wrong { border-color: var(--wrong); border-style: dashed; }
.tile.query { border-color: var(--line); margin-right: .5rem; }
.tile.empty { width: 60px; height: 1px; margin-right: .5rem; border: 0; }
.tile i { position: absolute; right: -5px; bottom: -6px; font: 700 10px/15px system-ui, sans-serif; width: 15px;
  height: 15px; border-radius: 8px; text-align: center; color: #fff; }
.tile.right i { background: #1a8a5f; } .tile.wrong i { background: #d0382b; }
.pair { margin: .2rem 0 .9rem; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--accent); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; overflow-x: auto;
  font-size: .82rem; line-height: 1.45; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; font-size: .92rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; } dt { margin-top: .4rem; }
  th, td { padding: .38rem .5rem; }
  tbody th { white-space: normal; min-width: 7.5rem; }
  .strip .who { width: 3.9rem; font-size: .74rem; } }
@media print { nav { display: none; } h2 { break-after: avoid; } }
"""
