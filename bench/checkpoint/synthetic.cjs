'use strict';
// Writes a synthetic checkpoint with the tensor names and shapes of Aria: grouped experts, bfloat16, one shard a layer. The
// values are normal, with a standard deviation of 0.02.
//   node bench/checkpoint/synthetic.cjs DIR [--layers 2] [--vocab 1024] [--unreached 0]
// --unreached: so many experts of each layer that no token is routed to. The first feature of every token is then large and
// positive, and their routers' weights for it are negative.

const fs = require('node:fs');
const path = require('node:path');
const { parseArgs } = require('node:util');
const { SafetensorsWriter, Tensor } = require('../..');

const HIDDEN = 2560;
const WIDTH = 1664;
const EXPERTS = 64;
const SHARED = 2 * WIDTH;
const POOL = 1 << 23;
/** In bfloat16. */
const ONE = 0x3f80;
const MINUS_ONE = 0xbf80;

/** A pool of normal values that every tensor is cut from at an offset of its own. */
function makePool() {
  let state = 0x9e3779b9;
  const random = () => {
    state = (Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x6d2b79f5) | 0;
    return ((state >>> 8) + 0.5) / (1 << 24);
  };
  const values = new Float32Array(POOL);
  for (let i = 0; i < POOL; i += 2) {
    const radius = 0.02 * Math.sqrt(-2 * Math.log(random()));
    const angle = 2 * Math.PI * random();
    values[i] = radius * Math.cos(angle);
    values[i + 1] = radius * Math.sin(angle);
  }
  return values;
}

function layerTensors(layer) {
  const prefix = `language_model.model.layers.${layer}`;
  const attention = ['q', 'k', 'v', 'o'].map((p) => [
    `${prefix}.self_attn.${p}_proj.weight`,
    [HIDDEN, HIDDEN],
  ]);
  return [
    ...attention,
    [`${prefix}.input_layernorm.weight`, [HIDDEN]],
    [`${prefix}.post_attention_layernorm.weight`, [HIDDEN]],
    [`${prefix}.mlp.router.weight`, [EXPERTS, HIDDEN]],
    [`${prefix}.mlp.experts.fc1.weight`, [EXPERTS, HIDDEN, 2 * WIDTH]],
    [`${prefix}.mlp.experts.fc2.weight`, [EXPERTS, WIDTH, HIDDEN]],
    [`${prefix}.mlp.shared_experts.gate_proj.weight`, [SHARED, HIDDEN]],
    [`${prefix}.mlp.shared_experts.up_proj.weight`, [SHARED, HIDDEN]],
    [`${prefix}.mlp.shared_experts.down_proj.weight`, [HIDDEN, SHARED]],
  ];
}

function configOf(layers, vocab) {
  return {
    architectures: ['AriaForConditionalGeneration'],
    model_type: 'aria',
    text_config: {
      model_type: 'aria_text',
      hidden_size: HIDDEN,
      intermediate_size: WIDTH,
      moe_num_experts: EXPERTS,
      moe_topk: 6,
      moe_num_shared_experts: 2,
      num_hidden_layers: layers,
      num_attention_heads: 20,
      num_key_value_heads: 20,
      vocab_size: vocab,
      rms_norm_eps: 1e-6,
    },
    torch_dtype: 'bfloat16',
  };
}

/** The value that a row of a tensor (a norm is one row) has in its first column instead of the pool's; undefined for most. */
function firstOfRow(name, row, unreached) {
  if (unreached === 0) return undefined;
  if (/embed_tokens|post_attention_layernorm/.test(name)) return ONE;
  if (!/mlp\.router/.test(name)) return undefined;
  return row < EXPERTS - unreached ? 0 : MINUS_ONE;
}

async function writeShard(directory, file, tensors, pool, unreached) {
  const entries = tensors.map(([name, shape]) => ({ name, dtype: 'BF16', shape }));
  const writer = new SafetensorsWriter(path.join(directory, file), entries);
  for (const [name, shape] of tensors) {
    const size = shape.reduce((a, b) => a * b, 1);
    const bits = new Uint16Array(size);
    const offset = (name.length * 7919 + size) % POOL;
    for (let at = 0; at < size; ) {
      const from = (offset + at) % POOL;
      const part = pool.subarray(from, Math.min(POOL, from + size - at));
      bits.set(part, at);
      at += part.length;
    }
    const width = shape.at(-1);
    for (let row = 0; row * width < size; ++row) {
      bits[row * width] = firstOfRow(name, row, unreached) ?? bits[row * width];
    }
    const tensor = Tensor.from(bits, shape, { dtype: 'bfloat16' });
    await writer.write(name, tensor);
  }
  await writer.finish();
  return entries.map(({ name }) => [name, file]);
}

/** Writes the checkpoint unless it is there; returns the bytes of its tensors. */
async function makeSynthetic(directory, { layers = 2, vocab = 1024, unreached = 0 } = {}) {
  fs.mkdirSync(directory, { recursive: true });
  const values = Tensor.from(makePool(), [POOL]);
  const rounded = values.cast('bfloat16');
  const pool = await rounded.read();
  const total = String(layers + 1).padStart(5, '0');
  const name = (i) => `model-${String(i + 1).padStart(5, '0')}-of-${total}.safetensors`;
  const map = [];
  for (let layer = 0; layer < layers; layer++) {
    map.push(...(await writeShard(directory, name(layer), layerTensors(layer), pool, unreached)));
  }
  const rest = [
    ['language_model.model.embed_tokens.weight', [vocab, HIDDEN]],
    ['language_model.model.norm.weight', [HIDDEN]],
    ['language_model.lm_head.weight', [vocab, HIDDEN]],
  ];
  map.push(...(await writeShard(directory, name(layers), rest, pool, unreached)));
  fs.writeFileSync(path.join(directory, 'config.json'), JSON.stringify(configOf(layers, vocab), null, 2));
  const index = { metadata: {}, weight_map: Object.fromEntries(map) };
  fs.writeFileSync(path.join(directory, 'model.safetensors.index.json'), JSON.stringify(index, null, 2));
}

module.exports = { makeSynthetic };

if (require.main === module) {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      layers: { type: 'string', default: '2' },
      vocab: { type: 'string', default: '1024' },
      unreached: { type: 'string', default: '0' },
    },
  });
  if (positionals.length !== 1) throw new Error('usage: synthetic.cjs DIR [--layers N] [--vocab N]');
  const [layers, vocab, unreached] = [values.layers, values.vocab, values.unreached].map(Number);
  void makeSynthetic(positionals[0], { layers, vocab, unreached });
}
