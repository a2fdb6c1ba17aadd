import * as path from 'node:path';
import { type QuantizeOptions, quantizeCheckpoint } from '../../lib/pipeline/quantize';
import type { Report } from '../../lib/pipeline/report';
import { rowsOf } from '../device';
import { EXAMPLE, readJson, temporaryDirectory } from './helpers';

export const CALIB = path.join(EXAMPLE, 'calib.txt');
export const EVAL = path.join(EXAMPLE, 'eval.txt');

/** Enough rows for an error to be told from another, few enough for a test. */
export const GPTQ: Partial<QuantizeOptions> = {
  method: 'gptq',
  bits: 4,
  groupSize: 32,
  text: CALIB,
  ...rowsOf(12),
};

/** A directory for the models of one file's tests, gone after them. */
export function calibratedRuns() {
  const work = temporaryDirectory();
  const at = (...names: string[]) => path.join(work, ...names);
  const quantized = async (
    name: string,
    options: Partial<QuantizeOptions> = GPTQ,
    model = EXAMPLE,
  ): Promise<Report> => {
    await quantizeCheckpoint(model, { ...options, out: at(name) });
    return readJson<Report>(at(name), 'report.json');
  };
  return { at, quantized };
}
