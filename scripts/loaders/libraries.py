"""Each format decoded by the library that defines it, one module at a time."""

import json
from pathlib import Path

import torch


def modules_with(tensors, ending):
    return sorted(name[: -len(ending)] for name in tensors if name.endswith(ending))


def local_state(tensors, prefix):
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def compressed_tensors(tensors, config, _directory):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils.match import match_name

    parsed = QuantizationConfig.model_validate(config["quantization_config"])
    for module in modules_with(tensors, ".weight_scale"):
        assert not any(match_name(module, item) for item in parsed.ignore), f"{module} is quantized and ignored"
        groups = [
            group
            for group in parsed.config_groups.values()
            if any(target == "Linear" or match_name(module, target) for target in group.targets)
        ]
        assert len(groups) == 1, f"{module} is in {len(groups)} groups"
        compressor = BaseCompressor.get_value_from_registry(groups[0].format)
        yield module, compressor.decompress(local_state(tensors, f"{module}."), groups[0])["weight"]


def bitsandbytes(tensors, _config, _directory):
    from bitsandbytes import functional

    for kind in ("nf4", "fp4"):
        for module in modules_with(tensors, f".weight.quant_state.bitsandbytes__{kind}"):
            parts = local_state(tensors, f"{module}.weight.")
            state = functional.QuantState.from_dict(parts, device=torch.device("cpu"))
            yield module, functional.dequantize_4bit(tensors[f"{module}.weight"], state)
    for module in modules_with(tensors, ".SCB"):
        yield module, functional.int8_vectorwise_dequant(tensors[f"{module}.weight"], tensors[f"{module}.SCB"])


def quanto(tensors, config, directory):
    from optimum.quanto import nn as quanto_nn
    from optimum.quanto import qtypes

    kinds = json.loads((Path(directory) / "quanto_qmap.json").read_text())
    stored = set(modules_with(tensors, ".weight._scale"))
    for module, entry in kinds.items():
        if module not in stored:
            continue  # the same module under another name
        out, width = entry["shape"]
        scale = tensors[f"{module}.weight._scale"]
        layer = torch.nn.Linear(width, out, bias=False, dtype=scale.dtype)
        quantized = quanto_nn.QLinear.from_module(layer, weights=qtypes[entry["weights"]])
        result = quantized.load_state_dict(local_state(tensors, f"{module}."), strict=False)
        assert not result.missing_keys and not result.unexpected_keys, f"{module}: {result}"
        yield module, quantized.weight.dequantize()


def awq(tensors, config, _directory):
    """compressed-tensors' converter reads AutoAWQ's layout."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    for module in modules_with(tensors, ".qweight"):
        groups, _ = tensors[f"{module}.scales"].shape
        width, _ = tensors[f"{module}.qweight"].shape
        own = {**config["quantization_config"], "group_size": width // groups, "modules_to_not_convert": []}
        converted = {name: tensors[name] for name in tensors if name.startswith(f"{module}.q") or name == f"{module}.scales"}
        converted[f"{module}.scales"] = converted[f"{module}.scales"].float()  # else the product is rounded to float16
        converted = AutoAWQConverter.from_autoawq_config(own).process(converted)
        weights = QuantizationArgs(num_bits=4, symmetric=False, strategy="group", group_size=width // groups)
        scheme = QuantizationScheme(targets=["Linear"], weights=weights)
        compressor = BaseCompressor.get_value_from_registry("pack-quantized")
        yield module, compressor.decompress(local_state(converted, f"{module}."), scheme)["weight"]


def library_of(config, directory):
    """The decoder for a checkpoint, by what its configuration says."""
    method = config.get("quantization_config", {}).get("quant_method")
    if method is None and (Path(directory) / "quanto_qmap.json").exists():
        method = "quanto"
    known = {"compressed-tensors": compressed_tensors, "bitsandbytes": bitsandbytes, "quanto": quanto, "awq": awq}
    if method not in known:
        raise SystemExit(f"error: quant_method {method!r}: no library to decode it with; known are {', '.join(known)}")
    return known[method]
