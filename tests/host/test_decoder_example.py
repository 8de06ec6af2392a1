"""examples/decoder.py with NumPy arrays."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import pyflash3
from examples import decoder
from tests.build_dir import REPOSITORY

CONFIG = decoder.Config()
WEIGHTS = decoder.make_weights(CONFIG, decoder.SEED)
PROMPTS = decoder.make_prompts(CONFIG)


@functools.cache
def plain() -> tuple[Any, float]:
    answers = [decoder.plain_tokens(CONFIG, WEIGHTS, prompt, decoder.COUNT) for prompt in PROMPTS]
    return np.array([tokens for tokens, _ in answers]), min(gap for _, gap in answers)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_tokens_are_those_of_the_plain_implementation(dtype: Any) -> None:
    want, gap = plain()
    # float16 moves logits by less than 0.02, so no rounding may choose another token.
    assert gap > 0.04
    got = decoder.Decoder(np, CONFIG, WEIGHTS, len(PROMPTS), dtype).generate(PROMPTS, decoder.COUNT)
    np.testing.assert_array_equal(got, want)
    assert len(np.unique(want)) > CONFIG.vocabulary / 2, "answers that are all alike would show nothing"


@pytest.mark.parametrize("wrong", [{"rotary_interleaved": True}, {"window_size": (20, -1)}, {"softmax_scale": 0.1}])
def test_wrong_attention_shows_in_the_tokens(wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    right = pyflash3.flash_attn_with_kvcache
    monkeypatch.setattr(pyflash3, "flash_attn_with_kvcache", lambda *args, **options: right(*args, **options | wrong))
    got = decoder.Decoder(np, CONFIG, WEIGHTS, len(PROMPTS)).generate(PROMPTS, decoder.COUNT)
    assert (got != plain()[0]).any(axis=1).all()


def test_the_command() -> None:
    command = [sys.executable, "-m", "examples.decoder", "--numpy"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "numpy: 4 of 4 answers are those of the plain implementation" in done.stdout
