#!/usr/bin/env python3
"""PyTorch's context_parallel (ring attention over cuDNN's kernel) on all GPUs of a launch, to be run beside `longspan bench scaleout`.

  usage: torchrun --nproc-per-node 2 context_parallel.py [--tokens N] [--heads N] [--head-dim N] [--rounds N] [--json FILE]

Causal, bfloat16, as many key heads as query heads, the sequence shared zigzag. Prints TFLOP/s per GPU over the allowed pairs
(4 · head_dim · heads · pairs / ranks / time), median of N rounds after 3 warm-ups: with both ways to pass keys on, allgather and alltoall.
"""
import argparse
import json
import os
import statistics
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import context_parallel
from torch.distributed.tensor.experimental._attention import set_rotate_method
from torch.nn.attention import SDPBackend, sdpa_kernel


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json")
    options = parser.parse_args()

    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")
    mesh = init_device_mesh("cuda", (ranks,), mesh_dim_names=("cp",))
    flop = 4 * options.head_dim * options.heads * options.tokens * (options.tokens + 1) / 2 / ranks
    results = {}
    for method in ("allgather", "alltoall"):
        set_rotate_method(method)
        torch.manual_seed(1)
        tensors = [torch.randn(1, options.heads, options.tokens, options.head_dim, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
        times = []
        with torch.no_grad(), context_parallel(mesh, buffers=tensors, buffer_seq_dims=[2, 2, 2]), sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            for round_ in range(3 + options.rounds):
                torch.cuda.synchronize()
                dist.barrier()
                torch.cuda.synchronize()
                start = time.perf_counter()
                F.scaled_dot_product_attention(*tensors, is_causal=True)
                torch.cuda.synchronize()
                slowest = torch.tensor([time.perf_counter() - start], device="cuda")
                dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
                if round_ >= 3:
                    times.append(slowest.item())
        seconds = statistics.median(times)
        results[method] = {"seconds": seconds, "tflops_per_gpu": flop / seconds / 1e12}
        if rank == 0:
            print(f"context_parallel {method:9s} {ranks} GPUs  {seconds * 1e3:8.2f} ms  {flop / seconds / 1e12:6.1f} TFLOP/s per GPU", flush=True)
    if rank == 0 and options.json:
        with open(options.json, "w") as file:
            json.dump({"tokens": options.tokens, "heads": options.heads, "head_dim": options.head_dim, "ranks": ranks, "torch": torch.__version__,
                       "results": results}, file, indent=2)
    dist.destroy_process_group()


main()
