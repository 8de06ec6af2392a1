"""The cases of FlashAttention-3's cache protocol: every length with every page size, the other dimensions in turns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.gpu.machine import HOST
from tests.host.kvcache_cases import CacheCase

# (seqlen_q, seqlen_k), from hopper/test_flash_attn.py of FlashAttention.
# fmt: off
PAIRS = [
    (1, 128), (1, 339), (3, 1024), (64, 800), (64, 256), (3, 799), (64, 2048), (16, 20_000), (1, 131_072),
    (16, 131_072), (128, 128), (256, 512), (2048, 3577),
]
# fmt: on
PAGE_SIZES = (None, 1, 4, 12, 16, 64, 128, 256)
LARGE = 20_000  # from here on fewer heads and columns, so that most of the time is not spent on making arrays
VERY_LARGE = 131_072  # and one sequence
SPLITS = (0, 1, 3, 37)
# (nheads, nheads_k): groups of 1, 3, 4, 8, 16 and 32 heads.
HEADS = ((4, 4), (6, 2), (8, 2), (8, 1), (16, 1), (32, 1))
MASKS: tuple[dict[str, Any], ...] = (
    {},
    {"causal": True},
    {"window": (70, 9)},
    {"causal": True, "window": (100, -1)},
    {"causal": True, "softcap": 3.0},
    {"alibi": True},
    {"causal": True, "sinks": True},
    {"window": (30, 40), "softcap": 60.0, "alibi": True, "sinks": True},
)
# Rotary fraction and layout.
ROTARY = ((0.0, True), (0.5, True), (0.5, False), (1.0, True), (1.0, False))
DIMENSIONS: dict[str, tuple[Any, ...]] = {
    "splits": SPLITS,
    "head_dim": (64, 96, 128, 192, 256, 40, 72),
    "heads": HEADS,
    "mask": MASKS,
    "rotary": ROTARY,
    "new": ("equal", "none", "ragged"),
    "dtype": ("bfloat16", "float16"),
    "leftpad": (False, True),
    "batch_idx": (True, False),
    "packed_q": (False, True),
    "rotary_seqlens": (False, True),
}


class Case(NamedTuple):
    """A case of the protocol."""

    cache: CacheCase
    num_splits: int
    choices: dict[str, int]  # dimension -> index into its values; with page_size and pair


def protocol() -> Iterator[Case]:
    """About a hundred cases. Each dimension takes the value that has met the fewest of the case's others so far."""
    met: Counter[tuple[str, int, str, int]] = Counter()
    for seed, (pair, page) in enumerate((a, b) for a in range(len(PAIRS)) for b in range(len(PAGE_SIZES))):
        if PAIRS[pair][1] >= VERY_LARGE and PAGE_SIZES[page] in (4, 12, 128):
            continue  # sizes between others that there are
        choices = {"page_size": page, "pair": pair}
        for name, values in DIMENSIONS.items():

            def so_far(i: int, name: str = name) -> tuple[int, int]:
                counts = [met[other, j, name, i] for other, j in choices.items()]  # noqa: B023 - used at once
                return -counts.count(0), sum(counts)

            allowed = [i for i, value in enumerate(values) if _is_allowed(PAIRS[pair], name, value)]
            choices[name] = min(allowed, key=so_far)
        for name, i in choices.items():
            met.update((other, j, name, i) for other, j in choices.items())
        yield _case(choices, seed)


def _is_allowed(pair: tuple[int, int], name: str, value: Any) -> bool:
    if pair[1] >= LARGE and name == "head_dim":
        return value in (64, 128)
    return pair[1] < LARGE or name != "heads" or value[1] <= 2


def _case(choices: dict[str, int], seed: int) -> Case:
    chosen = {name: values[choices[name]] for name, values in DIMENSIONS.items()}
    (seqlen_q, seqlen_k), (fraction, interleaved) = PAIRS[choices["pair"]], chosen["rotary"]
    names = ("head_dim", "new", "dtype", "leftpad", "batch_idx", "packed_q", "rotary_seqlens")
    options: dict[str, Any] = {name: chosen[name] for name in names} | chosen["mask"]
    if chosen["new"] != "none":
        options |= {"rotary_dim": int(fraction * chosen["head_dim"]) // 16 * 16, "interleaved": interleaved}
    cache = CacheCase(
        seqlen_q, seqlen_k, PAGE_SIZES[choices["page_size"]], batch=1 if seqlen_k >= VERY_LARGE else 3,
        nheads=chosen["heads"][0], nheads_k=chosen["heads"][1], full=True, seed=seed, **options,
    )  # fmt: skip
    return Case(cache, chosen["splits"], choices)


def selection() -> list[Case]:
    """All cases; on the host engine those of small size."""
    return [case for case in protocol() if not HOST or case.cache.seqlen_k <= 1024]


def title(case: Case) -> str:
    """A test id that says the most of a case."""
    c = case.cache
    masks = [name for name in ("causal", "alibi", "sinks") if getattr(c, name)]
    masks += [f"softcap{c.softcap:g}"] if c.softcap else []
    masks += [f"window{c.window[0]},{c.window[1]}"] if c.window != (-1, -1) else []
    page = "dense" if c.page_size is None else f"page{c.page_size}"
    rotary = [f"rotary{c.rotary_dim}{'i' if c.interleaved else ''}"] if c.rotary_dim else []
    others = [name for name in ("leftpad", "batch_idx", "packed_q") if getattr(c, name)]
    parts = [c.dtype, f"{c.seqlen_q}x{c.seqlen_k}", page, f"d{c.head_dim}", f"h{c.nheads}/{c.nheads_k}"]
    return "-".join([*parts, f"splits{case.num_splits}", f"new_{c.new}", *rotary, *masks, *others, f"#{c.seed}"])
