"""A call of flash_attn_with_kvcache on the device, judged as every other call here, and byte by byte in its caches.

The arguments are those of the host engine's tests: caches whose unused rows, pages and table entries are poisoned.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import numpy as np

from pyflash3 import flash_attn_with_kvcache
from pyflash3._reference_cache import through_cache
from tests.gpu.formula import Result
from tests.gpu.machine import HOST, get, poison_free_memory, poisoned, put, same_bits, wait
from tests.gpu.problem import Inputs, Problem, expected, judge
from tests.host.kvcache_cases import CacheCase, check_written, copied, turned_scores

Arguments = dict[str, Any]
_OF_THE_CACHE = [name for name in inspect.signature(through_cache).parameters if name != "window"]


def on_device(arguments: Arguments) -> Arguments:
    """Copies of the arrays on the device, and the numbers as they are."""
    return {name: put(x) if isinstance(x, np.ndarray) else x for name, x in copied(arguments).items()}


def on_host(arguments: Arguments) -> Arguments:
    """The arrays as NumPy's."""
    return {name: get(x) if hasattr(x, "dtype") else x for name, x in arguments.items()}


class Want(NamedTuple):
    """What a call must give. problem and result have the sequences packed, as `judge` takes them."""

    problem: Problem
    result: Result
    k_cache: Any  # NumPy
    v_cache: Any


def want(arguments: Arguments) -> Want:
    """The formula's answer to NumPy arguments."""
    window = (arguments["window_size"][0], 0) if arguments["causal"] else arguments["window_size"]
    parts: Arguments = {name: arguments.get(name, name == "rotary_interleaved" or None) for name in _OF_THE_CACHE}
    cached = through_cache(**parts, window=window)
    lengths = tuple((len(q), len(k)) for q, k in zip(cached.q, cached.k, strict=True))
    problem = Problem(
        arguments["q"].dtype.name, lengths, arguments["q"].shape[-2], cached.k_cache.shape[-2],
        arguments["q"].shape[-1], cached.values.shape[-1], packed=True, window=window,
        softcap=arguments.get("softcap", 0.0),
    )  # fmt: skip
    q, k, v = (put(np.concatenate(rows)) for rows in (cached.q, cached.k, cached.v))
    inputs = Inputs(problem, q, k, v, slopes=arguments.get("alibi_slopes"), sinks=arguments.get("sinks"))
    return Want(problem, expected(inputs), cached.k_cache, cached.v_cache)


def call(arguments: Arguments, **more: Any) -> tuple[Any, Any]:
    """(out, lse) of device arguments, with NaN in out before."""
    q = arguments["q"]
    shape = (*q.shape[:-1], arguments["d_v"] if arguments["v_cache"] is None else arguments["v_cache"].shape[-1])
    poison_free_memory((q.shape[-2], *q.shape[:-2]))
    out = poisoned(shape, q.dtype.name)
    result, lse = flash_attn_with_kvcache(**{**arguments, "out": out, **more}, return_lse=True)
    assert lse.dtype == np.float32
    assert lse.shape == ((q.shape[1], q.shape[0]) if q.ndim == 3 else (q.shape[0], q.shape[2], q.shape[1]))
    return result, lse


def packed(out: Any, lse: Any) -> tuple[Any, Any]:
    """A result with its sequences one behind the other."""
    if out.ndim == 3:
        return out, lse
    return out.reshape(-1, *out.shape[2:]), lse.transpose(1, 0, 2).reshape(lse.shape[1], -1)


def check(case: CacheCase, **more: Any) -> dict[str, float]:
    """Runs a case and judges out, lse, both caches and every input; `more` goes to the call."""
    arguments = case.arguments()
    right = want(arguments)
    device = on_device(arguments)
    result = call(device, **more)
    wait()
    turned = turned_scores(case, arguments)
    figures = judge(right.problem, *packed(*result), right.result, lse_more=turned)
    check_written(case, on_host(device), arguments, right.k_cache, right.v_cache)
    return figures


def check_same_bits(case: CacheCase, times: int = 20) -> None:
    """Every run of a case gives the same out and lse."""
    device = on_device(case.arguments())
    first = call(device)
    for _ in range(times):
        again = call(device)
        wait()
        assert all(same_bits(x, y) for x, y in zip(again, first, strict=True))


def right_or_refused(case: CacheCase, **more: Any) -> bool:
    """Whether a case is computed, which must be right then. Otherwise one sentence says why, and nothing is written."""
    arguments = case.arguments()
    device = on_device(arguments)
    dim_v = arguments["d_v"] if case.latent else arguments["v_cache"].shape[-1]
    out = poisoned((*device["q"].shape[:-1], dim_v), case.dtype)
    refusal = None
    try:
        flash_attn_with_kvcache(**device, **more, out=out)
    except NotImplementedError as error:
        refusal = str(error)
    wait()
    if refusal is None:
        check(case, **more)
        return True
    assert not HOST, "the host engine computes everything"
    assert any(word in refusal for word in ("head_dim", "page_size", "cache_leftpad")), refusal
    assert same_bits(out, poisoned(out.shape, case.dtype)), "a refused call wrote into out"
    for name in case.caches:
        assert same_bits(device[name], put(arguments[name])), f"a refused call wrote into {name}"
    return False
