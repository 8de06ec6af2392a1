"""The public functions, with FlashAttention-3's names and argument order."""

from __future__ import annotations

from typing import Any

from ._call import Cache, Options, attend

Array = Any  # numpy.ndarray, cupy.ndarray, or a CUDA object with __dlpack__

__all__ = ["flash_attn_func", "flash_attn_qkvpacked_func", "flash_attn_varlen_func"]


def flash_attn_func(
    q: Array,
    k: Array,
    v: Array | None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    out: Array | None = None,
    return_lse: bool = False,
    d_v: int | None = None,
) -> Any:
    """Exact attention over sequences of equal length.

    For query row i and key row j of one batch entry and head (query head h uses KV head h // (nheads // nheads_k)):

        s_ij  = softmax_scale * <q_i, k_j>
        s_ij  = softcap * tanh(s_ij / softcap)                          if softcap > 0
        s_ij -= alibi_slope_h * |i + seqlen_k - seqlen_q - j|           if alibi_slopes are given
        visible(i, j)  <=>  i + seqlen_k - seqlen_q - left <= j <= i + seqlen_k - seqlen_q + right
        lse_i = log(sum over visible j of exp(s_ij)  [+ exp(sink_h) if sinks are given])
        o_i   = sum over visible j of exp(s_ij - lse_i) * v_j

    (Dao et al., FlashAttention, 2022, with the bottom-right aligned mask of FlashAttention 2.1 and later.) Softmax and
    sums are float32. A row that sees no key gives o = 0 and lse = -inf (sink_h when sinks are given).

    Arrays are all NumPy (the host engine runs, on PYFLASH3_NUM_THREADS threads or all cores) or all on one CUDA device:
    CuPy arrays, or any object with __dlpack__ such as torch or JAX arrays, taken without a copy. The GPU's work is
    enqueued on CuPy's current stream of that device, and the call does not wait for it.

    Args:
        q: (batch, seqlen_q, nheads, head_dim), float16 or ml_dtypes.bfloat16; NumPy arrays may be float32 too. The
            last dimension must be contiguous, every other stride is free; on a GPU addresses and strides must be
            multiples of 16 bytes. head_dim is a multiple of 8, at most 576; on a GPU at most 512, with splits 256.
        k: (batch, seqlen_k, nheads_k, head_dim), like q; nheads must be a multiple of nheads_k (GQA, MQA).
        v: (batch, seqlen_k, nheads_k, head_dim_v), like q, with head_dim_v at most 512. None: the values are the first
            d_v columns of k, which is then read once (multi-head latent attention: head_dim 576, d_v 512).
        softmax_scale: factor of the scores; None means 1 / sqrt(head_dim).
        causal: row i sees keys up to its diagonal: the same as a right window of 0, combined with the left window.
        window_size: keys visible to the (left, right) of the diagonal, inclusive; -1 is unlimited.
        softcap: 0 turns it off.
        alibi_slopes: (nheads,) or (batch, nheads) float32, in the same place as q.
        sinks: (nheads,) float32: the score of one more key per head that has no value.
        num_splits: 0 (the library chooses) to 256: into how many parts the keys are split, which are worked on at the
            same time and then merged: what keeps a GPU busy where there are few queries. A fixed number gives the same
            bits every time, and so does 0, for which the lengths of all sequences decide where keys are cut; two
            numbers differ by rounding. The host engine makes one pass in any case.
        pack_gqa: a tuning hint of FlashAttention-3 that never changes a result; the library chooses.
        sm_margin: multiprocessors to leave to other work, on a GPU, unless a head dim is above 256. With num_splits 0
            it may change where keys are split, and so the rounding.
        out: (batch, seqlen_q, nheads, head_dim_v) of q's dtype to write to, which must not overlap q, k or v. It
            may be a CUDA object with __dlpack__, so that the result reaches another framework without a copy.
        return_lse: also return the log-sum-exp of each row.
        d_v: with v=None, and only then: the head_dim_v of the values in k, a multiple of 8, at most head_dim and 512. A
            GPU has a kernel for head_dim 576 with d_v 512.

    Returns:
        out, or (out, lse). out is the array given as out=, otherwise a new NumPy or CuPy array (which, for example,
        torch.from_dlpack(out) takes without a copy). lse is (batch, nheads, seqlen_q) float32, natural logarithm.

    Raises:
        ValueError: a shape, stride, place or number is wrong.
        TypeError: a dtype or the kind of an object is wrong.
        NotImplementedError: this version or build has no code for the call.
        RuntimeError: no CUDA driver, or CUDA refused a launch.
        ImportError: libflash3.so was not found or is of another version.
    """
    options = Options(
        softmax_scale, causal, window_size, softcap, alibi_slopes, sinks, num_splits, pack_gqa, sm_margin, d_v
    )
    return attend(q, k, v, options, out, return_lse)


def flash_attn_varlen_func(
    q: Array,
    k: Array,
    v: Array | None,
    cu_seqlens_q: Array,
    cu_seqlens_k: Array | None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    seqused_q: Array | None = None,
    seqused_k: Array | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    out: Array | None = None,
    return_lse: bool = False,
    page_table: Array | None = None,
    d_v: int | None = None,
) -> Any:
    """Exact attention over sequences of different lengths, packed one behind the other.

    The formula, and every argument not named here, are those of flash_attn_func, with each sequence's own lengths.

    Args:
        q: (total_q, nheads, head_dim).
        k: (total_k, nheads_k, head_dim).
        v: (total_k, nheads_k, head_dim_v), or None with d_v.
        cu_seqlens_q: (batch + 1,) int32, in the same place as q: sequence b has rows cu_seqlens_q[b] up to but not
            including cu_seqlens_q[b + 1], the last entry is total_q. Lengths of 0 are allowed.
        cu_seqlens_k: the same for k and v; None with page_table.
        max_seqlen_q: longest sequence, a hint for tuning; a wrong one changes rounding at most. None or 0: unknown.
            With page_table it says whether this is a step of decoding, or of decoding and prompts together, and so
            which kernels are fast: worth giving. Of one that is too small every query that it leaves out takes longer.
        max_seqlen_k: the same for k; with page_table it is worth giving where the table has room for many more keys,
            and three bits of it count, as in flash_attn_with_kvcache.
        seqused_q: (batch,) int32: how many of its rows each sequence uses, from its start. Rows behind them are not
            written, so a newly allocated out holds arbitrary values there.
        seqused_k: the same for k and v.
        page_table: (batch, max_pages) int32: k and v are then a paged cache, (num_pages, page_size, nheads_k,
            head_dim / head_dim_v) with pages of any size from 1, and row j of sequence b is row j % page_size of page
            page_table[b, j // page_size]. cu_seqlens_k must be None; seqused_k has the lengths, None means that all
            pages are full. Entries behind the last row in use may hold anything, and sequences may share pages.

    Returns:
        out (total_q, nheads, head_dim_v), or (out, lse) with lse (nheads, total_q) float32.

    Lengths are read where they lie, so a captured CUDA graph stays right when they change. Hence wrong lengths cannot
    be reported without waiting for the device: with the environment variable PYFLASH3_CHECK=1 they are checked and
    raise ValueError; without it a wrong one may give a wrong result for its sequence, and nothing else.
    """
    options = Options(
        softmax_scale, causal, window_size, softcap, alibi_slopes, sinks, num_splits, pack_gqa, sm_margin, d_v
    )
    lengths = (cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, max_seqlen_q, max_seqlen_k)
    cache = None if page_table is None else Cache(page_table)
    return attend(q, k, v, options, out, return_lse, lengths, cache)


def flash_attn_qkvpacked_func(
    qkv: Array,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    num_heads_q: int | None = None,
    out: Array | None = None,
    return_lse: bool = False,
) -> Any:
    """flash_attn_func for q, k and v in one array, read in place.

    Args:
        qkv: (batch, seqlen, 3, nheads, head_dim); or (batch, seqlen, nheads + 2 * nheads_k, head_dim) with the heads of
            q, then k, then v, and num_heads_q given.
        num_heads_q: query heads of the four-dimensional form.

    Everything else is as in flash_attn_func; out is (batch, seqlen, nheads, head_dim).
    """
    shape = tuple(getattr(qkv, "shape", ()))
    if len(shape) == 5:
        if shape[2] != 3:
            raise ValueError(f"qkv has shape {shape}; its third dimension must be 3 (q, k, v)")
        q, k, v = (qkv[:, :, i] for i in range(3))
    elif len(shape) == 4:
        nheads = 0 if num_heads_q is None else num_heads_q
        if nheads < 1 or nheads >= shape[2] or (shape[2] - nheads) % 2:
            raise ValueError(
                f"num_heads_q is {num_heads_q}; for qkv with {shape[2]} heads in all it must leave an even number of "
                "them, at least 2, for k and v"
            )
        split = nheads + (shape[2] - nheads) // 2
        q, k, v = qkv[:, :, :nheads], qkv[:, :, nheads:split], qkv[:, :, split:]
    elif shape or hasattr(qkv, "__dlpack__"):
        raise ValueError(f"qkv has shape {shape}; it must have 5 dimensions (batch, seqlen, 3, nheads, head_dim) or 4")
    else:
        raise TypeError(f"qkv is of type {type(qkv).__name__}; it must be an array")
    options = Options(softmax_scale, causal, window_size, softcap, alibi_slopes, sinks, num_splits, pack_gqa, sm_margin)
    return attend(q, k, v, options, out, return_lse)
