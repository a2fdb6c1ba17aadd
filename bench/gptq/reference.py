"""The parts of layers.cjs by the reference implementation of GPTQ: gptq.py and quant.py of IST-DASLab/gptq, in the folder given.
Reads the parts as JSON on stdin, writes seconds by name."""
import json
import sys
import time

sys.path.insert(0, sys.argv[1])
real, sys.stdout = sys.stdout, sys.stderr  # the code below prints
import torch
import torch.nn.functional as F
from gptq import GPTQ
from quant import Quantizer

torch.manual_seed(0)
torch.set_grad_enabled(False)
torch.cuda.synchronize = lambda *_: None


def quantizer_of(weight):
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    layer.weight.data = weight
    own = GPTQ(layer)
    own.quantizer = Quantizer()
    own.quantizer.configure(4, perchannel=True, sym=False, mse=False)
    return own


def quantize(own):
    own.fasterquant(blocksize=128, percdamp=0.01, groupsize=128)


def hessian(x, shape):
    own = quantizer_of(torch.zeros(1, shape[1], dtype=torch.bfloat16))
    return lambda: own.add_batch(x[None], None)


def weight(x, shape):
    values = torch.randn(shape).bfloat16()
    first = quantizer_of(values.clone())
    first.add_batch(x[None], None)
    sums = first.H

    def run():
        own = quantizer_of(values.clone())
        own.H = sums.clone()
        quantize(own)

    return run


def expert(x, shape):
    out, width = shape
    gate, up, down = (torch.randn(*size).bfloat16() for size in ((out, width), (out, width), (width, out)))

    def run():
        inner = F.silu(F.linear(x, gate)) * F.linear(x, up)
        for values, states in ((gate, x), (up, x), (down, inner)):
            own = quantizer_of(values.clone())
            own.add_batch(states[None], None)
            quantize(own)

    return run


seconds = {}
kinds = {"hessian": hessian, "weight": weight, "expert": expert}
for part in json.load(sys.stdin):
    x = torch.randn(part["tokens"], part["shape"][1]).bfloat16()
    run = kinds[part["kind"]](x, part["shape"])
    times = []
    for _ in range(3 if part["kind"] == "hessian" else 1):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    seconds[part["name"]] = min(times)
json.dump(seconds, real)
