"""The table of the zoo: every architecture, its input, and what is expected of it."""

from __future__ import annotations

from collections.abc import Iterable

from zoo_architectures import KEEPS, PRUNED, Architecture

_TIMM = [
    "resnet50d",
    "resnetv2_50",
    "resnext50_32x4d",
    "seresnet50",
    "resnest14d",
    "gernet_s",
    "regnetx_002",
    "regnety_002",
    "regnetz_b16",
    "hrnet_w18_small",
    "densenet121",
    "dla46_c",
    "efficientnet_b0",
    "tinynet_e",
    "lcnet_050",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "mobileone_s0",
    "repvgg_a0",
    "repvit_m0_9",
    "repghostnet_050",
    "ese_vovnet19b_dw",
    "inception_v3",
    "starnet_s1",
    "convmixer_768_32",
    "convnextv2_atto",
    "ghostnet_050",
    "ghostnetv2_100",
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_base_patch32_clip_224",
    "hiera_tiny_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_cr_tiny_224",
    "mobilevit_xxs",
    "edgenext_xx_small",
    "efficientvit_b0",
    "fastvit_t8",
    "fasternet_t0",
    "caformer_s18",
    "mixer_s32_224",
    "resmlp_12_224",
    "dpn48b",
    "botnet26t_256",
    "vgg11_bn",
    "res2net50_26w_4s",
    "cspresnet50",
    "poolformer_s12",
    "pvt_v2_b0",
    "levit_128s",
    "coat_lite_tiny",
    "eva02_tiny_patch14_224",
    "tresnet_m",
    "ecaresnet26t",
    "rexnet_100",
    "eca_nfnet_l0",
    "selecsls42b",
    "skresnet18",
    "cait_xxs24_224",
    "pit_ti_224",
    "tiny_vit_5m_224",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "maxvit_rmlp_pico_rw_256",
    "coatnet_nano_rw_224",
    "xcit_nano_12_p16_224",
    "twins_svt_small",
    "convit_tiny",
    "crossvit_tiny_240",
    "mobilevitv2_050",
    "focalnet_tiny_srf",
    "davit_tiny",
    "visformer_tiny",
    "gcvit_xxtiny",
    "cs3darknet_focus_s",
    "halonet26t",
    "lambda_resnet26t",
    "mambaout_femto",
    "rdnet_tiny",
    "mnasnet_050",
    "hardcorenas_a",
    "sequencer2d_s",
    "gmlp_s16_224",
    "efficientvit_m0",
    "hgnetv2_b0",
    "swiftformer_xs",
    "resnetblur18",
    "beit_base_patch16_224",
    "seresnext26d_32x4d",
    "tf_efficientnet_lite0",
    "legacy_seresnet18",
    "inception_next_atto",
    "dm_nfnet_f0",
    "test_nfnet",
    "test_convnext",
    "test_efficientnet_gn",
    "test_efficientnet_evos",
]

_OWN_SIZE = {
    "botnet26t_256": 256,
    "halonet26t": 256,
    "lambda_resnet26t": 128,
    "inception_v3": 96,
}
"""Pixels of those that need more than 64."""

_TORCHVISION: dict[str, tuple[int, ...]] = {
    "resnet18": (3, 64, 64),
    "alexnet": (3, 64, 64),
    "squeezenet1_1": (3, 64, 64),
    "mnasnet0_5": (3, 64, 64),
    "shufflenet_v2_x0_5": (3, 64, 64),
    "mobilenet_v3_small": (3, 64, 64),
    "regnet_y_400mf": (3, 64, 64),
    "convnext_tiny": (3, 64, 64),
    "vit_b_16": (3, 32, 32),
    "swin_t": (3, 64, 64),
    "swin_v2_t": (3, 64, 64),
    "maxvit_t": (3, 224, 224),
    "r3d_18": (3, 4, 32, 32),
    "mc3_18": (3, 4, 32, 32),
    "r2plus1d_18": (3, 4, 32, 32),
    "s3d": (3, 16, 64, 64),
    "mvit_v1_b": (3, 16, 224, 224),
}

_SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
_STAGES = {"depths": [1, 1, 1, 1]}
_TRANSFORMERS: dict[str, tuple[tuple[int, ...], dict[str, object]]] = {
    "ViT": ((3, 32, 32), {**_SMALL, "image_size": 32, "patch_size": 8}),
    "DeiT": ((3, 32, 32), {**_SMALL, "image_size": 32, "patch_size": 8}),
    "Beit": ((3, 32, 32), {**_SMALL, "image_size": 32, "patch_size": 8, "use_relative_position_bias": True}),
    "Dinov2": (
        (3, 28, 28),
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28, "patch_size": 7},
    ),
    "Swin": ((3, 64, 64), {"image_size": 64, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}),
    "Swinv2": (
        (3, 64, 64),
        {"image_size": 64, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    ),
    "ConvNext": ((3, 64, 64), {**_STAGES, "hidden_sizes": [16, 24, 32, 48]}),
    "ConvNextV2": ((3, 64, 64), {**_STAGES, "hidden_sizes": [16, 24, 32, 48]}),
    "ResNet": ((3, 64, 64), {**_STAGES, "embedding_size": 16, "hidden_sizes": [16, 24, 32, 48]}),
    "RegNet": ((3, 64, 64), {**_STAGES, "embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "groups_width": 8}),
    "MobileNetV1": ((3, 64, 64), {"depth_multiplier": 0.25}),
    "MobileNetV2": ((3, 64, 64), {"depth_multiplier": 0.35}),
    "MobileViT": (
        (3, 64, 64),
        {"image_size": 64, "hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 16, 24, 24, 32, 40, 80]},
    ),
    "PoolFormer": ((3, 64, 64), {**_STAGES, "hidden_sizes": [16, 24, 32, 48]}),
    "Pvt": (
        (3, 64, 64),
        {**_STAGES, "image_size": 64, "hidden_sizes": [16, 32, 48, 64], "num_attention_heads": [1, 2, 3, 4]},
    ),
    "PvtV2": (
        (3, 64, 64),
        {**_STAGES, "image_size": 64, "hidden_sizes": [16, 32, 48, 64], "num_attention_heads": [1, 2, 3, 4]},
    ),
    "Levit": (
        (3, 64, 64),
        {"image_size": 64, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1]},
    ),
    "Segformer": (
        (3, 64, 64),
        {**_STAGES, "hidden_sizes": [16, 32, 48, 64], "num_attention_heads": [1, 2, 3, 4]},
    ),
    "Bit": ((3, 64, 64), {**_STAGES, "embedding_size": 32, "hidden_sizes": [32, 64, 64, 96], "num_groups": 8}),
    "FocalNet": (
        (3, 64, 64),
        {"image_size": 64, "embed_dim": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "focal_levels": [2, 2],
         "focal_windows": [3, 3]},
    ),
    "Cvt": ((3, 64, 64), {}),
    "EfficientNet": (
        (3, 64, 64),
        {"image_size": 64, "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
    ),
    "Bert ForSequenceClassification": ((12,), {**_SMALL, "vocab_size": 99}),
    "DistilBert ForSequenceClassification": (
        (12,),
        {"n_layers": 2, "n_heads": 4, "dim": 32, "hidden_dim": 64, "vocab_size": 99},
    ),
    "Electra ForSequenceClassification": ((12,), {**_SMALL, "embedding_size": 24, "vocab_size": 99}),
    "GPT2 LMHeadModel": ((12,), {"n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 99, "use_cache": False}),
    "Llama ForCausalLM": (
        (12,),
        {**_SMALL, "num_key_value_heads": 2, "vocab_size": 99, "use_cache": False, "tie_word_embeddings": False},
    ),
    "Qwen2 ForCausalLM": (
        (12,),
        {**_SMALL, "num_key_value_heads": 4, "vocab_size": 99, "use_cache": False, "tie_word_embeddings": False},
    ),
}  # fmt: skip

_OWN: dict[str, tuple[int, ...]] = {
    "Yolo11": (3, 64, 64),
    "FrozenResNet": (3, 32, 32),
    "RecurrentReader": (3, 32, 32),
    "DigitsByLstm": (16, 12),
    "ExpandedQuery": (3, 32, 32),
    "ChunkedAttention": (3, 32, 32),
    "ScaleUsedTwice": (3, 32, 32),
}

_EXPECTED: dict[str, str] = {
    "lcnet_050": PRUNED,
    "tinynet_e": PRUNED,
    "ghostnet_050": PRUNED,
    "mobilevit_xxs": PRUNED,
    "ecaresnet26t": KEEPS,
    "efficientvit_b0": KEEPS,
    "eva02_tiny_patch14_224": KEEPS,
    "fastvit_t8": KEEPS,
    "r3d_18": PRUNED,
    "mc3_18": PRUNED,
    "mnasnet0_5": PRUNED,
    "swin_v2_t": KEEPS,
    "Yolo11": KEEPS,
    "FrozenResNet": PRUNED,
    "RecurrentReader": KEEPS,
    "DigitsByLstm": KEEPS,
    "ExpandedQuery": PRUNED,
    "ChunkedAttention": KEEPS,
    "ScaleUsedTwice": PRUNED,
    "ViT": PRUNED,
    "DeiT": PRUNED,
    "Beit": KEEPS,
    "Dinov2": PRUNED,
    "Swin": KEEPS,
    "Swinv2": KEEPS,
    "ConvNext": PRUNED,
    "ConvNextV2": PRUNED,
    "ResNet": PRUNED,
    "RegNet": PRUNED,
    "Segformer": KEEPS,
    "Bit": KEEPS,
    "FocalNet": KEEPS,
    "GPT2 LMHeadModel": PRUNED,
}
"""What the test suite expects of those that it tries."""


def _architectures() -> Iterable[Architecture]:
    for name in _TIMM:
        size = _OWN_SIZE.get(name, 64)
        yield Architecture(source="timm", name=name, shape=(3, size, size), expected=_EXPECTED.get(name, ""))
    for name, shape in _TORCHVISION.items():
        yield Architecture(source="torchvision", name=name, shape=shape, expected=_EXPECTED.get(name, ""))
    for name, (shape, options) in _TRANSFORMERS.items():
        yield Architecture(
            source="transformers", name=name, shape=shape, options=dict(options), expected=_EXPECTED.get(name, "")
        )
    for name, shape in _OWN.items():
        yield Architecture(source="own", name=name, shape=shape, expected=_EXPECTED.get(name, ""))


ARCHITECTURES = tuple(_architectures())
