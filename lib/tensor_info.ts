import type { DeviceId } from './device';
import type { DType } from './dtype';
import { type NativeTensor, native } from './native';

/** What a native tensor says of itself. */
export interface TensorInfo {
  shape: number[];
  dtype: DType;
  device: DeviceId;
  contiguous: boolean;
}

// Numbers, written into one array that all calls share: each operation asks for its result's facts, and objects and texts made
// by native code would take longer than the rest of many a call.
const HEAD = 4;
const facts = new Float64Array(HEAD + 16);

let dtypes: readonly DType[] | undefined;
let devices: readonly DeviceId[] | undefined;

/** @throws QuantariaError `ERR_DISPOSED` */
export function tensorInfo(tensor: NativeTensor): TensorInfo {
  native.tensorFacts(tensor, facts);
  dtypes ??= native.dtypes();
  devices ??= ['cpu', ...native.cudaDevices().map(({ id }) => id as DeviceId)];
  const rank = facts[3] as number;
  const shape: number[] = [];
  for (let i = 0; i < rank; i++) shape.push(facts[HEAD + i] as number);
  return {
    shape,
    dtype: dtypes[facts[0] as number] as DType,
    device: devices[facts[1] as number] as DeviceId,
    contiguous: facts[2] === 1,
  };
}
