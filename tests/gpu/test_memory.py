"""What a call allocates, and tensors with more than 2^31 elements and 2^32 bytes."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import pyflash3
from tests.gpu.machine import DTYPES, HOST, bits, get, int32, normal, poisoned, same_bits, wait, xp
from tests.gpu.problem import Inputs, Problem, check_inputs, expected, judge, make

MIB = 2**20


def _allocated(cuda: Any, call: Any) -> tuple[int, int]:
    """Bytes that a call takes from CUDA through CuPy, at its peak, and bytes that it takes in any other way.

    The latter are what is missing on the whole device. Where other processes run tests beside this one they take from
    it, too: hence the least of some attempts there.
    """
    call()  # kernels get loaded
    wait()
    attempts = [_attempt(cuda, call) for _ in range(5 if "PYTEST_XDIST_WORKER" in os.environ else 1)]
    return max(total for total, _ in attempts), min(others for _, others in attempts)


def _attempt(cuda: Any, call: Any) -> tuple[int, int]:
    pool = cuda.cuda.MemoryPool()  # takes from CUDA what is asked for, and gives nothing back
    before = cuda.cuda.runtime.memGetInfo()[0]
    with cuda.cuda.using_allocator(pool.malloc):
        result = call()
        wait()
        after = cuda.cuda.runtime.memGetInfo()[0]
        total = pool.total_bytes()
    del result
    # CUDA hands out memory in pieces of 2 MiB.
    others = before - after - -(-total // (2 * MIB)) * 2 * MIB
    pool.free_all_blocks()
    return total, others


def test_r01_no_more_than_out_and_lse_and_1_mib(cuda: Any) -> None:
    # Where the LSE buffer alone was 4.3 GB.
    batch, rows, nheads, dim = 128, 2048, 32, 64
    q = normal((batch, rows, nheads, dim), "bfloat16", 1)
    kv = normal((batch, rows, 8, dim), "bfloat16", 2)
    total, others = _allocated(cuda, lambda: pyflash3.flash_attn_func(q, kv, kv, causal=True, return_lse=True))
    out_bytes, lse_bytes = 2 * q.size, 4 * batch * nheads * rows
    assert total <= out_bytes + lse_bytes + MIB
    assert others <= 4 * MIB
    total, _ = _allocated(cuda, lambda: pyflash3.flash_attn_func(q, kv, kv, causal=True))
    assert total <= out_bytes + MIB, "lse is allocated though nobody asked for it"


@pytest.mark.parametrize("given_out", [False, True])
def test_r01_varlen_allocates_no_more(cuda: Any, given_out: bool) -> None:
    inputs = make(Problem(lengths=((100, 100),) * 1000, packed=True, causal=True, head_dim=128))
    out = poisoned(inputs.out_shape(), "bfloat16") if given_out else None

    def call() -> Any:
        return inputs.function()(inputs.q, inputs.k, inputs.v, **inputs.lengths, causal=True, out=out, return_lse=True)

    total, others = _allocated(cuda, call)
    assert total <= (0 if given_out else 2 * inputs.q.size) + 4 * 6 * 100_000 + MIB
    assert others <= 4 * MIB


def test_r01_decoding_without_splits_allocates_no_more(cuda: Any) -> None:
    q, kv = normal((8, 1, 32, 128), "bfloat16", 1), normal((8, 8192, 8, 128), "bfloat16", 2)
    lengths = int32([8192] * 8)
    total, others = _allocated(
        cuda, lambda: pyflash3.flash_attn_with_kvcache(q, kv, kv, cache_seqlens=lengths, num_splits=1, return_lse=True)
    )
    assert total <= 2 * q.size + 4 * 8 * 32 + MIB
    assert others <= 4 * MIB


def test_results_do_not_hold_on_to_partial_ones(cuda: Any) -> None:
    """Split-KV takes more than a result may keep: what a caller of many steps keeps is the results."""
    q, kv = normal((16, 1, 32, 128), "bfloat16", 1), normal((16, 2048, 8, 128), "bfloat16", 2)

    def steps() -> Any:
        return [pyflash3.flash_attn_with_kvcache(q, kv, kv, num_splits=32) for _ in range(50)]

    total, _ = _allocated(cuda, steps)
    partial = 32 * 16 * 32 * 129 * 4
    assert total <= 50 * 2 * q.size + 4 * partial + 50 * MIB // 2


@pytest.mark.parametrize("return_lse", [False, True])
@pytest.mark.parametrize("kind", ["dense", "varlen", "kvcache", "kvcache, out="])
def test_a_small_call_takes_one_allocation(cuda: Any, kind: str, return_lse: bool) -> None:
    """Each takes microseconds of the host. The results are arrays like any other, whose memory comes back."""
    q, kv, lengths = normal((2, 64, 4, 64), "bfloat16", 1), normal((2, 64, 2, 64), "bfloat16", 2), int32([0, 64])
    out = poisoned(q.shape, "bfloat16") if kind == "kvcache, out=" else None

    def call() -> Any:
        if kind == "dense":
            return pyflash3.flash_attn_func(q, kv, kv, return_lse=return_lse)
        if kind == "varlen":
            return pyflash3.flash_attn_varlen_func(q[0], kv[0], kv[0], lengths, lengths, 64, 64, return_lse=return_lse)
        return pyflash3.flash_attn_with_kvcache(q, kv, kv, cache_seqlens=lengths, out=out, return_lse=return_lse)

    want = call()
    wait()
    pool, sizes = cuda.cuda.MemoryPool(), []

    def allocate(size: int) -> Any:
        sizes.append(size)
        return pool.malloc(size)

    with cuda.cuda.using_allocator(allocate):
        got = call()
        assert len(sizes) == 1
        wait()
        if return_lse:
            assert got[1].size * 4 == got[1].nbytes == want[1].nbytes
            lse = got[1]
            del got
            other = [cuda.full(n, 0xFF, np.uint8) for n in (512, 4096, 65536) for _ in range(10)]
            assert same_bits(lse, want[1]), "the log-sum-exp has not outlived out"
            del other, lse
        else:
            assert same_bits(got, want)
            del got
        wait()
    assert pool.used_bytes() == 0


def test_a_small_lse_does_not_hold_on_to_a_large_out(cuda: Any) -> None:
    q = normal((1, 4096, 8, 128), "bfloat16", 1)
    pyflash3.flash_attn_func(q, q, q)
    pool = cuda.cuda.MemoryPool()
    with cuda.cuda.using_allocator(pool.malloc):
        lse = pyflash3.flash_attn_func(q, q, q, return_lse=True)[1]
        wait()
        assert pool.used_bytes() <= lse.nbytes + 512
        del lse


def _large(shape: tuple[int, ...], seed: int) -> Any:
    """normal(), but without work for anything that is not looked at where there is little memory."""
    return xp.zeros(shape, DTYPES["bfloat16"]) if HOST else normal(shape, "bfloat16", seed)


def test_r12_varlen_k_of_5_gb() -> None:
    # The rows of the last sequences lie beyond 2^31 elements and 2^32 bytes.
    dim, total_k = 128, 200_000 if HOST else 20_000_000
    cu_k = [0, 300, total_k - 1000, total_k]
    lengths_q = (70, 4, 130)
    window = (500, 0)
    k, v = (_large((total_k, 1, dim), seed) for seed in (1, 2))
    for x, seed in ((k, 1), (v, 2)):
        x[:300] = normal((300, 1, dim), "bfloat16", seed)
        x[-3000:] = normal((3000, 1, dim), "bfloat16", seed + 2)
    q = normal((sum(lengths_q), 2, dim), "bfloat16", 5)
    cu_q = np.concatenate([[0], np.cumsum(lengths_q)])
    out, lse = pyflash3.flash_attn_varlen_func(
        q, k, v, int32(cu_q), int32(cu_k), window_size=window, return_lse=True, out=poisoned(q.shape, "bfloat16")
    )
    wait()
    for b, rows in enumerate(lengths_q):
        # The window reaches back from the end of the keys, so their last part is all that this sequence sees.
        end = cu_k[b + 1]
        seen = slice(max(cu_k[b], end - 700), end)
        part = Problem(
            lengths=((rows, seen.stop - seen.start),), nheads=2, nheads_k=1, head_dim=dim, packed=True, window=window
        )
        at = slice(int(cu_q[b]), int(cu_q[b + 1]))
        judge(part, out[at], lse[:, at], expected(Inputs(part, q[at], k[seen], v[seen])))


def test_r12_every_key_of_a_5_gb_k_is_read() -> None:
    # A key parallel to a query outweighs all others together, so each row's result is the value of its own key.
    dim, total_k = 128, 100_000 if HOST else 20_000_000
    k = _large((total_k, 1, dim), 3)
    v = _large((total_k, 1, dim), 4)
    places = [7, total_k // 3, total_k * 5 // 6 + 11, total_k - 2]
    q = normal((len(places), 1, dim), "bfloat16", 6)
    for i, place in enumerate(places):
        k[place] = (q[i].astype(np.float32) * 4).astype(DTYPES["bfloat16"])
        v[place] = normal((1, dim), "bfloat16", 50 + i)
    cu_q, cu_k = int32([0, len(places)]), int32([0, total_k])
    out = pyflash3.flash_attn_varlen_func(q, k, v, cu_q, cu_k, out=poisoned(q.shape, "bfloat16"))
    wait()
    for i, place in enumerate(places):
        difference = np.abs(get(out[i]).astype(np.float64) - get(v[place]).astype(np.float64))
        assert difference.max() < 0.02, f"query {i} does not find its key {place}"


def test_r12_dense_strides_beyond_32_bits() -> None:
    # (batch, heads, seqlen, d) memory seen as (batch, seqlen, heads, d): heads and batch entries lie far apart.
    dim, nheads, seqlen_k, seqlen_q = 128, 4, 20_000 if HOST else 2_600_000, 130
    window = (500, 0)
    k = _large((2, nheads, seqlen_k, dim), 7)
    for b in range(2):
        k[b, :, -700:] = normal((nheads, 700, dim), "bfloat16", 8 + b)
    k = k.transpose(0, 2, 1, 3)
    q = normal((2, seqlen_q, nheads, dim), "bfloat16", 10)
    out, lse = pyflash3.flash_attn_func(q, k, k, window_size=window, return_lse=True, out=poisoned(q.shape, "bfloat16"))
    wait()
    part = Problem(lengths=((seqlen_q, 700),) * 2, nheads=nheads, nheads_k=nheads, head_dim=dim, window=window)
    seen = k[:, -700:]
    judge(part, out, lse, expected(Inputs(part, q, seen, seen)))


def test_r12_out_beyond_32_bits() -> None:
    # A result of 5 GB: its rows are as far apart as those of a much wider tensor.
    dim, rows = 64, 300
    pitch = 4_096 if HOST else 8_800_000  # elements from row to row
    inputs = make(Problem(lengths=((rows, rows),), head_dim=dim, nheads_k=2, causal=True))
    store = xp.empty(pitch * rows, DTYPES["bfloat16"])
    strides = (2 * pitch * rows, 2 * pitch, 2 * dim, 2)
    out = xp.lib.stride_tricks.as_strided(store, inputs.out_shape(), strides)
    bits(out)[...] = 0x7FFF
    result, lse = inputs.call(out=out)
    wait()
    assert result is out
    judge(inputs.problem, out, lse, expected(inputs))


@pytest.mark.parametrize("page_size", [None, 16, 64])
def test_r12_a_cache_of_5_gb(page_size: int | None) -> None:
    # Keys parallel to a query outweigh all others, and rows are appended beyond 2^31 elements and 2^32 bytes.
    dim, heads, rows = 128, 8, 19_200 if HOST else 1_200_000
    shape = (2, rows, heads, dim) if page_size is None else (2 * rows // page_size, page_size, heads, dim)
    k, v = _large(shape, 1), _large(shape, 2)
    q = normal((2, 1, 2 * heads, dim), "bfloat16", 5)
    pages = None
    if page_size is not None:
        pages = np.random.default_rng(page_size).permutation(len(k)).reshape(2, -1)
        pages[pages == len(k) - 1], pages[1, -1] = pages[1, -1], len(k) - 1  # where the last row is appended

    def place(b: int, row: int) -> tuple[int, int]:
        return (b, row) if pages is None else (int(pages[b, row // shape[1]]), row % shape[1])

    # Heads 0 to 3 have their key at the first place of their sequence, the others at the second one.
    keys = [
        (b, place(b, row), h)
        for b, (first, second) in enumerate([(11, rows // 2 + 5), (rows * 4 // 5 + 3, rows - 3)])
        for h, row in enumerate([first] * 4 + [second] * 4)
    ]
    for seed, (b, at, h) in enumerate(keys):
        k[at][h] = (q[b, 0, 2 * h].astype(np.float32) * 4).astype(DTYPES["bfloat16"])
        v[at][h] = normal((dim,), "bfloat16", 50 + seed)
    new_k, new_v = (normal((2, 1, heads, dim), "bfloat16", seed) for seed in (8, 9))
    table = None if pages is None else int32(pages)
    lengths = int32([rows - 1] * 2)
    out = pyflash3.flash_attn_with_kvcache(q, k, v, new_k, new_v, cache_seqlens=lengths, page_table=table, causal=True)
    wait()
    for b, at, h in keys:
        difference = np.abs(get(out[b, 0, 2 * h]).astype(np.float64) - get(v[at][h]).astype(np.float64))
        assert difference.max() < 0.02, f"head {h} of sequence {b} does not find its key"
    for b in range(2):
        assert same_bits(k[place(b, rows - 1)], new_k[b, 0])
        assert same_bits(v[place(b, rows - 1)], new_v[b, 0])
    del k, v
    if not HOST:
        xp.get_default_memory_pool().free_all_blocks()


def test_r12_an_error_is_a_status_and_the_process_goes_on() -> None:
    inputs = make(Problem(lengths=((64, 64),)))
    out = poisoned(inputs.out_shape(), "bfloat16")
    with pytest.raises(ValueError, match="head_dim"):
        pyflash3.flash_attn_func(inputs.q, inputs.k[..., :56], inputs.v, out=out)
    wait()
    assert same_bits(out, poisoned(inputs.out_shape(), "bfloat16")), "a refused call wrote something"
    check_inputs(inputs)
