import * as fs from 'node:fs';
import * as path from 'node:path';
import { describe, expect, test } from 'vitest';
import { addToReport } from '../../lib/pipeline/evaluation_report';
import { quantizeCheckpoint } from '../../lib/pipeline/quantize';
import type { Report } from '../../lib/pipeline/report';
import { reportPage, withEvaluation } from '../../lib/pipeline/report_page';
import { rejectsCode } from '../core/errors';
import { EXAMPLE, readJson, temporaryDirectory } from './helpers';

const work = temporaryDirectory();
const text = path.join(EXAMPLE, 'calib.txt');
const facts = { model: 'model', seconds: 12.34, peakRssBytes: 56_780_000 };

const run = quantizeCheckpoint(EXAMPLE, {
  out: path.join(work, 'out'),
  recipe: 'moe-mixed',
  text,
  samples: 8,
});

async function written(): Promise<{ page: string; report: Report }> {
  await run;
  const report = readJson<Report & Record<string, unknown>>(work, 'out', 'report.json');
  return { page: fs.readFileSync(path.join(work, 'out', 'report.html'), 'utf8'), report };
}

/** What a reader of the page sees, entities resolved. */
const decoded = (html: string): string =>
  html
    .replace(/<[^>]*>/g, ' ')
    .replace(/&lt;/g, '<')
    .replace(/&gt;/g, '>')
    .replace(/&quot;/g, '"')
    .replace(/&#39;/g, "'")
    .replace(/&amp;/g, '&');

const section = (page: string, title: string): string =>
  page.split('<section').find((part) => part.includes(`<h2>${title}</h2>`)) ?? '';
const numbers = (html: string): number[] =>
  [...html.matchAll(/<data value="([^"]+)">/g)].map(([, value]) => Number(value));

/** Every element is closed by its own end, and none stands where a name could have put it. */
function expectWellFormed(page: string): void {
  const open: string[] = [];
  const empty = ['meta', '!doctype'];
  const known = new Set(
    'html head title style body main h1 h2 p section ul li strong code dl div dt dd small table caption thead tbody tr th td data span details summary pre svg line text circle bdi meta !doctype'.split(
      ' ',
    ),
  );
  for (const [tag, end, name] of page.matchAll(
    /<(\/?)([a-zA-Z!][a-zA-Z0-9]*)(?:\s(?:[^<>"]|"[^"]*")*)?\/?>/g,
  )) {
    const element = (name as string).toLowerCase();
    expect(known, tag).toContain(element);
    if (empty.includes(element) || tag.endsWith('/>')) continue;
    if (end === '/') expect(open.pop(), tag).toBe(element);
    else open.push(element);
  }
  expect(open).toEqual([]);
  // Whatever else begins like markup has been escaped.
  expect(page.replace(/<(\/?)([a-zA-Z!][a-zA-Z0-9]*)(?:\s(?:[^<>"]|"[^"]*")*)?\/?>/g, '')).not.toContain('<');
}

test('the page asks for nothing and runs nothing', async () => {
  const { page } = await written();
  expectWellFormed(page);
  expect(page).not.toMatch(/<script|<link|<img|<iframe|@import|url\(|https?:|\son[a-z]+=/i);
  expect(page).toContain(`content="default-src 'none'; style-src 'unsafe-inline'"`);
  expect(page).toMatch(/prefers-color-scheme: dark/);
});

test('sizes, time and memory are those of the run', async () => {
  const { page, report } = await written();
  const tiles = page.slice(page.indexOf('<dl'), page.indexOf('</dl>'));
  const [averageBits, bytesOut, bytesIn, quantized, kept, seconds, memory] = numbers(tiles);
  expect({ averageBits, bytesOut, bytesIn, quantized, kept }).toEqual({
    averageBits: report.averageBits,
    bytesOut: report.bytesOut,
    bytesIn: report.bytesIn,
    quantized: report.quantized,
    kept: report.kept,
  });
  const summary = await run;
  expect(seconds).toBeGreaterThan(0);
  expect(seconds).toBeLessThanOrEqual(summary.seconds);
  expect(memory).toBeLessThanOrEqual(summary.peakRssBytes);
});

test('every quantized tensor stands with its error, the worst first', async () => {
  const { page, report } = await written();
  const rows = [
    ...section(page, 'Error of each tensor').matchAll(/<bdi>([^<]+)<\/bdi>[\s\S]*?<data value="([^"]+)">/g),
  ];
  const errors = new Map(
    report.tensors.filter(({ scheme }) => scheme).map((tensor) => [tensor.name, tensor.relativeError]),
  );
  expect(rows.map(([, name]) => name).sort()).toEqual([...errors.keys()].sort());
  for (const [, name, error] of rows) expect(Number(error)).toBe(errors.get(name as string));
  const falling = rows.map(([, , error]) => Number(error));
  expect(falling).toEqual([...falling].sort((a, b) => b - a));
});

test('every kept tensor stands under the reason that report.json gives', async () => {
  const { page, report } = await written();
  const found = new Map<string, string>();
  for (const [, reason, list] of section(page, 'What was kept, and why').matchAll(
    /<summary>([\s\S]*?) \(\d+ tensors[\s\S]*?<ul class="names">([\s\S]*?)<\/ul>/g,
  )) {
    for (const [, name] of (list as string).matchAll(/<bdi>([^<]+)<\/bdi>/g))
      found.set(name as string, decoded(reason as string));
  }
  const kept = report.tensors.filter(({ scheme }) => scheme === null);
  expect(Object.fromEntries(found)).toEqual(
    Object.fromEntries(kept.map(({ name, reason }) => [name, reason])),
  );
});

test('the heat map has the mean bits of each part of each layer', async () => {
  const { page, report } = await written();
  const map = section(page, 'Bits by layer and part');
  const columns = [...map.matchAll(/<th scope="col">([^<]+)<\/th>/g)].map(([, name]) => name).slice(1);
  expect(columns).toHaveLength(4 + 3 + 3);
  const rows = [...map.matchAll(/<th scope="row">(\d+)<\/th>([\s\S]*?)<\/tr>/g)];
  expect(rows.map(([, layer]) => layer)).toEqual(['0', '1', '2']);
  for (const [, layer, cells] of rows) {
    const expected = columns.map((column) => {
      const own = report.tensors.filter(
        (tensor) => tensor.layer === Number(layer) && `${tensor.role} ${tensor.projection}` === column,
      );
      return own.reduce((sum, { scheme }) => sum + (scheme as { bits: number }).bits, 0) / own.length;
    });
    expect(numbers(cells as string)).toEqual(expected);
  }
});

test('experts stand by falling usage, with their bits', async () => {
  const { page, report } = await written();
  const map = section(page, 'Experts: usage and bits');
  for (const { layer, counts } of report.usage?.layers ?? []) {
    const cells = [
      ...map.matchAll(
        new RegExp(`title="layer ${layer}, expert (\\d+): (\\d+) tokens,[^"]*"><data value="([^"]+)"`, 'g'),
      ),
    ];
    expect(cells).toHaveLength(counts.length);
    for (const [, expert, tokens, bits] of cells) {
      expect(Number(tokens)).toBe(counts[Number(expert)]);
      const own = report.tensors.filter(
        (tensor) => tensor.layer === layer && tensor.expert === Number(expert),
      );
      expect(own.map(({ scheme }) => (scheme as { bits: number }).bits)).toEqual([
        Number(bits),
        Number(bits),
        Number(bits),
      ]);
    }
    const falling = cells.map(([, , tokens]) => Number(tokens));
    expect(falling).toEqual([...falling].sort((a, b) => b - a));
  }
  expect(report.usage?.layers).toHaveLength(3);
});

describe('hostile names', () => {
  const hostile = `</bdi></section><script>alert(1)</script><img src=x onerror="alert(2)">' & \u0000\u202e$& $1`;

  test('none of what a checkpoint or a user gives is markup', async () => {
    const { report } = await written();
    const tensors = report.tensors.map((tensor, i) => ({
      ...tensor,
      name: `${hostile}${i}`,
      reason: `${tensor.reason} ${hostile}`,
      role: i % 5 === 0 ? hostile : tensor.role,
      ...(tensor.projection !== undefined && { projection: hostile }),
    }));
    const page = reportPage(
      {
        ...report,
        tensors,
        architecture: hostile,
        method: hostile,
        format: hostile,
        version: hostile,
        warnings: [hostile],
        notes: [hostile],
      },
      { ...facts, model: hostile },
    );
    expectWellFormed(page);
    expect(page).not.toMatch(/<script|<img/);
    expect(decoded(page)).toContain('<script>alert(1)</script>');
    const evaluation = {
      perplexity: 2,
      loss: Math.log(2),
      tokens: 10,
      rows: 1,
      seqLen: 11,
      seconds: 1,
      peakRssBytes: 1e8,
      tokensPerSecond: 11,
    };
    const evaluated = withEvaluation(page, evaluation, hostile) as string;
    expectWellFormed(evaluated);
    expect(evaluated).not.toMatch(/<script|<img/);
    expect(decoded(evaluated)).toContain('$& $1');
  });
});

test('an evaluation takes the place of the one before, and all else stays', async () => {
  const { page } = await written();
  expect(section(page, 'Perplexity')).toMatch(/Not measured yet/);
  const evaluation = {
    perplexity: 1.25,
    loss: Math.log(1.25),
    tokens: 4080,
    rows: 16,
    seqLen: 256,
    seconds: 1,
    peakRssBytes: 1e8,
    tokensPerSecond: 4096,
  };
  const baseline = { perplexity: 1.2, klDivergence: 0.0123456789, top1Agreement: 0.987, logitError: 0.1 };
  await addToReport(path.join(work, 'out'), { ...evaluation, perplexity: 9 }, '/some/where/first.txt');
  await addToReport(path.join(work, 'out'), { ...evaluation, baseline }, '/some/where/eval.txt');
  const { page: changed } = await written();
  const found = section(changed, 'Perplexity');
  expect(numbers(found)).toEqual([1.2, 1.25, 1.25 / 1.2 - 1, 0.0123456789, 0.987]);
  expect(found).toContain('eval.txt');
  expect(changed).not.toContain('first.txt');
  const without = (html: string) => html.replace(/<section id="perplexity">[\s\S]*?<\/section>/, '');
  expect(without(changed)).toBe(without(page));
  await rejectsCode(addToReport(work, evaluation, text), 'ERR_IO', /report\.html/);
  fs.writeFileSync(path.join(work, 'report.html'), '<html></html>');
  await rejectsCode(addToReport(work, evaluation, text), 'ERR_FORMAT', /not a report/);
});

test('a model without layers, experts or anything quantized has a page too', async () => {
  const { report } = await written();
  const tensors = report.tensors
    .filter(({ scheme }) => scheme === null)
    .map(({ layer, ...tensor }) => tensor);
  for (const own of [tensors, []]) {
    const page = reportPage(
      { ...report, usage: undefined, warnings: [], notes: [], tensors: own, quantized: 0 },
      facts,
    );
    expectWellFormed(page);
    expect(page).not.toMatch(/NaN|Infinity|undefined/);
  }
});
