"""What the compiler makes of the main loops: registers that are spilled or waited for show here, without a GPU."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from pyflash3._lib import library
from tests.build.machine_code import FORWARD, loops_of_whole_blocks
from tests.core.tile_choice import tile_configs

# Of so many exponentials in a row, how many may take their argument from the same register. More is the mark of a
# kernel that ptxas has scheduled to save registers: each exponential then waits for the one before
# (docs/performance.md, "What the compiler makes of it"). That depends on the compiler.
EXPONENTIALS, MOST_OF_A_REGISTER = 40, 16
COMPILER = "13.0"


@pytest.fixture
def known_compiler() -> None:
    """For tests of what one compiler makes of the kernels."""
    cuda = library().build_info()["cuda"]
    if not cuda.startswith(COMPILER):
        pytest.skip(f"what is known is of CUDA {COMPILER}; the kernels were built with {cuda}")


@pytest.mark.usefixtures("known_compiler")
def test_softmax_of_plain_kernels_is_scheduled_for_speed(sass: dict[str, str]) -> None:
    """A change that makes every other plain kernel wait for single registers shows here, where there is no GPU."""
    plain = {
        name: re.findall(r"MUFU\.EX2 R\d+, -?\|?(R\d+)", code)
        for name, code in sass.items()
        if FORWARD in name and re.search(r"Li\d+ELb0E", name)
    }
    assert any(len(sources) >= EXPONENTIALS for sources in plain.values())
    most = {
        name: max(
            Counter(sources[i : i + EXPONENTIALS]).most_common(1)[0][1]
            for i in range(max(1, len(sources) - EXPONENTIALS + 1))
        )
        for name, sources in plain.items()
        if sources
    }
    assert {name: n for name, n in most.items() if n > MOST_OF_A_REGISTER} == {}


# Moves from a register to a uniform one in that loop. Where the compiler does not see that the counters of the rings
# are the same in all lanes, there are two for each of 12 products, which wait for them: 2 to 5 % of the time.
MOST_MOVES = 8


@pytest.fixture(scope="module")
def plain_loops(sass: dict[str, str]) -> dict[str, list[str]]:
    """Of the kernels of up to 128 columns without modified scores, not on a cache."""
    configs = tile_configs()
    loops = {}
    for name, code in sass.items():
        found = re.search(r"10TileTraits.*_tELi(\d+)ELb0ELb[01]ELb0E", name)
        if found and f"device15{FORWARD}" in name and configs[int(found[1])].head_dim <= 128:
            loops[name] = loops_of_whole_blocks(code)[0]
    assert loops
    return loops


@pytest.mark.usefixtures("known_compiler")
def test_plain_kernels_keep_their_counters_in_uniform_registers(plain_loops: dict[str, list[str]]) -> None:
    moves = {name: sum("R2UR" in text for text in loop) for name, loop in plain_loops.items()}
    assert {name: n for name, n in moves.items() if n > MOST_MOVES} == {}


# Of the multiply-adds in front of the exponentials in that loop, those that keep the reference of their row for the
# next one. Where the compiler lets rows take turns and has put the references of both into registers of the same
# parity, none does: that costs 5 % at d 64.
LEAST_KEPT = 0.7


def share_of_kept_references(loop: list[str]) -> float:
    scaled = [text for text in loop if re.match(r"FFMA R\d+, R\d+, UR\d+, -?R\d+", text)]
    assert len(scaled) >= 32  # one for each score of a thread
    return sum(".reuse" in text for text in scaled) / len(scaled)


@pytest.mark.usefixtures("known_compiler")
def test_plain_kernels_read_the_reference_of_a_row_once(plain_loops: dict[str, list[str]]) -> None:
    kept = {name: share_of_kept_references(loop) for name, loop in plain_loops.items()}
    assert {name: share for name, share in kept.items() if share < LEAST_KEPT} == {}


@pytest.mark.usefixtures("known_compiler")
def test_kernels_for_caches_read_the_reference_of_a_row_once(sass: dict[str, str]) -> None:
    """It depends on how many registers the consumers are told to have: with all of them none is kept at d 96.

    That costs 14 %.
    """
    kept = {
        name: share_of_kept_references(loops_of_whole_blocks(code)[0])
        for name, code in sass.items()
        if f"device15{FORWARD}" in name and re.search(r"10TileTraits.*_tELi[012]ELb0ELb1ELb1ELb0", name)
    }
    assert kept
    assert {name: share for name, share in kept.items() if share < LEAST_KEPT} == {}


# The same in the loops of softcap, by few terms and by more, and of ALiBi, in one kernel or in two; 36 where the
# compiler does not see it. And instructions that save a register to memory or fetch it again.
MOST_MOVES_MODIFIED, MOST_SAVED = 18, 3
# The kernels for a softcap alone, 192 x 96 at d 96, are known to be so: 4 to 6 in float16, and where nothing is packed.
KNOWN_TO_SAVE, SAVED_THERE = re.compile("(half_tELi7ELb1ELb[01]|bfloat16_tELi7ELb1ELb0)ELb0ELb0ELb0ELb1E"), 6


@pytest.mark.usefixtures("known_compiler")
def test_loops_of_modified_scores_are_of_registers(sass: dict[str, str]) -> None:
    """Three consumer warpgroups leave just enough of them: more are spilled around these loops, not in them."""
    configs = tile_configs()
    moves, saved = {}, {}
    for name, code in sass.items():
        found = re.search(r"10TileTraits.*_tELi(\d+)ELb1ELb[01]ELb0E", name)
        if not found or f"device15{FORWARD}" not in name or not configs[int(found[1])].takes_modified_scores_directly:
            continue
        alone = "ELb0ELb0ELb0ELb1E" in name  # a softcap, without ALiBi
        monic = alone and "bfloat16" in name  # see core/monic_softcap.h
        loops = loops_of_whole_blocks(code)[: 2 if alone and not monic else 3]
        moves[name] = [sum("R2UR" in text for text in loop) for loop in loops]
        saved[name] = [sum(bool(re.search(r"\b(STL|LDL)\b", text)) for text in loop) for loop in loops]
    assert moves
    assert {name: n for name, n in moves.items() if max(n) > MOST_MOVES_MODIFIED} == {}
    most = {name: SAVED_THERE if KNOWN_TO_SAVE.search(name) else MOST_SAVED for name in saved}
    assert {name: n for name, n in saved.items() if max(n) > most[name]} == {}
