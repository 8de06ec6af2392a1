"""The machine code of the built kernels: tensor-core and TMA instructions are there, spilled registers stay few."""

from __future__ import annotations

import itertools
import re

import pytest

from pyflash3._lib import library
from tests.build.machine_code import FORWARD
from tests.build_dir import BUILD_DIR
from tests.core.tile_choice import tile_configs

# Bytes of a thread in its stack frame, and bytes that its instructions store there. A few registers saved now and then
# are cheap, an accumulator (64 registers, 256 bytes) that goes through memory in every block is not. The most is
# spilled where scores are modified and three consumer warpgroups leave a thread 160 registers: at d 64, around the
# loops. The limits bound how much is spilled, not where; that is for test_sass_schedule.py. In kernels for caches the
# frame also has what functions are called with.
MAX_STACK_BYTES, MAX_STACK_BYTES_CACHE = 200, 312
CACHE = re.compile(r"10TileTraits.*_tELi\d+ELb[01]ELb1ELb1E")
MAX_SPILL_BYTES = 416


def test_every_built_kernel_is_there(sass: dict[str, str]) -> None:
    info = library().build_info()
    dtypes, head_dims = (info[key].replace(";", ",").split(",") for key in ("dtypes", "head_dims"))
    forward = [name for name in sass if FORWARD in name]
    for dtype in dtypes:
        for index, config in enumerate(tile_configs()):
            if str(config.head_dim) not in head_dims:
                continue
            # With and without modified scores, with and without lengths from device memory.
            for flags in itertools.product("01", repeat=2):
                # Not on a cache, in pairs, in pieces, or for a softcap alone; the kernels for wide heads have none.
                plain = "" if config.head_dim > 256 else "Lb0ELb0ELb0ELb0E"
                kind = f"Li{index}ELb{flags[0]}ELb{flags[1]}E{plain}"
                if config.most_keys > 0:
                    if flags[1] == "1":
                        continue  # their lengths are never in device memory
                    kind = f"ResidentTraits.*Li{index}ELb{flags[0]}E"
                marks = ({"fp16": "half_t", "bf16": "bfloat16_t"}[dtype], kind)
                assert any(all(re.search(mark, name) for mark in marks) for name in forward), (dtype, config, flags)


def test_every_kernel_for_pairs_is_there_and_loads_for_both(sass: dict[str, str]) -> None:
    info = library().build_info()
    dtypes, head_dims = (info[key].replace(";", ",").split(",") for key in ("dtypes", "head_dims"))
    expected = {
        f"{ {'fp16': 'half_t', 'bf16': 'bfloat16_t'}[dtype] }ELi{index}ELb0ELb0ELb0ELb1E"
        for dtype in dtypes
        for index, config in enumerate(tile_configs())
        if config.pairs and str(config.head_dim) in head_dims
    }
    for traits in expected:
        (code,) = (code for name, code in sass.items() if FORWARD in name and traits in name)
        assert "UTMALDG.5D.MULTICAST" in code, traits
    multicast = [name for name, code in sass.items() if FORWARD in name and "MULTICAST" in code]
    assert len(multicast) == len(expected)


def test_every_kernel_for_a_softcap_alone_is_there(sass: dict[str, str]) -> None:
    info = library().build_info()
    dtypes, head_dims = (info[key].replace(";", ",").split(",") for key in ("dtypes", "head_dims"))
    expected = {
        f"{ {'fp16': 'half_t', 'bf16': 'bfloat16_t'}[dtype] }ELi{index}ELb1ELb{varlen}ELb0ELb0ELb0ELb1E"
        for dtype in dtypes
        for varlen in (0, 1)
        for index, config in enumerate(tile_configs())
        if config.has_capped_kernel and str(config.head_dim) in head_dims
    }
    found = [name for name in sass if FORWARD in name and re.search(r"ELb1ELb[01]ELb0ELb0ELb0ELb1E", name)]
    assert expected
    assert len(found) == len(expected)
    assert all(any(traits in name for name in found) for traits in expected)


USES = {
    "HGMMA": "wgmma",
    "UTMALDG": "TMA load",
    "UTMASTG": "TMA store",
    "SYNCS": "mbarrier",
}


@pytest.mark.parametrize("instruction", USES)
def test_forward_kernels_use(sass: dict[str, str], instruction: str) -> None:
    forward = {name: code for name, code in sass.items() if FORWARD in name}
    assert forward
    missing = [name for name, code in forward.items() if instruction not in code]
    assert missing == [], f"no {USES[instruction]}"


CLASSES = ("64", "96", "128", "192", "256")  # of core::kSplitConfigs and core::kCacheConfigs, in order


def test_every_kernel_for_caches_is_there_and_copies_rows(sass: dict[str, str]) -> None:
    info = library().build_info()
    dtypes, head_dims = (info[key].replace(";", ",").split(",") for key in ("dtypes", "head_dims"))
    for dtype, (score_mod, pieces) in itertools.product(dtypes, ((0, 0), (1, 0), (0, 1))):
        element = {"fp16": "half_t", "bf16": "bfloat16_t"}[dtype]
        for index, head_dim in enumerate(CLASSES):
            if head_dim not in head_dims:
                continue
            traits = f"{element}ELi{index}ELb{score_mod}ELb1ELb1ELb0ELb{pieces}E"
            (code,) = (code for name, code in sass.items() if FORWARD in name and traits in name)
            assert "LDGSTS" in code, traits


SPLIT_USES = {
    "UTMALDG": "TMA load",
    "LDGSTS": "asynchronous copies",
    "SYNCS": "mbarrier",
}
OF_WARPGROUPS = {"HGMMA": "wgmma", "USETMAXREG": "registers for the consumers"}
OF_WARPS = {"HMMA.16816.F32": "products of a warp", "LDSM.16.M88.4": "K", "LDSM.16.MT88.4": "V"}
PLAIN = {"UTMAPF": "the first block on its way to L2"}
# Of device::SplitCalls, in order.
SPLIT_KERNELS = (
    OF_WARPGROUPS,
    *[OF_WARPGROUPS | PLAIN] * 2,
    OF_WARPS | PLAIN,
    OF_WARPGROUPS | PLAIN,
    OF_WARPS | PLAIN,
)


def test_every_split_kernel_is_there_and_uses(sass: dict[str, str]) -> None:
    info = library().build_info()
    dtypes, head_dims = (info[key].replace(";", ",").split(",") for key in ("dtypes", "head_dims"))
    expected = {
        f"SplitTraitsIN7cutlass{ {'fp16': '6half_t', 'bf16': '10bfloat16_t'}[dtype] }"
        f"ELi{index}ELNS0_10SplitCallsE{calls}E": SPLIT_USES | uses
        for dtype in dtypes
        for calls, uses in enumerate(SPLIT_KERNELS)
        for index, head_dim in enumerate(CLASSES)
        if head_dim in head_dims
    }
    for traits, uses in expected.items():
        (code,) = (code for name, code in sass.items() if "split_kernel_sm90" in name and traits in name)
        missing = [what for instruction, what in uses.items() if instruction not in code]
        assert missing == [], traits


MLA_USES = {
    "HGMMA": "wgmma",
    "UTMALDG": "TMA load",
    "SYNCS": "mbarrier",
    "STSM": "probabilities for the other warpgroup",
    "USETMAXREG": "registers for the consumers",
}


def test_every_kernel_of_latent_attention_is_there_and_uses(sass: dict[str, str]) -> None:
    info = library().build_info()
    dtypes, head_dims = (info[key].replace(";", ",").split(",") for key in ("dtypes", "head_dims"))
    for dtype, plain in itertools.product(dtypes if "576" in head_dims else (), (0, 1)):
        traits = f"MlaTraitsIN7cutlass{ {'fp16': '6half_t', 'bf16': '10bfloat16_t'}[dtype] }ELb{plain}E"
        (code,) = (code for name, code in sass.items() if "mla_kernel_sm90" in name and traits in name)
        missing = [what for instruction, what in MLA_USES.items() if instruction not in code]
        assert missing == [], traits


def test_warp_specialised_kernels_hand_registers_to_the_consumers(sass: dict[str, str]) -> None:
    """The others are those for short sequences, which have no producer."""
    without = {name for name, code in sass.items() if FORWARD in name and "USETMAXREG" not in code}
    assert without == {name for name in sass if f"short_{FORWARD}" in name}


def test_the_barrier_of_the_whole_block_is_reached_from_one_place(sass: dict[str, str]) -> None:
    """From two, say the branches of the producer and the consumers, it is no __syncthreads(): synccheck refuses it.

    Most persistent kernels meet at ptx::meet() instead, which is in every branch. Those for pairs have a barrier beside
    each one of the cluster: what the compiler puts there for a launch without clusters. There are three of these, as
    the producer waits for the cluster amid its first loads.
    """
    kernels = {name: code for name, code in sass.items() if FORWARD in name}
    clusters = {name: code.count("UCGABAR_WAIT") if "MULTICAST" in code else 0 for name, code in kernels.items()}
    assert set(clusters.values()) == {0, 3}
    once = {n: len(re.findall(r"BAR\.SYNC\S* 0x0 ;", code)) - clusters[n] for n, code in kernels.items()}
    apart = {n: len(re.findall(r"BAR\.SYNC\S* 0x1, 0x", code)) for n, code in kernels.items()}
    neither = {n for n in kernels if not (once[n] == 1 and apart[n] == 0) and not (once[n] == 0 and apart[n] >= 2)}
    assert neither == set()
    assert any(apart.values())


def test_stack_frames_stay_under_the_limit(resources: dict[str, dict[str, int]]) -> None:
    assert any(FORWARD in name for name in resources)
    stacks = {name: row["STACK"] + row["LOCAL"] for name, row in resources.items()}
    limits = {name: MAX_STACK_BYTES_CACHE if CACHE.search(name) else MAX_STACK_BYTES for name in stacks}
    assert any(limit > MAX_STACK_BYTES for limit in limits.values())
    assert {name: size for name, size in stacks.items() if size > limits[name]} == {}


def test_spills_stay_under_the_limit() -> None:
    logs = sorted((BUILD_DIR / "ptxas").glob("fwd_*.log"))
    if not logs:
        pytest.skip("the library was built without -DFLASH3_PTXAS_VERBOSE=ON, or without CUDA")
    spills = {log.stem: [int(n) for n in re.findall(r"(\d+) bytes spill stores", log.read_text())] for log in logs}
    assert all(spills.values()), "every log says how much its kernels spill"
    assert {name: bytes_ for name, bytes_ in spills.items() if max(bytes_) > MAX_SPILL_BYTES} == {}
