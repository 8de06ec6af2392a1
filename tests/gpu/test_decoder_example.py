"""examples/decoder.py with CuPy arrays: ragged prefill, then a captured graph per token."""

from __future__ import annotations

import numpy as np

from examples import decoder
from tests.gpu.machine import wait, xp


def test_tokens_are_those_of_the_plain_implementation() -> None:
    config = decoder.Config()
    weights, prompts = decoder.make_weights(config, decoder.SEED), decoder.make_prompts(config)
    model = decoder.Decoder(xp, config, weights, len(prompts))
    got = model.generate(prompts, decoder.COUNT)
    wait()
    want = [decoder.plain_tokens(config, weights, prompt, decoder.COUNT)[0] for prompt in prompts]
    np.testing.assert_array_equal(got, want)
