"""Where Triton's kernels are tested: on a card, or, with TRITON_INTERPRET=1 and Triton at hand, by its interpreter on the CPU."""

import os

import pytest

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
on_card = [] if DEVICE == "cpu" else [pytest.mark.gpu]
