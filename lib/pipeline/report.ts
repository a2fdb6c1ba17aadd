import type { DeviceId } from '../device';
import type { Usage } from '../recipe/types';
import type { QuantScheme } from '../scheme';
import type { TargetSummary } from './target_plan';

/** Written beside the weights: what happened to every tensor. The same run gives the same bytes, so it holds no times. */
export const REPORT_FILE = 'report.json';

/** What calibration tells of a weight. */
export interface MatrixCalibration {
  /** How its codes were found: by the run's method, or rounded to nearest where that does not apply. */
  method: string;
  /** Calibration tokens that entered the layer. */
  tokens: number;
  /**
   * Of an expert: whether its Hessian is of its own tokens, of these and those that enter its layer (there were few of its own),
   * or of the latter alone.
   */
  hessian?: 'own' | 'blended' | 'layer';
  /** Relative error of the layer's output on these tokens if it were rounded to nearest, and as it is; null without tokens. */
  outputErrorRtn: number | null;
  outputError: number | null;
  /** Of the Hessian's diagonal: more than was asked for if it was not positive definite with that. */
  damping: number | null;
  /** Input features that no token reached. */
  deadColumns: number;
  /** Input features that hold a value of magnitude 6 (or LLM.int8's threshold) or more. */
  outlierColumns: number;
  /** Of static activations of 8 bits. */
  inputScale?: number;
}

/** The data and settings of a calibrated run. */
export interface CalibrationSummary {
  rows: number;
  seqLen: number;
  tokens: number;
  /** Of GPTQ. */
  actOrder?: boolean;
  groupAware?: boolean;
  routingWeights?: boolean;
  staticGroups?: boolean;
  damping?: number;
  /** Of SmoothQuant. */
  alpha?: number;
  minExpertTokens: number;
}

export interface ReportTensor {
  name: string;
  role: string;
  /** Of a decoder layer, of a routed expert, and of a linear weight: where it stands in the model. */
  layer?: number;
  expert?: number;
  projection?: string;
  scheme: QuantScheme | null;
  /** Frobenius norm of original minus stored over that of the original; 0 for a kept tensor. */
  relativeError: number;
  /** Bytes written for it. */
  bytes: number;
  reason: string;
  /** Whether a rule of the recipe decided. */
  ruled: boolean;
  calibration?: MatrixCalibration;
}

export interface Report {
  version: string;
  fingerprint: string;
  architecture: string;
  method: string;
  format: string;
  /** Where it ran, if not on the CPU. Sums differ in their last bits between devices. */
  device?: DeviceId;
  recipe: unknown;
  averageBits: number;
  /** If bits were chosen for an average. */
  target?: TargetSummary;
  bytesIn: number;
  bytesOut: number;
  quantized: number;
  kept: number;
  warnings: readonly string[];
  notes: readonly string[];
  calibration?: CalibrationSummary;
  /** Tokens of each expert: of the layers that were calibrated, else what the plan was made with. */
  usage?: Usage;
  tensors: readonly ReportTensor[];
}
