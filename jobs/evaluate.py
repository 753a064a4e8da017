"""`fcdd evaluate`: committed runs and labels -> how well they separate, with the conditions it was measured under."""

import json
import math
import sys
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from fcdd.io import storage
from fcdd.metrics import Estimate
from jobs.catalog import commit_records
from jobs.measuring import evaluation, evaluation_page
from jobs.measuring.evaluation import Evaluation
from jobs.results import Results
from jobs.shell import formatting, process
from jobs.shell.settings import LookingSettings, Night
from jobs.sources.locations import Locations
from jobs.sources.moves import Moves


def _page(location: str) -> str:
    if not location.lower().endswith((".html", ".htm")):
        raise ValueError("expected a file or object that ends in .html; what is printed is chosen with --format")
    return location


# Labels of a smaller share of the scored images were chosen by somebody.
_NEARLY_ALL = 0.9


class EvaluateSettings(LookingSettings):
    """Compare the scores of committed runs with labels. Published experiments: `fcdd reproduce`.

    The labels are a CSV or Parquet file with the columns image_uri (the whole location, or a unique end of it, such as
    a file name) and label (0 or good, 1 or bad, ...), and if you like defect_class and mask_uri; or a location of
    images in folders: good/ (or ok/, nominal/), and defect/ or folders named by the kind of defect. Images without a
    label do not count. Heatmaps are compared with masks where there are some: pixel AUROC, and AUPRO, the area under
    the per-region overlap up to 30 % of false pixels.
    """

    verb: ClassVar[str] = "evaluate"

    results: str = Field(description="location of the results")
    collection: str | None = Field(None, description="image collection; needed where there are several")
    date: Night | None = Field(None, description="night, YYYY-MM-DD; default: all nights of the latest bundle")
    labels: str = Field(
        description="labels: a .csv or .parquet file, or a location of folders such as good/ and defect/"
    )
    masks: str | None = Field(
        None, description="location of masks of the anomalous images, named like them (or NAME_mask): 255 is anomalous"
    )
    format: Literal["text", "json"] = Field("text", description="text for people, json for programs")
    locations: list[str] = Field(
        default_factory=list, description="further location whose images the page may show; the runs' own always may"
    )
    output: Annotated[str, AfterValidator(_page)] | None = Field(
        None, description="page to write (.html): curves, shares by group and kind of defect, what was missed"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: evaluate(EvaluateSettings.parse(argv)))


def evaluate(settings: EvaluateSettings) -> None:
    """Measure, print the figures with their conditions, and write the page if one is wanted."""
    records = commit_records.of_latest_bundle(
        commit_records.of_one_collection(
            commit_records.committed(settings.results, settings.collection, first=settings.date, last=settings.date)
        )
    )
    moves = Moves.parse(settings.moved)
    records = [moves.record(each) for each in records]
    found, joined = evaluation.evaluate(settings.results, records, labels=settings.labels, masks=settings.masks)
    if settings.format == "json":
        print(json.dumps(formatting.json_values(found), indent=1))
    else:
        scores = Results(storage.normalize(settings.results), tuple(records))
        [(num_scored,)] = scores.sql("SELECT count(DISTINCT image_uri) FROM scores").fetchall()
        print("\n".join(_lines(found, num_scored)))
    if settings.output:
        place = storage.normalize(settings.results)
        locations = Locations.of_records(place, records, settings.locations, moves)
        page = evaluation_page.build(found, joined, Results(place, tuple(records)), locations)
        storage.write(storage.normalize(settings.output), page)
        print(f"page        {settings.output}", file=sys.stderr if settings.format == "json" else sys.stdout)


def _lines(found: Evaluation, num_scored: int) -> list[str]:
    first, alpha = found.metrics["anomaly_score"], f"{100 * found.alpha:g} %"
    lines = [
        f"runs        {', '.join(found.runs)}",
        f"model       {found.model[:12]}",
        f"images      {first.num_nominal} nominal, {first.num_anomalous} anomalous; "
        f"{found.num_without_score} of {found.num_labels} labelled images have no score",
        *_chosen(first.num_nominal + first.num_anomalous, num_scored),
        f"alarms      {found.detection_rate:.4f} of the anomalous images; false alarms {found.false_alarm_rate:.4f} of "
        f"the nominal ones (promised: {found.alpha:g})",
        *(f"  {name:10}{_interval(each)}" for name, each in found.alarms._asdict().items()),
        f"scores      {'AUROC (95 % interval)':27} {'average precision':27} found at {alpha} false alarms",
    ]
    for column, name in evaluation.SCORES.items():
        each = found.metrics[column]
        shown = "".join(f"{_interval(value):28}" for value in (each.auroc, each.average_precision, each.detection))
        lines.append(f"  {name:9}{'*' if name == found.score else ' '} {shown}".rstrip())
    return [*lines, "            * the score of the bundle", _advice(found), *_rates(found), *_parts(found)]


def _chosen(labelled: int, num_scored: int) -> list[str]:
    """That somebody may have chosen which images are labelled."""
    if labelled >= _NEARLY_ALL * num_scored:
        return []
    return [
        f"            {labelled} of the {num_scored} scored images are labelled, and all rates are of those: where the",
        "            most anomalous ones were looked at, as in a review, false alarms are rarer than that",
    ]


def _interval(value: Estimate) -> str:
    return f"{value.value:.4f} ({value.low:.4f} to {value.high:.4f})"


def _advice(found: Evaluation) -> str:
    """Which score would be better."""
    return f"better      {evaluation.advice(found)}"


def _rates(found: Evaluation) -> list[str]:
    """What other promised rates would find."""
    if not found.rates:
        return []
    return [
        "rates       promised  found   false alarms   (by the p-values of these runs; `fcdd calibrate",
        f"{'':45}--alpha` may decide by regions or groups anew)",
        *(
            f"            {each.alpha:<8g}  {each.detection_rate:.4f}  {each.false_alarm_rate:.4f}"
            for each in found.rates
        ),
    ]


def _parts(found: Evaluation) -> list[str]:
    """Groups, kinds of defects and pixels, where there are any."""
    lines = []
    if len(found.groups) > 1:
        names = [formatting.printable(each.name) or "(none)" for each in found.groups]
        width = max(9, *map(len, names))
        lines += [f"{'groups':{width + 2}} nominal  false alarms  anomalous  found  AUROC"]
        lines += [
            f"  {name:{width}} {each.num_nominal:7}  {each.num_false_alarms:12}  {each.num_anomalous:9}  "
            f"{each.num_detected:5}  {'-' if math.isnan(each.auroc) else f'{each.auroc:.4f}'}"
            for name, each in zip(names, found.groups, strict=True)
        ]
    if any(each.name for each in found.kinds):
        kinds = [formatting.printable(each.name) or "(not said)" for each in found.kinds]
        width = max(10, *map(len, kinds))
        lines += [f"{'defects':{width + 2}} images  found  share (95 % interval)       AUROC"]
        lines += [
            f"  {name:{width}} {each.num_images:6}  {each.num_detected:5}  {_interval(each.detection):26}  "
            f"{each.auroc:.4f}"
            for name, each in zip(kinds, found.kinds, strict=True)
        ]
    if found.pixels:
        pixels, without = found.pixels, found.num_without_mask
        left_out = f"; {formatting.plural(without, 'anomalous image')} without a mask left out" if without else ""
        lines += [
            f"pixels      AUROC {_interval(pixels.auroc)}, AUPRO {_interval(pixels.aupro)}: "
            f"{pixels.num_images} images, {pixels.num_regions} regions{left_out}"
        ]
    return lines


if __name__ == "__main__":
    process.exit_with(main())
