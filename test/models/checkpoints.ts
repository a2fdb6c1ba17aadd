/** Headers of checkpoints as the families write them, spelt out from their documentation rather than from lib/models. */
import { existsSync, openSync, readdirSync, readFileSync, readSync } from 'node:fs';
import { join } from 'node:path';
import type { StoredTensor } from '../../lib/models/types';

export interface Checkpoint {
  config: Record<string, unknown>;
  tensors: StoredTensor[];
}

const bf16 = (name: string, ...shape: number[]): StoredTensor => ({ name, dtype: 'BF16', shape });
const range = (count: number) => Array.from({ length: count }, (_, index) => index);

export type ExpertForm = 'sequential' | 'grouped' | 'fused' | 'fused-transposed';

interface Dims {
  hidden: number;
  width: number;
  experts: number;
}

/** Routed experts of the layer with this prefix; `path` and `names` are those of the sequential form. */
function experts(
  prefix: string,
  form: ExpertForm,
  { hidden: H, width: I, experts: E }: Dims,
  path = 'mlp.experts',
  names: readonly [gate: string, up: string, down: string] = ['gate_proj', 'up_proj', 'down_proj'],
): StoredTensor[] {
  switch (form) {
    case 'sequential':
      return range(E).flatMap((e) => [
        bf16(`${prefix}${path}.${e}.${names[0]}.weight`, I, H),
        bf16(`${prefix}${path}.${e}.${names[1]}.weight`, I, H),
        bf16(`${prefix}${path}.${e}.${names[2]}.weight`, H, I),
      ]);
    case 'grouped':
      return [
        bf16(`${prefix}mlp.experts.fc1.weight`, E, H, 2 * I),
        bf16(`${prefix}mlp.experts.fc2.weight`, E, I, H),
      ];
    case 'fused':
      return [
        bf16(`${prefix}mlp.experts.gate_up_proj`, E, 2 * I, H),
        bf16(`${prefix}mlp.experts.down_proj`, E, H, I),
      ];
    case 'fused-transposed':
      return [
        bf16(`${prefix}mlp.experts.gate_up_proj`, E, H, 2 * I),
        bf16(`${prefix}mlp.experts.down_proj`, E, I, H),
      ];
  }
}

const mlp = (prefix: string, hidden: number, width: number) => [
  bf16(`${prefix}.gate_proj.weight`, width, hidden),
  bf16(`${prefix}.up_proj.weight`, width, hidden),
  bf16(`${prefix}.down_proj.weight`, hidden, width),
];

const norms = (prefix: string, hidden: number) => [
  bf16(`${prefix}input_layernorm.weight`, hidden),
  bf16(`${prefix}post_attention_layernorm.weight`, hidden),
];

const attention = (prefix: string, hidden: number, q: number, kv: number) => [
  bf16(`${prefix}self_attn.q_proj.weight`, q, hidden),
  bf16(`${prefix}self_attn.k_proj.weight`, kv, hidden),
  bf16(`${prefix}self_attn.v_proj.weight`, kv, hidden),
  bf16(`${prefix}self_attn.o_proj.weight`, hidden, q),
];

const ends = (prefix: string, head: string, vocabulary: number, hidden: number) => [
  bf16(`${prefix}embed_tokens.weight`, vocabulary, hidden),
  bf16(`${prefix}norm.weight`, hidden),
  bf16(`${head}.weight`, vocabulary, hidden),
];

export interface AriaOptions {
  form: ExpertForm;
  /** `disk`, transformers v5's memory, or the text model alone. */
  spelling?: 'disk' | 'loader' | 'text';
  /** Of the sequential form: the list inside a module `experts`, or right there. */
  path?: string;
  real?: boolean;
}

export function aria({
  form,
  spelling = 'disk',
  path = 'mlp.experts.experts',
  real = false,
}: AriaOptions): Checkpoint {
  const H = real ? 2560 : 32;
  const I = real ? 1664 : 24;
  const E = real ? 64 : 4;
  const L = real ? 28 : 2;
  const V = real ? 100352 : 48;
  const vision = real ? 1152 : 16;
  const visionMlp = real ? 4304 : 40;
  const loader = spelling === 'loader';
  const text = { disk: 'language_model.model.', loader: 'model.language_model.', text: 'model.' }[spelling];
  const head = spelling === 'disk' ? 'language_model.lm_head' : 'lm_head';
  const tensors = ends(text, head, V, H);
  for (const l of range(L)) {
    const prefix = `${text}layers.${l}.`;
    tensors.push(
      ...norms(prefix, H),
      ...attention(prefix, H, H, H),
      bf16(`${prefix}mlp.router.weight`, E, H),
      ...experts(prefix, form, { hidden: H, width: I, experts: E }, path),
      ...mlp(`${prefix}mlp.shared_experts`, H, 2 * I),
    );
  }
  if (spelling !== 'text') {
    const tower = loader ? 'model.vision_tower.' : 'vision_tower.';
    const projector = loader ? 'model.multi_modal_projector.' : 'multi_modal_projector.';
    const withBias = (name: string, out: number, width: number) => [
      bf16(`${name}.weight`, out, width),
      bf16(`${name}.bias`, out),
    ];
    const norm = (name: string, size: number) => [bf16(`${name}.weight`, size), bf16(`${name}.bias`, size)];
    tensors.push(
      bf16(`${tower}embeddings.patch_embedding.weight`, vision, 3, 14, 14),
      bf16(`${tower}embeddings.patch_embedding.bias`, vision),
      bf16(`${tower}embeddings.position_embedding.weight`, real ? 4900 : 4, vision),
      ...norm(`${tower}post_layernorm`, vision),
    );
    for (const l of range(real ? 27 : 1)) {
      const layer = `${tower}encoder.layers.${l}.`;
      tensors.push(
        ...['q_proj', 'k_proj', 'v_proj', 'out_proj'].flatMap((p) =>
          withBias(`${layer}self_attn.${p}`, vision, vision),
        ),
        ...norm(`${layer}layer_norm1`, vision),
        ...norm(`${layer}layer_norm2`, vision),
        ...withBias(`${layer}mlp.fc1`, visionMlp, vision),
        ...withBias(`${layer}mlp.fc2`, vision, visionMlp),
      );
    }
    tensors.push(
      bf16(`${projector}query`, real ? 256 : 4, vision),
      ...['q_proj', 'k_proj', 'v_proj'].map((p) =>
        bf16(`${projector}cross_attn.${p}.weight`, vision, vision),
      ),
      bf16(`${projector}cross_attn.multihead_attn.in_proj_weight`, 3 * vision, vision),
      bf16(`${projector}cross_attn.multihead_attn.in_proj_bias`, 3 * vision),
      ...withBias(`${projector}cross_attn.multihead_attn.out_proj`, vision, vision),
      ...withBias(`${projector}cross_attn.linear`, vision, vision),
      ...norm(`${projector}cross_attn.layer_norm`, vision),
      ...norm(`${projector}cross_attn.layer_norm_kv`, vision),
      ...norm(`${projector}layer_norm`, vision),
      bf16(`${projector}feed_forward.linear_in.weight`, H, vision),
      bf16(`${projector}feed_forward.linear_out.weight`, H, H),
    );
  }
  const decoder = {
    model_type: 'aria_text',
    hidden_size: H,
    intermediate_size: I,
    num_hidden_layers: L,
    moe_num_experts: E,
    moe_topk: real ? 6 : 2,
  };
  return { config: spelling === 'text' ? decoder : { model_type: 'aria', text_config: decoder }, tensors };
}

export function mixtral(form: ExpertForm = 'sequential', real = false): Checkpoint {
  const [H, I, E, L, V, kv] = real ? [4096, 14336, 8, 32, 32000, 1024] : [32, 48, 4, 2, 40, 16];
  const block = form === 'fused' ? 'mlp' : 'block_sparse_moe';
  const tensors = ends('model.', 'lm_head', V, H);
  for (const l of range(L)) {
    const prefix = `model.layers.${l}.`;
    tensors.push(
      ...norms(prefix, H),
      ...attention(prefix, H, H, kv),
      bf16(`${prefix}${block}.gate.weight`, E, H),
      ...experts(prefix, form, { hidden: H, width: I, experts: E }, 'block_sparse_moe.experts', [
        'w1',
        'w3',
        'w2',
      ]),
    );
  }
  const config = {
    model_type: 'mixtral',
    hidden_size: H,
    intermediate_size: I,
    num_hidden_layers: L,
    num_local_experts: E,
    num_experts_per_tok: 2,
  };
  return { config, tensors };
}

/** Qwen2-MoE with a dense layer among the sparse ones. `real`: Qwen1.5-MoE-A2.7B, whose layers are all sparse. */
export function qwen2Moe(form: ExpertForm = 'sequential', real = false): Checkpoint {
  const [H, I, E, L, V, shared] = real ? [2048, 1408, 60, 24, 151936, 5632] : [32, 20, 4, 3, 40, 40];
  const tensors = ends('model.', 'lm_head', V, H);
  for (const l of range(L)) {
    const prefix = `model.layers.${l}.`;
    tensors.push(...norms(prefix, H), ...attention(prefix, H, H, H));
    for (const p of ['q', 'k', 'v']) tensors.push(bf16(`${prefix}self_attn.${p}_proj.bias`, H));
    if (!real && l === 1) {
      tensors.push(...mlp(`${prefix}mlp`, H, 56));
      continue;
    }
    tensors.push(
      bf16(`${prefix}mlp.gate.weight`, E, H),
      ...experts(prefix, form, { hidden: H, width: I, experts: E }),
      ...mlp(`${prefix}mlp.shared_expert`, H, shared),
      bf16(`${prefix}mlp.shared_expert_gate.weight`, 1, H),
    );
  }
  const config = {
    model_type: 'qwen2_moe',
    hidden_size: H,
    intermediate_size: real ? 5632 : 56,
    moe_intermediate_size: I,
    num_hidden_layers: L,
    num_experts: E,
    num_experts_per_tok: real ? 4 : 2,
    mlp_only_layers: real ? [] : [1],
  };
  return { config, tensors };
}

/** `real`: Qwen3-30B-A3B. */
export function qwen3Moe(form: ExpertForm = 'sequential', real = false): Checkpoint {
  const [H, I, E, L, V, q, kv, head] = real
    ? [2048, 768, 128, 48, 151936, 4096, 512, 128]
    : [32, 20, 4, 2, 40, 64, 16, 8];
  const tensors = ends('model.', 'lm_head', V, H);
  for (const l of range(L)) {
    const prefix = `model.layers.${l}.`;
    tensors.push(
      ...norms(prefix, H),
      ...attention(prefix, H, q, kv),
      bf16(`${prefix}self_attn.q_norm.weight`, head),
      bf16(`${prefix}self_attn.k_norm.weight`, head),
      bf16(`${prefix}mlp.gate.weight`, E, H),
      ...experts(prefix, form, { hidden: H, width: I, experts: E }),
    );
  }
  const config = {
    model_type: 'qwen3_moe',
    hidden_size: H,
    intermediate_size: 6144,
    moe_intermediate_size: I,
    num_hidden_layers: L,
    num_local_experts: E,
    num_experts_per_tok: real ? 8 : 2,
  };
  return { config, tensors };
}

/** DeepSeek-V2-Lite when `real`; with `v3`, low-rank queries, a router bias and a layer for multi-token prediction. */
export function deepseek(form: ExpertForm = 'sequential', { real = false, v3 = false } = {}): Checkpoint {
  const [H, I, E, L, V] = real ? [2048, 1408, 64, 27, 102400] : [32, 20, 4, 3, 40];
  const dense = real ? 10944 : 56;
  const [heads, nope, rope, value, rank] = real ? [16, 128, 64, 128, 512] : [2, 8, 4, 8, 12];
  const tensors = ends('model.', 'lm_head', V, H);
  for (const l of range(v3 ? L + 1 : L)) {
    const prefix = `model.layers.${l}.`;
    tensors.push(
      ...norms(prefix, H),
      bf16(`${prefix}self_attn.kv_a_proj_with_mqa.weight`, rank + rope, H),
      bf16(`${prefix}self_attn.kv_a_layernorm.weight`, rank),
      bf16(`${prefix}self_attn.kv_b_proj.weight`, heads * (nope + value), rank),
      bf16(`${prefix}self_attn.o_proj.weight`, H, heads * value),
    );
    if (v3) {
      tensors.push(
        bf16(`${prefix}self_attn.q_a_proj.weight`, 16, H),
        bf16(`${prefix}self_attn.q_a_layernorm.weight`, 16),
        bf16(`${prefix}self_attn.q_b_proj.weight`, heads * (nope + rope), 16),
      );
    } else {
      tensors.push(bf16(`${prefix}self_attn.q_proj.weight`, heads * (nope + rope), H));
    }
    if (l === 0) {
      tensors.push(...mlp(`${prefix}mlp`, H, dense));
      continue;
    }
    tensors.push(
      bf16(`${prefix}mlp.gate.weight`, E, H),
      ...experts(prefix, form, { hidden: H, width: I, experts: E }),
      ...mlp(`${prefix}mlp.shared_experts`, H, 2 * I),
    );
    if (v3) tensors.push({ name: `${prefix}mlp.gate.e_score_correction_bias`, dtype: 'F32', shape: [E] });
    if (l === L) {
      tensors.push(
        bf16(`${prefix}enorm.weight`, H),
        bf16(`${prefix}hnorm.weight`, H),
        bf16(`${prefix}eh_proj.weight`, H, 2 * H),
        bf16(`${prefix}embed_tokens.weight`, V, H),
        bf16(`${prefix}shared_head.norm.weight`, H),
        bf16(`${prefix}shared_head.head.weight`, V, H),
      );
    }
  }
  const config = {
    model_type: v3 ? 'deepseek_v3' : 'deepseek_v2',
    hidden_size: H,
    intermediate_size: dense,
    moe_intermediate_size: I,
    num_hidden_layers: L,
    n_routed_experts: E,
    num_experts_per_tok: real ? 6 : 2,
    first_k_dense_replace: 1,
  };
  return { config, tensors };
}

export function gptOss(): Checkpoint {
  const [H, I, E, L] = [32, 24, 4, 2];
  const tensors = ends('model.', 'lm_head', 40, H);
  for (const l of range(L)) {
    const prefix = `model.layers.${l}.`;
    tensors.push(
      ...norms(prefix, H),
      ...attention(prefix, H, H, 16),
      bf16(`${prefix}self_attn.sinks`, 4),
      bf16(`${prefix}mlp.router.weight`, E, H),
      bf16(`${prefix}mlp.router.bias`, E),
      ...experts(prefix, 'fused-transposed', { hidden: H, width: I, experts: E }),
      bf16(`${prefix}mlp.experts.gate_up_proj_bias`, E, 2 * I),
      bf16(`${prefix}mlp.experts.down_proj_bias`, E, H),
    );
  }
  const config = { model_type: 'gpt_oss', hidden_size: H, num_hidden_layers: L, num_local_experts: E };
  return { config, tensors };
}

export function llama(modelType = 'llama'): Checkpoint {
  const tensors = ends('model.', 'lm_head', 40, 32);
  for (const l of range(12)) {
    const prefix = `model.layers.${l}.`;
    tensors.push(...norms(prefix, 32), ...attention(prefix, 32, 32, 16), ...mlp(`${prefix}mlp`, 32, 56));
  }
  return {
    config: { model_type: modelType, hidden_size: 32, intermediate_size: 56, num_hidden_layers: 12 },
    tensors,
  };
}

/** Real checkpoints beside the repository; null where they are not. */
export function sharedModels(): string | null {
  const folder = join(__dirname, '..', '..', '..', 'shared', 'models');
  return existsSync(folder) ? folder : null;
}

/** Reads config.json and the headers of the files that hold weights. */
export function readHeaders(folder: string): Checkpoint {
  const files = readdirSync(folder).filter((name) => /^model.*\.safetensors$/.test(name));
  const tensors = files.flatMap((name) => {
    const file = openSync(join(folder, name), 'r');
    const size = Buffer.alloc(8);
    readSync(file, size, 0, 8, 0);
    const header = Buffer.alloc(Number(size.readBigUInt64LE()));
    readSync(file, header, 0, header.length, 8);
    const entries = JSON.parse(header.toString('utf8')) as Record<string, { dtype: string; shape: number[] }>;
    return Object.entries(entries)
      .filter(([key]) => key !== '__metadata__')
      .map(([key, { dtype, shape }]) => ({ name: key, dtype, shape }));
  });
  return {
    config: JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')) as Record<string, unknown>,
    tensors,
  };
}
