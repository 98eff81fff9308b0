"""A pruned model of transformers as a folder that transformers loads: configuration, weights, and what goes with it."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.deploy._files import check_batch, file_suffix, private_copy, quiet, require_same_output
from cleanai_ray.deploy.fitting_config import ConfigFit, Shapes, without_layers
from cleanai_ray.deploy.native_form import NativeForm, native_form
from cleanai_ray.deploy.standalone_files import CARD_FILE, CONFIG_FILE, NEW_CARD_FILE
from cleanai_ray.errors import ArtifactError
from cleanai_ray.nn.calls import main_output
from cleanai_ray.nn.view import as_model
from cleanai_ray.registry import FORMATS

_MARK = "pruned_with"
"""The key of the configuration that tells that an export wrote it."""

COMPANIONS = (
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
)
"""Files of tokenizers and image processors, which stay as the dense model's source has them."""

_OWN = {CONFIG_FILE, "generation_config.json", CARD_FILE, NEW_CARD_FILE, *COMPANIONS}


@FORMATS.register("transformers")
@file_suffix("")
def export_transformers(model: nn.Module, example_input: Tensor, path: Path) -> Path:
    """A folder for transformers' `from_pretrained`, of a model of transformers whose configuration can say its sizes.

    It holds `config.json`, `model.safetensors`, the configuration of generation where there is one, and the files of
    the tokenizer or image processor where the dense model's source has them here. Before the files get their names,
    the model is loaded by transformers alone and compared with the pruned one.

    Args:
        model: The model, which is not changed.
        example_input: Inputs [N, ...].
        path: The folder; it must be missing, empty, or one that was exported to before.

    Returns:
        The folder.

    Raises:
        ArtifactError: When the model is none of transformers, its configuration has no keys for the sizes, the folder
            holds other files, or the loaded model's output differs.
        EvaluationError: When a hook is left on the model.
    """
    path = Path(path)
    _require_room(path)
    outer = private_copy(model)
    name, inner = _model_of_transformers(outer)
    form = native_form(inner)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as made:
        folder = Path(made)
        with quiet():
            _write(inner, form, folder)
            loaded = type(inner).from_pretrained(folder).eval()
            _require_same(outer, name, loaded, example_input)
            for companion in _companions(inner):
                shutil.copyfile(companion, folder / companion.name)
        _put(folder, path)
    return path


def _put(made: Path, path: Path) -> None:
    """Move the files of a folder into another one, and delete what an earlier export left there besides; cards stay.

    The configuration is first, so that the folder is one of an export whenever this ends.
    """
    path.mkdir(exist_ok=True)
    names = sorted((entry.name for entry in made.iterdir()), key=lambda name: (name != CONFIG_FILE, name))
    for name in names:
        (made / name).replace(path / name)
    for entry in [*path.iterdir()]:
        if _is_own(entry.name) and entry.name not in (*names, CARD_FILE, NEW_CARD_FILE):
            entry.unlink()


def _is_own(name: str) -> bool:
    return name in _OWN or (name.startswith("model") and name.endswith((".safetensors", ".safetensors.index.json")))


def _require_room(path: Path) -> None:
    """Refuse a place where an export would replace what no export wrote."""
    if path.exists() and not path.is_dir():
        raise ArtifactError(f"'{path}' is a file, and this format is a folder; name another place")
    found = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    others = [name for name in found if not _is_own(name)]
    if not others and found:
        others = [] if _is_marked(path / CONFIG_FILE) else found
    if others:
        raise ArtifactError(f"folder '{path}' holds '{others[0]}', which no export wrote; name an empty folder")


def _is_marked(config: Path) -> bool:
    """Return whether a configuration is there, whole, and an export wrote it."""
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and _MARK in content


def _model_of_transformers(outer: nn.Module) -> tuple[str, Any]:
    """Return the one model of transformers in a model, and its name there, which is empty for the model itself.

    Raises:
        ArtifactError: When there is none, it is of a class of its own, or other layers stand beside it.
    """
    refusal = f"format transformers is for models of the package transformers, and this {type(outer).__name__} "
    try:
        import transformers
    except ImportError as error:
        raise ArtifactError(f"{refusal}cannot be one: pip install 'cleanai-ray[transformers]'") from error
    found = [(name, part) for name, part in outer.named_modules() if isinstance(part, transformers.PreTrainedModel)]
    if not found:
        raise ArtifactError(f"{refusal}is none; allowed for any model: torch_export, standalone")
    name, part = found[0]
    inner = as_model(part)
    if getattr(transformers, type(inner).__name__, None) is not type(inner):
        raise ArtifactError(f"{refusal}is of a class of its own; allowed for any model: torch_export, standalone")
    for what, tensors in (("layers", nn.Module.parameters), ("buffers", nn.Module.buffers)):
        if sum(value.numel() for value in tensors(outer)) != sum(value.numel() for value in tensors(inner)):
            raise ArtifactError(f"{refusal}has {what} besides '{name}'; pass the module '{name}' alone")
    return name, inner


def _write(inner: Any, form: NativeForm, folder: Path) -> None:
    """Write the model as its own class would be written."""
    kind = type(inner)
    values = _fitting_values(inner, form)
    native = kind(inner.config_class.from_dict(copy.deepcopy(values) | {_MARK: "CleanAI-Ray"}))
    native.to(next((value.dtype for value in form.state.values() if value.is_floating_point()), torch.float32))
    zeros = {name: torch.zeros_like(value) for name, value in native.state_dict().items() if name not in form.state}
    native.load_state_dict({**form.state, **zeros})
    if native.can_generate() and getattr(inner, "generation_config", None) is not None:
        native.generation_config = copy.deepcopy(inner.generation_config)
    native.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        shutil.copymode(folder / CONFIG_FILE, file)  # safetensors lets nobody else read what it writes


def _fitting_values(inner: Any, form: NativeForm) -> dict[str, Any]:
    kind, config = type(inner), inner.config

    def build(values: Mapping[str, Any]) -> Shapes:
        with torch.device("meta"):
            model = kind(inner.config_class.from_dict(copy.deepcopy(dict(values))))
        return {name: tuple(value.shape) for name, value in model.state_dict().items()}

    names = getattr(config, "attribute_map", None) or {}
    layers, heads = (names.get(key, key) for key in ("num_hidden_layers", "num_attention_heads"))
    values = without_layers(config.to_dict(), layers, form.removed)
    wanted = {name: tuple(value.shape) for name, value in form.state.items()}
    fit = ConfigFit(type(config).__name__, values, build, wanted)
    return fit.run(None if form.num_heads is None else (heads, form.num_heads))


def _require_same(outer: nn.Module, name: str, loaded: nn.Module, example_input: Tensor) -> None:
    """Compare a model with itself when the loaded one stands in it for the one of a name, and with that one alone.

    Raises:
        ArtifactError: When the loaded model computes something else, or the model more than the one of the name.
    """
    batch, network = check_batch(example_input.detach().cpu()), as_model(outer)
    with torch.no_grad():
        expected = main_output(network(batch))
        if name:
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, loaded)
        found = main_output((network if name else loaded)(batch))
    require_same_output(expected, found, "transformers")
    if not name:
        return
    try:
        with torch.no_grad():
            require_same_output(expected, main_output(loaded(batch)), "transformers")
    except Exception as error:
        raise ArtifactError(
            f"format transformers writes the model of transformers alone, and this {type(network).__name__} does more "
            f"than its '{name}'; pass that module alone"
        ) from error


def _companions(inner: Any) -> list[Path]:
    """Return the files of the tokenizer or image processor that the dense model's source has on this machine."""
    from transformers.utils import cached_file

    source = getattr(inner.config, "_name_or_path", "") or ""
    found = []
    for name in COMPANIONS if source else ():
        try:
            place = cached_file(source, name, local_files_only=True, _raise_exceptions_for_missing_entries=False)
        except OSError:
            continue
        if place is not None:
            found.append(Path(place))
    return found
