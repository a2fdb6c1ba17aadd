import * as path from 'node:path';
import { readJsonObject } from '../checkpoint/json_file';
import { QuantariaError } from '../errors';

const FILE = 'tokenizer.json';

/** As much of @huggingface/tokenizers as is used. It is an ES module, and is loaded when a text comes. */
interface Implementation {
  encode(text: string): { ids: number[] };
  decode(
    ids: number[],
    options: { skip_special_tokens: boolean; clean_up_tokenization_spaces: boolean },
  ): string;
  token_to_id(token: string): number | undefined;
}

/** Text to ids and back, as the model's tokenizer.json says. */
export class Tokenizer {
  private constructor(
    private readonly implementation: Implementation,
    private readonly file: string,
    /** What a text starts with by itself; null for nothing. */
    readonly startId: number | null,
  ) {}

  /**
   * @param directory of the model
   * @throws QuantariaError (as a rejection) `ERR_IO` without a tokenizer.json, `ERR_FORMAT` for one that cannot be used
   */
  static async open(directory: string): Promise<Tokenizer> {
    const file = path.join(directory, FILE);
    const content = await readJsonObject(file);
    if (content === null) {
      throw new QuantariaError(
        'ERR_IO',
        `${file}: no such file; a text needs a tokenizer. \`--tokens\` takes ids that were made elsewhere`,
      );
    }
    const config = (await readJsonObject(path.join(directory, 'tokenizer_config.json'))) ?? {};
    const { Tokenizer: HuggingFaceTokenizer } = await import('@huggingface/tokenizers');
    try {
      const made: Implementation = new HuggingFaceTokenizer(content, config);
      const empty = made.encode('').ids;
      return new Tokenizer(made, file, startOf(empty, made, config));
    } catch (error) {
      throw unusable(file, error);
    }
  }

  /** With the start token that the tokenizer puts there itself. */
  encode(text: string): number[] {
    try {
      return this.implementation.encode(text).ids;
    } catch (error) {
      throw unusable(this.file, error);
    }
  }

  /** Special tokens left out. */
  decode(ids: readonly number[]): string {
    return this.implementation.decode([...ids], {
      skip_special_tokens: true,
      clean_up_tokenization_spaces: false,
    });
  }
}

const unusable = (file: string, error: unknown) =>
  new QuantariaError('ERR_FORMAT', `${file}: ${error instanceof Error ? error.message : String(error)}`);

/** The start token: what the tokenizer puts before nothing, else the configuration's. */
function startOf(
  empty: readonly number[],
  tokenizer: Implementation,
  config: Readonly<Record<string, unknown>>,
): number | null {
  if (empty[0] !== undefined) return empty[0];
  const named = config.bos_token;
  const token =
    typeof named === 'object' && named !== null ? (named as { content?: unknown }).content : named;
  return typeof token === 'string' ? (tokenizer.token_to_id(token) ?? null) : null;
}
