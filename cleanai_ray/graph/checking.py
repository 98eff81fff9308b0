"""The check of a cut: the smaller model computes what the model did with the removed channels silent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from cleanai_ray.errors import PruningError
from cleanai_ray.graph.cutting import Cuts
from cleanai_ray.graph.group import ChannelGroup
from cleanai_ray.graph.rounding import judged_again
from cleanai_ray.graph.silencing import OUTPUT, Reading, can_be_silenced, difference, probe_inputs, read, silenced
from cleanai_ray.nn.attention import HeadProduct
from cleanai_ray.nn.view import shared_copy


@dataclass(frozen=True, eq=False)
class CutCheck:
    """What a model must read and return after a cut.

    Attributes:
        inputs: The input.
        cuts: The cuts of layers that read or compute channels.
        parameters: The dimension of each free parameter that has channels, by name.
        expected: The readings before the cut, with the channels silent.
        dense: The model before the cut, with the tensors that it had: a cut changes none of them.
    """

    inputs: Tensor
    cuts: Cuts
    parameters: Mapping[str, int]
    expected: Reading
    dense: nn.Module

    @classmethod
    def before(cls, model: nn.Module, example: Tensor, cuts: Cuts, parameters: Mapping[str, int]) -> CutCheck | None:
        """Return the check of a cut, or None where a layer computes something else once channels are gone.

        Args:
            model: The model before the cut; it is left as it is.
            example: Example inputs.
            cuts: The channels.
            parameters: The dimension of each free parameter that has channels, by name.
        """
        if not all(can_be_silenced(model.get_submodule(layer)) for layer, _ in cuts if layer not in parameters):
            return None
        products = [name for name, each in model.named_modules() if isinstance(each, HeadProduct)]
        inputs = probe_inputs(example)
        seen = {key: channels for key, channels in cuts.items() if key[0] not in products}
        return cls(inputs, seen, parameters, silenced(model, inputs, seen, parameters), shared_copy(model))

    def require_same(self, model: nn.Module, groups: Sequence[ChannelGroup]) -> None:
        """Compare the model after the cut.

        Raises:
            PruningError: When it reads or returns something else; the message names those of the groups that are there.
        """
        found, models = read(model, self.inputs, self.cuts, self.parameters), (self.dense, model)
        place = judged_again((self.expected, found), models, self.inputs, self.cuts, self.parameters, difference)
        if place is None:
            return
        names = [group.name for group in groups if any(member.layer == place for member in group.members)]
        where = OUTPUT if place == OUTPUT else f"what layer '{place}' reads"
        raise PruningError(
            f"the cut of group {' or '.join(repr(name) for name in names or [group.name for group in groups])} is "
            f"wrong: {where} is not what it is with the removed channels silenced; name the layer in ignored_layers, "
            "or pass check=False if that is meant"
        )
