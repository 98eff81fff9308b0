"""The layers of three networks, as tables list them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    name: str
    kind: str
    inputs: int
    outputs: int
    kernel: int
    size: int
    group: str | None

    def params(self, inputs: int, outputs: int) -> int:
        return inputs * outputs * self.kernel**2

    def macs(self, inputs: int, outputs: int) -> int:
        return self.params(inputs, outputs) * self.size**2


def resnet20() -> list[Layer]:
    layers = [Layer("conv1", "Conv2d", 1, 16, 3, 28, "conv1")]
    width = 16
    for stage, outputs in enumerate((16, 32, 64), start=1):
        size = 28 // 2 ** (stage - 1)
        for block in range(3):
            name = f"layer{stage}.{block}"
            layers.append(Layer(f"{name}.conv1", "Conv2d", width, outputs, 3, size, f"{name}.conv1"))
            layers.append(Layer(f"{name}.conv2", "Conv2d", outputs, outputs, 3, size, f"stage{stage}"))
            if width != outputs:
                layers.append(Layer(f"{name}.downsample.0", "Conv2d", width, outputs, 1, size, f"stage{stage}"))
            width = outputs
    return [*layers, Layer("fc", "Linear", 64, 10, 1, 1, None)]


def resnet50() -> list[Layer]:
    layers = [Layer("conv1", "Conv2d", 3, 64, 7, 112, "conv1")]
    width = 64
    for stage, (blocks, inner) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        size = 56 // 2 ** (stage - 1)
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            layers.append(Layer(f"{name}.conv1", "Conv2d", width, inner, 1, size, f"{name}.conv1"))
            layers.append(Layer(f"{name}.conv2", "Conv2d", inner, inner, 3, size, f"{name}.conv2"))
            layers.append(Layer(f"{name}.conv3", "Conv2d", inner, 4 * inner, 1, size, f"stage{stage}"))
            if block == 0:
                layers.append(Layer(f"{name}.downsample.0", "Conv2d", width, 4 * inner, 1, size, f"stage{stage}"))
            width = 4 * inner
    return [*layers, Layer("fc", "Linear", 2048, 1000, 1, 1, None)]


def densenet121() -> list[Layer]:
    layers = [Layer("features.conv0", "Conv2d", 3, 64, 7, 112, "features.conv0")]
    width = 64
    for block, count in enumerate((6, 12, 24, 16), start=1):
        size = 56 // 2 ** (block - 1)
        for unit in range(1, count + 1):
            name = f"features.denseblock{block}.denselayer{unit}"
            layers.append(Layer(f"{name}.conv1", "Conv2d", width, 128, 1, size, f"{name}.conv1"))
            layers.append(Layer(f"{name}.conv2", "Conv2d", 128, 32, 3, size, f"{name}.conv2"))
            width += 32
        if block < 4:
            layers.append(Layer(f"features.transition{block}.conv", "Conv2d", width, width // 2, 1, size, f"t{block}"))
            width //= 2
    return [*layers, Layer("classifier", "Linear", width, 1000, 1, 1, None)]


NETWORKS = {"resnet20": resnet20, "resnet50": resnet50, "densenet121": densenet121}
