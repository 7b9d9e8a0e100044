"""Hollow shells of known size, and maps that are none."""

import pytest
import torch

from verglas.scores.shell import shell_score


def shell(size: int, inner: float, outer: float, filling: float = 0.0) -> torch.Tensor:
    """A shell with edges 2 voxels soft; radii in voxels."""
    index = torch.arange(size, dtype=torch.float64) - size // 2
    radius = (index[:, None, None] ** 2 + index[:, None] ** 2 + index**2).sqrt()
    full = torch.sigmoid(2 * (outer - radius))
    return full - (1 - filling) * torch.sigmoid(2 * (inner - radius))


@pytest.mark.parametrize("size", [64, 65])
def test_size_of_a_shell(size: int) -> None:
    found = shell_score(shell(size, 14, 20), pixel_size=3.0, inner_radius=30.0)
    assert found.diameter == pytest.approx(120, abs=1.5)
    assert 42 < found.peak_radius < 60
    assert found.hollow == pytest.approx(0, abs=0.01)


def test_a_filled_ball_is_not_hollow() -> None:
    assert shell_score(shell(64, 14, 20, filling=0.6), 3.0, 30.0).hollow == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("density", [torch.zeros(32, 32, 32), -torch.ones(32, 32, 32), torch.ones(32, 32, 32)])
def test_no_shell_at_all(density: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="no peak that falls to half"):
        shell_score(density, 1.0, 5.0)
