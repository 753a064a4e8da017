"""The bundle: a trained detector as a few small files that hold everything scoring needs.

`model.safetensors` (weights, no pickle), `bundle.json` (this module's `BundleSpec` and the digest),
`README.md` (a model card), `sample.safetensors` (`fcdd.sample`; older bundles have none). The digest is sha256 over the
canonical JSON of the specification, which contains the sha256 of the weights: it names the model in every row and run.
"""

import hashlib
import json
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from fcdd.calibration import DEFAULT_SCORE, Calibration, Decider, Score, is_empty
from fcdd.cropping import Crop
from fcdd.errors import BundleError
from fcdd.images import View
from fcdd.io import storage
from fcdd.normalization import Normalization
from fcdd.resizing import Resizer
from fcdd.sample import Sample

FORMAT_VERSION: Literal[3] = 3
WEIGHTS_FILE, SPEC_FILE, CARD_FILE = "model.safetensors", "bundle.json", "README.md"
Side = Annotated[int, Field(ge=1, le=65_535)]
# Beside them: what the training learned, for a person.
PAGE_FILE = "training.html"
SAMPLE_FILE = "sample.safetensors"
FILES = (WEIGHTS_FILE, CARD_FILE, SPEC_FILE)  # the specification last: it makes the bundle readable


class TrainingRecord(BaseModel):
    """Where the weights came from; nothing here is needed for scoring."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: str = Field(description="location of the nominal images")
    num_training: int
    num_calibration: int
    data_digest: str = Field(description="sha256 over (uri, etag, size) of every listed image")
    options: dict[str, str | int | float | bool | None]
    versions: dict[str, str]
    metrics: dict[str, float] = Field(default_factory=dict, description="of the last epoch, and of labelled images")


class BundleSpec(BaseModel):
    """Everything but the weights. Sizes are (height, width) in pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format_version: Literal[3] = FORMAT_VERSION
    network: str
    channels: Literal[1, 3]
    input_size: tuple[Side, Side]
    full_scale: float | None = Field(
        None,
        gt=0,
        exclude_if=is_empty,
        description="value that is white in files of 16 bits, or of floating-point values",
    )
    crop: Annotated[str, AfterValidator(Crop.checked)] | None = Field(
        None, exclude_if=is_empty, description="the part of each image that is seen: X,Y,WIDTH,HEIGHT in pixels or %"
    )
    resizer: Resizer = Field(
        "pillow", exclude_if=lambda by: by == "pillow", description="what makes images as small as the input"
    )
    ignored: tuple[Annotated[str, Field(pattern="^[01]+$")], ...] = Field(
        (), exclude_if=is_empty, description="cells of the map that do not count, 1, row by row; none by default"
    )
    normalization: Normalization
    gaussian_std: float = Field(gt=0, le=65_535, description="of the heatmap upsampling, in input pixels")
    gaussian_extent: int | None = Field(None, ge=1, description="its extent in pixels; default: the receptive field")
    score: Score = Field(DEFAULT_SCORE, description="statistic of the map that is the anomaly score and is calibrated")
    calibration: Calibration
    calibrated_on: str = Field(description="location of the calibration images, or the run they were reviewed in")
    calibration_sources: tuple[str, ...] = Field(
        (), exclude_if=is_empty, description="locations, and nights of collections, whose images calibrate it"
    )
    parent: str | None = Field(None, description="digest of the bundle whose weights these are, if it was recalibrated")
    training: TrainingRecord
    weights_sha256: str
    sample_sha256: str | None = Field(
        None, exclude_if=is_empty, description="of a few images with their scores, which lie beside the weights"
    )

    @model_validator(mode="after")
    def _ignores_a_part(self) -> Self:
        if self.ignored and (
            len({len(row) for row in self.ignored}) > 1 or not any("0" in row for row in self.ignored)
        ):
            raise ValueError("the ignored cells are no table, or they are all cells")
        return self

    @property
    def view(self) -> View:
        """How images are decoded for the network."""
        crop = Crop.parse(self.crop) if self.crop else None
        return View(self.input_size, self.channels, self.full_scale, crop, self.resizer)

    @property
    def thresholds(self) -> dict[Score, float]:
        """Of the anomaly score, and of the largest value of a map."""
        return {"maximum": self.calibration.map_threshold, self.score: self.calibration.threshold}

    @property
    def ignored_cells(self) -> npt.NDArray[np.bool_] | None:
        """Cells of the map (U,V) that do not count, if there are any."""
        return np.array([[cell == "1" for cell in row] for row in self.ignored]) if self.ignored else None

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON, hexadecimal."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def save(uri: str, spec: BundleSpec, weights: bytes, sample: bytes | None = None) -> None:
    """Write the files of a bundle, the specification last. One without a sample leaves none that lay there."""
    stale = storage.join(uri, SAMPLE_FILE)
    if sample is None and storage.exists(stale):
        storage.delete(stale)
    for name, content in to_files(spec, weights, sample).items():
        storage.write(storage.join(uri, name), content)


def to_files(spec: BundleSpec, weights: bytes, sample: bytes | None = None) -> dict[str, bytes]:
    """File name -> content, in the order they must be written. `sample` is that of `sample_sha256`."""
    document = {"digest": spec.digest, **spec.model_dump(mode="json")}
    contents = {
        WEIGHTS_FILE: weights,
        CARD_FILE: model_card(spec).encode(),
        SPEC_FILE: (json.dumps(document) + "\n").encode(),
    }
    beside = {} if sample is None else {SAMPLE_FILE: sample}
    return beside | {name: contents[name] for name in FILES}


def load(uri: str) -> tuple[BundleSpec, bytes]:
    """The verified specification and the weights; loads no torch.

    Raises BundleError, or ConfigError for a location that cannot be read.
    """
    try:
        weights = storage.read(storage.join(uri, WEIGHTS_FILE))
        document = storage.read(storage.join(uri, SPEC_FILE))
    except FileNotFoundError as error:
        raise BundleError(f"no bundle at {uri}: {error} does not exist; train one with `fcdd train`") from error
    return from_files(document, weights, source=uri), weights


def load_sample(uri: str, spec: BundleSpec) -> bytes | None:
    """The sample of a bundle as it is stored; None where it has none, or was copied without it.

    Raises BundleError for another one than the specification names, ConfigError for a location that cannot be read.
    """
    if spec.sample_sha256 is None:
        return None
    try:
        sample = storage.read(storage.join(uri, SAMPLE_FILE))
    except FileNotFoundError:
        return None
    if hashlib.sha256(sample).hexdigest() != spec.sample_sha256:
        raise BundleError(f"{uri}/{SAMPLE_FILE} is not the one that the bundle names; copy the bundle again")
    return sample


def sample_of(sample: bytes | None) -> Sample | None:
    """What a stored sample holds. Raises BundleError for one that cannot be read."""
    return None if sample is None else Sample.from_bytes(sample)


def from_files(document: bytes, weights: bytes, *, source: str) -> BundleSpec:
    """The verified specification of `bundle.json` and its weights; BundleError naming `source` otherwise."""
    try:
        fields = json.loads(document)
        digest = fields.pop("digest")
        version = fields.get("format_version")
        if version != FORMAT_VERSION:
            raise BundleError(f"{source} has bundle format {version!r}, this version reads format {FORMAT_VERSION}")
        if not fields.get("calibration"):
            raise BundleError(
                f"the bundle {source} has no calibration: without scores of nominal images nothing can be decided; "
                "train again, or take a copy that has one"
            )
        spec = BundleSpec.model_validate(fields)
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError, RecursionError, ValidationError) as error:
        what = str(error).splitlines() or [type(error).__name__]
        raise BundleError(f"{source}/{SPEC_FILE} is not a bundle specification: {' '.join(what[:3])[:500]}") from error
    if hashlib.sha256(weights).hexdigest() != spec.weights_sha256 or spec.digest != digest:
        raise BundleError(f"{source} does not match its digest: it was damaged or edited; train or copy it again")
    return spec


def _metric_lines(metrics: dict[str, float]) -> str:
    return "".join(f"- {name}: {value:.4g}\n" for name, value in sorted(metrics.items()))


def _geometry_lines(spec: BundleSpec) -> str:
    ignored = spec.ignored_cells
    lines = [
        f"- of each image the part {spec.crop} (left, top, width, height) is seen\n" if spec.crop else "",
        "" if ignored is None else f"- {ignored.mean():.0%} of the map do not count\n",
        f"- {spec.full_scale:g} is white in files of 16 bits\n" if spec.full_scale else "",
    ]
    return "".join(lines)


def _parent(spec: BundleSpec) -> str:
    return f", with the weights of `{spec.parent[:12]}`" if spec.parent else ""


def _group_lines(calibration: Calibration) -> str:
    if not calibration.groups:
        return ""
    how = "each with a threshold of its own" if calibration.decide_by_group else "told apart for drift"
    counts = ", ".join(f"`{group}` {reference.num_images}" for group, reference in calibration.groups.items())
    return f"\n- groups of calibration images, {how}: {counts}"


def _region_words(decide: Decider) -> str:
    if decide.decides_by_regions:
        return ", and an image with one is an alarm whatever its score: the promised rate holds for both together"
    return f": a share of about {decide.alpha:g} of nominal images has one"


_SCORES: dict[Score, str] = {"mean": "the mean", "maximum": "the maximum", "top1pct": "the mean of the top 1 %"}


def model_card(spec: BundleSpec) -> str:
    """The README of a bundle, for a person."""
    calibration, training = spec.calibration, spec.training
    decide = Decider(calibration, calibration.alpha)
    left_out = "of them, each scored by the statistics of all others"
    others = left_out if calibration.is_leave_one_out else "other nominal images"
    options = "\n".join(
        f"| {name} | {'left open' if value is None else value} |" for name, value in sorted(training.options.items())
    )
    return f"""# Anomaly detector `{spec.digest[:12]}`

Fully Convolutional Data Description (Liznerski et al., ICLR 2021): {_SCORES[spec.score]} of its anomaly map is
the score.

- network `{spec.network}`, input {spec.input_size[0]}x{spec.input_size[1]} pixels, {spec.channels} channel(s)
{_geometry_lines(spec)}\
- trained on {training.num_training} nominal images of `{training.images}` with synthetic anomalies
- calibrated on {calibration.pooled.num_images} {others} (`{spec.calibrated_on}`{_parent(spec)})
- scores above {calibration.threshold:.6g} are anomalous, with a promised false-alarm rate of {calibration.alpha:g}; the
  smallest possible p-value is {decide.smallest_p_value:.4g}
- map values above {calibration.map_threshold:.6g} make a region{_region_words(decide)}{_group_lines(calibration)}

{_metric_lines(training.metrics)}
It knows these nominal images only: another camera, product or light needs another training or calibration.

| option | value |
|---|---|
{options}
"""
