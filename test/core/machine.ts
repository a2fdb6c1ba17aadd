/** What a machine may choose, for results that must not depend on it. */
import { setThreads } from '../../lib';
import { native } from '../../lib/native';

/** The instruction sets that this machine has, and kernels are compiled for. */
export const ISAS = ['scalar', 'avx2', 'avx512', 'avx512vnni', 'avx512bf16'].filter((isa) => {
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
