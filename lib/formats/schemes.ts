import { QuantariaError } from '../errors';
import { fitGroupSize } from '../recipe/group_size';
import { type IntScheme, type QuantScheme, schemeLabel, validateScheme } from '../scheme';
import type { DType } from '../tensor';
import type { ScaleDType } from './tensors';
import type { Fit, Format } from './types';

export const refused = (reason: string): Fit => ({ scheme: null, reason });

/** Constants along `in`: one per row, or one per group of a size that divides the width. */
export function fitGroups(scheme: IntScheme, width: number, format: string): Fit {
  const { groupSize, ...rest } = scheme;
  const perRow: IntScheme = { ...rest, granularity: 'row' };
  switch (scheme.granularity) {
    case 'row':
      return { scheme: perRow, notes: [] };
    case 'tensor':
      return { scheme: perRow, notes: [`${format} has no scale per tensor: one per row instead`] };
    case 'column':
      return refused(`${format} has no scales per column`);
    case 'group': {
      const asked = groupSize as number;
      if (asked >= width) return { scheme: perRow, notes: asked > width ? [wholeRow(asked, width)] : [] };
      if (width % asked === 0) return { scheme, notes: [] };
      const fitted = fitGroupSize(width, asked);
      const note = `group size ${asked} does not divide ${width} input features`;
      return fitted === null
        ? { scheme: perRow, notes: [`${note}, nor does any from 16 on: one scale per row instead`] }
        : { scheme: { ...scheme, groupSize: fitted }, notes: [`${note}: groups of ${fitted} instead`] };
    }
  }
}

const wholeRow = (asked: number, width: number) =>
  `groups of ${asked} on ${width} input features: one per row`;

/** The scheme with scales in the dtype that the format stores; a note only if another one was asked for. */
export function withScales(fit: Fit, dtype: ScaleDType, format: string): Fit {
  if (fit.scheme === null || (fit.scheme.kind !== 'int' && fit.scheme.kind !== 'fp8')) return fit;
  const asked = fit.scheme.scaleDtype;
  const notes =
    asked !== undefined && asked !== dtype ? [`${format} stores scales in ${dtype}, not in ${asked}`] : [];
  return { scheme: { ...fit.scheme, scaleDtype: dtype }, notes: [...fit.notes, ...notes] };
}

/** Groups along `in` of an int scheme, and the size of each. */
export function groupsOf(scheme: IntScheme, width: number): { groups: number; size: number } {
  if (scheme.granularity !== 'group') return { groups: 1, size: width };
  const size = scheme.groupSize as number;
  return { groups: Math.ceil(width / size), size };
}

/** `group` of that size, or `row` where one group is the whole width. */
export function granularityOf(
  width: number,
  size: number,
): { granularity: 'row' | 'group'; groupSize?: number } {
  return size >= width ? { granularity: 'row' } : { granularity: 'group', groupSize: size };
}

export const canonical = (scheme: QuantScheme): string => JSON.stringify(validateScheme(scheme));

/** @throws QuantariaError `ERR_ARGUMENT` unless the format holds this scheme just as it is */
export function requireFit(
  format: Pick<Format, 'name' | 'fit'>,
  module: string,
  scheme: QuantScheme,
  shape: readonly number[],
  modelDtype: DType,
): void {
  const fit = format.fit(scheme, shape as [number, number], modelDtype);
  if (fit.scheme !== null && canonical(fit.scheme) === canonical(scheme)) return;
  const reason = fit.scheme === null ? fit.reason : `it would hold ${JSON.stringify(fit.scheme)}`;
  throw new QuantariaError(
    'ERR_ARGUMENT',
    `${module}: ${format.name} cannot store ${schemeLabel(scheme)} as it is: ${reason}`,
  );
}
