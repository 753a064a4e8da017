"""`fcdd reproduce`: a published experiment, class by class, beside the published figures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from jobs.shell import process
from jobs.shell.settings import JobSettings

Name = Literal[
    "fmnist", "fmnist-emnist", "cifar10", "imagenet30", "mvtec", "mvtec-semi", "voc", "custom", "custom-maps"
]


class ReproduceSettings(JobSettings):
    """Repeat a published experiment: train class by class with the published defaults, compare the figures.

    The folder holds the data sets in their published layouts; what is missing is named with where to get it. Runs on
    one GPU if there is one. The same command goes on after an interruption.
    """

    verb: ClassVar[str] = "reproduce"

    protocol: CliPositionalArg[Name] = Field(description="the experiment")
    data: Path = Field(description="folder with the data sets")
    output: Path = Field(Path("reproduction"), description="folder for the results of each class and the report")
    classes: list[str] | None = Field(None, description="only these classes")
    repetitions: int = Field(1, ge=1, description="seeds per class, counted from 0; published: 5 (MVTec 1)")
    epochs: int | None = Field(None, ge=1, description="instead of the published number: for a trial")
    batch_size: int | None = Field(None, ge=2, description="instead of the published one: for few images")
    offline: bool = Field(False, description="make the anomalies once instead of anew for every sample")
    oe_limit: int | None = Field(None, ge=1, description="so many images of outlier exposure, drawn once")
    weights: Path | None = Field(None, description="file with torchvision's vgg11_bn weights, not a download")
    pretrained: bool = Field(True, description="start vgg_f from ImageNet weights, as published")
    format: Literal["text", "json"] = Field("text", description="text for people, json for programs")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: reproduce(ReproduceSettings.parse(argv)))


def reproduce(settings: ReproduceSettings) -> None:
    """Run what is missing, and print the report."""
    from jobs.training import reproduction  # late: it imports torch

    options = reproduction.ReproductionOptions(**settings.model_dump(exclude={"config", "format"}))
    document, markdown = reproduction.reproduce(options)
    print(json.dumps(document, indent=1) if settings.format == "json" else markdown)


if __name__ == "__main__":
    process.exit_with(main())
