"""`python -m pyflash3 demo`: attention on a batch of real size, timed, and a part of it checked against the formula."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .. import flash_attn_func, flash_attn_varlen_func
from . import backend as backends
from .cases import Case
from .compare import bound, max_error, mismatch


def run(backend_name: str) -> int:
    """Prints one row per problem; 1 when one is wrong."""
    backend = backends.select(backend_name)
    print(f"running on the {backend.description}\n")
    print(f"{'problem':72}{'time us':>9}{'GFLOP/s':>9}{'error':>9}{'allowed':>9}")
    rows = [_row(case, backend) for case in _cases(backend)]
    print(
        "\nerror: max |out - formula in float64| over one head; allowed: twice that of the plain formula in the input"
    )
    print("dtype, plus 1e-5 (FlashAttention's rule).")
    print("all right" if all(rows) else "WRONG RESULTS")
    return 0 if all(rows) else 1


def _cases(backend: backends.Backend) -> list[Case]:
    cuda = backend.name == "cuda"
    length, batch, nheads, dim = (4096, 4, 16, 128) if cuda else (1024, 2, 8, 64)
    heads: dict[str, Any] = {"nheads": nheads, "nheads_k": nheads // 4, "head_dim": dim, "head_dim_v": dim}
    dtype = backend.dtypes[-1]
    dense = Case(dtype, ((length, length),) * batch, **heads)
    ragged = tuple((n, n) for n in (length, length // 3, 17, length // 2, 1, length // 5))
    return [
        dense,
        replace(dense, causal=True),
        replace(dense, causal=True, window=(length // 8, -1)),
        replace(dense, causal=True, softcap=30.0, sinks=True),
        replace(dense, causal=True, packed=True, lengths=ragged),
    ]


def _row(case: Case, backend: backends.Backend) -> bool:
    arrays, numbers = case.arrays()
    on_backend = {name: backend.put(x) for name, x in arrays.items()}
    function = flash_attn_varlen_func if case.packed else flash_attn_func

    def call() -> Any:
        return function(**on_backend, **numbers)

    out = backend.get(call())
    seconds = backend.seconds(call)
    part, part_numbers, part_out = _first_head(case, arrays, numbers, out)
    ref, _, lowp = case.expect(part, part_numbers)
    allowed = bound(ref, lowp)
    wrong = mismatch(part_out, ref, allowed)
    rate = case.flops() / seconds
    error = max_error(part_out, ref)
    print(f"{case!s:72}{seconds * 1e6:9.0f}{rate / 1e9:9.0f}{error:9.1e}{allowed:9.1e}")
    if wrong is not None:
        print(f"  WRONG: {wrong}")
    return wrong is None


def _first_head(case: Case, arrays: dict[str, Any], numbers: dict[str, Any], out: Any) -> tuple[Any, Any, Any]:
    # One head of one batch entry (dense) or of all sequences (varlen) keeps the check in float64 short.
    rows = slice(None) if case.packed else slice(0, 1)
    part = dict(arrays)
    for name in ("q", "k", "v"):
        part[name] = arrays[name][rows][..., :1, :]
    if "sinks" in part:
        part["sinks"] = part["sinks"][:1]
    return part, numbers, out[rows][..., :1, :]
