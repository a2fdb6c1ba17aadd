import { DECODER_LINEAR_ROLES, ROLES } from '../models';
import { ELEMENT_BITS, type QuantScheme, schemeLabel } from '../scheme';
import type { Evaluation } from './evaluate';
import { type Html, type HtmlPart, html, raw } from './html';
import type { Report, ReportTensor } from './report';
import { REPORT_STYLE } from './report_style';

/** The report for people, beside `report.json`: one page without scripts that asks nothing of a network. */
export const REPORT_PAGE = 'report.html';

/** What `report.json` leaves out, since it differs from run to run. */
export interface RunFacts {
  /** The model's name as the user gave it. */
  model: string;
  seconds: number;
  peakRssBytes: number;
}

/** Tensors that stand in the table of errors without being asked for. */
const WORST_SHOWN = 40;

export function reportPage(report: Report, facts: RunFacts): string {
  const title = `${facts.model}: ${report.method}, ${report.averageBits.toFixed(3)} bits a weight`;
  return html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>${title}</title>
<style>${raw(REPORT_STYLE)}</style>
</head>
<body>
<main>
<h1><bdi>${facts.model}</bdi></h1>
<p class="sub">${report.architecture}, quantized by ${report.method} as ${report.format} with Quantaria ${report.version}${report.device ? ` on ${report.device}` : ''}</p>
${tiles(report, facts)}
${remarks(report)}
${perplexity(null)}
${partsTable(report)}
${bitsMap(report)}
${experts(report)}
${errors(report)}
${kept(report)}
${settings(report)}
</main>
</body>
</html>
`.text;
}

const PERPLEXITY = /<section id="perplexity">[\s\S]*?<\/section>/;

/**
 * The page with what an evaluation found in the place that is left for it.
 * @returns null if the page has no such place: it is none of `reportPage`
 */
export function withEvaluation(page: string, evaluation: Evaluation, text: string): string | null {
  if (!PERPLEXITY.test(page)) return null;
  return page.replace(PERPLEXITY, () => perplexity({ evaluation, text }).text);
}

const number = (value: number, shown: string): Html => html`<data value="${String(value)}">${shown}</data>`;
const share = (part: number, all: number): string =>
  `${all === 0 ? '0.0' : ((100 * part) / all).toFixed(1)} %`;

function bytes(value: number): Html {
  const [unit, size] = (
    [
      ['GB', 1e9],
      ['MB', 1e6],
      ['kB', 1e3],
    ] as const
  ).find(([, least]) => value >= least) ?? ['B', 1];
  return number(value, `${size === 1 ? value : (value / size).toFixed(2)} ${unit}`);
}

/** Bits of a code; constants beside the codes are in the bytes. */
function bitsOf(scheme: QuantScheme | null): number {
  switch (scheme?.kind) {
    case undefined:
      return 16;
    case 'int':
    case 'spqr':
      return scheme.bits;
    case 'mx':
      return ELEMENT_BITS[scheme.element];
    case 'nf4':
    case 'fp4':
    case 'e3m0':
      return 4;
    default:
      return 8;
  }
}

const labelOf = (scheme: QuantScheme | null): string => (scheme === null ? 'kept' : schemeLabel(scheme));

function groupBy<Item, Key>(items: readonly Item[], keyOf: (item: Item) => Key): Map<Key, Item[]> {
  const groups = new Map<Key, Item[]>();
  for (const item of items) {
    const key = keyOf(item);
    const own = groups.get(key);
    if (own) own.push(item);
    else groups.set(key, [item]);
  }
  return groups;
}

function tiles(report: Report, { seconds, peakRssBytes }: RunFacts): Html {
  const { averageBits, bytesIn, bytesOut, quantized, kept: left, target } = report;
  const tile = (name: string, value: HtmlPart, note: HtmlPart = '') =>
    html`<div><dt>${name}</dt><dd>${value}<small>${note}</small></dd></div>`;
  const wanted = target === undefined ? '' : ` (${target.bits} asked for)`;
  return html`<dl class="tiles">
${tile('Bits a weight', number(averageBits, averageBits.toFixed(3)), `over the decoder's linear weights${wanted}`)}
${tile('Size', bytes(bytesOut), html`from ${bytes(bytesIn)}, ${share(bytesOut, bytesIn)}`)}
${tile('Tensors', number(quantized, `${quantized} quantized`), html`${number(left, String(left))} kept`)}
${tile('Time', number(seconds, `${seconds.toFixed(1)} s`), 'of this run')}
${tile('Memory', bytes(peakRssBytes), 'at its peak, mapped files left out')}
</dl>`;
}

function remarks({ warnings, notes }: Report): Html {
  if (warnings.length + notes.length === 0) return html``;
  return html`<section><h2>Worth knowing</h2><ul class="remarks">
${warnings.map((text) => html`<li><strong>Warning:</strong> ${text}</li>`)}
${notes.map((text) => html`<li>${text}</li>`)}
</ul></section>`;
}

function perplexity(found: { evaluation: Evaluation; text: string } | null): Html {
  if (found === null) {
    return html`<section id="perplexity"><h2>Perplexity</h2>
<p>Not measured yet: <code>quantaria evaluate THIS --baseline ORIGINAL --text FILE --report</code> puts it here.</p></section>`;
  }
  const { perplexity: after, tokens, seqLen, baseline } = found.evaluation;
  const row = (name: string, value: number, shown: string) =>
    html`<tr><th scope="row">${name}</th><td>${number(value, shown)}</td></tr>`;
  const compared = baseline && [
    row('before', baseline.perplexity, baseline.perplexity.toFixed(4)),
    row('after', after, after.toFixed(4)),
    row('rise', after / baseline.perplexity - 1, share(after - baseline.perplexity, baseline.perplexity)),
    row('KL divergence, nats', baseline.klDivergence, baseline.klDivergence.toExponential(3)),
    row('same first choice', baseline.top1Agreement, share(baseline.top1Agreement, 1)),
  ];
  return html`<section id="perplexity"><h2>Perplexity</h2><table>
<caption>Over ${tokens} ids of <bdi>${found.text}</bdi> in rows of ${seqLen}</caption>
<tbody>${compared ?? row('after', after, after.toFixed(4))}</tbody></table></section>`;
}

function partsTable({ tensors }: Report): Html {
  const groups = [...groupBy(tensors, ({ role, scheme }) => `${role}\n${labelOf(scheme)}`).values()];
  const order = ({ role }: ReportTensor) => (ROLES as readonly string[]).indexOf(role);
  groups.sort(
    ([a], [b]) =>
      order(a as ReportTensor) - order(b as ReportTensor) ||
      bitsOf((a as ReportTensor).scheme) - bitsOf((b as ReportTensor).scheme),
  );
  const rows = groups.map((own) => {
    const [{ role, scheme }] = own as [ReportTensor];
    const worst = Math.max(...own.map(({ relativeError }) => relativeError));
    return html`<tr><th scope="row">${role}</th><td class="t">${labelOf(scheme)}</td><td>${own.length}</td>
<td>${bytes(own.reduce((sum, tensor) => sum + tensor.bytes, 0))}</td><td>${scheme === null ? '' : number(worst, worst.toPrecision(3))}</td></tr>`;
  });
  return html`<section><h2>Parts</h2><div class="wide"><table>
<thead><tr><th scope="col">part</th><th scope="col" class="t">scheme</th><th scope="col">tensors</th><th scope="col">bytes</th><th scope="col">worst relative error</th></tr></thead>
<tbody>${rows}</tbody></table></div></section>`;
}

/** The class that colours a cell; the number in it says the same. */
const shade = (bits: number): string =>
  `b${[2, 3, 4, 5, 6, 8, 16].find((step) => bits <= step + 0.25) ?? 16}`;
const mean = (values: readonly number[]): number =>
  values.reduce((a, b) => a + b, 0) / Math.max(1, values.length);
const shownBits = (bits: number): string => (Number.isInteger(bits) ? String(bits) : bits.toFixed(1));

function mixText(tensors: readonly ReportTensor[]): string {
  return [...groupBy(tensors, ({ scheme }) => labelOf(scheme))]
    .map(([label, own]) => `${label}: ${own.length}`)
    .join(', ');
}

/** As data flows through a layer; others come first. */
const PROJECTION_ORDER = ['q', 'k', 'v', 'o', 'gate', 'up', 'down'];

/** Bits of each part of each layer; of experts, their mean. */
function bitsMap({ tensors }: Report): Html {
  const placed = tensors.filter(
    ({ layer, role, projection }) =>
      layer !== undefined &&
      projection !== undefined &&
      (DECODER_LINEAR_ROLES as readonly string[]).includes(role),
  );
  const partOf = ({ role, projection }: ReportTensor) => `${role} ${projection}`;
  const order = ({ role }: ReportTensor) => (ROLES as readonly string[]).indexOf(role);
  const within = ({ projection = '' }: ReportTensor) => PROJECTION_ORDER.indexOf(projection);
  const ordered = [...placed].sort((a, b) => order(b) - order(a) || within(a) - within(b));
  const columns = [...groupBy(ordered, partOf).keys()];
  const layers = [...groupBy(placed, ({ layer }) => layer as number)].sort(([a], [b]) => a - b);
  if (layers.length === 0) return html``;
  const rows = layers.map(([layer, own]) => {
    const parts = groupBy(own, partOf);
    const cells = columns.map((column) => {
      const members = parts.get(column);
      if (members === undefined) return html`<td class="none"></td>`;
      const bits = mean(members.map(({ scheme }) => bitsOf(scheme)));
      return html`<td class="${shade(bits)}" title="layer ${layer}, ${column}: ${mixText(members)}">${number(bits, shownBits(bits))}</td>`;
    });
    return html`<tr><th scope="row">${layer}</th>${cells}</tr>`;
  });
  return html`<section><h2>Bits by layer and part</h2><p>Bits of a code, 16 where a weight is kept; of experts, their mean. ${legend()}</p>
<div class="wide"><table class="map"><thead><tr><th scope="col">layer</th>${columns.map((column) => html`<th scope="col">${column}</th>`)}</tr></thead>
<tbody>${rows}</tbody></table></div></section>`;
}

const legend = (): Html =>
  html`<span class="legend">${[2, 3, 4, 5, 6, 8, 16].map((bits) => html`<span class="b${bits}">${bits}</span>`)}</span>`;

/** What experts are used, beside the bits that they have. */
function experts({ tensors, usage }: Report): Html {
  const routed = groupBy(
    tensors.filter(
      ({ role, layer, expert }) => role === 'expert' && layer !== undefined && expert !== undefined,
    ),
    ({ layer, expert }) => `${layer} ${expert}`,
  );
  if (routed.size === 0) return html``;
  if (usage === undefined) {
    return html`<section><h2>Experts: usage and bits</h2><p>Usage is not known: give <code>--usage</code>, or a text.</p></section>`;
  }
  const byBits = new Map<number, { experts: number; chosen: number }>();
  let choices = 0;
  const rows = usage.layers.map(({ layer, counts }) => {
    const all = counts.reduce((a, b) => a + b, 0);
    const most = Math.max(1, ...counts);
    choices += all;
    const ranked = counts
      .map((count, expert) => ({ count, expert }))
      .sort((a, b) => b.count - a.count || a.expert - b.expert);
    const cells = ranked.map(({ count, expert }) => {
      const own = routed.get(`${layer} ${expert}`) ?? [];
      if (own.length === 0) return html`<td class="none"></td>`;
      const bits = mean(own.map(({ scheme }) => bitsOf(scheme)));
      const group = byBits.get(bits) ?? { experts: 0, chosen: 0 };
      byBits.set(bits, { experts: group.experts + 1, chosen: group.chosen + count });
      return html`<td class="${shade(bits)}" style="--u:${(count / most).toFixed(3)}" title="layer ${layer}, expert ${expert}: ${count} tokens, ${share(count, all)} of the choices; ${mixText(own)}">${number(bits, shownBits(bits))}</td>`;
    });
    return html`<tr><th scope="row">${layer}</th>${cells}</tr>`;
  });
  const groups = [...byBits].sort(([a], [b]) => b - a);
  return html`<section><h2>Experts: usage and bits</h2>
<table><caption>Over ${usage.tokens} ids</caption><thead><tr><th scope="col">bits</th><th scope="col">experts</th><th scope="col">of the choices</th></tr></thead>
<tbody>${groups.map(([bits, own]) => html`<tr><th scope="row">${shownBits(bits)}</th><td>${own.experts}</td><td>${share(own.chosen, choices)}</td></tr>`)}</tbody></table>
<p>Each row is a layer, its experts from the most used to the least; the bar below the bits is how often an expert is chosen.</p>
<div class="wide"><table class="map usage"><tbody>${rows}</tbody></table></div></section>`;
}

function errors({ tensors }: Report): Html {
  const measured = tensors
    .filter(({ scheme }) => scheme !== null)
    .sort((a, b) => b.relativeError - a.relativeError);
  if (measured.length === 0) return html``;
  const most = measured[0]?.relativeError || 1;
  const calibrated = measured.some(({ calibration }) => calibration !== undefined);
  const outputError = (value: number | null | undefined) =>
    value === null || value === undefined ? '' : number(value, value.toPrecision(3));
  const row = ({
    name,
    scheme,
    relativeError,
    bytes: own,
    calibration,
  }: ReportTensor) => html`<tr><th scope="row"><bdi>${name}</bdi></th><td class="t">${labelOf(scheme)}</td>
<td class="bar" style="--u:${(relativeError / most).toFixed(3)}">${number(relativeError, relativeError.toPrecision(3))}</td>
${calibrated ? html`<td>${outputError(calibration?.outputError)}</td><td>${outputError(calibration?.outputErrorRtn)}</td><td>${calibration?.tokens ?? ''}</td>` : ''}<td>${bytes(own)}</td></tr>`;
  const table = (
    rows: readonly ReportTensor[],
  ) => html`<div class="wide"><table class="names"><thead><tr><th scope="col">tensor</th><th scope="col" class="t">scheme</th><th scope="col">relative error</th>
${calibrated ? html`<th scope="col">error of its output</th><th scope="col">the same, rounded to nearest</th><th scope="col">tokens</th>` : ''}<th scope="col">bytes</th></tr></thead><tbody>${rows.map(row)}</tbody></table></div>`;
  const rest = measured.slice(WORST_SHOWN);
  return html`<section><h2>Error of each tensor</h2>
<p>Norm of the difference over the norm of the original, worst first.</p>
${errorChart(measured)}
${table(measured.slice(0, WORST_SHOWN))}
${rest.length === 0 ? '' : html`<details><summary>${rest.length} more</summary>${table(rest)}</details>`}</section>`;
}

const CHART = { width: 640, left: 150, right: 20, row: 26, axis: 28 };

/** Relative errors of each scheme on a logarithmic axis: least to most, the middle half, and the median. */
function errorChart(measured: readonly ReportTensor[]): Html {
  const rows = [...groupBy(measured, ({ scheme }) => labelOf(scheme))]
    .map(([label, own]) => ({
      label,
      errors: own
        .map(({ relativeError }) => relativeError)
        .filter((error) => error > 0)
        .sort((a, b) => a - b),
    }))
    .filter((row) => row.errors.length > 0);
  const all = rows.flatMap((row) => row.errors);
  if (all.length === 0) return html``;
  const low = Math.log10(all.reduce((a, b) => Math.min(a, b))) - 0.05;
  const high = Math.log10(all.reduce((a, b) => Math.max(a, b))) + 0.05;
  const { width, left, right, row: step, axis } = CHART;
  const x = (error: number) =>
    (left + ((Math.log10(error) - low) / (high - low)) * (width - left - right)).toFixed(1);
  const at = (sorted: readonly number[], part: number) =>
    sorted[Math.round(part * (sorted.length - 1))] as number;
  const height = rows.length * step + axis;
  const ticks = [-6, -5, -4, -3, -2, -1, 0]
    .flatMap((power) => [1, 2, 5].map((factor) => factor * 10 ** power))
    .filter((tick) => Math.log10(tick) >= low && Math.log10(tick) <= high);
  return html`<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="Relative errors by scheme; the table below has the numbers">
${ticks.map((tick) => html`<line class="grid" x1="${x(tick)}" x2="${x(tick)}" y1="0" y2="${height - axis}"/><text x="${x(tick)}" y="${height - 8}" text-anchor="middle">${Number(tick.toPrecision(1))}</text>`)}
${rows.map(({ label, errors: sorted }, i) => {
  const y = i * step + step / 2;
  return html`<text x="${left - 10}" y="${y + 4}" text-anchor="end">${label}</text>
<line class="range" x1="${x(at(sorted, 0))}" x2="${x(at(sorted, 1))}" y1="${y}" y2="${y}"/>
<line class="half" x1="${x(at(sorted, 0.25))}" x2="${x(at(sorted, 0.75))}" y1="${y}" y2="${y}"/>
<circle cx="${x(at(sorted, 0.5))}" cy="${y}" r="5"><title>${label}: median ${at(sorted, 0.5).toPrecision(3)} of ${sorted.length} tensors</title></circle>`;
})}
</svg>`;
}

function kept({ tensors }: Report): Html {
  const groups = [
    ...groupBy(
      tensors.filter(({ scheme }) => scheme === null),
      ({ reason }) => reason,
    ),
  ];
  if (groups.length === 0) return html``;
  return html`<section><h2>What was kept, and why</h2>
${groups.map(([reason, own]) => {
  const unruled = own.some(({ ruled }) => !ruled);
  return html`<details${unruled ? raw(' open') : ''}><summary>${reason} (${own.length} tensors, ${bytes(own.reduce((sum, tensor) => sum + tensor.bytes, 0))})${unruled ? html` <strong>no rule decided this</strong>` : ''}</summary>
<ul class="names">${own.map(({ name, role }) => html`<li><bdi>${name}</bdi> <small>${role}</small></li>`)}</ul></details>`;
})}</section>`;
}

function settings({ recipe, calibration, target, fingerprint }: Report): Html {
  const text = JSON.stringify({ recipe, target, calibration, fingerprint }, null, 2);
  return html`<section><h2>Settings</h2><details><summary>Recipe${calibration ? ', calibration' : ''}</summary><pre>${text}</pre></details></section>`;
}
