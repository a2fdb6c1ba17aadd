/**
 * How the report looks. Fewer bits stand out more from the page: dark on light, light on dark. Every colour pair of text has a
 * contrast of at least 4.5 to 1.
 */
export const REPORT_STYLE = `
:root { color-scheme: light dark; --page: #ffffff; --text: #1a1f26; --soft: #55606e; --line: #d5dbe3; --box: #f4f6f9; --bar: #2f6fb7; --warn: #8a4b00;
  --b2: #08306b; --b3: #0f4f96; --b4: #2a6cb5; --b5: #8dbde6; --b6: #b3d3ef; --b8: #d5e6f5; --b16: #f0f4f8; --on-strong: #ffffff; --on-weak: #10243c; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --text: #e4e9f0; --soft: #a3afbd; --line: #343d49; --box: #1b2129; --bar: #6aa9ea; --warn: #f0b357;
  --b2: #e3f0fc; --b3: #b9dcf9; --b4: #8ac0f2; --b5: #2e64a0; --b6: #27507f; --b8: #213e60; --b16: #1e2733; --on-strong: #0b1a2b; --on-weak: #eef4fb; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
.sub { color: var(--soft); margin: .2rem 0 1.2rem; }
p { max-width: 48rem; }
code, pre, .names th[scope=row], .names li bdi { font-family: ui-monospace, monospace; font-size: .82rem; }
pre { overflow-x: auto; background: var(--box); padding: .8rem; border-radius: 6px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; margin: 0; }
.tiles div { background: var(--box); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; }
.tiles dt { color: var(--soft); font-size: .85rem; }
.tiles dd { margin: 0; font-size: 1.35rem; font-weight: 600; }
.tiles small { display: block; font-size: .8rem; font-weight: 400; color: var(--soft); }
.remarks strong { color: var(--warn); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); font-weight: 400; }
td { white-space: nowrap; }
thead th { color: var(--soft); font-size: .85rem; vertical-align: bottom; }
th[scope=row], th:first-child, .t { text-align: left; }
.names { width: 100%; }
.names th[scope=row] { overflow-wrap: anywhere; min-width: 16rem; }
.bar { background: linear-gradient(var(--bar), var(--bar)) no-repeat left bottom .1rem / calc(var(--u) * 100%) 3px; min-width: 8rem; }
.map { border-collapse: separate; border-spacing: 2px; }
.map th, .map td { border: 0; padding: .2rem .45rem; }
.map thead th { max-width: 6rem; text-align: center; line-height: 1.2; }
.map td { text-align: center; border-radius: 3px; min-width: 2.6rem; font-size: .85rem; }
.map tbody tr > * { white-space: nowrap; }
.usage td { min-width: 1.9rem; padding: .1rem .15rem .4rem; background-image: linear-gradient(currentColor, currentColor); background-repeat: no-repeat; background-position: left bottom 2px; background-size: calc(var(--u) * 100%) 3px; }
.legend { display: inline-flex; gap: 2px; margin-left: .4rem; vertical-align: middle; }
.legend span { min-width: 1.9rem; text-align: center; border-radius: 3px; font-size: .8rem; }
.b2 { background-color: var(--b2); color: var(--on-strong); } .b3 { background-color: var(--b3); color: var(--on-strong); } .b4 { background-color: var(--b4); color: var(--on-strong); }
.b5 { background-color: var(--b5); color: var(--on-weak); } .b6 { background-color: var(--b6); color: var(--on-weak); } .b8 { background-color: var(--b8); color: var(--on-weak); } .b16 { background-color: var(--b16); color: var(--on-weak); }
svg { width: 100%; max-width: 44rem; height: auto; margin: .4rem 0 .8rem; }
svg text { fill: var(--text); font-size: 12px; }
svg .grid { stroke: var(--line); } svg .range { stroke: var(--soft); stroke-width: 2; } svg .half { stroke: var(--bar); stroke-width: 9; }
svg circle { fill: var(--page); stroke: var(--bar); stroke-width: 2.5; }
details { border: 1px solid var(--line); border-radius: 6px; padding: .4rem .8rem; margin: .4rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
summary:focus-visible { outline: 2px solid var(--bar); outline-offset: 2px; }
ul.names { padding-left: 1.1rem; columns: 24rem; }
ul.names li { overflow-wrap: anywhere; }
small { color: var(--soft); }
@media print { details > * { display: block; } }
`;
