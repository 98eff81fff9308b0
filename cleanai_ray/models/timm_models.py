"""Models of timm (Wightman 2019): `timm:NAME`, with a tag or without, from the hub, a cache or a folder."""

from __future__ import annotations

from typing import Any

from torch import nn

from cleanai_ray.config.source_facts import said_in_a_line
from cleanai_ray.config.timm_facts import timm_name
from cleanai_ray.errors import ModelError
from cleanai_ray.models.family import Shape
from cleanai_ray.models.source import SourcedFamily

_RESERVED = {"num_classes": "model.num_classes", "in_chans": "model.input_shape", "pretrained": "model.weights"}


class TimmFamily(SourcedFamily):
    """A model of timm; options are arguments of `timm.create_model`."""

    def create(self, *, num_classes: int, input_shape: Shape, pretrained: bool) -> nn.Module:
        """Return the model, its stem adapted by timm to the channels of the inputs."""
        import timm

        for option, key in _RESERVED.items():
            if option in self.options:
                raise ModelError(f"model.options holds '{option}'; it is set by {key}")
        arguments: dict[str, Any] = {"num_classes": num_classes, "in_chans": input_shape[0], **self.options}
        sizes = (
            [{}] if tuple(input_shape[1:]) == tuple(self.facts.input_shape[1:]) else [{"img_size": input_shape[1:]}, {}]
        )
        for number, size in enumerate(sizes):
            try:
                model: nn.Module = timm.create_model(
                    timm_name(self.name), pretrained=pretrained, **{**size, **arguments}
                )
            except TypeError as error:
                if number + 1 < len(sizes) and "img_size" in str(error):  # a network for inputs of any size
                    continue
                raise ModelError(
                    f"model '{self.name}' cannot be built with model.options {self.options}: {said_in_a_line(error)}"
                ) from error
            except (OSError, RuntimeError, ValueError, AssertionError) as error:
                reason = said_in_a_line(error)
                if pretrained:
                    raise self.unreachable(error, reason) from error
                raise ModelError(
                    f"model '{self.name}' cannot be built with model.options {self.options} and model.input_shape "
                    f"{list(input_shape)}: {reason}"
                ) from error
            else:
                return model
        raise AssertionError("unreachable: the last size either builds or raises")

    def heads(self, model: nn.Module, num_classes: int) -> tuple[str, ...]:
        """Return the names that timm has for the classifier."""
        named = getattr(model, "pretrained_cfg", {}).get("classifier")
        names = (named,) if isinstance(named, str) else tuple(named or ())
        known = dict(model.named_modules())
        return tuple(name for name in names if name in known) or super().heads(model, num_classes)
