"""Image classifiers of transformers (Wolf et al. 2020): `hf:OWNER/NAME` of the hub or a cache, and `hf:FOLDER`."""

from __future__ import annotations

from typing import Any

from torch import nn

from cleanai_ray.config.huggingface_facts import HUB_OPTIONS, hub_name, read_config
from cleanai_ray.config.source_facts import said_in_a_line
from cleanai_ray.errors import ModelError
from cleanai_ray.models.family import Shape
from cleanai_ray.models.source import SourcedFamily
from cleanai_ray.nn.notices import notice


class HuggingFaceFamily(SourcedFamily):
    """An image classifier of transformers; options say where it is, or change its configuration."""

    def create(self, *, num_classes: int, input_shape: Shape, pretrained: bool) -> nn.Module:
        """Return the model, built from its configuration; no code of the hub is run."""
        from transformers import AutoModelForImageClassification

        for option in ("num_labels", "num_channels"):
            if option in self.options:
                key = "model.num_classes" if option == "num_labels" else "model.input_shape"
                raise ModelError(f"model.options holds '{option}'; it is set by {key}")
        config = read_config(self.name, self.options)
        if config.num_labels != num_classes:
            config.num_labels = num_classes
        try:
            if not pretrained:
                built: nn.Module = AutoModelForImageClassification.from_config(config)
                return built
            where = {key: value for key, value in self.options.items() if key in HUB_OPTIONS}
            loaded, report = AutoModelForImageClassification.from_pretrained(
                hub_name(self.name), config=config, ignore_mismatched_sizes=True, output_loading_info=True, **where
            )
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            reason = said_in_a_line(error)
            if pretrained:
                raise self.unreachable(error, reason) from error
            raise ModelError(f"model '{self.name}' cannot be built: {reason}") from error
        self._check_complete(loaded, report, num_classes)
        return loaded.float()  # type: ignore[no-any-return]

    def _check_complete(self, model: nn.Module, report: dict[str, Any], num_classes: int) -> None:
        """Refuse weights that lack more than the head, which transformers would leave at random."""
        lacking = [each if isinstance(each, str) else str(each[0]) for each in report.get("mismatched_keys", ())]
        lacking = sorted({*lacking, *report.get("missing_keys", ())})
        heads = self.heads(model, num_classes)
        body = [name for name in lacking if name.rpartition(".")[0] not in heads]
        if body:
            raise ModelError(
                f"model.weights is 'pretrained', and the weights of {self.name} do not fit its configuration: they "
                f"lack {body[0]} or have another shape of it{f', and {len(body) - 1} more' if len(body) > 1 else ''}"
            )
        if lacking and self.facts.num_classes == num_classes:
            notice(f"the weights of {self.name} lack its head, {heads[0]}, which is new and has to be trained")

    def heads(self, model: nn.Module, num_classes: int) -> tuple[str, ...]:
        """Return every layer of class scores outside the body: some models have one for distillation, too."""
        body = getattr(model, "base_model_prefix", "") + "."
        found = [
            name
            for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, nn.Conv2d)) and not name.startswith(body)
            if num_classes in (getattr(module, "out_features", None), getattr(module, "out_channels", None))
        ]
        return tuple(found) or super().heads(model, num_classes)
