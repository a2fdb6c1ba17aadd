"""Measure the stored example model and write the files that record it.

Reads calib.txt and eval.txt beside the checkpoint. Writes expert_usage.json
and reference.safetensors there and prints the figures that the README quotes.
All arithmetic is float32 on the stored bfloat16 weights.

    python measure.py ../../examples/aria-bytes
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import AriaForConditionalGeneration

from byte_tokenizer import BOS, BOS_ID
from rows import encode_stream, rows_of
from train import EXPERTS, TEXT_CONFIG, RouterWatch

ROW_LENGTH = 256
ROWS_PER_PASS = 32
REFERENCE_ROWS = (0, 37)
REFERENCE_LENGTH = 64
REFERENCE_COLUMN_STEP = 3  # every third column keeps the file small
CONTINUATION_LENGTH = 400
PROMPTS = ["One morning Old Tamolu went to", "RECIPE: Winter", "7 x 8 =", "Weather for Brimere\nMonday:"]


def load(directory: Path) -> AriaForConditionalGeneration:
    model, report = AriaForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    # Absent names would leave random weights in place without an error.
    problems = {kind: names for kind, names in report.items() if names}
    if problems:
        raise SystemExit(f"the checkpoint does not load whole: {problems}")
    return model.eval()


def read_rows(path: Path) -> torch.Tensor:
    return torch.from_numpy(rows_of(path.read_text(encoding="utf-8"), ROW_LENGTH))


def token_losses(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Natural-log loss of every id but the first of each row."""
    return functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")


def mean_loss(model: AriaForConditionalGeneration, rows: torch.Tensor) -> float:
    losses = [token_losses(model(input_ids=ids, use_cache=False).logits, ids) for ids in rows.split(ROWS_PER_PASS)]
    return torch.cat(losses).double().mean().item()


def unigram_loss(counted: np.ndarray, rows: torch.Tensor) -> float:
    """Loss of a model that knows only how often each id occurs (add-one smoothing)."""
    counts = np.bincount(counted, minlength=TEXT_CONFIG["vocab_size"]) + 1
    return -np.log(counts / counts.sum())[rows[:, 1:].numpy()].mean()


def expert_usage(model: AriaForConditionalGeneration, watch: RouterWatch, rows: torch.Tensor) -> list[list[int]]:
    usage = torch.zeros(TEXT_CONFIG["num_hidden_layers"], EXPERTS, dtype=torch.int64)
    for ids in rows.split(ROWS_PER_PASS):
        model(input_ids=ids, use_cache=False)
        usage += torch.stack([torch.bincount(chosen.flatten(), minlength=EXPERTS) for chosen, _ in watch.take()])
    return usage.tolist()


def write_usage(path: Path, rows: torch.Tensor, usage: list[list[int]]) -> None:
    note = ("counts of (id, chosen expert) pairs, one list a layer, over all 256 ids of every row of calib.txt; "
            "a count may differ by one or two where two router logits are nearly equal")
    record = {"note": note, "sets": {"calib": {"rows": len(rows), "usage": usage}}}
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")


def router_tensors(watch: RouterWatch, shape: torch.Size) -> dict[str, torch.Tensor]:
    """Choices, weights and margins, each stacked over the layers."""
    indices, weights, margins = [], [], []
    for chosen, logits in watch.take():
        best = logits.topk(chosen.shape[-1] + 1).values
        indices.append(chosen.view(*shape, -1))
        weights.append(best[:, :-1].softmax(-1).view(*shape, -1))
        margins.append((best[:, -2] - best[:, -1]).view(shape))
    return {
        "router_topk_index": torch.stack(indices),
        "router_topk_weight": torch.stack(weights),
        "router_margin": torch.stack(margins),
    }


def write_reference(path: Path, model: AriaForConditionalGeneration, watch: RouterWatch, rows: torch.Tensor) -> None:
    ids = rows[list(REFERENCE_ROWS), :REFERENCE_LENGTH].contiguous()
    logits = model(input_ids=ids, use_cache=False).logits
    columns = torch.arange(0, logits.shape[-1], REFERENCE_COLUMN_STEP)
    save_file(
        {
            "input_ids": ids,
            "logits_cols": columns,
            "logits_at_cols": logits[:, :, columns].contiguous(),
            "token_nll": token_losses(logits, ids),
            **router_tensors(watch, ids.shape),
        },
        path,
        metadata={"format": "pt"},
    )


def continuation(model: AriaForConditionalGeneration, prompt: str) -> str:
    """Greedy continuation of a prompt up to the end of its document."""
    ids = torch.from_numpy(encode_stream(prompt))[None]
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        pad_token_id=BOS_ID,
        max_new_tokens=CONTINUATION_LENGTH,
        do_sample=False,
    )
    written = bytes(byte for byte in output[0].tolist() if byte < 256)
    return written.decode(errors="replace")


def print_figure(name: str, loss: float) -> None:
    print(f"{name:28s} perplexity {math.exp(loss):9.4f}   {loss / math.log(2):.4f} bits per id")


def check_tokenizer(directory: Path) -> None:
    """The tokenizer files must say what rows.py takes for granted."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    every_character_below = "".join(map(chr, range(0x800)))
    for text in (every_character_below, (directory / "eval.txt").read_text(encoding="utf-8")):
        ids = tokenizer.encode(text).ids
        if ids != [BOS_ID, *text.encode()] or tokenizer.decode(ids) != text:
            raise SystemExit("tokenizer.json does not map bytes one to one")


def print_figures(model: AriaForConditionalGeneration, directory: Path) -> None:
    calib, evaluation = read_rows(directory / "calib.txt"), read_rows(directory / "eval.txt")
    counted = encode_stream((directory / "calib.txt").read_text(encoding="utf-8"))
    print(f"rows: calib {len(calib)}, eval {len(evaluation)}")
    print_figure("eval, uniform guess", math.log(TEXT_CONFIG["vocab_size"]))
    print_figure("eval, frequencies of calib", unigram_loss(counted, evaluation))
    print_figure("eval, this model", mean_loss(model, evaluation))
    print_figure("calib, this model", mean_loss(model, calib))
    for prompt in PROMPTS:
        print(f"--- greedy after {BOS} {prompt!r}\n{continuation(model, prompt)}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the example model.")
    parser.add_argument("directory", type=Path, help="where the checkpoint and the texts are")
    directory = parser.parse_args().directory
    torch.set_num_threads(1)
    check_tokenizer(directory)
    model = load(directory)
    with torch.inference_mode():
        print_figures(model, directory)
        # Watching starts here, so that the passes above are not counted.
        watch = RouterWatch(model)
        calib = read_rows(directory / "calib.txt")
        usage = expert_usage(model, watch, calib)
        write_usage(directory / "expert_usage.json", calib, usage)
        write_reference(directory / "reference.safetensors", model, watch, read_rows(directory / "eval.txt"))
    for layer, counts in enumerate(usage):
        print(f"layer {layer}, per cent: " + " ".join(f"{100 * count / sum(counts):.1f}" for count in counts))


if __name__ == "__main__":
    main()
