import * as fs from 'node:fs';
import * as path from 'node:path';
import { describe, expect, test } from 'vitest';
import { readUsage } from '../../lib/recipe/usage';
import { cli, EXAMPLE, lastLine, temporaryDirectory } from '../pipeline/helpers';

const work = temporaryDirectory();
const at = (name: string) => path.join(work, name);
const EVAL = path.join(EXAMPLE, 'eval.txt');
const number = expect.any(Number);

async function json(...args: string[]): Promise<Record<string, unknown>> {
  const { code, stdout, stderr } = await cli(...args, '--json');
  expect({ code, stderr: code === 0 ? '' : stderr }).toEqual({ code: 0, stderr: '' });
  expect(stdout.trimEnd()).not.toContain('\n');
  return JSON.parse(stdout) as Record<string, unknown>;
}

describe('commands that run a model, with --json and without', () => {
  test('usage: tokens and layers, which recipes read', async () => {
    const found = await json('usage', EXAMPLE, '--text', EVAL, '--samples', '3');
    expect(found.tokens).toBe(3 * 256);
    const layers = found.layers as { layer: number; counts: number[] }[];
    expect(layers.map(({ layer, counts }) => [layer, counts.length])).toEqual([0, 1, 2].map((i) => [i, 16]));
    for (const { counts } of layers) expect(counts.reduce((a, b) => a + b)).toBe(2 * 3 * 256);
    fs.writeFileSync(at('usage.json'), JSON.stringify(found));
    expect((await readUsage(at('usage.json'))).layers).toEqual(layers);
    const words = await cli('usage', EXAMPLE, '--text', EVAL, '--samples', '3');
    expect(words.stdout).toMatch(/^768 ids/);
  });

  test('evaluate: perplexity, tokens, seconds; against a baseline its keys too; progress on stderr', async () => {
    const args = ['evaluate', EXAMPLE, '--text', EVAL, '--samples', '2', '--seq-len', '64'];
    const found = await json(...args, '--baseline', EXAMPLE);
    expect(found).toMatchObject({
      perplexity: number,
      tokens: 2 * 63,
      seconds: number,
      tokensPerSecond: number,
      baseline: { perplexity: found.perplexity, klDivergence: 0, top1Agreement: 1, logitError: 0 },
    });
    const { stdout, stderr } = await cli(...args);
    expect(stdout).toMatch(/^perplexity \d/);
    expect(lastLine(stderr)).toBe('evaluating 100 %');
    const half = await json(...args, '--dtype', 'bfloat16');
    expect(half.perplexity).not.toBe(found.perplexity);
    expect((half.perplexity as number) / (found.perplexity as number)).toBeCloseTo(1, 1);
  });

  test('evaluate takes ids as they are', async () => {
    const ids = [256, ...Buffer.from('The same ids.')];
    fs.writeFileSync(at('ids.u16'), Buffer.from(Uint16Array.from(ids).buffer));
    const found = await json('evaluate', EXAMPLE, '--tokens', at('ids.u16'), '--seq-len', '7');
    expect(found).toMatchObject({ tokens: 12, rows: 2 });
  });

  test('generate: text, tokens, tokensPerSecond; else the text alone on stdout, as it comes', async () => {
    const args = ['generate', EXAMPLE, '--prompt', 'One morning Old', '--max-tokens', '20'];
    const found = await json(...args, '--temperature', '0');
    expect(found).toMatchObject({ text: expect.stringMatching(/^One morning Old.{20}$/), tokens: 20 });
    expect(found.tokensPerSecond).toEqual(number);
    expect((await cli(...args)).stdout).toBe(`${found.text}\n`);
  });
});

describe('wrong usage is exit 2, a run that failed exit 1', () => {
  const cases: readonly (readonly [code: number, args: readonly string[], message: RegExp])[] = [
    [2, ['usage'], /missing required argument 'model'/],
    [2, ['evaluate', EXAMPLE, '--text', EVAL, '--seq-len', '1'], /--seq-len/],
    [2, ['evaluate', EXAMPLE, '--text', EVAL, '--dtype', 'int8'], /--dtype/],
    [2, ['generate', EXAMPLE], /--prompt/],
    [2, ['generate', EXAMPLE, '--prompt', 'x', '--top-p', '2'], /--top-p/],
    [2, ['generate', EXAMPLE, '--prompt', 'x', '--temperature', '-1'], /--temperature/],
    [2, ['generate', EXAMPLE, '--prompt', 'x', '--max-tokens', '0'], /--max-tokens/],
    [1, ['evaluate', EXAMPLE], /--text, --tokens/],
    [1, ['evaluate', EXAMPLE, '--text', at('missing.txt')], /missing\.txt/],
    [1, ['evaluate', at('missing'), '--text', EVAL], /missing: no such file/],
    [1, ['usage', EXAMPLE, '--text', EVAL, '--seq-len', '100000'], /less than one row/],
    [1, ['evaluate', EXAMPLE, '--text', EVAL, '--device', 'cuda:99'], /cuda:99/],
  ];
  test.concurrent.each(cases)('%i %j', async (code, args, message) => {
    const ended = await cli(...args);
    expect({ code: ended.code, stdout: ended.stdout }).toEqual({ code, stdout: '' });
    expect(lastLine(ended.stderr)).toMatch(/^error: /);
    expect(lastLine(ended.stderr)).toMatch(message);
  });
});
