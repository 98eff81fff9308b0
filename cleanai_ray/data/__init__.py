"""Labelled image data sets, the roles of their samples, and batches of them."""

from cleanai_ray.data.batching import BatchOptions, Share, batches
from cleanai_ray.data.open_image_source import open_source
from cleanai_ray.data.roles import SampleRoles, assign_roles
from cleanai_ray.data.source import ImageDataset, ImageSource
from cleanai_ray.data.unreadable import UnreadableSamples

__all__ = [
    "BatchOptions",
    "ImageDataset",
    "ImageSource",
    "SampleRoles",
    "Share",
    "UnreadableSamples",
    "assign_roles",
    "batches",
    "open_source",
]
