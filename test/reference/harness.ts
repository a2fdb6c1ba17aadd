import * as fs from 'node:fs';
import * as path from 'node:path';
import { describe, expect, test } from 'vitest';
import { type Checkpoint, openCheckpoint } from '../../lib/checkpoint/reader';
import { Tensor } from '../../lib/tensor';
import { DEVICE } from '../device';
import { type Comparison, type Context, compare, type Values } from './compare';

export const ownFixtures = path.join(__dirname, 'fixtures');
/** Another folder of the same form may be run instead of the one beside this file. */
export const otherFixtures = process.env.QUANTARIA_FIXTURES || undefined;

export interface TensorFacts {
  role: 'input' | 'output' | 'info';
  dtype: string;
  shape: number[];
  compare?: Comparison & {
    of?: string;
    w?: string;
    x?: string;
    codebook?: string;
    ignore_where_scale_zero?: boolean;
  };
}

/** What is known of a case without its data. */
export interface CaseFacts {
  /** Relative to the folder. */
  file: string;
  op: string;
  peer: string;
  params: Readonly<Record<string, unknown>>;
  tensors: Readonly<Record<string, TensorFacts>>;
}

export interface Runner {
  /** Why a case of the op has no counterpart in this library; null if it has. */
  unfit?(facts: CaseFacts): string | null;
  run(check: Check): Promise<void>;
}
export type Runners = Readonly<Record<string, Runner>>;

/** Where the library's contract differs from the peer, and what is right there. */
export interface DocumentedDifference {
  at: (flat: number) => boolean;
  instead: (flat: number) => number;
}

/** The facts that a fixture file gives of itself. */
export function factsOfFile(root: string, file: string): CaseFacts {
  const bytes = fs.readFileSync(path.join(root, file));
  const header = JSON.parse(bytes.subarray(8, 8 + Number(bytes.readBigUInt64LE())).toString('utf8'));
  const { op, peer, params, tensors } = header.__metadata__ as Record<string, string>;
  if (!op || !params || !tensors) throw new Error(`${file}: no op, params or tensors in its metadata`);
  const described = Object.entries(JSON.parse(tensors) as Record<string, TensorFacts>).map(
    ([name, facts]) => {
      const { dtype, shape } = header[name] as TensorFacts;
      return [name, { ...facts, dtype, shape }] as const;
    },
  );
  return { file, op, peer: peer ?? '', params: JSON.parse(params), tensors: Object.fromEntries(described) };
}

export function manifestOf(root: string): CaseFacts[] {
  const manifest = path.join(root, 'manifest.json');
  return fs.existsSync(manifest) ? JSON.parse(fs.readFileSync(manifest, 'utf8')).cases : [];
}

/** All cases of a folder: those of its manifest, and files that lie there without being listed. */
export function casesOf(root: string): CaseFacts[] {
  const listed = manifestOf(root);
  const known = new Set(listed.map(({ file }) => file));
  const found = fs
    .readdirSync(root, { recursive: true, encoding: 'utf8' })
    .map((file) => file.split(path.sep).join('/'))
    .filter((file) => file.endsWith('.safetensors') && !known.has(file));
  return [...listed, ...found.sort().map((file) => factsOfFile(root, file))];
}

/** One case while it runs: gives its inputs, takes the library's results, and keeps count of what was compared. */
export class Check {
  readonly #done = new Set<string>();

  constructor(
    readonly facts: CaseFacts,
    readonly checkpoint: Checkpoint,
  ) {}

  param<T>(name: string): T {
    if (!(name in this.facts.params)) throw new Error(`${this.facts.file}: no parameter ${name}`);
    return this.facts.params[name] as T;
  }

  has(name: string): boolean {
    return Object.hasOwn(this.facts.tensors, name);
  }

  input(name: string): Promise<Tensor> {
    return this.checkpoint.read(name).then((tensor) => tensor.to(DEVICE));
  }

  /** Any recorded tensor as numbers. */
  async values(name: string): Promise<Values> {
    const { dtype, shape, bytes } = this.checkpoint.info(name);
    if (dtype !== 'F64') return valuesOf(await this.checkpoint.read(name));
    const raw = (await Tensor.wrap(this.checkpoint.bytes(name, 0, bytes)).read()) as Uint8Array;
    return { shape, data: new Float64Array(raw.buffer, raw.byteOffset, bytes / 8) };
  }

  /** Recorded tensors by name, or by the beginning of their names: `x*`. */
  all(pattern: string): Promise<Values[]> {
    return Promise.all(this.named(pattern).map((name) => this.values(name)));
  }

  named(pattern: string): string[] {
    const beginning = pattern.endsWith('*') ? pattern.slice(0, -1) : null;
    return Object.keys(this.facts.tensors)
      .filter((name) => (beginning === null ? name === pattern : name.startsWith(beginning)))
      .sort();
  }

  /**
   * Compares a result with the recorded output as the case says, outputs that are only recorded for looking at aside.
   * @param options.context facts of the scheme that a mode needs
   * @param options.difference coordinates where the peer is not the reference
   */
  async output(
    name: string,
    got: Tensor | Values,
    options: { context?: Context; difference?: DocumentedDifference } = {},
  ): Promise<void> {
    const how = this.facts.tensors[name]?.compare;
    if (!how) throw new Error(`${this.facts.file}: ${name} is no output`);
    this.#done.add(name);
    if (how.mode === 'info') return;
    const mine = got instanceof Tensor ? await valuesOf(got) : got;
    const recorded = await this.values(name);
    const expected = options.difference ? corrected(recorded, options.difference) : recorded;
    const context: Context = { ...options.context };
    if (how.of) context.of = (await this.values(how.of)).data;
    if (how.w) context.of = (await this.values(how.w)).data;
    if (how.x) context.states = await this.all(how.x);
    if (how.codebook) context.codebook = (await this.values(how.codebook)).data;
    const compared = how.ignore_where_scale_zero ? await this.#withoutZeroScales(mine, expected) : mine;
    this.verdict(name, compare(compared, expected, how, context));
  }

  /** Compares with values that the case does not mark as an output, in a mode given here. */
  async also(name: string, got: Tensor | Values, expected: Values, how: Comparison): Promise<void> {
    this.verdict(name, compare(got instanceof Tensor ? await valuesOf(got) : got, expected, how));
  }

  /** An output that no operation of this library makes. */
  omit(reason: string, ...names: string[]): void {
    expect(reason).not.toBe('');
    for (const name of names) this.#done.add(name);
  }

  verdict(name: string, problem: string | null): void {
    if (problem !== null) expect.fail(`${this.facts.file}: ${name}${problem}`);
  }

  /** Outputs that should be compared and were not. */
  left(): string[] {
    return Object.entries(this.facts.tensors)
      .filter(
        ([name, { role, compare: how }]) =>
          role === 'output' && how?.mode !== 'info' && !this.#done.has(name),
      )
      .map(([name]) => name);
  }

  /** Where the recorded scale is 0 the peer divides 0 by 0, and its codes mean nothing. */
  async #withoutZeroScales(got: Values, expected: Values): Promise<Values> {
    const scale = await this.values('scale');
    const data = Array.from(got.data);
    for (let i = 0; i < data.length; i++) {
      if (scale.data[broadcast(i, got.shape, scale.shape)] === 0) data[i] = expected.data[i] as number;
    }
    return { shape: got.shape, data };
  }
}

export async function valuesOf(tensor: Tensor): Promise<Values> {
  const isFloat = tensor.dtype.startsWith('float') || tensor.dtype === 'bfloat16';
  const data = isFloat ? await tensor.toFloat32() : ((await tensor.read()) as ArrayLike<number>);
  return { shape: tensor.shape, data };
}

export const mapValues = ({ shape, data }: Values, value: (x: number, i: number) => number): Values => ({
  shape,
  data: Array.from(data, value),
});

const corrected = (values: Values, { at, instead }: DocumentedDifference): Values =>
  mapValues(values, (value, i) => (at(i) ? instead(i) : value));

/** Flat index into `small`, whose dimensions are those of `shape` or 1, for a flat index into `shape`. */
export function broadcast(flat: number, shape: readonly number[], small: readonly number[]): number {
  let index = 0;
  let stride = 1;
  let rest = flat;
  for (let d = 1; d <= shape.length; d++) {
    const n = shape[shape.length - d] as number;
    const m = small[small.length - d] ?? 1;
    index += (m === 1 ? 0 : rest % n) * stride;
    stride *= m;
    rest = Math.floor(rest / n);
  }
  return index;
}

/** How far a group's values are from what they stand for. */
export interface GroupError {
  name: string;
  add: (sum: number, distance: number) => number;
}
export const squaredError: GroupError = { name: 'squared error', add: (sum, d) => sum + d * d };
export const largestError: GroupError = { name: 'largest error', add: Math.max };

/**
 * The error of each group is at most the peer's.
 * @param groupOf the group of a flat index; null for one that does not count
 */
export function checkNoWorse(
  check: Check,
  { got, peer, of }: Readonly<Record<'got' | 'peer' | 'of', Values>>,
  error: GroupError,
  groupOf: (flat: number) => number | null,
): void {
  const errors = new Map<number, [number, number]>();
  for (let i = 0; i < of.data.length; i++) {
    const group = groupOf(i);
    if (group === null) continue;
    const [mine, theirs] = errors.get(group) ?? [0, 0];
    const distance = (values: Values) => Math.abs((values.data[i] as number) - (of.data[i] as number));
    errors.set(group, [error.add(mine, distance(got)), error.add(theirs, distance(peer))]);
  }
  for (const [group, [mine, theirs]] of errors) {
    check.verdict(
      `group ${group}`,
      mine <= theirs ? null : `: ${error.name} ${mine}, the peer's is ${theirs}`,
    );
  }
}

export async function runCase(root: string, facts: CaseFacts, runner: Runner): Promise<void> {
  const reason = runner.unfit?.(facts) ?? null;
  if (reason !== null) expect.fail(`${facts.file}: cannot be run: ${reason}`);
  const checkpoint = await openCheckpoint(path.join(root, facts.file));
  try {
    const check = new Check(facts, checkpoint);
    await runner.run(check);
    expect(check.left(), `${facts.file}: outputs that were not compared`).toEqual([]);
  } finally {
    checkpoint.close();
  }
}

/** A test for each case of a family's ops. In another folder, cases without a counterpart are left to the list. */
export function referenceTests(family: string, runners: Runners): void {
  const root = otherFixtures ?? ownFixtures;
  const cases = casesOf(root).filter(({ op }) => Object.hasOwn(runners, op));
  const fit = otherFixtures ? cases.filter((facts) => !runners[facts.op]?.unfit?.(facts)) : cases;
  describe(`${family}: equal to the recorded outputs`, () => {
    if (fit.length === 0) test.skip(`no cases in ${root}`, () => {});
    for (const facts of fit) {
      test(`${facts.op}: ${facts.file}`, () => runCase(root, facts, runners[facts.op] as Runner));
    }
  });
}
