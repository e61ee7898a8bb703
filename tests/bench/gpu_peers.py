#!/usr/bin/env python3
"""Longspan's Hopper kernel side by side with cuDNN, FlexAttention and FlashAttention-4 (if importable) on the same tensors, in one process,
interleaved.

  usage: gpu_peers.py LIBRARY [--only TEXT] [--rounds N] [--json FILE]

LIBRARY: tests/kernels/cuda/hopper_entry.cu and kernels/cuda/hopper_forward.cu in one shared library (the first file says how to build it).
Every figure is TFLOP/s over the allowed pairs (4 · head_dim · pairs · heads / time), median of N rounds after 3 warm-ups, each call between
two events. The results are compared: Longspan's against each peer's, as a relative error of the whole output. A peer that has no such mask,
or that fails, is left out.
"""
import argparse
import ctypes
import json
import sys

import numpy as np
import torch

TILE = 128
tile_type = np.dtype([("key", "i4"), ("form", "u1"), ("quarters", "u1"), ("unused", "u2"), ("payload", "u8")])
work_type = np.dtype([("q_row", "i8"), ("state_row", "i8"), ("rows", "i4"), ("kv_head", "i4"), ("first_tile", "i8"), ("tile_count", "i8"),
                      ("first_head", "i4"), ("head_count", "i4"), ("begins", "u1"), ("ends", "u1"), ("pad", "u2", 3)])
FULL, BAND, SUBTILES, BITS = 0, 1, 2, 3


def band_tile(key, lo, hi):
    """The pairs of a tile with lo <= row - key <= hi."""
    tile = np.zeros((), tile_type)
    quarters = sum(1 << (2 * a + b) for a in (0, 1) for b in (0, 1) if lo <= 64 * (a - b) + 63 and 64 * (a - b) - 63 <= hi)
    tile["key"], tile["form"], tile["quarters"] = key, BAND, quarters
    tile["payload"] = (hi & 0xffffffff) << 32 | (lo & 0xffffffff)
    return tile


def full_run(key, count):
    tile = np.zeros((), tile_type)
    tile["key"], tile["quarters"], tile["payload"] = key, 0xf, count
    return tile


def quarter_tile(key, quarters):
    """A tile whose 64 x 64 quarters are allowed or not as a whole."""
    if quarters == 0xf:
        return full_run(key, 1)
    upper = (0x0f0f0f0f if quarters & 1 else 0) | (0xf0f0f0f0 if quarters & 2 else 0)
    lower = (0x0f0f0f0f if quarters & 4 else 0) | (0xf0f0f0f0 if quarters & 8 else 0)
    tile = np.zeros((), tile_type)
    tile["key"], tile["form"], tile["quarters"], tile["payload"] = key, SUBTILES, quarters, lower << 32 | upper
    return tile


def quarters_of(allowed):
    """Of the pairs [128, 128] of a tile: which quarters have one, and whether each has all or none."""
    counts = allowed.reshape(2, 64, 2, 64).sum((1, 3)).ravel()
    return sum(1 << n for n in range(4) if counts[n]), bool(np.isin(counts, (0, 64 * 64)).all())


def bigbird(blocks, block_map_seed):
    """BigBird (Zaheer et al. 2020) in blocks: a window of 3, 3 random ones a row, the first one global."""
    near = np.arange(blocks)
    block_map = (np.abs(near[:, None] - near) <= 1).astype(np.int64)
    for row, chosen in enumerate(np.random.default_rng(block_map_seed).integers(0, blocks, (blocks, 3))):
        block_map[row, chosen] = 1
    block_map[0] = block_map[:, 0] = 1
    return block_map


def with_runs(keys):
    """Ascending key blocks as runs."""
    runs = []
    for key in keys:
        if runs and runs[-1][0] + runs[-1][1] == key:
            runs[-1][1] += 1
        else:
            runs.append([key, 1])
    return [full_run(*run) for run in runs]


class Pattern:
    """lists[I]: the tiles of query block I, ascending; masks: of their BITS tiles; pairs: allowed pairs of one head."""

    def __init__(self, tokens, kind, width=0, block_map=None):
        blocks = tokens // TILE
        self.lists, self.masks, self.pairs = [], [], 0
        for i in range(blocks):
            partial, full = [], []
            if kind == "full":
                full = [full_run(0, blocks)]
                self.pairs += TILE * tokens
            elif kind in ("causal", "window"):
                left = width if kind == "window" else tokens + TILE
                first = max(0, i * TILE - left + 1) // TILE
                whole = []
                for j in range(first, i + 1):
                    lo, hi = (j - i) * TILE, left - 1 + (j - i) * TILE
                    if lo <= -TILE + 1 and hi >= TILE - 1:
                        whole.append(j)
                    else:
                        partial.append(band_tile(j, max(lo, -TILE), min(hi, TILE)))
                full = with_runs(whole)
                rows = np.arange(i * TILE, (i + 1) * TILE)
                self.pairs += int(np.minimum(rows + 1, left).sum())
            elif kind == "longformer":
                # A window of `width` (odd) around every token; the first 64 look at all and are looked at by all.
                reach, line = width // 2, np.arange(TILE)
                near = (reach + TILE - 1) // TILE
                whole = []
                for j in range(blocks) if i == 0 else sorted({0} | set(range(max(i - near, 0), min(i + near + 1, blocks)))):
                    row, key = (i * TILE + line)[:, None], (j * TILE + line)[None]
                    allowed = (np.abs(row - key) <= reach) | (row < 64) | (key < 64)
                    self.pairs += int(allowed.sum())
                    quarters, simple = quarters_of(allowed)
                    if simple and quarters == 0xf:
                        whole.append(j)
                    elif simple and quarters:
                        partial.append(quarter_tile(j, quarters))
                    elif quarters and i and j:
                        partial.append(band_tile(j, -reach + (j - i) * TILE, reach + (j - i) * TILE))
                    elif quarters:
                        tile = np.zeros((), tile_type)
                        tile["key"], tile["form"], tile["quarters"], tile["payload"] = j, BITS, quarters, len(self.masks)
                        self.masks.append(np.packbits(allowed, 1, "little"))
                        partial.append(tile)
                full = with_runs(whole)
            elif block_map.shape[0] == blocks:  # blocks of 128
                full = with_runs(np.flatnonzero(block_map[i]))
                self.pairs += int(block_map[i].sum()) * TILE * TILE
            else:  # blocks of 64
                a, b = block_map[2 * i], block_map[2 * i + 1]
                quarters = a[0::2] + 2 * a[1::2] + 4 * b[0::2] + 8 * b[1::2]
                for j in np.flatnonzero(quarters):
                    (full if quarters[j] == 0xf else partial).append(quarter_tile(j, int(quarters[j])))
                self.pairs += int(a.sum() + b.sum()) * 64 * 64
            self.lists.append(sorted(partial + full, key=lambda t: int(t["key"])))  # as the engine's

    def cost(self, i):
        return sum(int(t["payload"]) if t["form"] == FULL else 1 for t in self.lists[i])


def halves(tiles):
    """A list cut in two."""
    total = sum(int(t["payload"]) if t["form"] == FULL else 1 for t in tiles)
    parts, seen = ([], []), 0
    for t in tiles:
        n = int(t["payload"]) if t["form"] == FULL else 1
        k = min(max(total // 2 - seen, 0), n)
        if k == n or (k and t["form"] != FULL):
            parts[0].append(t)
        elif k == 0:
            parts[1].append(t)
        else:
            parts[0].append(full_run(int(t["key"]), k))
            parts[1].append(full_run(int(t["key"]) + k, n - k))
        seen += n
    return parts


class Call(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("q", "pool", "slots", "key_rows", "tiles", "masks", "work", "items",
                                                     "m", "l", "o", "out", "lse", "counter")]
    _fields_ += [(name, ctypes.c_int64) for name in ("rows", "resident", "pool_slots", "tile_count", "work_count", "item_count")]
    _fields_ += [(name, ctypes.c_int32) for name in ("heads", "kv_heads", "head_dim", "halves_at_a_time")]
    _fields_ += [("state_rows", ctypes.c_int64)]


def on_device(array):
    return torch.from_numpy(np.frombuffer(array.tobytes(), np.uint8).copy()).cuda()


class Longspan:
    """One step, or as many as the lists are cut into, that continue from states."""

    def __init__(self, library, pattern, q, k, v, steps=1):
        tokens, heads, dim = q.shape
        kv_heads, blocks = k.shape[1], tokens // TILE
        unit = lambda x: x.view(blocks, TILE, kv_heads, dim).permute(2, 0, 1, 3)
        self.pool = torch.stack([unit(k), unit(v)], 2).contiguous()  # [kv_heads][blocks] units: K, then V
        self.slots = torch.arange(kv_heads * blocks, dtype=torch.int32, device="cuda")
        self.key_rows = torch.full((blocks,), TILE, dtype=torch.int32, device="cuda")
        self.out = torch.full_like(q, float("nan"))
        self.lse = torch.full((tokens, heads), float("nan"), device="cuda")
        self.counter = torch.zeros(1, dtype=torch.int32, device="cuda")
        state = [torch.empty(n, device="cuda") for n in (tokens * heads, tokens * heads, tokens * heads * dim)] if steps > 1 else []
        order = sorted(range(blocks), key=lambda i: -pattern.cost(i))  # dearest first, as the engine's
        masks = on_device(np.array(pattern.masks, np.uint8)) if pattern.masks else None
        self.library, self.calls, self.keep = library, [], [q] + state + [masks]
        for step in range(steps):
            tiles, work = [], np.zeros(kv_heads * blocks, work_type)
            for place, i in enumerate(order):
                mine = pattern.lists[i] if steps == 1 else halves(pattern.lists[i])[step]
                for kv in range(kv_heads):
                    w = work[place * kv_heads + kv]
                    w["q_row"] = w["state_row"] = i * TILE
                    w["rows"], w["kv_head"], w["first_tile"], w["tile_count"] = TILE, kv, len(tiles), len(mine)
                    w["begins"], w["ends"] = step == 0, step == steps - 1
                tiles += mine
            tiles = np.array(tiles, tile_type)
            items, at_a_time = np.zeros((blocks * heads, 4), "i4"), ctypes.c_int32(0)
            pointer = lambda array: array.ctypes.data_as(ctypes.c_void_p)
            count = library.longspan_queue(pointer(work), ctypes.c_int64(len(work)), pointer(tiles), ctypes.c_int64(len(tiles)), heads, kv_heads, dim,
                                           ctypes.c_int64(blocks), pointer(items), ctypes.byref(at_a_time))
            self.keep += [on_device(tiles), on_device(work), on_device(items[:count])]
            pointers = dict(zip("mlo", (t.data_ptr() for t in state)))
            self.calls.append(Call(q=q.data_ptr(), pool=self.pool.data_ptr(), slots=self.slots.data_ptr(), key_rows=self.key_rows.data_ptr(),
                                   tiles=self.keep[-3].data_ptr(), masks=masks.data_ptr() if pattern.masks else None,
                                   work=self.keep[-2].data_ptr(), items=self.keep[-1].data_ptr(), out=self.out.data_ptr(), lse=self.lse.data_ptr(),
                                   counter=self.counter.data_ptr(), rows=tokens, resident=blocks, pool_slots=kv_heads * blocks,
                                   tile_count=len(tiles), work_count=len(work), item_count=count, heads=heads, kv_heads=kv_heads, head_dim=dim,
                                   halves_at_a_time=at_a_time, state_rows=tokens if step > 0 else 0, **pointers))

    def __call__(self):
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        for call in self.calls:
            if self.library.longspan_forward(ctypes.byref(call), stream) != 0:
                sys.exit("longspan_forward failed")
        return self.out


def flash_attention_4(q, k, v, kind, width, block_map):
    if kind == "longformer":
        return None
    from flash_attn.cute.interface import _flash_attn_fwd, flash_attn_func
    q, k, v = q[None], k[None], v[None]
    first = lambda result: (result[0] if isinstance(result, tuple) else result)[0]
    if kind == "full":
        return lambda: first(flash_attn_func(q, k, v))
    if kind == "causal":
        return lambda: first(flash_attn_func(q, k, v, causal=True))
    if kind == "window":
        return lambda: first(flash_attn_func(q, k, v, window_size=(width - 1, 0)))
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch
    block, heads, rows = q.shape[1] // block_map.shape[0], q.shape[2], block_map.shape[0]
    count = torch.tensor(block_map.sum(1), dtype=torch.int32, device="cuda").expand(1, heads, rows).contiguous()
    order = np.argsort(1 - block_map, 1, kind="stable").astype(np.int32)  # allowed ones first, ascending
    index = torch.tensor(order, device="cuda").expand(1, heads, rows, rows).contiguous()
    none = torch.zeros_like(count)
    lists = BlockSparseTensorsTorch(none, index, count, index, block_size=(block, block))
    return lambda: first(_flash_attn_fwd(q, k, v, block_sparse_tensors=lists, tile_mn=(block, block)))


def flex_attention(q, k, v, pattern, kind, width, block_map):
    """Compiled, with block masks from Longspan's lists; blocks of 64 with tiles of 64."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention
    block = 64 if block_map is not None and block_map.shape[0] * 64 == q.shape[0] else TILE
    blocks = q.shape[0] // block
    looked_at, whole = np.zeros((blocks, blocks), bool), np.zeros((blocks, blocks), bool)
    if block_map is not None:
        looked_at[:] = whole[:] = block_map
    else:
        for i, tiles in enumerate(pattern.lists):
            for tile in tiles:
                run = slice(int(tile["key"]), int(tile["key"]) + (int(tile["payload"]) if tile["form"] == FULL else 1))
                looked_at[i, run], whole[i, run] = True, tile["form"] == FULL
    masks = {
        "full": lambda b, h, i, j: i >= 0,
        "causal": lambda b, h, i, j: i >= j,
        "window": lambda b, h, i, j: (i >= j) & (i - j < width),
        "longformer": lambda b, h, i, j: ((i - j).abs() <= width // 2) | (i < 64) | (j < 64),
        "blocks": lambda b, h, i, j: i >= 0,  # all blocks are whole
    }

    def lists(chosen):
        count = torch.tensor(chosen.sum(1), dtype=torch.int32, device="cuda")[None, None]
        return count, torch.tensor(np.argsort(~chosen, 1, kind="stable"), dtype=torch.int32, device="cuda")[None, None]

    mask = BlockMask.from_kv_blocks(*lists(looked_at & ~whole), *lists(whole), BLOCK_SIZE=(block, block), mask_mod=masks[kind],
                                    seq_lengths=(q.shape[0], q.shape[0]))
    compiled = torch.compile(flex_attention, dynamic=False)
    a, b, c = (x.transpose(0, 1)[None] for x in (q, k, v))
    more = {"kernel_options": {"BLOCK_M": 64, "BLOCK_N": 64}} if block == 64 else {}
    return lambda: compiled(a, b, c, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1], **more)[0].transpose(0, 1)


def cudnn(q, k, v, kind):
    if kind not in ("full", "causal") or q.shape[1] != k.shape[1]:
        return None
    from torch.nn.attention import SDPBackend, sdpa_kernel
    a, b, c = (x.transpose(0, 1)[None] for x in (q, k, v))

    def run():
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(a, b, c, is_causal=kind == "causal")[0].transpose(0, 1)

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--only", default="")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json")
    options = parser.parse_args()
    torch._dynamo.config.recompile_limit = 100  # one a case
    library = ctypes.CDLL(options.library)
    Ki = 1024
    cases = [  # name, tokens, heads, KV heads, head_dim, kind, width or block, density
        ("D128 full 16Ki", 16 * Ki, 16, 16, 128, "full", 0, 1),
        ("D128 causal 32Ki", 32 * Ki, 16, 16, 128, "causal", 0, 1),
        ("D64 full 16Ki, 32 heads", 16 * Ki, 32, 32, 64, "full", 0, 1),
        ("D64 causal 32Ki, 32 heads", 32 * Ki, 32, 32, 64, "causal", 0, 1),
        ("D128 window 4096 of 64Ki", 64 * Ki, 16, 16, 128, "window", 4096, 1),
        ("D128 window 1024 of 64Ki, 16/4", 64 * Ki, 16, 4, 128, "window", 1024, 1),
        ("D128 window 512 of 256Ki", 256 * Ki, 16, 16, 128, "window", 512, 1),
        ("D64 window 4096 of 64Ki", 64 * Ki, 16, 16, 64, "window", 4096, 1),
        ("D128 128-blocks 20% of 32Ki", 32 * Ki, 16, 16, 128, "blocks", 128, 0.20),
        ("D128 128-blocks 5% of 64Ki", 64 * Ki, 16, 16, 128, "blocks", 128, 0.05),
        ("D128 64-blocks 20% of 32Ki", 32 * Ki, 16, 16, 128, "blocks", 64, 0.20),
        ("D128 64-blocks 5% of 32Ki", 32 * Ki, 16, 16, 128, "blocks", 64, 0.05),
        ("D128 Longformer 513 of 64Ki", 64 * Ki, 32, 32, 128, "longformer", 513, 1),
        ("D128 BigBird of 64Ki", 64 * Ki, 32, 32, 128, "bigbird", 64, 1),
    ]
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}; TFLOP/s over allowed pairs")
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    ceiling = median_time({"matrix product": lambda: a @ b}, options.rounds)["matrix product"]
    print(f"{'matrix product 8192^3':34} {2 * 8192**3 / ceiling * 1e-9:8.1f}", flush=True)
    results = []
    for name, tokens, heads, kv_heads, dim, kind, width, density in cases:
        if options.only not in name:
            continue
        torch.manual_seed(3)
        q = torch.randn(tokens, heads, dim, device="cuda", dtype=torch.bfloat16)
        k, v = (torch.randn(tokens, kv_heads, dim, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        block_map = (np.random.default_rng(4).random((tokens // width, tokens // width)) < density).astype(np.int64) if kind == "blocks" else None
        if kind == "bigbird":
            kind, block_map = "blocks", bigbird(tokens // width, 4)
        pattern = Pattern(tokens, kind, width, block_map)
        runs = {"Longspan": Longspan(library, pattern, q, k, v)}
        if name == "D128 full 16Ki":
            runs["two steps"] = Longspan(library, pattern, q, k, v, steps=2)
        for peer, make in (("FlashAttention-4", lambda: flash_attention_4(q, k, v, kind, width, block_map)), ("cuDNN", lambda: cudnn(q, k, v, kind)),
                           ("FlexAttention", lambda: flex_attention(q, k, v, pattern, kind, width, block_map))):
            try:
                run = make()
                if run:
                    run()
                    torch.cuda.synchronize()
                    runs[peer] = run
            except Exception as error:  # a peer that is not there, or does not do this
                print(f"# {name}: {peer}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200])
        own = runs["Longspan"]().float()
        times = median_time(runs, options.rounds)
        flops = 4 * dim * pattern.pairs * heads
        line = {"case": name}
        for peer, run in runs.items():
            line[peer] = flops / times[peer] * 1e-9
            if peer == "two steps":
                line["same bits"] = bool(torch.equal(run(), runs["Longspan"]()))
            elif peer != "Longspan":
                line[peer + " error"] = float((run().float() - own).norm() / own.norm())
        results.append(line)
        print(f"{name:34} " + "  ".join(f"{key} {value:.1f}" if isinstance(value, float) and "error" not in key else
                                       f"{key} {value:.1e}" if isinstance(value, float) else f"{key} {value}" for key, value in line.items() if key != "case"),
              flush=True)
        del runs, q, k, v, own
        torch.cuda.empty_cache()
    if options.json:
        with open(options.json, "w") as file:
            record = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "cudnn": torch.backends.cudnn.version(),
                      "matrix product 8192^3": 2 * 8192**3 / ceiling * 1e-9, "rounds": options.rounds, "results": results}
            json.dump(record, file, indent=1)


def median_time(runs, rounds):
    """Milliseconds of each, interleaved."""
    times = {name: [] for name in runs}
    for i in range(3 + rounds):
        for name, run in runs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            torch.cuda.synchronize()
            if i >= 3:
                times[name].append(begin.elapsed_time(end))
    return {name: float(np.median(t)) for name, t in times.items()}


if __name__ == "__main__":
    main()
