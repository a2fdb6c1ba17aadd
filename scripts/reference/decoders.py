"""Small random decoders of every architecture that has a forward pass, with transformers' logits.

    pip install -r requirements.txt
    python decoders.py ../../test/models/reference/fixtures

writes a folder each: config.json, model.safetensors (bfloat16) and reference.safetensors with `input_ids` [2, L] and
`logits` [2, L, V], computed in float32 of the same values by eager attention. Seeds are fixed.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

COMMON = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=48,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,
)
LLAMA = dict(model_type="llama", intermediate_size=44, head_dim=8)
EXPERTS = dict(num_experts_per_tok=2, moe_intermediate_size=24)


def rope(kind, theta=10000.0, **more):
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=theta, **more))


MODELS = {
    "llama-linear": dict(**LLAMA, **rope("linear", factor=4.0)),
    # Rows of 40 ids are longer than the context of 32.
    "llama-dynamic": dict(**LLAMA, **rope("dynamic", factor=2.0), max_position_embeddings=32),
    "llama-llama3": dict(
        **LLAMA,
        **rope("llama3", 500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
               original_max_position_embeddings=32),
        attention_bias=True,
        tie_word_embeddings=True,
    ),
    "llama-yarn": dict(
        **LLAMA, **rope("yarn", 100.0, factor=4.0, original_max_position_embeddings=16, beta_fast=4.0)),
    "llama-longrope": dict(
        **LLAMA,
        **rope("longrope", factor=4.0, original_max_position_embeddings=16,
               short_factor=[1.0, 1.0, 1.1, 1.2], long_factor=[1.0, 1.5, 2.0, 4.0]),
    ),
    "mistral": dict(model_type="mistral", intermediate_size=44, head_dim=16, sliding_window=7, **rope("default")),
    "qwen2": dict(model_type="qwen2", intermediate_size=44, use_sliding_window=True, sliding_window=9,
                  max_window_layers=1, **rope("default")),
    "qwen3": dict(model_type="qwen3", intermediate_size=44, head_dim=16, **rope("default")),
    "mixtral": dict(model_type="mixtral", intermediate_size=24, num_local_experts=5, num_experts_per_tok=2,
                    **rope("default", 1e6)),
    "qwen2_moe": dict(model_type="qwen2_moe", intermediate_size=44, shared_expert_intermediate_size=20,
                      num_experts=6, norm_topk_prob=False, mlp_only_layers=[1], num_hidden_layers=3,
                      decoder_sparse_step=1, **EXPERTS, **rope("default")),
    "qwen3_moe": dict(model_type="qwen3_moe", intermediate_size=44, head_dim=16, num_experts=6,
                      norm_topk_prob=True, **EXPERTS, **rope("default")),
    "olmoe": dict(model_type="olmoe", intermediate_size=24, num_experts=6, num_experts_per_tok=2,
                  norm_topk_prob=False, **rope("default")),
    "deepseek_v2": dict(
        model_type="deepseek_v2", intermediate_size=44, n_routed_experts=6, n_shared_experts=2,
        num_key_value_heads=4, q_lora_rank=20, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=4,
        v_head_dim=6, first_k_dense_replace=1, routed_scaling_factor=1.5, topk_method="greedy",
        n_group=1, topk_group=1, norm_topk_prob=False, **EXPERTS,
        **rope("yarn", 100.0, factor=4.0, original_max_position_embeddings=16, beta_fast=4.0,
               mscale=0.8, mscale_all_dim=0.8)),
    "deepseek_v2-lite": dict(
        model_type="deepseek_v2", intermediate_size=44, n_routed_experts=6, n_shared_experts=1,
        num_key_value_heads=4, q_lora_rank=None, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=4,
        v_head_dim=6, first_k_dense_replace=0, topk_method="greedy", n_group=1, topk_group=1,
        norm_topk_prob=False, **EXPERTS, **rope("default")),
    "aria_text": dict(model_type="aria_text", intermediate_size=24, moe_num_experts=6, moe_topk=2,
                      moe_num_shared_experts=2, head_dim=8, **rope("default")),
    "deepseek_v2-groups": dict(
        model_type="deepseek_v2", intermediate_size=44, n_routed_experts=12, n_shared_experts=1,
        num_key_value_heads=4, q_lora_rank=None, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=4,
        v_head_dim=6, first_k_dense_replace=1, routed_scaling_factor=4.0, topk_method="group_limited_greedy",
        n_group=4, topk_group=2, norm_topk_prob=False, num_experts_per_tok=3, moe_intermediate_size=16,
        **rope("default")),
}


def make(directory: Path, name: str, settings: dict, seed: int) -> None:
    torch.manual_seed(seed)
    settings = {**COMMON, **settings}
    model_type = settings.pop("model_type")
    config = AutoConfig.for_model(model_type, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # Wide enough that every part shows in the logits, norms and biases too.
            if "norm" in key:
                parameter.copy_(torch.exp(0.3 * torch.randn_like(parameter)))
            else:
                parameter.copy_(torch.randn_like(parameter) * (0.3 if key.endswith("bias") else 0.2))
            parameter.copy_(parameter.bfloat16())
        ids = torch.randint(0, config.vocab_size, (2, 40))
        logits = model(input_ids=ids, use_cache=False).logits
    folder = directory / name
    shutil.rmtree(folder, ignore_errors=True)
    model.bfloat16().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")
    save_file({"input_ids": ids.to(torch.int32), "logits": logits.float().contiguous()},
              folder / "reference.safetensors")
    size = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    print(f"{name}: {size} parameters, logits of deviation {logits.std():.3f}")


def main() -> None:
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for seed, (name, settings) in enumerate(MODELS.items()):
        make(directory, name, settings, seed)


if __name__ == "__main__":
    main()
