import type { QuantScheme } from '../scheme';

/** Written beside the weights: what happened to every tensor. The same run gives the same bytes, so it holds no times. */
export const REPORT_FILE = 'report.json';

export interface ReportTensor {
  name: string;
  role: string;
  scheme: QuantScheme | null;
  /** Frobenius norm of original minus stored over that of the original; 0 for a kept tensor. */
  relativeError: number;
  /** Bytes written for it. */
  bytes: number;
  reason: string;
  /** Whether a rule of the recipe decided. */
  ruled: boolean;
}

export interface Report {
  version: string;
  fingerprint: string;
  architecture: string;
  method: string;
  format: string;
  recipe: unknown;
  averageBits: number;
  bytesIn: number;
  bytesOut: number;
  quantized: number;
  kept: number;
  warnings: readonly string[];
  notes: readonly string[];
  tensors: readonly ReportTensor[];
}
