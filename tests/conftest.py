"""What several test files share."""

import pytest
import torch


@pytest.fixture
def float64():
    """Equations are compared in double precision: torch's default, for one test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
