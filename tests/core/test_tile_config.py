"""Tile shapes: which class holds a head dim, and which of its shapes a call gets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.surface import MaskCase
from tests.core.tile_choice import (
    TileConfig,
    cheapest_config,
    estimated_clocks,
    takes_pairs,
    tile_class,
    tile_configs,
)

CONFIGS = tile_configs()
CLASSES = sorted({(config.head_dim, config.head_dim_v) for config in CONFIGS})
sides = st.just(-1) | st.integers(0, 3000)


def class_of(config: TileConfig) -> tuple[int, int]:
    return config.head_dim, config.head_dim_v


def member_of(head_dims: tuple[int, int]) -> int:
    """Index of a config of the class."""
    return next(i for i, config in enumerate(CONFIGS) if class_of(config) == head_dims)


@pytest.mark.parametrize("head_dim", range(8, 529, 8))
@pytest.mark.parametrize("head_dim_v", [8, 64, 72, 128, 136, 256, 264, 512, 520])
def test_smallest_class_that_holds_both(head_dim: int, head_dim_v: int) -> None:
    fitting = [i for i, config in enumerate(CONFIGS) if config.head_dim >= head_dim and config.head_dim_v >= head_dim_v]
    assert tile_class(head_dim, head_dim_v) == (fitting[0] if fitting else None)


def test_classes_come_from_the_narrowest_on() -> None:
    first = [class_of(config) for config in CONFIGS]
    assert first == sorted(first)


@given(st.sampled_from(range(len(CONFIGS))), sides, sides, st.integers(1, 4000), st.integers(0, 4000))
def test_estimate_counts_every_tile_and_block(index: int, left: int, right: int, seqlen_q: int, seqlen_k: int) -> None:
    config = CONFIGS[index]
    firsts = range(0, seqlen_q, config.block_m)
    mask = MaskCase(left, right, seqlen_q, seqlen_k)
    expected = len(firsts) * config.tile_clocks
    for first in firsts:
        tile = first, min(first + config.block_m, seqlen_q)
        begin, end, *_ = mask.block_range(*tile, config.block_n)
        hidden = 0  # of the first one of two warpgroups, which leaves them out
        if config.most_hidden and tile[1] - first > 64:
            hidden, _ = mask.rows_of_tile(*tile, config.block_n, 0, 64, config.most_hidden)
        expected += (2 * (end - begin) - hidden) * config.block_clocks // 2
    assert estimated_clocks(index, left, right, seqlen_q, seqlen_k) == expected


@given(st.sampled_from(CLASSES), sides, sides, st.integers(1, 2**31 - 1), st.integers(0, 2**31 - 1))
def test_the_cheapest_of_the_class(
    head_dims: tuple[int, int], left: int, right: int, seqlen_q: int, seqlen_k: int
) -> None:
    of_class = [
        i for i, config in enumerate(CONFIGS) if class_of(config) == head_dims and config.takes(seqlen_q, seqlen_k)
    ]
    chosen = cheapest_config(member_of(head_dims), left, right, seqlen_q, seqlen_k)
    assert chosen in of_class
    least = min(estimated_clocks(i, left, right, seqlen_q, seqlen_k) for i in of_class)
    assert estimated_clocks(chosen, left, right, seqlen_q, seqlen_k) == least


lengths = st.integers(1, 300) | st.integers(1, 2**31 - 1)


@given(st.sampled_from(CLASSES), sides, sides, lengths, st.tuples(lengths, lengths))
def test_lengths_that_vary_never_get_a_config_made_for_shorter_ones(
    head_dims: tuple[int, int], left: int, right: int, mean: int, longest: tuple[int, int]
) -> None:
    config = CONFIGS[cheapest_config(member_of(head_dims), left, right, mean, mean, vary=True, longest=longest)]
    assert class_of(config) == head_dims
    assert config.takes(*longest)


@pytest.mark.parametrize("head_dims", CLASSES)
def test_every_class_has_a_config_for_any_length(head_dims: tuple[int, int]) -> None:
    assert any(config.most_rows == 0 and config.most_keys == 0 for config in CONFIGS if class_of(config) == head_dims)


@given(st.sampled_from(range(len(CONFIGS))), sides, sides, st.integers(1, 5000))
def test_pairs_of_tiles_see_the_same_keys_and_compute_little_twice(
    index: int, left: int, right: int, rows: int
) -> None:
    config = CONFIGS[index]
    tiles = -(-rows // config.block_m)
    taken = takes_pairs(index, left, right, rows)
    if taken:
        assert config.pairs
        assert (left, right) == (-1, -1), "a mask gives neighbouring tiles different keys"
        assert (tiles % 2) / tiles < 1 / 16
    elif config.pairs and (left, right) == (-1, -1):
        assert tiles % 2 == 1


@pytest.mark.parametrize(
    ("right", "seqlen", "block_m"),
    [
        (0, 512, 128),
        (0, 1024, 128),
        (0, 2048, 128),
        (0, 3072, 128),
        (0, 4096, 128),
        (0, 5120, 128),
        (0, 8192, 192),
        (0, 16384, 192),
        (-1, 512, 256),
        (-1, 1024, 256),
        (-1, 384, 192),
        (-1, 768, 192),
        (-1, 2048, 256),
        (-1, 3072, 192),
        (-1, 4096, 256),
        (-1, 8192, 192),
        (-1, 16384, 192),
        (-1, 128, 64),
        (-1, 34, 64),
    ],
)
def test_head_dim_64_as_measured(right: int, seqlen: int, block_m: int) -> None:
    assert CONFIGS[cheapest_config(member_of((64, 64)), -1, right, seqlen, seqlen)].block_m == block_m


@pytest.mark.parametrize(
    ("head_dim", "right", "seqlen", "block_m"),
    [
        (64, 0, 512, 128),
        (64, 0, 1024, 128),
        (64, 0, 2048, 128),
        (64, 0, 4096, 192),
        (64, 0, 16384, 192),
        (64, -1, 512, 256),
        (64, -1, 1024, 256),
        (64, -1, 2048, 192),
        (64, -1, 4096, 192),
        (96, 0, 1024, 128),
        (96, 0, 4096, 128),
        (96, 0, 16384, 192),
        (96, -1, 1024, 128),
        (96, -1, 2048, 192),
        (96, -1, 4096, 192),
    ],
)
def test_modified_scores_as_measured(head_dim: int, right: int, seqlen: int, block_m: int) -> None:
    """With a softcap, or ALiBi."""
    member = member_of((head_dim, head_dim))
    assert CONFIGS[cheapest_config(member, -1, right, seqlen, seqlen, modifies=True)].block_m == block_m


@pytest.mark.parametrize(
    ("head_dim", "batch", "seqlen", "nheads", "stay"),
    [
        (64, 1, 128, 12, True),
        (64, 512, 100, 12, True),
        (64, 512, 64, 12, True),
        (64, 16, 64, 12, False),  # thread blocks with a second KV head, but no third one
        (64, 512, 129, 12, False),
        (128, 1, 128, 32, True),
        (128, 8, 128, 32, True),
        (128, 128, 128, 32, True),
        (128, 64, 70, 32, True),
        (128, 256, 64, 16, True),
        (128, 128, 129, 32, False),
        (96, 128, 128, 32, True),
    ],
)
@pytest.mark.parametrize("right", [0, -1])
def test_few_keys_stay_in_shared_memory_as_measured(
    head_dim: int, batch: int, seqlen: int, nheads: int, stay: bool, right: int
) -> None:
    member = member_of((head_dim, head_dim))
    group = 4 if nheads == 32 else 1
    index = cheapest_config(member, -1, right, seqlen, seqlen, columns=batch * nheads, group=group)
    assert (CONFIGS[index].most_keys > 0) is stay
    # Queries may be many.
    assert not stay or CONFIGS[cheapest_config(member, -1, -1, 4096, seqlen, columns=batch * nheads)].most_keys > 0


@pytest.mark.parametrize(
    ("mean", "longest", "kind"),
    [
        (34, 34, "few keys"),
        (70, 128, "few keys"),
        (53, 250, "short"),  # a few long ones among short ones
        (128, 256, "any"),
        (192, 192, "any"),
        (256, 256, "any"),
        (49, 16384, "any"),
    ],
)
@pytest.mark.parametrize("head_dim", [96, 128])
def test_packed_calls_as_measured(head_dim: int, mean: int, longest: int, kind: str) -> None:
    member = member_of((head_dim, head_dim))
    work: dict[str, Any] = {"vary": True, "longest": (longest, longest), "sequences": 500}
    config = CONFIGS[cheapest_config(member, -1, 0, mean, mean, **work, packed=True)]
    assert ("few keys" if config.most_keys > 0 else "short" if config.is_short else "any") == kind


@pytest.mark.parametrize(
    ("head_dim", "batch", "seqlen", "nheads", "kind"),
    [
        (64, 1, 64, 4, "few keys"),
        (64, 1, 256, 32, "any"),
        (64, 8, 256, 8, "short"),
        (64, 64, 256, 16, "any"),
        (64, 64, 256, 32, "any"),
        (128, 1, 64, 8, "few keys"),
        (128, 8, 64, 16, "few keys"),
        (128, 1, 128, 16, "few keys"),
        (128, 1, 256, 8, "any"),
        (128, 4, 256, 8, "any"),
        (128, 8, 256, 16, "any"),
        (128, 32, 256, 16, "any"),
    ],
)
def test_small_packed_calls_as_measured(head_dim: int, batch: int, seqlen: int, nheads: int, kind: str) -> None:
    work: dict[str, Any] = {"vary": batch > 1, "sequences": batch, "columns": batch * nheads}
    member = member_of((head_dim, head_dim))
    config = CONFIGS[cheapest_config(member, -1, 0, seqlen, seqlen, **work, packed=True)]
    assert ("few keys" if config.most_keys > 0 else "short" if config.is_short else "any") == kind


@pytest.mark.parametrize(("columns", "few_keys"), [(8, False), (140, False), (20_000, True)])
def test_whole_heads_of_many_queries_are_enough_for_all(columns: int, few_keys: bool) -> None:
    """Packed, where the kernel for few keys does not share the tiles of a head out."""
    work: dict[str, Any] = {"columns": columns, "packed": True, "vary": True, "longest": (10_000, 77)}
    config = CONFIGS[cheapest_config(member_of((128, 128)), -1, -1, 10_000, 77, **work)]
    assert (config.most_keys > 0) is few_keys


@pytest.mark.parametrize(
    ("head_dim", "seqlen", "columns", "block_m"),
    [
        (128, 512, 8, 64),  # 64 tiles of 64 rows
        (128, 1024, 8, 64),  # 128
        (128, 2048, 8, 128),  # 128 tiles of 128 rows
        (128, 512, 512, 128),
        (64, 512, 8, 64),
        (256, 512, 8, 64),
        (256, 512, 256, 128),
    ],
)
def test_few_tiles_are_made_small(head_dim: int, seqlen: int, columns: int, block_m: int) -> None:
    member = member_of((head_dim, head_dim))
    assert CONFIGS[cheapest_config(member, -1, -1, seqlen, seqlen, columns=columns)].block_m == block_m
