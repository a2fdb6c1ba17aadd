"""Train the example model from scratch and store it in the disk layout of Aria.

Everything comes from this directory: the text from grammar.py, the ids from
byte_tokenizer.py, the weights from a seeded random start. The vision tower and
the projector are left at their random start; they are there so that the
checkpoint has every part that an Aria checkpoint has.

    python train.py ../../examples/aria-bytes
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn import functional
from transformers import AriaConfig, AriaForConditionalGeneration, GenerationConfig

from byte_tokenizer import BOS_ID, CONTEXT, EOS_ID, IMAGE_ID, write_tokenizer
from grammar import corpus
from rows import rows_of

TRAINING_SEED = 1  # of the text; calib.txt and eval.txt use other seeds
WEIGHT_SEED = 20
BATCH_ROWS = 4
PEAK_RATE = 3e-3
WARM_UP_STEPS = 60
DECAY = 0.05
# Balancing keeps experts from dying in the first steps and then ends: kept up,
# even this small factor levels their shares, and uneven use is wanted here.
BALANCE_FACTOR = 0.002
BALANCED_STEPS = 250
SHARD_SIZE = "1300KB"
EXPERTS = 16

TEXT_CONFIG = {
    "vocab_size": 264,  # 256 bytes, three special tokens, and padding to a multiple of 8
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "moe_num_experts": EXPERTS,
    "moe_topk": 2,
    "moe_num_shared_experts": 2,
    "initializer_range": 0.05,  # suits a width of 128 better than the usual 0.02
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "pad_token_id": None,
}
VISION_CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def build_model() -> AriaForConditionalGeneration:
    config = AriaConfig(
        text_config={"model_type": "aria_text", **TEXT_CONFIG},
        vision_config=dict(VISION_CONFIG),
        projector_patch_to_query_dict={4: 4},  # 28 / 14 gives 2 x 2 patches
        image_token_index=IMAGE_ID,
    )
    model = AriaForConditionalGeneration(config)
    model.set_experts_implementation("grouped_mm")  # the same sums as the default, in less time
    return model


class RouterWatch:
    """Collects what each router said during a forward pass."""

    def __init__(self, model: AriaForConditionalGeneration):
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        for layer in model.model.language_model.layers:
            layer.mlp.router.register_forward_hook(self._record)

    def _record(self, _module, _inputs, output) -> None:
        chosen, _weights, logits = output
        self.layers.append((chosen, logits))

    def take(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        layers, self.layers = self.layers, []
        return layers


def balance_loss(routers: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Share of choices times mean probability, summed over experts; 1 when even."""
    losses = []
    for chosen, logits in routers:
        shares = functional.one_hot(chosen, EXPERTS).float().mean(dim=(0, 1))
        losses.append(EXPERTS * (shares * logits.softmax(-1).mean(0)).sum())
    return torch.stack(losses).mean()


def batches(steps: int) -> Iterator[torch.Tensor]:
    """Every batch is new text: nothing is shown twice."""
    ids_needed = steps * BATCH_ROWS * (CONTEXT - 1)
    # Ids and bytes agree but for BOS against the blank line, hence a little more text.
    rows = torch.from_numpy(rows_of(corpus(TRAINING_SEED, int(ids_needed * 1.01) + 4 * CONTEXT), CONTEXT))
    for step in range(steps):
        yield rows[step * BATCH_ROWS : (step + 1) * BATCH_ROWS]


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to a fiftieth of the peak."""
    if step < WARM_UP_STEPS:
        return PEAK_RATE * (step + 1) / WARM_UP_STEPS
    progress = (step - WARM_UP_STEPS) / max(1, steps - WARM_UP_STEPS)
    return PEAK_RATE * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizer(model: AriaForConditionalGeneration) -> torch.optim.Optimizer:
    text_part = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    return torch.optim.AdamW(
        [
            {"params": [p for p in text_part if p.dim() > 1], "weight_decay": DECAY},
            {"params": [p for p in text_part if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=PEAK_RATE, betas=(0.9, 0.98), fused=True,
    )


def train(model: AriaForConditionalGeneration, steps: int) -> None:
    watch, optimizer, started = RouterWatch(model), make_optimizer(model), time.monotonic()
    for step, ids in enumerate(batches(steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        logits = model(input_ids=ids, use_cache=False).logits
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        factor = BALANCE_FACTOR if step < BALANCED_STEPS else 0.0
        (loss + factor * balance_loss(watch.take())).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            seconds = time.monotonic() - started
            print(f"step {step:5d}  {loss.item() / math.log(2):.4f} bits per byte  {seconds:6.0f} s", flush=True)


def complete_config(directory: Path) -> None:
    """Add the older spellings of two keys, which some readers of Aria expect."""
    path = directory / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    text = config["text_config"]
    text["moe_intermediate_size"] = text["intermediate_size"]
    text["rope_theta"] = text["rope_parameters"]["rope_theta"]
    config["torch_dtype"] = config["dtype"]
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def store(model: AriaForConditionalGeneration, directory: Path) -> None:
    # A document ends where the next one begins, so generation must stop at BOS as well.
    model.generation_config = GenerationConfig(bos_token_id=BOS_ID, eos_token_id=[EOS_ID, BOS_ID])
    model.to(torch.bfloat16).save_pretrained(directory, max_shard_size=SHARD_SIZE)
    complete_config(directory)
    write_tokenizer(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the example model.")
    parser.add_argument("directory", type=Path, help="where the checkpoint goes")
    parser.add_argument("--steps", type=int, default=2500)
    arguments = parser.parse_args()
    # One thread: sums of floats then have one order, so a run can be repeated.
    torch.set_num_threads(1)
    torch.manual_seed(WEIGHT_SEED)
    model = build_model()
    train(model, arguments.steps)
    store(model, arguments.directory)


if __name__ == "__main__":
    main()
