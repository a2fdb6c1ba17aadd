"""The same dense products by PyTorch, which hands them to the vendor's library, in 16 bits and in int8; launched from CUDA
graphs and timed by CUDA events, as ours are. Prints JSON lines."""

import json
import sys

import torch

SHAPES = [(3328, 2560), (2560, 1664), (4096, 4096), (11008, 4096), (4096, 11008), (8192, 8192)]
LARGE_SHAPE = (28672, 8192)  # for few rows, as bench/cuda/cases/products.cjs has it
ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096]
ROTATED_BYTES = 128 * 2**20  # as bench/cuda/cases.cjs: weights come from memory
MOST_ROTATED_ROWS = 64
SAMPLES = 15


def graph_of(product, weights):
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # the library chooses its kernels
        for weight in weights:
            product(weight)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for weight in weights:
            product(weight)
    return graph


def seconds_of(product, weights):
    graph = graph_of(product, weights)
    rounds = max(1, 64 // len(weights))
    found = []
    for _ in range(SAMPLES):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        for _ in range(rounds):
            graph.replay()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1e3 / rounds / len(weights))
    return sorted(found)


def measure(family, dtype, shape, m, make, product_of):
    """product_of(x) gives what multiplies x with one weight."""
    n, k = shape
    size = n * k * torch.empty(0, dtype=dtype).element_size()
    copies = -(-ROTATED_BYTES // size) if m <= MOST_ROTATED_ROWS else 1
    row = {"family": family, "dtype": str(dtype)[6:], "shape": [n, k], "m": m, "torch": torch.__version__}
    try:
        found = seconds_of(product_of(make(m, k)), [make(n, k) for _ in range(copies)])
        row |= {"median": found[SAMPLES // 2], "best": found[0], "launched": "graph"}
    except RuntimeError as error:  # a shape that the library does not take
        row |= {"failed": str(error).splitlines()[0]}
    print(json.dumps(row), flush=True)


def dense_cases(dtype):
    cases = [(shape, m) for shape in SHAPES for m in ROWS]
    if dtype == torch.float16:
        cases += [(LARGE_SHAPE, m) for m in ROWS if m <= MOST_ROTATED_ROWS]
    return cases


def main():
    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device")
    for dtype in (torch.float16, torch.bfloat16):
        for shape, m in dense_cases(dtype):
            measure(
                "torch linear dense",
                dtype,
                shape,
                m,
                lambda rows, cols: torch.randn(rows, cols, dtype=dtype, device="cuda"),
                lambda x: lambda weight: torch.nn.functional.linear(x, weight),
            )
    for shape in SHAPES:
        for m in ROWS:
            measure(
                "torch int8 product",  # no scales, sums of int32
                torch.int8,
                shape,
                m,
                lambda rows, cols: torch.randint(-127, 128, (rows, cols), dtype=torch.int8, device="cuda"),
                lambda x: lambda weight: torch._int_mm(x, weight.t()),
            )


main()
