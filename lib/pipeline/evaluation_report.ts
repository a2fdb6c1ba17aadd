import * as fs from 'node:fs/promises';
import * as path from 'node:path';
import { ioError } from '../checkpoint/json_file';
import { writeFileAtomic } from '../checkpoint/writer';
import { QuantariaError } from '../errors';
import type { Evaluation } from './evaluate';
import { REPORT_PAGE, withEvaluation } from './report_page';

/**
 * Puts an evaluation into the report page of a quantized model, in the place of an earlier one.
 * @param text the file that it was measured on
 * @throws QuantariaError (as a rejection) `ERR_IO` if there is no page, `ERR_FORMAT` if it is not one of `quantize`
 */
export async function addToReport(directory: string, evaluation: Evaluation, text: string): Promise<void> {
  const file = path.join(directory, REPORT_PAGE);
  let page: string;
  try {
    page = await fs.readFile(file, 'utf8');
  } catch (error) {
    throw ioError(file, error);
  }
  const changed = withEvaluation(page, evaluation, path.basename(text));
  if (changed === null) {
    throw new QuantariaError('ERR_FORMAT', `${file}: not a report that \`quantaria quantize\` wrote`);
  }
  await writeFileAtomic(file, changed);
}
