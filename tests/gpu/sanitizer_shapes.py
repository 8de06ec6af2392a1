"""Tiny calls for compute-sanitizer: every kernel, and every way through one. `python -m tests.gpu.sanitizer_shapes`

Nothing but copies and pyflash3's own kernels runs on the GPU, so that every report is about them.
"""

from __future__ import annotations

import sys
from typing import Any

import cupy
import ml_dtypes
import numpy as np

import pyflash3
from pyflash3.tools.compare import bound, mismatch
from tests.host.kvcache_cases import CacheCase, bits, check_k_cache, turned_scores

BF16 = np.dtype(ml_dtypes.bfloat16)
HALF = np.dtype(np.float16)

# dtype, (seqlen_q, seqlen_k) per sequence, (heads, KV heads), head dims, packed, options; "most" among these: what the
# caller says of the longest sequence.
Case = tuple[Any, list[tuple[int, int]], tuple[int, int], tuple[int, int], bool, dict[str, Any]]
CASES: list[Case] = [
    (BF16, [(200, 300)], (2, 1), (64, 64), False, {"causal": True}),
    (HALF, [(130, 140)] * 2, (2, 2), (96, 96), False, {}),
    (BF16, [(130, 300)], (4, 2), (128, 128), False, {"window_size": (40, 20)}),
    (HALF, [(140, 200)], (2, 1), (192, 128), False, {"causal": True, "softcap": 60.0}),
    (BF16, [(140, 200)], (2, 2), (256, 256), False, {"causal": True}),
    (HALF, [(70, 90)], (1, 1), (72, 40), False, {}),
    (BF16, [(3, 0)] * 2, (2, 1), (64, 64), False, {}),
    (HALF, [(100, 150), (0, 5), (1, 70), (200, 0), (33, 33)], (4, 2), (64, 64), True, {"causal": True}),
    (BF16, [(100, 150), (7, 5), (150, 260)], (2, 1), (128, 128), True, {"causal": True, "window_size": (64, 0)}),
    (BF16, [(100, 50), (129, 129)], (2, 2), (256, 256), True, {}),
    (HALF, [(100, 50), (129, 129), (0, 0)], (2, 1), (192, 192), True, {"causal": True}),
    # The tile shapes of head dim 64: 192, 256 and twice 128 rows, where there are tiles for all multiprocessors.
    (BF16, [(190, 1000)], (140, 1), (64, 64), False, {}),
    (BF16, [(256, 512)], (200, 1), (64, 64), False, {}),
    (HALF, [(300, 300)] * 3, (80, 1), (64, 64), False, {"causal": True}),
    # The usual ones of head dims 128 and 256; the cases above get the smaller ones for few tiles.
    (BF16, [(128, 200)] * 2, (80, 1), (128, 128), False, {"causal": True}),
    (BF16, [(128, 200)] * 2, (80, 1), (256, 256), False, {"causal": True}),
    # The kernels for a softcap alone, which multiply Q in shared memory where it is bfloat16.
    (BF16, [(128, 300)] * 2, (80, 1), (128, 128), False, {"causal": True, "softcap": 60.0}),
    (BF16, [(300, 450), (100, 600), (190, 400)], (70, 1), (96, 96), True, {"softcap": 30.0}),
    (HALF, [(300, 300), (100, 50), (190, 200)], (70, 1), (96, 96), True, {"window_size": (200, 0), "softcap": 5.0}),
    # Pairs of tiles, several of them for a thread block.
    (BF16, [(250, 200)], (150, 1), (128, 128), False, {}),
    (HALF, [(400, 100)], (80, 1), (256, 256), False, {}),
    (BF16, [(200, 150)], (140, 1), (192, 192), False, {}),
    (HALF, [(140, 200)] * 2, (3, 1), (192, 128), False, {}),
    # Keys that stay in shared memory: less than a tile for every thread block, and parts of a KV head's tiles.
    (HALF, [(70, 60)], (2, 2), (128, 128), False, {"causal": True}),
    (BF16, [(130, 128)] * 25, (12, 3), (128, 128), False, {"window_size": (90, 0), "softcap": 9.0}),
    # Wide heads, and values narrower and wider than the keys.
    (BF16, [(130, 200)], (2, 1), (512, 512), False, {"causal": True}),
    (HALF, [(100, 50), (0, 5), (129, 140)], (2, 2), (264, 264), True, {"window_size": (40, 20), "softcap": 60.0}),
    (BF16, [(70, 90)] * 2, (2, 1), (64, 512), False, {}),
    (HALF, [(130, 140), (2, 2), (3, 0)], (2, 1), (192, 128), True, {"causal": True}),
    # The kernel for short sequences; the last one has sequences much longer than the mean.
    (BF16, [(20, 30)] * 40, (2, 1), (96, 96), True, {"causal": True}),
    (BF16, [(34, 34)] * 500, (1, 1), (128, 128), False, {"window_size": (20, 3)}),
    (HALF, [(5, 9)] * 40 + [(200, 150), (0, 3), (3, 0), (150, 10)], (2, 1), (64, 64), True, {"causal": True}),
    # Few keys in packed sequences: few units; many, drawn by tickets; and sequences of more keys than the caller says.
    (
        BF16,
        [(70, 60), (0, 5), (128, 128), (5, 0), (65, 100)] * 12,
        (4, 2),
        (128, 128),
        True,
        {"causal": True, "most": 128},
    ),
    (HALF, [(50, 30), (60, 7)] * 230, (4, 4), (128, 128), True, {"most": 64}),
    (HALF, [(70, 60), (33, 90)] * 3, (6, 2), (96, 96), True, {"window_size": (30, 5), "softcap": 5.0, "most": 128}),
    (BF16, [(70, 300), (200, 150), (20, 20)], (3, 1), (64, 64), True, {"causal": True, "most": 100}),
]


def _latent(seqlen_q: int, seqlen_k: int, page_size: int | None, nheads: int, **more: Any) -> CacheCase:
    common: dict[str, Any] = {"dtype": "bfloat16", "nheads_k": 1, "head_dim": 576, "head_dim_v": 512} | more
    return CacheCase(seqlen_q, seqlen_k, page_size, nheads=nheads, latent=True, **common)


# Caches with NaN in every slot that holds no key, and num_splits.
# fmt: off
CACHES: list[tuple[CacheCase, int]] = [
    (CacheCase(1, 150, None, "bfloat16", nheads=4, leftpad=True, batch_idx=True, full=True), 1),
    (CacheCase(3, 70, 1, "float16", nheads=4, head_dim=128, causal=True, full=True), 1),
    (CacheCase(5, 130, 16, "bfloat16", new="ragged", rotary_dim=32, causal=True, packed_q=True, leftpad=True), 1),
    (CacheCase(2, 200, 64, "float16", nheads=8, head_dim=128, new="equal", rotary_dim=128, interleaved=False), 1),
    (CacheCase(1, 300, 64, "bfloat16", nheads=8, head_dim=128, full=True), 3),
    (CacheCase(2, 400, 12, "bfloat16", nheads=8, new="equal", causal=True, sinks=True, full=True), 0),
    (CacheCase(4, 260, None, "float16", nheads=16, nheads_k=1, head_dim=128, causal=True, full=True), 3),
    (CacheCase(3, 200, 64, "bfloat16", nheads=4, head_dim=256, window=(90, 0), new="equal"), 2),
    # Plain decoding: several tiles in a row for a thread block, and rows in many pieces.
    (CacheCase(1, 130, 64, "bfloat16", batch=40, nheads=8, nheads_k=8, head_dim=128), 0),
    (CacheCase(1, 130, 1, "float16", batch=40, nheads=16, nheads_k=8, head_dim=128), 0),
    (CacheCase(1, 150, None, "float16", batch=40, nheads=8, nheads_k=8, head_dim=256), 0),
    (CacheCase(4, 130, 64, "bfloat16", batch=40, nheads=8, nheads_k=8, head_dim=128, causal=True), 0),
    (CacheCase(3, 100, 16, "float16", batch=20, nheads=8, head_dim=64, window=(-1, 1), new="equal", full=True), 0),
    (CacheCase(1, 1100, None, "bfloat16", batch=1, nheads=32, nheads_k=1, head_dim=128, full=True), 0),
    (CacheCase(1, 1100, None, "float16", batch=3, nheads=32, nheads_k=1, head_dim=64, full=True), 0),
    (CacheCase(2, 1100, 64, "bfloat16", batch=3, nheads=8, nheads_k=2, head_dim=96, sinks=True, full=True), 0),
    # Thread blocks that merge what they have of a tile: four, as eight do in the last case, and two; and two and four
    # that compute by a warpgroup.
    (CacheCase(1, 600, 64, "bfloat16", batch=2, nheads=8, nheads_k=2, head_dim=128, sinks=True, full=True), 0),
    (CacheCase(1, 300, None, "float16", batch=6, nheads=16, nheads_k=4, head_dim=96, sinks=True, full=True), 0),
    (CacheCase(1, 200, 64, "bfloat16", batch=15, nheads=24, nheads_k=3, head_dim=256, full=True), 0),
    (CacheCase(1, 500, None, "float16", batch=40, nheads=32, nheads_k=1, head_dim=128, full=True), 0),
    (CacheCase(3, 300, 16, "bfloat16", batch=3, nheads=16, nheads_k=1, head_dim=64, causal=True, full=True), 0),
    (CacheCase(1, 300, 16, "bfloat16", batch=8, nheads=32, nheads_k=1, head_dim=128, sinks=True, full=True), 0),
    # New rows that the kernel writes itself.
    (CacheCase(1, 130, 64, "bfloat16", batch=40, nheads=8, head_dim=128, new="equal", rotary_dim=64, full=True), 0),
    (CacheCase(1, 1100, 1, "float16", nheads=8, head_dim=96, new="equal", rotary_dim=96, interleaved=False), 0),
    (CacheCase(1, 300, 64, "bfloat16", nheads=32, nheads_k=1, head_dim=128, new="equal", rotary_dim=128), 0),
    (_latent(1, 150, None, 16, dtype="float16", full=True), 1),
    (_latent(2, 150, 64, 128, new="equal", causal=True, full=True), 0),
    (_latent(3, 200, 16, 32, window=(90, 0), full=True), 3),
    (CacheCase(130, 200, 16, "bfloat16", nheads=2, nheads_k=1, head_dim=40, causal=True, full=True), 0),
    # The forward kernel: dense, pages by boxes and by rows; the last three have tiles for two rounds.
    (CacheCase(250, 300, None, "bfloat16", nheads=8, head_dim=128, new="ragged", rotary_dim=32, causal=True,
               packed_q=True, leftpad=True, batch_idx=True), 0),
    (CacheCase(200, 300, 128, "float16", nheads=8, nheads_k=4, head_dim=64, causal=True, full=True), 0),
    (CacheCase(200, 300, 48, "bfloat16", nheads=8, nheads_k=8, head_dim=96, softcap=60.0, full=True), 0),
    (CacheCase(200, 300, 16, "float16", nheads=8, nheads_k=8, head_dim=128, new="equal", rotary_dim=128), 0),
    (CacheCase(130, 200, 12, "bfloat16", nheads=48, nheads_k=16, head_dim=128, causal=True, leftpad=True), 0),
    (CacheCase(130, 200, 1, "float16", nheads=48, nheads_k=16, head_dim=192, window=(90, 3), full=True), 0),
    (CacheCase(130, 200, 16, "bfloat16", nheads=48, nheads_k=48, head_dim=256, causal=True, full=True), 0),
    # In pieces, with tiles of one head and of several; and the latter with all of their keys, for two rounds.
    (CacheCase(140, 2300, 64, "bfloat16", nheads=4, nheads_k=4, head_dim=128, causal=True, full=True), 0),
    (CacheCase(40, 2300, 1, "float16", nheads=8, head_dim=64, new="equal", rotary_dim=32, sinks=True, full=True), 0),
    (CacheCase(40, 1500, None, "bfloat16", nheads=8, head_dim=256, causal=True, packed_q=True, full=True), 0),
    (CacheCase(20, 90, 16, "bfloat16", batch=20, nheads=64, nheads_k=8, head_dim=128, causal=True), 0),
    (CacheCase(20, 90, None, "float16", batch=20, nheads=64, nheads_k=8, head_dim=192, causal=True, sinks=True), 0),
]
# Packed queries, and how many the caller says that a sequence has: more than some have, fewer than others, and prompts
# beside single ones.
PACKED: list[tuple[CacheCase, int]] = [
    (CacheCase(1, 300, 64, "bfloat16", batch=7, nheads=8, head_dim=128, queries=(1, 1, 0, 1, 2, 1, 1), causal=True), 1),
    (CacheCase(1, 300, None, "float16", batch=40, nheads=8, nheads_k=8, queries=(*(1,) * 38, 0, 2), sinks=True), 1),
    (CacheCase(1, 400, 16, "bfloat16", batch=6, nheads=32, nheads_k=1, head_dim=128, queries=(1, 0, 1, 1, 2, 1)), 1),
    (CacheCase(3, 260, 64, "float16", batch=5, nheads=8, head_dim=96, queries=(3, 2, 0, 5, 1), causal=True), 3),
    (CacheCase(1, 300, 1, "float16", batch=12, nheads=8, head_dim=256, queries=(*(1,) * 11, 30), causal=True), 30),
    (CacheCase(1, 600, 64, "bfloat16", batch=30, nheads=16, nheads_k=8, head_dim=128, queries=(*(1,) * 28, 90, 60),
               causal=True), 90),
]
# fmt: on


def run_cache(case: CacheCase, num_splits: int, most: int | None = None) -> str | None:
    """What is wrong with a call of flash_attn_with_kvcache, or None."""
    arguments = case.arguments()
    device = {name: cupy.asarray(x) if isinstance(x, np.ndarray) else x for name, x in arguments.items()}
    out, lse = pyflash3.flash_attn_with_kvcache(**device, num_splits=num_splits, max_seqlen_q=most, return_lse=True)
    ref, ref_lse, ref_k, ref_v = pyflash3.reference.attention_with_kvcache(**arguments)
    lowp = pyflash3.reference.attention_with_kvcache(**arguments, rounding=arguments["q"].dtype)[0]
    check_k_cache(cupy.asnumpy(device["k_cache"]), arguments["k_cache"], ref_k, case)
    if not case.latent and not np.array_equal(bits(cupy.asnumpy(device["v_cache"])), bits(ref_v)):
        return "v_cache differs"
    wrong = mismatch(cupy.asnumpy(out), ref, bound(ref, lowp))
    return wrong or mismatch(cupy.asnumpy(lse), ref_lse, 1e-4 + turned_scores(case, arguments))


def run_combine() -> str | None:
    """The same for flash_attn_combine, of five partial results of which one is empty."""
    rng = np.random.default_rng(0)
    outs, lses = rng.standard_normal((5, 2, 3, 4, 40), np.float32), rng.standard_normal((5, 2, 3, 4), np.float32)
    outs[2], lses[2] = np.nan, -np.inf
    want = pyflash3.flash_attn_combine(outs, lses)
    got = pyflash3.flash_attn_combine(cupy.asarray(outs), cupy.asarray(lses))
    wrong = (mismatch(cupy.asnumpy(a), b.astype(np.float64), 1e-5) for a, b in zip(got, want, strict=True))
    return next(filter(None, wrong), None)


def run(case: Case, seed: int) -> str | None:
    """What is wrong with a case, or None."""
    dtype, lengths, (nheads, nheads_k), (dim, dim_v), packed, options = case
    rng = np.random.default_rng(seed)
    totals = [sum(side) for side in zip(*lengths, strict=True)]
    batch = len(lengths)
    lead = [(rows,) if packed else (batch, rows // batch) for rows in totals]
    shapes = {"q": (*lead[0], nheads, dim), "k": (*lead[1], nheads_k, dim), "v": (*lead[1], nheads_k, dim_v)}
    arrays: dict[str, Any] = {
        name: rng.standard_normal(shape, np.float32).astype(dtype) for name, shape in shapes.items()
    }
    if packed:
        for name, side in zip(("cu_seqlens_q", "cu_seqlens_k"), zip(*lengths, strict=True), strict=True):
            arrays[name] = np.concatenate([[0], np.cumsum(side)]).astype(np.int32)
    function = pyflash3.flash_attn_varlen_func if packed else pyflash3.flash_attn_func
    options = dict(options)
    most = options.pop("most", None)
    hints = {} if most is None else {"max_seqlen_q": most, "max_seqlen_k": most}
    out, lse = function(**{name: cupy.asarray(x) for name, x in arrays.items()}, **options, **hints, return_lse=True)
    ref, ref_lse = pyflash3.reference.attention(**arrays, **options)
    lowp, _ = pyflash3.reference.attention(**arrays, **options, rounding=dtype)
    return mismatch(cupy.asnumpy(out), ref, bound(ref, lowp)) or mismatch(cupy.asnumpy(lse), ref_lse, 1e-4)


def main() -> int:
    """1 when a case is wrong; the sanitizer has an exit code of its own."""
    wrong = 0
    for seed, case in enumerate(CASES):
        text = run(case, seed)
        wrong += text is not None
        dtype, lengths, *rest = case
        print(f"{dtype.name}, {len(lengths)} up to {max(lengths)}, {rest}: {text or 'right'}", flush=True)
    for cache, num_splits in CACHES:
        text = run_cache(cache, num_splits)
        wrong += text is not None
        print(f"{cache}, {num_splits} splits: {text or 'right'}", flush=True)
    for cache, most in PACKED:
        text = run_cache(cache, 0, most)
        wrong += text is not None
        print(f"{cache}, told {most}: {text or 'right'}", flush=True)
    text = run_combine()
    wrong += text is not None
    print(f"combine: {text or 'right'}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
