import * as fs from 'node:fs/promises';
import * as path from 'node:path';
import { ioError } from '../checkpoint/json_file';
import type { FileContent } from '../checkpoint/writer';
import { FOLDING_FILE } from './folding';
import { REPORT_FILE } from './report';
import { REPORT_PAGE } from './report_page';

/** Weights in whatever form, and what Quantaria and others write beside them: not carried over to another checkpoint. */
const NOT_CARRIED = /\.(safetensors|bin|pt|pth|ckpt|gguf|h5|msgpack|onnx|ot)$|\.index\.json$|^\./i;
const REWRITTEN = new Set([
  'config.json',
  REPORT_FILE,
  FOLDING_FILE,
  REPORT_PAGE,
  'quantize_config.json',
  'quanto_qmap.json',
  'quantization_map.json',
]);

/** The files beside a checkpoint's weights, by name: tokenizer, generation settings, licence and so on. */
export async function carriedFiles(directory: string): Promise<Record<string, FileContent>> {
  const files: Record<string, FileContent> = {};
  try {
    for (const name of (await fs.readdir(directory)).sort()) {
      if (NOT_CARRIED.test(name) || REWRITTEN.has(name)) continue;
      const file = path.join(directory, name);
      if ((await fs.stat(file)).isFile()) files[name] = { copyOf: file };
    }
  } catch (error) {
    throw ioError(directory, error);
  }
  return files;
}
