"""Functions that kernels call while a product is in flight: they must not touch the registers it is written to."""

from __future__ import annotations

import re

from tests.build.machine_code import FORWARD, instructions
from tests.core.tile_choice import tile_configs

NO_RESULT = re.compile(r"(ST[GSL]?|RED|BAR|BRA|CALL|RET|EXIT|SYNCS|WARPSYNC|MEMBAR|R2UR|R2P)\b")


def scores(rows: list[tuple[int, str]]) -> set[int]:
    """The accumulators of Q * K^T: of products whose second factor is not transposed."""
    found: set[int] = set()
    for _, text in rows:
        product = re.match(r"HGMMA\.64x(\d+)x16\.F32\S* R(\d+), ", text)
        if product and "tnspB" not in text:
            first = int(product[2])
            found |= set(range(first, first + int(product[1]) // 2))
    return found


def written(text: str) -> set[int]:
    """The registers that an instruction writes."""
    found = re.match(r"(\S+) (?:U?P\d+, )*R(\d+)\b", text)
    if not found or NO_RESULT.match(text):
        return set()
    wide = 4 if ".128" in found[1] else 2 if ".64" in found[1] or "WIDE" in found[1] else 1
    return set(range(int(found[2]), int(found[2]) + wide))


def test_called_functions_leave_products_in_flight_alone(sass: dict[str, str]) -> None:
    """In the kernels whose next tile begins while one ends."""
    configs = tile_configs()
    clashes, checked = {}, 0
    for name, code in sass.items():
        found = re.search(rf"device15{FORWARD}.*10TileTraits.*_tELi(\d+)E", name)
        if not found or configs[int(found[1])].head_dim > 128:  # there is one buffer for Q
            continue
        rows = [(at, re.sub(r"^@!?U?P\d+ ", "", text)) for at, text in instructions(code)]  # whatever the predicate is
        calls = [int(call[1], 16) for _, text in rows if (call := re.match(r"CALL\S* 0x([0-9a-f]+)", text))]
        called = [text for at, text in rows if at >= min(calls)]
        assert any(text.startswith("RET") for text in called)
        assert scores(rows)
        checked += 1
        both = scores(rows) & set().union(*map(written, called))
        if both:
            clashes[name] = sorted(both)
    assert checked > 0
    assert clashes == {}
