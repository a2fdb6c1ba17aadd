import * as fs from 'node:fs/promises';
import * as path from 'node:path';
import { ioError, isMissing, readJsonObject } from '../checkpoint/json_file';
import { type Checkpoint, openCheckpoint } from '../checkpoint/reader';
import {
  detectFormat,
  type Format,
  formatNames,
  getFormat,
  type StoredCheckpoint,
  type StoredModule,
} from '../formats';
import { describeModel, type ModelMap } from '../models';
import { REPORT_FILE, type Report } from './report';

/** A checkpoint with all that its files say of it. */
export interface StoredModel {
  checkpoint: Checkpoint;
  model: ModelMap;
  /** Null if nothing is quantized. */
  format: Format | null;
  modules: StoredModule[];
  stored: StoredCheckpoint;
  /** What Quantaria noted when it wrote the checkpoint; null if it did not. */
  report: Report | null;
}

/** The files beside the weights in which formats keep their configuration, by name. */
export async function readSidecars(directory: string): Promise<Record<string, string>> {
  const files: Record<string, string> = {};
  for (const name of new Set(formatNames.flatMap((format) => getFormat(format).sidecars))) {
    const file = path.join(directory, name);
    try {
      files[name] = await fs.readFile(file, 'utf8');
    } catch (error) {
      if (!isMissing(error)) throw ioError(file, error);
    }
  }
  return files;
}

/**
 * Opens a checkpoint and finds out what model it is and how it is quantized.
 * @throws QuantariaError (as a rejection) `ERR_IO`, `ERR_FORMAT`
 */
export async function openModel(directory: string): Promise<StoredModel> {
  const checkpoint = await openCheckpoint(directory);
  try {
    const entries = checkpoint.entries();
    const model = describeModel(checkpoint.config, entries);
    const files = await readSidecars(checkpoint.directory);
    const stored: StoredCheckpoint = {
      config: checkpoint.config as StoredCheckpoint['config'],
      entries: new Map(entries.map(({ name, dtype, shape }) => [name, { name, dtype, shape: [...shape] }])),
      files,
      read: (name, range) => checkpoint.read(name, { range, device: 'cpu' }),
    };
    const format = detectFormat(stored.config, new Set(stored.entries.keys()), files, model);
    const modules = format === null ? [] : await format.modules(stored);
    const report = (await readJsonObject(path.join(checkpoint.directory, REPORT_FILE))) as Report | null;
    return { checkpoint, model, format, modules, stored, report };
  } catch (error) {
    checkpoint.close();
    throw error;
  }
}
