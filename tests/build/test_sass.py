"""The machine code of the built kernels: tensor-core and TMA instructions are there, spilled registers stay few."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from pyflash3._lib import library
from tests.build_dir import BUILD_DIR, built_file
from tests.core.tile_choice import tile_configs

# Bytes of a thread in its stack frame, and bytes that its instructions store there. A few registers saved now and then
# are cheap, an accumulator (64 registers, 256 bytes) that goes through memory in every block is not. The most is
# spilled where softcap comes with varlen, at d 96, and where four consumer warpgroups leave a thread 112 registers. The
# limits bound how much is spilled, not where.
MAX_STACK_BYTES = 136
MAX_SPILL_BYTES = 216

FORWARD = "fwd_kernel_sm90"

# Of so many exponentials in a row, how many may take their argument from the same register. More is the mark of a
# kernel that ptxas has scheduled to save registers: each exponential then waits for the one before
# (docs/performance.md, "What the compiler makes of it"). That depends on the compiler.
EXPONENTIALS, MOST_OF_A_REGISTER = 40, 16
COMPILER = "13.0"


def tool(name: str) -> str:
    """Path of a CUDA binary tool: on PATH, in the toolkit, or from the PyPI package of its name."""
    wheel = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin"
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), str(wheel), "/usr/local/cuda/bin"]))
    if found is None:
        pytest.skip(f"{name} is not installed (pip install nvidia-cuda-{name})")
    return found


def cuobjdump(option: str) -> str:
    cuda = library().build_info().get("cuda")
    if not cuda:
        pytest.skip("the library was built without CUDA")
    # cuobjdump runs nvdisasm from PATH.
    path = os.pathsep.join([str(Path(tool("nvdisasm")).parent), os.environ.get("PATH", "")])
    command = [tool("cuobjdump"), option, str(built_file("libflash3.so"))]
    return subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def sass() -> dict[str, str]:
    """Machine code by mangled kernel name."""
    parts = re.split(r"^\s*Function : (\S+)$", cuobjdump("--dump-sass"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture(scope="module")
def resources() -> dict[str, dict[str, int]]:
    """REG, STACK, SHARED, LOCAL by mangled kernel name."""
    rows = re.findall(r"Function (\S+):\s+(REG:.*)", cuobjdump("--dump-resource-usage"))
    return {name: {key: int(n) for key, n in re.findall(r"(\w+):(\d+)", row)} for name, row in rows}


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
                # Neither on a cache nor in pairs; the kernels for wide heads have neither.
                plain = "" if config.head_dim > 256 else "Lb0ELb0E"
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
    "HGMMA": "wgmma",
    "UTMALDG": "TMA load",
    "LDGSTS": "asynchronous copies",
    "SYNCS": "mbarrier",
    "USETMAXREG": "registers for the consumers",
}


def test_every_split_kernel_is_there_and_uses(sass: dict[str, str]) -> None:
    info = library().build_info()
    dtypes, head_dims = (info[key].replace(";", ",").split(",") for key in ("dtypes", "head_dims"))
    expected = {
        f"SplitTraitsIN7cutlass{ {'fp16': '6half_t', 'bf16': '10bfloat16_t'}[dtype] }ELi{index}ELb{plain}E"
        for dtype in dtypes
        for plain in (0, 1)
        for index, head_dim in enumerate(CLASSES)
        if head_dim in head_dims
    }
    for traits in expected:
        (code,) = (code for name, code in sass.items() if "split_kernel_sm90" in name and traits in name)
        missing = [what for instruction, what in SPLIT_USES.items() if instruction not in code]
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

    The kernels for pairs have another place beside each barrier of the cluster: what the compiler puts there for a
    launch without clusters. There are three of these, as the producer waits for the cluster amid its first loads.
    """
    places = {name: len(re.findall(r"BAR\.SYNC\S* 0x0 ;", code)) for name, code in sass.items() if FORWARD in name}
    clusters = {name: sass[name].count("UCGABAR_WAIT") if "MULTICAST" in sass[name] else 0 for name in places}
    assert set(clusters.values()) == {0, 3}
    assert {name: n for name, n in places.items() if n != 1 + clusters[name]} == {}


def test_stack_frames_stay_under_the_limit(resources: dict[str, dict[str, int]]) -> None:
    assert any(FORWARD in name for name in resources)
    spilling = {name: row for name, row in resources.items() if row["STACK"] + row["LOCAL"] > MAX_STACK_BYTES}
    assert spilling == {}


def test_spills_stay_under_the_limit() -> None:
    logs = sorted((BUILD_DIR / "ptxas").glob("fwd_*.log"))
    if not logs:
        pytest.skip("the library was built without -DFLASH3_PTXAS_VERBOSE=ON, or without CUDA")
    spills = {log.stem: [int(n) for n in re.findall(r"(\d+) bytes spill stores", log.read_text())] for log in logs}
    assert all(spills.values()), "every log says how much its kernels spill"
    assert {name: bytes_ for name, bytes_ in spills.items() if max(bytes_) > MAX_SPILL_BYTES} == {}


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


def loop_of_whole_blocks(code: str) -> list[str]:
    """The instructions of the shortest loop with both products and their exponentials."""
    rows = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,6})\*/\s+(.*?) ;", code)]
    loops = []
    for at, text in rows:
        jump = re.search(r"\bBRA\b.* 0x([0-9a-f]+)$", text)
        if jump and int(jump[1], 16) < at:
            body = [t for a, t in rows if int(jump[1], 16) <= a <= at]
            if sum("HGMMA" in t for t in body) >= 8 and any("MUFU.EX2" in t for t in body):
                loops.append(body)
    return min(loops, key=len)


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
            loops[name] = loop_of_whole_blocks(code)
    assert loops
    return loops


@pytest.mark.usefixtures("known_compiler")
def test_plain_kernels_keep_their_counters_in_uniform_registers(plain_loops: dict[str, list[str]]) -> None:
    moves = {name: sum("R2UR" in text for text in loop) for name, loop in plain_loops.items()}
    assert {name: n for name, n in moves.items() if n > MOST_MOVES} == {}


# Of the multiply-adds in front of the exponentials in that loop, those that keep the reference of their row for the
# next one. Where the compiler lets rows take turns and has put the references of both into registers of the same
# parity, none does: that costs 5 % at d 64. In tiles of 64 rows, for calls of few tiles, float16 is known to be so.
LEAST_KEPT = 0.7


@pytest.mark.usefixtures("known_compiler")
def test_plain_kernels_read_the_reference_of_a_row_once(plain_loops: dict[str, list[str]]) -> None:
    configs = tile_configs()
    kept = {}
    for name, loop in plain_loops.items():
        scaled = [text for text in loop if re.match(r"FFMA R\d+, R\d+, UR\d+, -?R\d+", text)]
        assert len(scaled) >= 32, name  # one for each score of a thread
        found = re.search(r"_tELi(\d+)E", name)
        if found and configs[int(found[1])].block_m > 64:
            kept[name] = sum(".reuse" in text for text in scaled) / len(scaled)
    assert kept
    assert {name: share for name, share in kept.items() if share < LEAST_KEPT} == {}
