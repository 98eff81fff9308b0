"""Texts for language models: files cut into pieces of as many tokens as a model reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cleanai_ray.config.sections import DataSection
from cleanai_ray.data.augment import Indices
from cleanai_ray.data.source import ImageSource, Shape, find_root
from cleanai_ray.errors import DataError
from cleanai_ray.registry import DATASETS

_SPLITS = ("train", "val", "validation", "test")
_NUM_BYTES = 256
_EXPECTED = "a folder with train.txt and val.txt or test.txt, or with folders of these names that hold .txt files"


class TokenDataset(Dataset[tuple[Tensor, Tensor]]):
    """One split: pieces of a text, one after the other.

    Args:
        tokens: The tokens of the whole text, [num_tokens].
        length: Tokens of a piece.
    """

    def __init__(self, tokens: np.ndarray, length: int) -> None:
        self._tokens = torch.from_numpy(tokens.astype(np.int32))
        self._length = length

    def __len__(self) -> int:
        return num_pieces(len(self._tokens), self._length)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        tokens, following = self.batch([index])
        return tokens[0], following[0]

    def batch(self, indices: Indices, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return tokens int64 [N, length] of several pieces, and the token that follows each; the seed is not read."""
        starts = torch.as_tensor(np.asarray(indices, dtype=np.int64)) * self._length
        places = starts[:, None] + torch.arange(self._length + 1)
        pieces = self._tokens[places].long()
        return pieces[:, :-1], pieces[:, 1:]


def num_pieces(num_tokens: int, length: int) -> int:
    """Return how many pieces a text has; the last token of all is only followed to."""
    return max(0, (num_tokens - 1) // length)


@DATASETS.register("text_files")
class TextFiles(ImageSource):
    """Texts in train.txt and val.txt or test.txt (or folders of .txt files), read in pieces of `model.input_shape`.

    A token is a byte, or what `data.options.tokenizer`, a tokenizer.json of Hugging Face's `tokenizers`, makes of the
    text. The model's `num_classes` is the size of the vocabulary.
    """

    tasks = ("language_modelling",)
    channels = ()
    option_names = ("tokenizer",)
    mirrors = False

    def __init__(self, data: DataSection, input_shape: Shape) -> None:
        super().__init__(data, input_shape)
        self._root = find_root(data.root, (), _EXPECTED)
        self.splits = tuple(split for split in _SPLITS if self._paths(split))
        if not self.splits:
            raise DataError(f"data.root '{data.root}' holds no text; expected {_EXPECTED}")
        self._tokenizer = _tokenizer(data.options.get("tokenizer"))
        self.num_classes = _NUM_BYTES if self._tokenizer is None else self._tokenizer.get_vocab_size()
        self.class_names = ()
        self._read: dict[str, np.ndarray] = {}

    def _paths(self, split: str) -> list[Path]:
        file, folder = self._root / f"{split}.txt", self._root / split
        return [file] if file.is_file() else sorted(folder.glob("*.txt")) if folder.is_dir() else []

    def _tokens(self, split: str) -> np.ndarray:
        name = self.resolve(split)
        if name not in self._read:
            try:
                content = b"\n".join(path.read_bytes() for path in self._paths(name))
                if self._tokenizer is None:
                    tokens = np.frombuffer(content, dtype=np.uint8)
                else:
                    tokens = np.asarray(self._tokenizer.encode(content.decode()).ids)
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"split '{name}' of '{self._root}' cannot be read: {error}") from error
            if not num_pieces(len(tokens), self.input_shape[0]):
                raise DataError(
                    f"split '{name}' of '{self._root}' has {len(tokens)} tokens; needed: more than "
                    f"{self.input_shape[0]}, the tokens that the model reads"
                )
            self._read[name] = tokens
        return self._read[name]

    def num_samples(self, split: str) -> int:
        """Return the number of pieces of a split."""
        return num_pieces(len(self._tokens(split)), self.input_shape[0])

    def dataset(self, split: str, *, augment: bool = False) -> TokenDataset:
        """Return a split; texts have no training transform."""
        return TokenDataset(self._tokens(split), self.input_shape[0])

    def describe(self, split: str, index: int) -> str:
        """Return the split and the first token of a piece."""
        return f"{self._root} {self.resolve(split)}, from token {index * self.input_shape[0]}"


def _tokenizer(given: object) -> Any:
    if given is None or given == "bytes":
        return None
    if not isinstance(given, str) or not Path(given).expanduser().is_file():
        raise DataError(f"data.options.tokenizer is {given!r}; allowed: 'bytes', or the path of a tokenizer.json")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise DataError(
            f"data.options.tokenizer is {given!r}, read by tokenizers; pip install 'cleanai-ray[language]'"
        ) from error
    return Tokenizer.from_file(str(Path(given).expanduser()))
