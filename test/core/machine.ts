/** What a machine may choose, for results that must not depend on it. */
import { setThreads } from '../../lib';
import { native } from '../../lib/native';
import { ON_CPU } from '../device';

const KNOWN = ['scalar', 'avx2', 'avx512', 'avx512vnni', 'avx512bf16'];

/** The instruction sets that this machine has, and kernels are compiled for: other devices know nothing of them. */
export const ISAS = (ON_CPU ? KNOWN : [native.cpuInfo().isa]).filter((isa) => {
  const before = native.cpuInfo().isa;
  try {
    native.selectIsa(isa);
    return true;
  } catch {
    return false;
  } finally {
    native.selectIsa(before);
  }
});

/** Counts of threads that have to give the same bits; for other devices, which know none: as many runs. */
export const THREADS = ON_CPU ? [1, 2, 3] : [1, 2];

/** The queue has to be empty when the body's promise settles: the choice is looked at as work is done. */
export async function withIsa<T>(isa: string, body: () => Promise<T>): Promise<T> {
  const before = native.cpuInfo().isa;
  native.selectIsa(isa);
  try {
    return await body();
  } finally {
    native.selectIsa(before);
  }
}

export async function withThreads<T>(threads: number, body: () => Promise<T>): Promise<T> {
  const before = native.cpuInfo().threads;
  setThreads(threads);
  try {
    return await body();
  } finally {
    setThreads(before);
  }
}
