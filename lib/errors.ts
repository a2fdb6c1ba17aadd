/** What went wrong, for programs; the message says it for people. */
export type ErrorCode =
  | 'ERR_ARGUMENT'
  | 'ERR_SHAPE'
  | 'ERR_DTYPE'
  | 'ERR_DEVICE'
  | 'ERR_DISPOSED'
  | 'ERR_FORMAT'
  | 'ERR_UNSUPPORTED'
  | 'ERR_OUT_OF_MEMORY'
  | 'ERR_CUDA'
  | 'ERR_ABORTED'
  | 'ERR_IO'
  | 'ERR_NATIVE_LOAD';

/** The one error class: every failure of the library carries a code and names what came and what was expected. */
export class QuantariaError extends Error {
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string) {
    super(message);
    this.name = 'QuantariaError';
    this.code = code;
  }
}
