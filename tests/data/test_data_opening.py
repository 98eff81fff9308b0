"""Opening a data set: what must fit the model, what is missing, and what is said about it."""

from __future__ import annotations

import pytest
from image_trees import opened

from cleanai_ray.errors import DataError, RegistryError
from cleanai_ray.registry import DATASETS


def test_the_data_sets_of_the_design_are_registered():
    assert {"digits", "fashion_mnist", "cifar10", "image_folder", "parquet_images"} <= set(DATASETS.names())
    assert all(summary and "\n" not in summary for summary in DATASETS.summaries().values())


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "image_folder", "parquet_images"])
def test_a_missing_root_is_named_with_what_is_expected(tmp_path, name):
    with pytest.raises(DataError, match=f"data.root '{tmp_path}/nowhere' does not exist.*; expected a folder"):
        opened(name, root=f"{tmp_path}/nowhere")


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "image_folder", "parquet_images"])
def test_an_empty_root_is_named_with_what_is_expected(tmp_path, name):
    with pytest.raises(DataError, match=f"data.root '{tmp_path}' .*expected a folder"):
        opened(name, root=str(tmp_path))


@pytest.mark.parametrize("name", ["image_folder", "parquet_images"])
def test_data_sets_without_a_usual_place_need_a_root(name):
    with pytest.raises(DataError, match=r"data.root is null; expected a folder"):
        opened(name)


def test_cifar10_without_root_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=r"data.root is null and ~/.cache/cleanai-ray/cifar10 does not exist; expected"):
        opened("cifar10")


def test_a_download_that_fails_is_one_error(tmp_path, no_network):
    with pytest.raises(DataError, match=r"data.options.download: CIFAR-10 could not be fetched"):
        opened("cifar10", root=str(tmp_path), options={"download": True})


def test_a_url_that_pyarrow_does_not_know_is_named():
    with pytest.raises(DataError, match=r"data.root 'nosuch://bucket/prefix' cannot be opened"):
        opened("parquet_images", root="nosuch://bucket/prefix")


def test_unknown_names_options_and_splits_list_what_is_allowed(cifar_root):
    with pytest.raises(RegistryError, match=r"unknown data set 'svhn'; known: cifar10, coco, digits"):
        opened("svhn")
    with pytest.raises(
        DataError, match=r"holds 'dowload'; allowed for data set 'cifar10': crop_padding, flip, download"
    ):
        opened("cifar10", root=str(cifar_root), options={"dowload": True})
    with pytest.raises(DataError, match=r"data.options.download is 'yes'; allowed: true, false"):
        opened("cifar10", root=str(cifar_root), options={"download": "yes"})
    with pytest.raises(DataError, match=r"has no split 'dev'; allowed: train, test"):
        opened("digits").num_samples("dev")


def test_channels_and_classes_must_fit_the_model(cifar_root):
    with pytest.raises(DataError, match=r"model.input_shape is \[1, 32, 32\]; allowed channels .*'cifar10': 3"):
        opened("cifar10", root=str(cifar_root), shape=(1, 32, 32))
    with pytest.raises(DataError, match=r"model.input_shape is \[2, 8, 8\]; allowed channels .*: 1, 3"):
        opened("digits", shape=(2, 8, 8))
    with pytest.raises(DataError, match=r"model.num_classes is 100; allowed with data set 'digits': 10"):
        opened("digits", num_classes=100)
