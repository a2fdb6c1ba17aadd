import { type DeviceId, devices } from '../../lib';

const found = devices().find((device) => device.kind !== 'cpu');

/** Whether tests of CUDA devices can run: on a GPU, or where the emulated build is loaded. */
export const hasCuda = found !== undefined;
/** The first GPU, else the emulated one. */
export const DEVICE: DeviceId = found?.id ?? 'cuda-emulated';
