import { QuantariaError } from './errors';
import { native } from './native';

export type DeviceId = 'cpu' | `cuda:${number}` | 'cuda-emulated';

export interface DeviceInfo {
  id: DeviceId;
  kind: 'cpu' | 'cuda' | 'cuda-emulated';
  name: string;
  memoryBytes: number;
  threads?: number;
  /** The instruction set that CPU kernels use: `scalar`, `avx2` or `avx512`. */
  isa?: string;
  computeCapability?: string;
}

/** The vendor's library for large dense products, which takes them only where `QUANTARIA_CUBLASLT` asks for it. */
export interface CublasLtStatus {
  used: boolean;
  /** Why not, in one sentence; null if used. */
  reason: string | null;
  version?: string;
  path?: string;
}

export interface CudaStatus {
  available: boolean;
  /** Why not, in one sentence; null if available. */
  reason: string | null;
  /** The CUDA version that the driver supports. */
  driver?: string;
  /** The CUDA version of this build; null in a build without CUDA. */
  runtime: string | null;
  /** Devices that the driver has and this build cannot use, each with the reason. */
  refused?: Record<string, string>;
  cublasLt: CublasLtStatus;
}

/** The devices that tensors can live on. The first is the CPU. */
export function devices(): DeviceInfo[] {
  const { threads, isa, memoryBytes } = native.cpuInfo();
  const cpu: DeviceInfo = {
    id: 'cpu',
    kind: 'cpu',
    name: `CPU (${process.arch})`,
    memoryBytes,
    threads,
    isa,
  };
  return [cpu, ...(native.cudaDevices() as DeviceInfo[])];
}

/**
 * Whether CUDA devices can be used, and whether large dense products on them go to cuBLASLt. That is found where the
 * environment variable `QUANTARIA_CUBLASLT` is `1`, by the loader's search path, or a path; unset or `0` the built-in
 * kernels do all. It takes `matmul` and `linear` of float16 or bfloat16 by a dense weight of the same dtype, 64 rows or
 * more and 2^31 operations or more, rows a multiple of 16 bytes apart, with a bias of the result's dtype if any. Its sums
 * are float32 too, added up in another order: results differ in their last bits. If it was asked for and cannot be had,
 * such a product fails with `ERR_NATIVE_LOAD`, or `ERR_CUDA` where it refuses the device, and the reason.
 */
export function cudaStatus(): CudaStatus {
  return native.cudaStatus();
}

/** Which binary this is: version, source revision, compiler, CUDA architectures. */
export function buildId(): string {
  return native.buildId();
}

let defaultDevice: DeviceId = 'cpu';

/**
 * The device that new tensors are made on when none is named.
 * @throws QuantariaError `ERR_DEVICE` if it is not there
 */
export function setDefaultDevice(id: DeviceId): void {
  defaultDevice = checkDevice(id);
}

export function getDefaultDevice(): DeviceId {
  return defaultDevice;
}

/** Why a CUDA device cannot be used, of which `devices` does not know. */
function whyNot(id: string): string {
  const status = cudaStatus();
  const refused = status.refused?.[id];
  if (refused !== undefined) return `it cannot be used: ${refused}`;
  if (!status.available) return `no CUDA device can be used: ${status.reason}`;
  return `the devices here are ${devices()
    .map((device) => device.id)
    .join(', ')}`;
}

/** @throws QuantariaError `ERR_DEVICE` saying why the device cannot be used */
export function checkDevice(id: unknown): DeviceId {
  if (id === 'cpu') return id;
  if (native.cudaDevices().some((device) => device.id === id)) return id as DeviceId;
  if (typeof id === 'string' && /^cuda:\d+$/.test(id)) {
    throw new QuantariaError(
      'ERR_DEVICE',
      `${id} asked for, but ${whyNot(id)} (\`quantaria info\` has the details)`,
    );
  }
  if (id === 'cuda-emulated') {
    throw new QuantariaError(
      'ERR_DEVICE',
      'cuda-emulated asked for, but this is not the emulated build (`npm run build:emulated`, QUANTARIA_BUILD=emulated)',
    );
  }
  const came = typeof id === 'string' ? id : `a value of type ${typeof id}`;
  throw new QuantariaError(
    'ERR_DEVICE',
    `device: ${came} came, expected ${devices()
      .map((d) => d.id)
      .join(', ')}`,
  );
}

/**
 * Waits until the device has done all that was queued.
 * @throws QuantariaError (as a rejection) with the first failure that no `read` has told of
 */
export async function synchronize(id: DeviceId = defaultDevice): Promise<void> {
  checkDevice(id);
  await native.synchronize(id);
}

/**
 * Threads that CPU operations queued from now on may use; starts as the number of cores of the process.
 * @throws QuantariaError `ERR_ARGUMENT` unless 1 to 1024
 */
export function setThreads(threads: number): void {
  native.setThreads(threads);
}

/** Bytes and blocks that a device's live tensors hold, and bytes that are kept for reuse. */
export function memory(id: DeviceId = 'cpu'): { liveBytes: number; liveBlocks: number; cachedBytes: number } {
  return native.memory(checkDevice(id));
}

/**
 * Starts a device's timer when its queue comes to it. On CUDA both ends are events of its stream, so what the host does
 * meanwhile is not in the time, unless the device waits for it.
 */
export async function startTimer(id: DeviceId = defaultDevice): Promise<void> {
  await native.startTimer(checkDevice(id));
}

/**
 * Waits for what was queued since `startTimer`.
 * @returns the seconds that it took on the device
 */
export async function stopTimer(id: DeviceId = defaultDevice): Promise<number> {
  return native.stopTimer(checkDevice(id));
}

/** Operations noted down once, which the device does again with one call: a CUDA graph. */
export class Graph implements Disposable {
  readonly #number: number;

  /** @internal */
  constructor(number: number) {
    this.#number = number;
  }

  /**
   * Queues all of it. It reads the tensors that it read when it was captured, which have to be kept, and writes to the
   * same memory each time.
   * @throws QuantariaError `ERR_DISPOSED`
   */
  launch(): void {
    native.graphLaunch(this.#number);
  }

  dispose(): void {
    native.graphDispose(this.#number);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * Notes down what `run` queues on a CUDA device, without doing it: results hold nothing before the graph is launched. Each
 * operation has to have run once before, which brings its code and its weights into place. For timing, as launching a graph
 * costs the host next to nothing: nobody looks whether values are such as an operation refuses. The device is the process's: what
 * other worker threads queue on it meanwhile is noted down as well, and not done.
 * @param run queues operations without waiting for any
 * @throws QuantariaError (as a rejection) `ERR_UNSUPPORTED` on the CPU, or if an operation waits for the device;
 * `ERR_ARGUMENT` if a graph is being captured already, or `run` is no function
 */
export async function captureGraph(id: DeviceId, run: () => void): Promise<Graph> {
  const device = checkDevice(id);
  if (typeof run !== 'function')
    throw new QuantariaError('ERR_ARGUMENT', `run: a value of type ${typeof run} came, expected a function`);
  native.captureStart(device);
  try {
    run();
  } catch (error) {
    await native.captureEnd(id).then(native.graphDispose, () => {});
    throw error;
  }
  return new Graph(await native.captureEnd(id));
}
