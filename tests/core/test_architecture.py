"""SPEC section 5: an architecture without a kernel. No GPU but Hopper needs to be at hand for it."""

from __future__ import annotations

import pytest

from pyflash3._errors import error_from_status
from tests.core.surface import check_architecture


def test_hopper_is_accepted() -> None:
    assert check_architecture(3, 90, "90a") == (0, "")


@pytest.mark.parametrize(
    ("capability", "name"), [(80, "8.0"), (89, "8.9"), (100, "10.0"), (103, "10.3"), (121, "12.1")]
)
def test_others_are_refused_naming_what_was_built(capability: int, name: str) -> None:
    error = error_from_status(*check_architecture(3, capability, "90a"))
    assert isinstance(error, NotImplementedError)
    assert str(error) == (
        f"CUDA device 3 has compute capability {name}; it must be 9.0 (Hopper), since this build has kernels for: "
        "archs=90a"
    )
