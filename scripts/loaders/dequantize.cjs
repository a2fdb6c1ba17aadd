#!/usr/bin/env node
/**
 * Writes the dense checkpoint that a quantized one stands for, as Quantaria decodes it: what compare.py holds the loaders'
 * own decoding against. config.json is copied as it is, and compare.py leaves its quantization aside. Needs `npm run build`.
 *
 *   node scripts/loaders/dequantize.cjs <quantized> <out> [--dtype bfloat16]
 */
const fs = require('node:fs');
const path = require('node:path');

const dist = path.join(__dirname, '..', '..', 'dist');
const { openModel } = require(path.join(dist, 'pipeline', 'stored_model.js'));
const { SafetensorsWriter } = require(path.join(dist, 'checkpoint', 'writer.js'));
const { dequantize } = require(path.join(dist, 'ops', 'quantize.js'));
const { storedName } = require(path.join(dist, 'dtype.js'));

/** The dtype of the source, as its config.json has it. */
function modelDtype(config) {
  const text = config.text_config ?? {};
  return config.dtype ?? config.torch_dtype ?? text.dtype ?? text.torch_dtype ?? 'float32';
}

async function main([quantized, out, flag, asked]) {
  if (out === undefined || (flag !== undefined && flag !== '--dtype')) {
    throw new Error('usage: dequantize.cjs <quantized> <out> [--dtype float32|float16|bfloat16]');
  }
  const { checkpoint, format, modules, stored } = await openModel(quantized);
  const dtype = asked ?? modelDtype(checkpoint.config);
  const used = new Set(modules.flatMap(({ tensors }) => tensors));
  const kept = checkpoint.entries().filter(({ name }) => !used.has(name));
  const entries = [
    ...modules.map(({ module, shape }) => ({ name: `${module}.weight`, dtype: storedName(dtype), shape })),
    ...kept.map((entry) => ({ name: entry.name, dtype: entry.dtype, shape: entry.shape })),
  ];
  fs.mkdirSync(out, { recursive: true });
  const writer = new SafetensorsWriter(path.join(out, 'model.safetensors'), entries);
  for (const module of modules) {
    const weight = await format.decode(module, stored.read);
    await writer.write(`${module.module}.weight`, dequantize(weight, { dtype }));
    weight.dispose();
  }
  for (const { name } of kept) await writer.write(name, await checkpoint.read(name));
  await writer.finish();
  fs.copyFileSync(path.join(quantized, 'config.json'), path.join(out, 'config.json'));
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
});
