"""Labelled image data sets, the roles of their samples, and batches of them."""

from cleanai_ray.data.batching import BatchOptions, Share, batches, numbered_batches, require_one_each
from cleanai_ray.data.decoder_choice import choose_decoder
from cleanai_ray.data.kept_images import KeptImages, kept_images
from cleanai_ray.data.roles import SampleRoles, assign_roles
from cleanai_ray.data.source import ImageDataset, ImageSource, open_image_source
from cleanai_ray.data.unreadable import UnreadableSamples

__all__ = [
    "BatchOptions",
    "ImageDataset",
    "ImageSource",
    "KeptImages",
    "SampleRoles",
    "Share",
    "UnreadableSamples",
    "assign_roles",
    "batches",
    "choose_decoder",
    "kept_images",
    "numbered_batches",
    "open_image_source",
    "require_one_each",
]
