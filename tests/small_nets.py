"""Small networks, one for each way in which layers can depend on each other, and batches for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer


class Plain(nn.Module):
    """Two convolutions in a row, pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, stride=2)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(torch.relu(self.bn2(self.conv2(x))).mean(dim=(2, 3)))


class Residual(nn.Module):
    """A stem and a block whose output is added to the stem's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.bn0 = nn.BatchNorm2d(6)
        self.conv1 = nn.Conv2d(6, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 6, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(6)
        self.head = nn.Conv2d(6, 5, 1)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn0(self.stem(x)))
        x = torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return self.fc(torch.relu(self.head(x)).mean(dim=(2, 3)))


class Depthwise(nn.Module):
    """A pointwise, a depthwise and another pointwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(2, 8, 1)
        self.bn1 = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.bn2 = nn.BatchNorm2d(8)
        self.project = nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.expand(x)))
        x = torch.relu(self.bn2(self.depthwise(x)))
        return self.fc(torch.relu(self.project(x)).mean(dim=(2, 3)))


class Concat(nn.Module):
    """Two branches whose channels are concatenated, normalised and read together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.left = nn.Conv2d(4, 5, 3, padding=1)
        self.right = nn.Conv2d(4, 6, 1)
        self.bn = nn.BatchNorm2d(15)
        self.mix = nn.Conv2d(15, 7, 1)
        self.fc = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.bn(torch.cat([x, self.left(x), self.right(x)], dim=1)))
        return self.fc(torch.relu(self.mix(x)).mean(dim=(2, 3)))


class Grouped(nn.Module):
    """A convolution in two groups, between two ordinary ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.bn2 = nn.BatchNorm2d(12)
        self.conv3 = nn.Conv2d(12, 6, 1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.grouped(x)))
        return self.fc(torch.relu(self.conv3(x)).mean(dim=(2, 3)))


class Flattened(nn.Module):
    """As VGG: the last feature map, of 2 x 2 positions, is flattened for a Linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 5, 3, padding=1)
        self.fc1 = nn.Linear(5 * 4, 10)
        self.fc2 = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = torch.max_pool2d(torch.relu(self.conv2(x)), 2)
        return self.fc2(torch.relu(self.fc1(torch.flatten(x, 1))))


NETS = {
    "plain": Plain,
    "residual": Residual,
    "depthwise": Depthwise,
    "concat": Concat,
    "grouped": Grouped,
    "flattened": Flattened,
}


def example(batch: int = 2, *, size: int = 8, channels: int = 2) -> Tensor:
    """Random images [batch, channels, size, size], the same on every call."""
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(11))


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give the batch norms statistics and weights that differ from one another, and put the model in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(0.3 * torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
            module.weight.copy_(0.5 + torch.rand(module.num_features, generator=generator))
            module.bias.copy_(0.3 * torch.randn(module.num_features, generator=generator))
    return model.eval()


def build(name: str, seed: int = 0) -> Any:
    """One of NETS with random weights, in eval mode."""
    torch.manual_seed(seed)
    return randomise(NETS[name](), seed)


def tiny_vit(seed: int = 0) -> VisionTransformer:
    """A vision transformer of two layers for images of 3 x 16 x 16."""
    torch.manual_seed(seed)
    model = VisionTransformer(
        image_size=16, patch_size=4, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=5
    )
    nn.init.normal_(model.heads.head.weight)
    return model.eval()


def batches(*, size: int = 8, channels: int = 2, classes: int = 3, sizes: tuple[int, ...] = (5, 7, 4)) -> list[Any]:
    """Batches of (images, targets) of the given sizes."""
    generator = torch.Generator().manual_seed(12)
    return [
        (
            torch.randn(number, channels, size, size, generator=generator),
            torch.randint(0, classes, (number,), generator=generator),
        )
        for number in sizes
    ]
