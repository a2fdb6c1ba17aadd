import { ROLES } from '../models';
import { type QuantScheme, schemeLabel } from '../scheme';
import { formatBytes, table } from './output';

interface Row {
  role: string;
  scheme: string;
  tensors: number;
  bytes: number;
  worst: number;
}

/** What happened, or would happen, to a checkpoint's tensors: a line for each role and scheme. */
export function summaryTable(
  tensors: readonly { role: string; scheme: QuantScheme | null; bytes: number; relativeError?: number }[],
): string[] {
  const rows = new Map<string, Row>();
  for (const { role, scheme, bytes, relativeError } of tensors) {
    const label = scheme === null ? 'kept' : schemeLabel(scheme);
    const row = rows.get(`${role} ${label}`) ?? { role, scheme: label, tensors: 0, bytes: 0, worst: 0 };
    row.tensors++;
    row.bytes += bytes;
    row.worst = Math.max(row.worst, relativeError ?? 0);
    rows.set(`${role} ${label}`, row);
  }
  const order = (row: Row) => (ROLES as readonly string[]).indexOf(row.role);
  const sorted = [...rows.values()].sort((a, b) => order(a) - order(b) || (a.scheme < b.scheme ? -1 : 1));
  const measured = sorted.some(({ worst }) => worst > 0);
  return table(
    ['role', 'scheme', 'tensors', 'bytes', ...(measured ? ['worst relative error'] : [])],
    sorted.map((row) => [
      row.role,
      row.scheme,
      String(row.tensors),
      formatBytes(row.bytes),
      ...(measured ? [row.worst > 0 ? row.worst.toFixed(5) : '-'] : []),
    ]),
  );
}
