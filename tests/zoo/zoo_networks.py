"""Networks of kinds that no package of the zoo has: YOLO11's blocks, frozen norms, recurrent layers, shared weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18
from torchvision.ops import FrozenBatchNorm2d


class Conv(nn.Sequential):
    """A convolution, a norm and an activation."""

    def __init__(self, inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1, act: bool = True):
        layers = [nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)]
        super().__init__(*layers, nn.BatchNorm2d(outputs), nn.SiLU() if act else nn.Identity())


class Attention(nn.Module):
    """YOLO11's attention: packed projections by a convolution, keys of half the width, positions by a convolution."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.key_dim = self.head_dim // 2
        self.qkv = Conv(width, width + 2 * self.key_dim * heads, act=False)
        self.proj, self.pe = Conv(width, width, act=False), Conv(width, width, 3, groups=width, act=False)

    def forward(self, x: Tensor) -> Tensor:
        num, width, height, length = x.shape
        packed = self.qkv(x).view(num, self.num_heads, 2 * self.key_dim + self.head_dim, height * length)
        query, key, value = packed.split([self.key_dim, self.key_dim, self.head_dim], dim=2)
        weights = (query.transpose(-2, -1) @ key * self.key_dim**-0.5).softmax(-1)
        mixed = (value @ weights.transpose(-2, -1)).view(num, width, height, length)
        return self.proj(mixed + self.pe(value.reshape(num, width, height, length)))


class PSABlock(nn.Module):
    """Attention and two convolutions, each with a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = Attention(width, 2)
        self.ffn = nn.Sequential(Conv(width, 2 * width), Conv(2 * width, width, act=False))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.ffn(x)


class C2PSA(nn.Module):
    """Half of the channels pass by the attention, as YOLO11 has it: the sizes of the split are numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.half = width // 2
        self.cv1, self.cv2, self.m = Conv(width, width), Conv(width, width), PSABlock(self.half)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.cv1(x).split((self.half, self.half), dim=1)
        return self.cv2(torch.cat((first, self.m(second)), 1))


class C2f(nn.Module):
    """Two halves of a map, and bottlenecks behind the second, concatenated."""

    def __init__(self, inputs: int, outputs: int, number: int = 1) -> None:
        super().__init__()
        half = outputs // 2
        self.cv1, self.cv2 = Conv(inputs, outputs), Conv((2 + number) * half, outputs)
        self.m = nn.ModuleList(nn.Sequential(Conv(half, half, 3), Conv(half, half, 3)) for _ in range(number))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).chunk(2, 1))
        for block in self.m:
            parts.append(parts[-1] + block(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


class SPPF(nn.Module):
    """A map beside its maxima over three sizes of window."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(width, width // 2), Conv(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.cv1(x)]
        for _ in range(3):
            parts.append(functional.max_pool2d(parts[-1], 5, 1, 2))
        return self.cv2(torch.cat(parts, 1))


class Yolo11(nn.Module):
    """A small YOLO11: backbone, upsampled neck, and heads of boxes and classes at two scales."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down1 = Conv(3, 16, 3, 2), Conv(16, 32, 3, 2)
        self.c1, self.down2 = C2f(32, 32), Conv(32, 48, 3, 2)
        self.c2, self.down3 = C2f(48, 48, 2), Conv(48, 64, 3, 2)
        self.sppf, self.psa = SPPF(64), C2PSA(64)
        self.neck = C2f(64 + 48, 48)
        self.boxes = nn.ModuleList(nn.Sequential(Conv(w, 16, 3), nn.Conv2d(16, 8, 1)) for w in (48, 64))
        self.classes = nn.ModuleList(nn.Sequential(Conv(w, 16, 3), nn.Conv2d(16, 5, 1)) for w in (48, 64))

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.c2(self.down2(self.c1(self.down1(self.stem(x)))))
        coarse = self.psa(self.sppf(self.down3(fine)))
        fine = self.neck(torch.cat([functional.interpolate(coarse, scale_factor=2), fine], 1))
        maps = (fine, coarse)
        return [torch.cat([box(x), cls(x)], 1) for x, box, cls in zip(maps, self.boxes, self.classes, strict=True)]


class FrozenResNet(nn.Module):
    """ResNet-18 whose norms are frozen, as the backbones of torchvision's detectors are."""

    def __init__(self) -> None:
        super().__init__()
        self.net = resnet18(num_classes=10, norm_layer=FrozenBatchNorm2d)
        for module in self.net.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.1)
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class RecurrentReader(nn.Module):
    """Convolutions whose columns an LSTM reads in both directions, as text recognisers do."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(Conv(3, 16, 3, 2), Conv(16, 32, 3, 2), Conv(32, 32, 3))
        self.memory = nn.LSTM(32, 24, num_layers=2, bidirectional=True, batch_first=True)
        self.hidden, self.fc = nn.Linear(48, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.memory(self.features(x).mean(2).transpose(1, 2))
        return self.fc(torch.relu(self.hidden(states)))


class DigitsByLstm(nn.Module):
    """A sequence [N, T, 12] read by an LSTM, whose last state goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.memory = nn.Linear(12, 20), nn.LSTM(20, 24, batch_first=True)
        self.hidden, self.fc = nn.Linear(24, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        _, (last, _) = self.memory(torch.relu(self.first(x)))
        return self.fc(torch.relu(self.hidden(last[-1])))


class ExpandedQuery(nn.Module):
    """A learnt query, expanded over the batch, goes straight into a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.query, self.norm = (
            nn.Conv2d(3, 32, 8, 8),
            nn.Parameter(torch.randn(1, 1, 32)),
            nn.LayerNorm(32),
        )
        self.up, self.down, self.fc = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        query = self.norm(self.query.expand(len(x), -1, -1))
        mixed = (query @ tokens.transpose(1, 2)).softmax(-1) @ tokens + query
        return self.fc(self.down(torch.relu(self.up(mixed)))[:, 0])


class ChunkedAttention(nn.Module):
    """`to_qkv(x).chunk(3)` and heads by `view`, as many write it."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 32, 8, 8), nn.LayerNorm(32)
        self.to_qkv, self.to_out = nn.Linear(32, 96, bias=False), nn.Linear(32, 32)
        self.up, self.down, self.fc = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        num, length, width = x.shape
        parts: Any = self.to_qkv(self.norm(x)).chunk(3, -1)
        query, key, value = (part.view(num, length, 4, width // 4).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.to_out(mixed.transpose(1, 2).reshape(num, length, width))
        return self.fc((x + self.down(torch.relu(self.up(x)))).mean(1))


class ScaleUsedTwice(nn.Module):
    """One scale multiplies two maps, one convolution runs twice, and two Linear layers share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.scale = nn.Parameter(torch.rand(16, 1, 1) + 0.5)
        self.one, self.two, self.fc = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 10)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x)) * self.scale
        x = torch.relu(self.again(torch.relu(self.again(x)))) * self.scale
        return self.fc(torch.relu(self.two(torch.relu(self.one(x.mean((2, 3)))))))
