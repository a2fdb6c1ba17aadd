export { Checkpoint, openCheckpoint, type ReadOptions, type TensorInfo } from './checkpoint/reader';
export { SafetensorsWriter } from './checkpoint/writer';
export {
  buildId,
  type CudaStatus,
  captureGraph,
  cudaStatus,
  type DeviceId,
  type DeviceInfo,
  devices,
  type Graph,
  getDefaultDevice,
  memory,
  setDefaultDevice,
  setThreads,
  startTimer,
  stopTimer,
  synchronize,
} from './device';
export type { DType, TypedArray } from './dtype';
export { type ErrorCode, QuantariaError } from './errors';
export { type GptqOptions, type GptqResult, Hessian } from './ops/gptq';
export { hadamard, hadamardQuantize } from './ops/hadamard';
export { type Compute, type LinearOptions, linear, type MatmulOptions, matmul } from './ops/linear';
export { dequantize, quantize } from './ops/quantize';
export { QuantizedTensor } from './quantized';
export type { QuantScheme } from './scheme';
export { Tensor, type TensorOptions } from './tensor';
export { version } from './version';

import { quantize as quantizeGptq } from './ops/gptq';
import { outlierColumns, split } from './ops/llm_int8';
import { groupedToSequential, sequentialToGrouped } from './ops/moe';
import { experts, groupedMatmul } from './ops/moe_experts';
import { route } from './ops/moe_route';

export type { OutlierOptions, SplitActivations } from './ops/llm_int8';
export type { GroupedExperts, SequentialExpert } from './ops/moe';
export type { ExpertsOptions, QuantizedExpert } from './ops/moe_experts';
export type { RouteOptions, Routing } from './ops/moe_route';
/** Mixture-of-experts operations. */
export const moe = { route, groupedToSequential, sequentialToGrouped, groupedMatmul, experts };
/** Quantization by second-order information of calibration states. */
export const gptq = { quantize: quantizeGptq };
/** The activation side of LLM.int8. */
export const llmInt8 = { outlierColumns, split };
