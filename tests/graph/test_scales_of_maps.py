"""Free parameters with one value a channel, in networks whose maps are as wide as they are deep."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import cleanai_ray as cleanai

WIDTH = 8


class Scaled(nn.Module):
    """Scales 8 channels of 8 x 8 maps: only the shape of the parameter says that it is for channels."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(shape) + 0.5)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale


@pytest.mark.parametrize("shape", [(WIDTH, 1, 1), (1, WIDTH, 1, 1)])
def test_the_scales_of_channels_go_with_them(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    scaled = Scaled(shape)
    model = nn.Sequential(
        nn.Conv2d(1, WIDTH, 3, padding=1), scaled, nn.Conv2d(WIDTH, 4, 3), nn.Flatten(), nn.Linear(144, 3)
    )
    images = torch.randn(2, 1, WIDTH, WIDTH)
    result = cleanai.prune(
        model.eval(), images, method="magnitude", ratio=0.5, round_to=None, ignored_layers=["2", "4"]
    )
    (removed,) = result.plan.removed.values()
    assert len(removed) == WIDTH // 2
    stay = [channel for channel in range(WIDTH) if channel not in removed]
    with torch.no_grad():
        maps = model[0](images)[:, stay] * scaled.scale.reshape(1, WIDTH, 1, 1)[:, stay]
        expected = model[4](nn.functional.conv2d(maps, model[2].weight[:, stay], model[2].bias).flatten(1))
        torch.testing.assert_close(result.model(images), expected)
