#!/usr/bin/env python3
"""PyTorch's attention on CPUs beside longspan bench kernel: same shapes, turn by turn, the ratio of each pair.

usage: tests/bench/pytorch.py LONGSPAN [--tokens 8192] [--heads 8] [--pairs 3] [--threads N] [--only TEXT]

full and causal: scaled_dot_product_attention; window and bigbird: compiled FlexAttention (needs a C++ compiler) with a block mask of
128 x 128 blocks. Both count 4 * head_dim FLOP for each pair of the same 64 x 64 squares. Clocks of shared machines drift, so only the ratio
of a pair is worth anything. Without PyTorch (pip install torch) it says so and exits 77, which CTest takes for "skipped".
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

try:
    import torch
except ImportError:
    print("PyTorch is not installed: pip install torch")
    sys.exit(77)
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

PATTERNS = {
    "full": "full",
    "causal": "causal",
    "window": "causal & window(1023)",
    "bigbird": "bigbird(64, 3, 3, 1, 0)",
}
BLOCK = 64


def window_mask(b, h, q, k):
    return (k <= q) & (q - k <= 1023)


def bigbird_mask(tokens):
    """Window of 3, global of 1, 3 random blocks a row: other random blocks than longspan's, as many of them."""
    blocks = tokens // BLOCK
    row = torch.arange(blocks)
    allowed = (row[:, None] - row[None, :]).abs() <= 1
    allowed[0, :] = allowed[:, 0] = True
    generator = torch.Generator().manual_seed(0)
    for r in range(blocks):
        allowed[r, torch.randperm(blocks, generator=generator)[:3]] = True
    return lambda b, h, q, k: allowed[q // BLOCK, k // BLOCK]


def pytorch_runner(name, q, k, v):
    if name in ("full", "causal"):
        attention = torch.nn.functional.scaled_dot_product_attention
        return lambda: attention(q, k, v, is_causal=name == "causal")
    tokens = q.shape[2]
    mask = window_mask if name == "window" else bigbird_mask(tokens)
    block_mask = create_block_mask(mask, None, None, tokens, tokens, device="cpu")
    compiled = torch.compile(flex_attention)
    return lambda: compiled(q, k, v, block_mask=block_mask)


def longspan(program, name, type_name, head_dim, options):
    command = [program, "bench", "kernel", "--tokens", options.tokens, "--heads", options.heads, "--threads", options.threads, "--type",
               type_name, "--head-dim", head_dim, "--pattern", PATTERNS[name], "--iterations", 2, "--json=-"]
    return json.loads(subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout)["measures"][0]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", default="", help="cases whose name (float32 64 full) contains this")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"PyTorch {torch.__version__}, {options.tokens} tokens, {options.heads} heads, {options.threads} threads")
    for type_name in ("float32", "bfloat16", "float16"):
        for head_dim in (64, 128):
            for name in PATTERNS:
                case = f"{type_name} {head_dim} {name}"
                if options.only not in case:
                    continue
                q, k, v = (torch.randn(1, options.heads, options.tokens, head_dim).to(getattr(torch, type_name)) for _ in range(3))
                with torch.no_grad():
                    run = pytorch_runner(name, q, k, v)
                    run()  # compiles, and warms up
                    ratios = []
                    for _ in range(options.pairs):
                        start = time.perf_counter()
                        run()
                        theirs = time.perf_counter() - start
                        measure = longspan(options.program, name, type_name, head_dim, options)
                        ours = statistics.median(measure["seconds"])
                        ratios.append(theirs / ours)
                        print(f"  {case:<22} PyTorch {measure['flop'] / theirs / 1e9:7.1f} GFLOP/s, longspan {measure['flop'] / ours / 1e9:7.1f} "
                              f"({measure['share_of_peak']:.0%} of peak): {ratios[-1]:.2f} times as fast", flush=True)
                print(f"{case:<24} median {statistics.median(ratios):.2f}", flush=True)


main()
