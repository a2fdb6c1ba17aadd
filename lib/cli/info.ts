import type { Command } from 'commander';
import { buildId, cudaStatus, devices } from '../device';
import { version } from '../version';
import { formatBytes, print, printJson } from './output';

/** `quantaria info`: devices, instruction sets, CUDA status. */
export function info(program: Command): void {
  program
    .command('info')
    .description('devices, instruction sets and the state of CUDA')
    .action(({ json }: { json?: boolean }) => {
      const result = {
        version,
        build: buildId(),
        node: process.version,
        devices: devices(),
        cuda: cudaStatus(),
      };
      if (json) return printJson(result);
      print(`quantaria ${version}`, `build    ${result.build}`, `node     ${result.node}`);
      for (const device of result.devices) {
        const threads = device.threads === undefined ? '' : `, ${device.threads} threads`;
        print(
          `device   ${device.id}: ${device.name}, ${device.isa ?? device.computeCapability}${threads}, ${formatBytes(device.memoryBytes)}`,
        );
      }
      const { available, reason, driver, runtime, cublasLt } = result.cuda;
      const versions = `runtime ${runtime ?? 'none'}, driver ${driver ?? 'none'}`;
      print(`cuda     ${available ? 'available' : `not available: ${reason}`} (${versions})`);
      const { used, version: library, path } = cublasLt;
      print(`cublaslt ${used ? `${library}, ${path}` : `not used: ${cublasLt.reason}`}`);
    });
}
