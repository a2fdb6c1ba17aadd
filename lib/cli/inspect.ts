import type { Command } from 'commander';
import { inspectModel } from '../pipeline/inspect';
import { formatBytes, print, printJson, table } from './output';

/** `quantaria inspect <model>`: architecture, layers, parts, parameters, bytes, dtypes. */
export function inspect(program: Command): void {
  program
    .command('inspect')
    .description('what a checkpoint holds: architecture, parts, parameters, bytes')
    .argument('<model>', 'a directory or a .safetensors file')
    .action(async (model: string, { json }: { json?: boolean }) => {
      const found = await inspectModel(model);
      if (json) return printJson(found);
      const experts =
        found.experts > 0 ? `, ${found.experts} experts a layer (${found.expertLayout ?? 'quantized'})` : '';
      print(
        `${found.architecture}${found.known ? '' : ' (not known: read by general rules)'}: ${found.layers} layers${experts}`,
        `${count(found.parameters)} parameters, ${formatBytes(found.bytes)}${found.format ? `, ${found.format}` : ''}`,
        '',
        ...table(
          ['part', 'tensors', 'parameters', 'bytes'],
          Object.entries(found.parts).map(([role, part]) => [
            role,
            String(part.tensors),
            count(part.parameters),
            formatBytes(part.bytes),
          ]),
        ),
        '',
        ...table(
          ['dtype', 'tensors', 'bytes'],
          Object.entries(found.dtypes).map(([dtype, part]) => [
            dtype,
            String(part.tensors),
            formatBytes(part.bytes),
          ]),
        ),
        ...found.notes.map((note) => `note: ${note}`),
      );
    });
}

const count = (n: number): string => n.toLocaleString('en-US');
