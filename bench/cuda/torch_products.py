"""The same dense products by PyTorch, which hands them to the vendor's library; timed by CUDA events. Prints JSON lines."""

import json
import sys

import torch

SHAPES = [(3328, 2560), (2560, 1664), (4096, 4096), (11008, 4096), (4096, 11008), (8192, 8192)]
ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096]
ROTATED_BYTES = 128 * 2**20  # as bench/cuda/cases.cjs: weights come from memory
MOST_ROTATED_ROWS = 64
SAMPLES = 15


def seconds_of(x, weights):
    rounds = max(1, 64 // len(weights))
    for weight in weights:
        torch.nn.functional.linear(x, weight)
    found = []
    for _ in range(SAMPLES):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        for _ in range(rounds):
            for weight in weights:
                torch.nn.functional.linear(x, weight)
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1e3 / rounds / len(weights))
    return sorted(found)


def main():
    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device")
    for dtype in (torch.float16, torch.bfloat16):
        for n, k in SHAPES:
            for m in ROWS:
                copies = -(-ROTATED_BYTES // (2 * n * k)) if m <= MOST_ROTATED_ROWS else 1
                weights = [torch.randn(n, k, dtype=dtype, device="cuda") for _ in range(copies)]
                found = seconds_of(torch.randn(m, k, dtype=dtype, device="cuda"), weights)
                row = {"family": "torch linear dense", "dtype": str(dtype)[6:], "shape": [n, k], "m": m}
                row |= {"median": found[SAMPLES // 2], "best": found[0], "torch": torch.__version__}
                print(json.dumps(row), flush=True)


main()
