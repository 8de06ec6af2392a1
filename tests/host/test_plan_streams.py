"""The memory and the stream of a plan for device arrays, on a CuPy made up here: no GPU is needed to follow them."""

from __future__ import annotations

import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pyflash3
from pyflash3 import _call, _planned

SHAPE = (1, 64, 2, 64)
LEGACY = 0


class Data:
    def __init__(self, ptr: int, device_id: int) -> None:
        self.ptr, self.device_id = ptr, device_id


class DeviceArray:
    """What a call sees of a CuPy array."""

    def __init__(self, shape: tuple[int, ...] = SHAPE, dtype: Any = ml_dtypes.bfloat16, device: int = 1) -> None:
        like = np.empty(shape, dtype)
        self.shape, self.strides, self.dtype = like.shape, like.strides, like.dtype
        self.data = Data(2**20 + 4096 * Gpu.tick(), device)


class Stream:
    def __init__(self, ptr: int, capturing: bool = False) -> None:
        self.ptr, self.capturing = ptr, capturing

    def is_capturing(self) -> bool:
        assert self.ptr != LEGACY, "CUDA refuses to answer for the legacy stream"
        return self.capturing


class Block:
    """Workspace from the pool of the stream that was current."""

    def __init__(self) -> None:
        self.ptr, self.stream = 2**30 + 4096 * Gpu.tick(), Gpu.current.ptr


class Gpu:
    """pyflash3._device of a machine with devices 0 and 1."""

    Array = DeviceArray
    ticks = 0
    current = Stream(LEGACY)
    kept: list[Block]
    blocks: list[weakref.ref[Block]]

    @classmethod
    def tick(cls) -> int:
        cls.ticks += 1
        return cls.ticks

    @staticmethod
    def pointer(x: DeviceArray) -> int:
        return x.data.ptr

    @classmethod
    def current_stream(cls, ordinal: int) -> Stream:
        assert ordinal == 1
        return cls.current

    @classmethod
    def allocate_on(cls, ordinal: int, size: int) -> tuple[Block, int]:
        assert ordinal == 1
        assert size > 0
        assert not cls.current.capturing, "a capture must not allocate"
        block = Block()
        cls.blocks.append(weakref.ref(block))
        return block, block.ptr

    @classmethod
    def keep_for_graphs(cls, block: Block) -> None:
        cls.kept.append(block)

    @staticmethod
    def empty_on(ordinal: int, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        return DeviceArray(shape, dtype, ordinal)

    @classmethod
    def alive(cls) -> dict[int, Block]:
        """Workspaces that have an owner, by address."""
        return {block.ptr: block for ref in cls.blocks if (block := ref()) is not None}


class Launches:
    """Stands where run_mha_v3 is called."""

    def __init__(self, step: pyflash3.Plan) -> None:
        self.seen: list[dict[str, int]] = []
        self.params = step._params
        step._run = self

    def __call__(self, _reference: Any, stream: int) -> int:
        params = self.params
        assert params.workspace in Gpu.alive()
        assert params.device == 1
        pointers = {name: getattr(params, name) for name in ("q", "k", "v", "out", "lse", "workspace")}
        self.seen.append({"stream": stream, **pointers})
        return 0


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpu.current, Gpu.kept, Gpu.blocks = Stream(LEGACY), [], []
    for module in (_call, _planned):
        monkeypatch.setattr(module, "device_module", lambda: Gpu)


def made(**more: Any) -> tuple[pyflash3.Plan, Launches]:
    step = pyflash3.plan(DeviceArray(), DeviceArray(), DeviceArray(), causal=True, **more)
    return step, Launches(step)


def test_every_call_goes_to_the_current_stream_with_a_workspace_of_its_pool() -> None:
    step, launches = made()
    for handle in (LEGACY, LEGACY, 4096, 4096, 8192, LEGACY):
        Gpu.current = Stream(handle)
        assert step() is step.out
        launch = launches.seen[-1]
        assert launch["stream"] == handle
        assert Gpu.alive()[launch["workspace"]].stream == handle
    used = [launch["workspace"] for launch in launches.seen]
    assert used[0] == used[1]
    assert used[2] == used[3]
    assert len(set(used)) == 4


def test_graphs_have_a_workspace_of_their_own_that_outlives_the_plan() -> None:
    step, launches = made(return_lse=True)
    for capturing in (True, True, False, True, False, False):
        Gpu.current = Stream(4096, capturing)
        step()
    used = [launch["workspace"] for launch in launches.seen]
    assert used[0] == used[1] == used[3]
    assert used[4] == used[5]
    assert used[0] not in (used[2], used[4])
    del step, launches
    assert list(Gpu.alive()) == [used[0]]
    assert [block.ptr for block in Gpu.kept] == [used[0]]


def test_nothing_stays_of_a_plan_without_graphs() -> None:
    step, launches = made()
    step()
    assert Gpu.alive()
    del step, launches
    assert Gpu.alive() == {}


def test_replacements_reach_one_launch() -> None:
    step, launches = made(lse=DeviceArray((1, 2, 64), np.float32))
    new = {name: DeviceArray() for name in ("q", "k", "v", "out")} | {"lse": DeviceArray((1, 2, 64), np.float32)}
    step()
    assert step(**new) == (new["out"], new["lse"])
    step()
    first, second, third = launches.seen
    assert first == third
    assert {name: second[name] for name in new} == {name: x.data.ptr for name, x in new.items()}
    assert (first["out"], first["lse"]) == (step.out.data.ptr, step.lse.data.ptr)


def test_replacements_in_another_place() -> None:
    step, launches = made()
    with pytest.raises(ValueError, match="k is on CUDA device 0; this plan was made for arrays on CUDA device 1"):
        step(k=DeviceArray(device=0))
    with pytest.raises(ValueError, match="q is on the host; this plan was made for arrays on CUDA device 1"):
        step(q=np.empty(SHAPE, ml_dtypes.bfloat16))
    odd = DeviceArray()
    odd.data.ptr += 8
    with pytest.raises(ValueError, match=r"v starts at address 0x\w+8; it must be a multiple of 16 bytes"):
        step(v=odd)
    assert launches.seen == []


def test_a_device_that_refuses() -> None:
    step, _ = made()
    step._run = lambda *_: 5
    with pytest.raises(pyflash3.CudaError):
        step()


def test_given_lse_in_another_place() -> None:
    with pytest.raises(ValueError, match="lse is on CUDA device 0, but q is on CUDA device 1; all arrays must be in"):
        made(lse=DeviceArray((1, 2, 64), np.float32, device=0))
