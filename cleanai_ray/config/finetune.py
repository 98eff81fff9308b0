"""Fine-tuning of the pruned models, as a study file asks for it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from cleanai_ray.config.sections import HELD_BACK, Section
from cleanai_ray.config.sweep import SweepSection


class EarlyStoppingSection(Section):
    """An end to fine-tuning when the validation accuracy no longer rises."""

    patience: PositiveInt = Field(3, description="Epochs without a better validation accuracy before stopping.")
    min_delta: float = Field(
        0.0, ge=0, description="Least gain in accuracy that counts as better (0.001 is 0.1 points)."
    )


class DistillationSection(Section):
    """Learning from the dense model's outputs."""

    temperature: float = Field(2.0, gt=0, description="Temperature of both softmaxes.")
    weight: float = Field(0.5, gt=0, le=1, description="Share of distillation in the loss; 1: no labels are used.")


class FineTuneSection(Section):
    """Fine-tuning of the pruned model. The epoch with the best validation accuracy is kept.

    The model that fine-tuning starts from stays unless an epoch is better. Validation images decide that only if the
    start has never seen them; otherwise it would look more accurate than it is. So they do if the study trained the
    dense model itself from random weights (`model.train`). Weights from elsewhere have most likely seen them; the
    images that decide on the chosen trial then compare the start with the best epoch. Where these are of the training
    split, or also reported on (`evaluation.validation_share: 0`), the best epoch is kept in any case.

    Fine-tuning on calibration images reads no labels: the dense model's answers replace them, and accuracy is the
    agreement with the dense model. Every fifth image validates, the same ones that repair holds back. The start then
    competes unless repair has read all images, which it does when neither of its choices is `auto`.
    """

    epochs: int = Field(0, ge=0, description="Most epochs after the last pruning step; 0: none.")
    between_steps: int = Field(
        0, ge=0, description="Most epochs after each earlier pruning step, in trials of several steps; 0: none."
    )
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="SGD with Nesterov momentum, or AdamW.")
    learning_rate: float = Field(0.01, gt=0, description="Peak learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD.")
    weight_decay: float = Field(1e-4, ge=0, description="Weight decay, which leaves out norms and biases.")
    scheduler: Literal["cosine", "step", "constant"] = Field(
        "cosine", description="Course of the learning rate after the warm-up."
    )
    warmup_epochs: float = Field(0.0, ge=0, description="Epochs of linear warm-up; fractions are allowed.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Label smoothing of the cross-entropy.")
    gradient_clip: float | None = Field(None, gt=0, description="Largest norm of the gradient; null: no clipping.")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="Decay of the moving average of the weights; null: no average."
    )
    batch_size: PositiveInt | None = Field(
        None, description="Images per step, over all workers; null: data.batch_size."
    )
    data: Literal["training", "calibration"] = Field(
        "training",
        description="Images to learn from: training, or calibration (by distillation alone, without labels).",
    )
    distillation: DistillationSection | None = Field(None, description="Learn from the dense model as well.")
    save_every_n_epochs: PositiveInt = Field(2, description="Epochs between checkpoints.")
    checkpoint_minutes: float | None = Field(
        5.0, gt=0, description="Minutes between checkpoints within epochs; null: at the end of epochs alone."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Precision of the forward pass; auto: float32 on CPUs, bfloat16 on GPUs, float16 on those without.",
    )
    compile: bool | Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = Field(
        False, description="Compile the model with torch.compile, in a mode of it or the default one (true)."
    )
    early_stopping: EarlyStoppingSection | None = Field(default_factory=lambda: EarlyStoppingSection())
    num_workers: Literal["auto"] | PositiveInt = Field(
        1,
        description="Workers per trial, each with the resources of a trial; they divide every batch among themselves; "
        "auto: one, and more for the last trials where whole GPUs would idle.",
    )

    @model_validator(mode="after")
    def _check_data(self) -> FineTuneSection:
        weight = self.distillation and self.distillation.weight
        if self.data == "calibration" and weight != 1.0:
            found = "finetune.distillation is null" if weight is None else f"finetune.distillation.weight is {weight:g}"
            raise ValueError(
                f"finetune.data is 'calibration', which is learned from without labels, and {found}; "
                "allowed: finetune.distillation.weight 1, or finetune.data 'training'"
            )
        return self

    def check_images(self, num_calibration: int) -> None:
        """Check that there are enough images.

        Raises:
            ValueError: When fine-tuning learns from calibration images, and there are too few of them.
        """
        least = HELD_BACK * (1 if self.num_workers == "auto" else self.num_workers)
        if self.data == "calibration" and num_calibration < least:
            raise ValueError(
                f"finetune.data is 'calibration' with {num_calibration} samples, and finetune.num_workers "
                f"{self.num_workers}; allowed: at least {least} samples, since every {HELD_BACK}th validates, and "
                "each worker needs one"
            )

    def check_steps(self, sweep: SweepSection) -> None:
        """Check that there are pruning steps for epochs to come between.

        Raises:
            ValueError: When no trial has several steps, or a budget is met by a search over many pruned models.
        """
        if not self.between_steps:
            return
        if max(sweep.steps) == 1:
            raise ValueError(
                f"finetune.between_steps is {self.between_steps} and sweep.steps {list(sweep.steps)}; "
                "allowed: 0, or an entry of sweep.steps above 1"
            )
        timed = next((budget for budget in sweep.budgets if budget.resource == "latency"), None)
        if timed is not None:
            raise ValueError(
                f"finetune.between_steps is {self.between_steps} and sweep.budgets holds {timed}, which takes a "
                "search over many pruned models; allowed: 0, or other budgets"
            )
