export { Checkpoint, openCheckpoint, type ReadOptions, type TensorInfo } from './checkpoint/reader';
export { SafetensorsWriter } from './checkpoint/writer';
export {
  buildId,
  type CudaStatus,
  cudaStatus,
  type DeviceId,
  type DeviceInfo,
  devices,
  getDefaultDevice,
  memory,
  setDefaultDevice,
  setThreads,
  synchronize,
} from './device';
export type { DType, TypedArray } from './dtype';
export { type ErrorCode, QuantariaError } from './errors';
export { type GptqOptions, type GptqResult, Hessian } from './ops/gptq';
export { type Compute, type LinearOptions, linear, type MatmulOptions, matmul } from './ops/linear';
export { dequantize, quantize } from './ops/quantize';
export { QuantizedTensor } from './quantized';
export type { QuantScheme } from './scheme';
export { Tensor, type TensorOptions } from './tensor';
export { version } from './version';

import { groupedToSequential, sequentialToGrouped } from './ops/moe';

export type { GroupedExperts, SequentialExpert } from './ops/moe';
/** Mixture-of-experts operations. */
export const moe = { groupedToSequential, sequentialToGrouped };

import { quantize as quantizeGptq } from './ops/gptq';

/** Quantization by second-order information of calibration states. */
export const gptq = { quantize: quantizeGptq };
