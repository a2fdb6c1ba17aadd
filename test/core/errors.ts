import { expect } from 'vitest';
import { type ErrorCode, QuantariaError } from '../../lib';

function check(error: unknown, code: ErrorCode, message: RegExp): void {
  expect(error).toBeInstanceOf(QuantariaError);
  const { code: found, message: text } = error as QuantariaError;
  expect({ code: found, text }).toEqual({ code, text: expect.stringMatching(message) });
}

/** `body` throws a QuantariaError of that code, at once. */
export function throwsCode(body: () => unknown, code: ErrorCode, message: RegExp = /./): void {
  let thrown: unknown;
  try {
    body();
  } catch (error) {
    thrown = error;
  }
  check(thrown, code, message);
}

/** The promise rejects with a QuantariaError of that code. */
export async function rejectsCode(
  promise: Promise<unknown>,
  code: ErrorCode,
  message: RegExp = /./,
): Promise<void> {
  const settled = await promise.then(
    () => undefined,
    (error: unknown) => error,
  );
  check(settled, code, message);
}
