"""The study file and the environment of an invented study."""

from __future__ import annotations

from typing import Any


def study_file(
    methods: tuple[str, ...],
    metrics: tuple[str, ...],
    ratios: tuple[float, ...],
    budgets: tuple[str, ...],
    modes: tuple[str, ...],
    seeds: tuple[int, ...],
    network: str,
    num_classes: int,
    epochs: int,
) -> dict[str, Any]:
    return {
        "name": "fashion-mnist",
        "question": "Which way of choosing channels keeps a ResNet-20 accurate at half its cost?",
        "model": {
            "name": network,
            "weights": "weights.safetensors",
            "num_classes": num_classes,
            "input_shape": [1, 28, 28],
        },
        "data": {"name": "fashion_mnist", "calibration": {"samples": 2048, "split": "train", "seed": 0}},
        "sweep": {
            "methods": list(methods),
            "coverage_metrics": list(metrics),
            "ratios": list(ratios),
            "budgets": [{budget.partition("=")[0]: float(budget.partition("=")[2])} for budget in budgets],
            "modes": list(modes),
            "steps": [1],
            "seeds": list(seeds),
        },
        "finetune": {"epochs": epochs, "optimizer": "sgd", "learning_rate": 0.01},
        "evaluation": {"split": "test", "latency": {"batch_sizes": [1, 64], "warmup": 10, "runs": 50, "threads": 1}},
    }


def environment() -> dict[str, Any]:
    return {
        "version": "0.1.0",
        "started": "2026-03-14T09:26:53+00:00",
        "seconds": 1835.0,
        "command": "cleanai run jobs/studies/fashion_mnist.yaml --out artifacts/fashion-mnist",
        "python": "3.11.9",
        "platform": "Linux-6.1-x86_64",
        "packages": {"ray": "2.60.0", "torch": "2.14.1", "torch-pruning": "1.6.1"},
        "hardware": {"cpu": "AMD EPYC 7763", "cores": 8, "memory_gib": 31.3, "gpus": []},
        "cluster": {"nodes": 2, "cpus": 16.0, "gpus": 0.0},
        "digests": {"study": "0f1e2d3c4b5a6978", "weights": "1122334455667788", "calibration": "99aabbccddeeff00"},
        "samples": {
            "calibration": 2048,
            "training": 54000,
            "validation": 6000,
            "evaluation": 10000,
            "calibration_withheld_from_training": True,
        },
        "warnings": [],
    }
