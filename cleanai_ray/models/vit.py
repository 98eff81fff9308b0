"""torchvision's vision transformer (Dosovitskiy et al. 2021): ViT-B/16, and small ones for small images."""

from __future__ import annotations

from typing import Any

from torch import nn

from cleanai_ray.errors import ModelError
from cleanai_ray.models.family import ModelFamily, Shape, TorchvisionFamily, check_options, one_line, replace_stem
from cleanai_ray.registry import MODELS

_SMALL = {"patch_size": 4, "num_layers": 4, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 192}
_SET_HERE = ("image_size", "num_classes", "representation_size", "norm_layer", "conv_stem_configs")


@MODELS.register("vit_b_16")
class ViTB16(TorchvisionFamily):
    """ViT-B/16 (torchvision), a vision transformer; image_size follows input_shape."""

    name = "vit_b_16"
    classifier = "heads.head"


@MODELS.register("vit_small_images")
class ViTSmallImages(ModelFamily):
    """Vision transformer (torchvision's class) for small images; options patch_size, num_layers, hidden_dim."""

    classifier = "heads.head"

    def build(self, *, num_classes: int, input_shape: Shape, **options: Any) -> nn.Module:
        """Return the network.

        Args:
            num_classes: Outputs of the classifier.
            input_shape: Channels, height and width of one input; both sides are the same multiple of the patch size.
            **options: Arguments of torchvision's VisionTransformer: `patch_size` (4 by default), `num_layers` (4),
                `num_heads` (4), `hidden_dim` (64), `mlp_dim` (192), `dropout` and `attention_dropout`.

        Raises:
            ModelError: When an option is not allowed, or options and input shape do not fit together.
        """
        from torchvision.models import VisionTransformer  # as slow to import as torch itself

        check_options(VisionTransformer, options, name="vit_small_images", given=_SET_HERE)
        arguments = {**_SMALL, **options}
        for name, value in arguments.items():
            if name in _SMALL and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ModelError(f"model.options.{name} is {value!r}; allowed: a whole number, at least 1")
        patch, (_, height, width) = arguments["patch_size"], input_shape
        if height != width or height % patch:
            raise ModelError(
                f"model.input_shape is {list(input_shape)}; allowed for vit_small_images: height and width equal, "
                f"and a multiple of its patch size, {patch}"
            )
        if arguments["hidden_dim"] % arguments["num_heads"]:
            raise ModelError(
                f"model.options.hidden_dim is {arguments['hidden_dim']}; allowed: a multiple of num_heads, "
                f"{arguments['num_heads']}"
            )
        try:
            model = VisionTransformer(image_size=height, num_classes=num_classes, **arguments)
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"model 'vit_small_images' cannot be built with model.options {options}: {one_line(error)}"
            ) from error
        if input_shape[0] != 3:
            replace_stem(model, input_shape[0])
        return model
