"""A small decoder with random weights that generates tokens through a paged KV cache.

    python examples/decoder.py            on a Hopper GPU with CuPy where there is one, else on the CPU with NumPy
    python examples/decoder.py --numpy

Ragged prompts are packed and prefilled in one pass. Then every step is one token per sequence; on a GPU the step is
captured in a CUDA graph once and launched for each further token, while the cache grows. Queries, keys and values are
float16 there, all else is float32. `plain_tokens` does the same without a cache, page or graph, in NumPy float32.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

import pyflash3

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Config:
    """Sizes of the model and of its cache."""

    vocabulary: int = 64
    layers: int = 3
    nheads: int = 4
    nheads_k: int = 2
    head_dim: int = 64
    hidden: int = 512
    most_tokens: int = 160  # of a sequence, prompt and answer
    page_size: int = 16

    @property
    def width(self) -> int:
        """Columns of the residual stream."""
        return self.nheads * self.head_dim


def make_weights(config: Config, seed: int) -> tuple[Arrays, list[Arrays]]:
    """(embedding, head and rotary tables; one dictionary per layer), NumPy float32."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, gain: float = 1.0) -> Any:
        return (rng.standard_normal((rows, columns)) * gain / np.sqrt(rows)).astype(np.float32)

    width, kv_width = config.width, config.nheads_k * config.head_dim
    angle = np.arange(config.most_tokens)[:, None] / 10_000 ** np.linspace(0, 1, config.head_dim // 2, endpoint=False)
    shared = {
        "embedding": matrix(config.vocabulary, width, config.vocabulary**0.5),
        "head": matrix(width, config.vocabulary),
        "cos": np.cos(angle).astype(np.float32),
        "sin": np.sin(angle).astype(np.float32),
    }
    layers = [
        {
            "norm_attention": rng.uniform(0.5, 1.5, width).astype(np.float32),
            "norm_mlp": rng.uniform(0.5, 1.5, width).astype(np.float32),
            "q": matrix(width, width, 2.0),  # so that attention is far from a mean over all keys
            "k": matrix(width, kv_width),
            "v": matrix(width, kv_width, 2.0),
            "o": matrix(width, width),
            "gate": matrix(width, config.hidden),
            "up": matrix(width, config.hidden),
            "down": matrix(config.hidden, width),
        }
        for _ in range(config.layers)
    ]
    return shared, layers


@functools.cache
def _product_kernel() -> Any:
    import cupy

    return cupy.RawKernel(
        """extern "C" __global__ void product(const float *x, const float *w, float *out, int rows, int n, int m) {
             const int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
             if (column >= m) return;
             float sum = 0.0f;
             for (int i = 0; i < n; ++i) sum += x[row * n + i] * w[i * m + column];
             out[row * m + column] = sum;
           }""",
        "product",
    )


def product(x: Any, w: Any) -> Any:
    """x @ w in float32. CuPy refuses cuBLAS while a graph is captured, so on a GPU a plain kernel does it."""
    if isinstance(x, np.ndarray):
        return x @ w
    import cupy

    x = cupy.ascontiguousarray(x)
    (rows, n), m = x.shape, w.shape[1]
    out = cupy.empty((rows, m), np.float32)
    _product_kernel()((-(-m // 64), rows), (64,), (x, w, out, np.int32(rows), np.int32(n), np.int32(m)))
    return out


def normed(xp: Any, x: Any, weight: Any) -> Any:
    """RMSNorm."""
    mean = product(x * x, xp.full((x.shape[1], 1), 1.0 / x.shape[1], np.float32))
    return x / xp.sqrt(mean + np.float32(1e-5)) * weight


def mlp(xp: Any, x: Any, layer: Arrays) -> Any:
    """The gated network of a layer, with its norm."""
    h = normed(xp, x, layer["norm_mlp"])
    gate = product(h, layer["gate"])
    return product(gate / (1 + xp.exp(-gate)) * product(h, layer["up"]), layer["down"])


class Decoder:
    """The model with the cache of a batch of sequences, in NumPy (xp=numpy) or CuPy (xp=cupy)."""

    def __init__(
        self, xp: Any, config: Config, weights: tuple[Arrays, list[Arrays]], batch: int, dtype: Any = None
    ) -> None:
        self.xp, self.config, self.batch = xp, config, batch
        self.on_gpu = xp is not np
        self.dtype = np.dtype(dtype or (np.float16 if self.on_gpu else np.float32))
        shared, layers = weights
        self.shared = {name: xp.asarray(x) for name, x in shared.items()}
        self.layers = [{name: xp.asarray(x) for name, x in layer.items()} for layer in layers]
        self.turns = [self.shared[name].astype(self.dtype) for name in ("cos", "sin")]
        columns = -(-config.most_tokens // config.page_size)
        pages = np.random.default_rng(0).permutation(batch * columns).reshape(batch, columns)
        self.page_table = xp.asarray(pages.astype(np.int32))
        shape = (2, config.layers, batch * columns, config.page_size, config.nheads_k, config.head_dim)
        self.cache = xp.zeros(shape, self.dtype)
        self.lengths = xp.zeros(batch, np.int32)
        self.tokens = xp.zeros(batch, np.int32)  # the last one of each sequence
        # What the graph allocates is free again after the capture, though every launch writes it: so a pool that
        # nobody else takes memory from.
        self.pool: Any = xp.cuda.MemoryPool() if self.on_gpu else None

    def _logits(self, x: Any, lengths_q: Arrays) -> Any:
        """Rows x (rows, width) through all layers; lengths_q says how they are packed, nothing: one per sequence."""
        cos, sin = self.turns
        lead = (len(x),) if lengths_q else (self.batch, 1)
        for i, layer in enumerate(self.layers):
            h = normed(self.xp, x, layer["norm_attention"])
            q, k, v = (
                product(h, layer[name]).reshape(*lead, -1, self.config.head_dim).astype(self.dtype) for name in "qkv"
            )
            out = pyflash3.flash_attn_with_kvcache(
                q, self.cache[0, i], self.cache[1, i], k, v, cos, sin, self.lengths, page_table=self.page_table,
                causal=True, rotary_interleaved=False, **lengths_q,
            )  # fmt: skip
            x = x + product(out.reshape(len(x), -1).astype(np.float32), layer["o"])
            x = x + mlp(self.xp, x, layer)
        return product(x, self.shared["head"])

    def prefill(self, prompts: list[list[int]]) -> None:
        """All prompts at once, packed; self.tokens then holds the first token of each answer."""
        counts = np.array([len(prompt) for prompt in prompts], np.int32)
        starts = self.xp.asarray(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
        packed = self.xp.asarray(np.array([*itertools.chain(*prompts)], np.int32))
        packing = {"cu_seqlens_q": starts, "cu_seqlens_k_new": starts, "max_seqlen_q": int(counts.max())}
        logits = self._logits(self.shared["embedding"][packed], packing)
        self.tokens[...] = logits.argmax(axis=-1)[starts[1:] - 1]
        self.lengths += self.xp.asarray(counts)

    def step(self) -> None:
        """One token more: reads self.tokens and writes the next ones there. Nothing in it depends on the lengths."""
        logits = self._logits(self.shared["embedding"][self.tokens], {})
        self.tokens[...] = logits.argmax(axis=-1)
        self.lengths += 1

    def generate(self, prompts: list[list[int]], count: int) -> Any:
        """(batch, count) tokens, NumPy."""
        if not self.on_gpu:
            self.prefill(prompts)
            answers = [self.tokens.copy()]
            for _ in range(count - 1):
                self.step()
                answers.append(self.tokens.copy())
            return np.stack(answers, axis=1)
        cuda = self.xp.cuda
        self.xp.cuda.get_current_stream().synchronize()  # the weights and the cache are there
        with cuda.Stream(non_blocking=True) as stream:
            self.prefill(prompts)
            answers = [self.tokens.copy()]
            with cuda.using_allocator(self.pool.malloc):
                self.step()  # loads the kernels and fills the pool, since a capture must not take memory from CUDA
                stream.synchronize()
                stream.begin_capture(mode=cuda.runtime.streamCaptureModeThreadLocal)
                try:
                    self.step()
                finally:
                    graph = stream.end_capture()
            answers.append(self.tokens.copy())  # of the step in front of the capture, which runs nothing
            for _ in range(count - 2):
                graph.launch(stream)
                answers.append(self.tokens.copy())
            stream.synchronize()
        return np.stack([self.xp.asnumpy(x) for x in answers], axis=1)[:, :count]


def plain_tokens(
    config: Config, weights: tuple[Arrays, list[Arrays]], prompt: list[int], count: int
) -> tuple[list[int], float]:
    """(count tokens, how far the second best logit was behind at least), in NumPy float32 over the whole sequence."""
    shared, layers = weights
    tokens, gap = list(prompt), np.inf
    for _ in range(count):
        x = shared["embedding"][tokens]
        n, group = len(tokens), config.nheads // config.nheads_k
        hidden = np.triu(np.full((n, n), -np.inf, np.float32), 1)
        for layer in layers:
            h = normed(np, x, layer["norm_attention"])
            q, k, v = ((h @ layer[name]).reshape(n, -1, config.head_dim).swapaxes(0, 1) for name in "qkv")
            q, k = (_turned(y, shared["cos"][:n], shared["sin"][:n]) for y in (q, k))
            k, v = (np.repeat(y, group, axis=0) for y in (k, v))
            scores = q @ k.swapaxes(1, 2) / np.float32(config.head_dim**0.5) + hidden
            weight = np.exp(scores - scores.max(axis=-1, keepdims=True))
            out = (weight / weight.sum(axis=-1, keepdims=True)) @ v
            x = x + out.swapaxes(0, 1).reshape(n, -1) @ layer["o"]
            x = x + mlp(np, x, layer)
        logits = x[-1] @ shared["head"]
        second, first = np.sort(logits)[-2:]
        gap = min(gap, float(first - second))
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :], gap


def _turned(x: Any, cos: Any, sin: Any) -> Any:
    """Rotary embedding of x (heads, rows, head_dim): column i with column i + head_dim / 2."""
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


SEED = 124  # with which no two logits that compete for a token are close, so that float16 chooses as float32 does
LENGTHS, COUNT = (5, 37, 1, 64), 40


def make_prompts(config: Config, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    """Random tokens."""
    rng = np.random.default_rng(SEED)
    return [rng.integers(0, config.vocabulary, n).tolist() for n in lengths]


def main(arguments: list[str] | None = None) -> int:
    """Generates, and compares with the plain implementation: 1 when a token differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numpy", action="store_true", help="on the CPU, although there may be a GPU")
    options = parser.parse_args(arguments)
    from pyflash3.tools.backend import cuda_obstacle

    xp: Any = np
    if not options.numpy and cuda_obstacle() is None:
        import cupy

        xp = cupy
    config = Config()
    weights, prompts = make_weights(config, SEED), make_prompts(config)
    answers = Decoder(xp, config, weights, len(prompts)).generate(prompts, COUNT)
    wrong = 0
    for prompt, answer in zip(prompts, answers.tolist(), strict=True):
        want, _ = plain_tokens(config, weights, prompt, COUNT)
        wrong += answer != want
        print(f"{len(prompt):3} tokens -> {' '.join(map(str, answer))}{'' if answer == want else ': WRONG'}")
    print(f"{xp.__name__}: {len(prompts) - wrong} of {len(prompts)} answers are those of the plain implementation")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
