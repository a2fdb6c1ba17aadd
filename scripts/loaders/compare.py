#!/usr/bin/env python3
"""Compares what the formats' own libraries make of a quantized checkpoint with what Quantaria says it stands for.

    node dequantize.cjs QUANTIZED DENSE        # Quantaria's decoding, as a dense checkpoint
    python compare.py weights QUANTIZED DENSE  # every weight, decoded by the library of its format
    python compare.py logits QUANTIZED DENSE   # both loaded by transformers: no key missing or unexpected, equal logits

Prints one JSON object; exits 1 if anything differs by more than --tolerance (relative to the largest magnitude).
LLM.int8 alone needs one: its products quantize the activations (about 3e-2 on logits), and its library multiplies by
1/127 where the format divides (1e-7 on weights). MX checkpoints need --dtype bfloat16, which their library decodes to.
"""

import argparse
import json
from pathlib import Path

import torch
from libraries import library_of
from safetensors.torch import load_file


def read_checkpoint(directory):
    directory = Path(directory)
    tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors, json.loads((directory / "config.json").read_text())


def largest_difference(found, expected):
    scale = expected.float().abs().max().clamp_min(1e-30)
    return ((found.float() - expected.float()).abs().max() / scale).item()


def compare_weights(arguments):
    tensors, config = read_checkpoint(arguments.quantized)
    dense = load_file(Path(arguments.dense) / "model.safetensors")
    worst, count, exact, dtypes = ("", 0.0), 0, 0, set()
    for module, weight in library_of(config, arguments.quantized)(tensors, config, arguments.quantized):
        expected = dense[f"{module}.weight"]
        assert weight.shape == expected.shape, f"{module}: {tuple(weight.shape)}, expected {tuple(expected.shape)}"
        difference = largest_difference(weight.to(expected.dtype), expected)
        worst = max(worst, (module, difference), key=lambda pair: pair[1])
        count += 1
        exact += difference == 0
        dtypes.add(str(weight.dtype))
    return {"modules": count, "exact": exact, "worst": worst, "dtypes": sorted(dtypes), "ok": count > 0 and worst[1] <= arguments.tolerance}


def load(directory, config, dtype):
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    loader = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    model, info = loader.from_pretrained(directory, config=config, dtype=dtype, output_loading_info=True)
    return model.eval(), {key: sorted(str(name) for name in names) for key, names in info.items() if names}


def load_dense(arguments, dtype):
    """The configuration is the quantized checkpoint's, so that the two models differ in their weights alone."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(arguments.quantized)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return load(arguments.dense, config, dtype)


def load_quantized(arguments, dtype):
    from transformers import AutoConfig

    directory = Path(arguments.quantized)
    qmap = directory / "quanto_qmap.json"
    if not qmap.exists():
        return load(directory, AutoConfig.from_pretrained(directory), dtype)
    from optimum.quanto import requantize

    model, _ = load_dense(arguments, dtype)
    tensors, _ = read_checkpoint(directory)
    requantize(model, tensors, json.loads(qmap.read_text()))
    return model.eval(), {}


def compare_logits(arguments):
    dtype = getattr(torch, arguments.dtype)
    dense, missing = load_dense(arguments, dtype)
    assert not missing, missing
    quantized, keys = load_quantized(arguments, dtype)
    vocabulary = dense.get_output_embeddings().weight.shape[0]
    ids = torch.randint(3, vocabulary, (2, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = dense(input_ids=ids).logits
        found = quantized(input_ids=ids).logits
    difference = largest_difference(found, expected)
    agree = (found.argmax(-1) == expected.argmax(-1)).float().mean().item()
    finite = bool(torch.isfinite(found).all())
    return {"keys": keys, "difference": difference, "top1": agree, "ok": finite and not keys and difference <= arguments.tolerance}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["weights", "logits"])
    parser.add_argument("quantized")
    parser.add_argument("dense")
    parser.add_argument("--dtype", default="float32", help="of the models whose logits are compared")
    parser.add_argument("--tolerance", type=float, default=0.0)
    arguments = parser.parse_args()
    result = compare_weights(arguments) if arguments.what == "weights" else compare_logits(arguments)
    print(json.dumps(result))
    raise SystemExit(0 if result["ok"] else 1)


if __name__ == "__main__":
    main()
