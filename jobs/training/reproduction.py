"""A published experiment, class by class, beside the published figures.

Every class that is done leaves one file, so the same command goes on where it was stopped.
"""

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fcdd.errors import ConfigError, FCDDError, ImageError
from fcdd.paper import protocols
from fcdd.paper.protocols import PROTOCOLS, Protocol
from jobs.shell import formatting

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReproductionOptions:
    """Which experiment, on which data, and what is changed for a trial; None: as published."""

    protocol: str
    # Folder with the data sets in their published layouts.
    data: Path
    # Folder for the results of each class and the report.
    output: Path
    classes: list[str] | None
    repetitions: int
    epochs: int | None
    batch_size: int | None
    # Anomalies are made once instead of anew for every sample.
    offline: bool
    # So many images of outlier exposure, drawn once.
    oe_limit: int | None
    weights: Path | None
    pretrained: bool


class ClassResult(NamedTuple):
    """AUROCs in percent over the repetitions of one class."""

    name: str
    image: list[float]
    pixel: list[float]
    aupro: list[float]


def reproduce(options: ReproductionOptions) -> tuple[dict[str, Any], str]:
    """Run what is missing and write report.json and report.md; the document, and its text in Markdown."""
    protocol = _adapted(options)
    classes = _chosen(options, protocol)
    folder = options.output / options.protocol
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror}; give another folder by --output") from error
    for name in classes:
        for seed in range(options.repetitions):
            _make(options, protocol, name, seed, folder)
    # Classes that were done before belong into the report too.
    results = [
        _class_result(options, protocol, name, folder)
        for name in protocol.classes_in(options.data)
        if name in classes or all(_file(folder, name, seed).exists() for seed in range(options.repetitions))
    ]
    document = _document(options, protocol, results)
    markdown = _markdown(document)
    (folder / "report.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / "report.md").write_text(markdown)
    return document, markdown


def _adapted(options: ReproductionOptions) -> Protocol:
    protocol = PROTOCOLS[options.protocol]
    changed = {name: getattr(options, name) for name in ("epochs", "batch_size") if getattr(options, name)}
    return dataclasses.replace(protocol, options=dataclasses.replace(protocol.options, **changed))


def _chosen(options: ReproductionOptions, protocol: Protocol) -> list[str]:
    known = protocol.classes_in(options.data)
    unknown = [name for name in options.classes or () if name not in known]
    if unknown:
        raise ConfigError(f"unknown class {unknown[0]!r} of {options.protocol}; choose from: {', '.join(known)}")
    return [name for name in known if not options.classes or name in options.classes]


def _class_result(options: ReproductionOptions, protocol: Protocol, name: str, folder: Path) -> ClassResult:
    done = [_stored(options, protocol, _file(folder, name, seed)) for seed in range(options.repetitions)]
    return ClassResult(
        name,
        [100 * each["image"]["auroc"]["value"] for each in done],
        [100 * each["pixel"]["auroc"]["value"] for each in done if each["pixel"]],
        [100 * each["pixel"]["aupro"]["value"] for each in done if each["pixel"]],
    )


def _file(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name.replace(' ', '_')}-seed{seed}.json"


def _stored(options: ReproductionOptions, protocol: Protocol, file: Path) -> Any:
    """The result in a file, made with the same options. Raises ConfigError for another one."""
    try:
        stored = json.loads(file.read_text())
        conditions = stored["conditions"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} cannot be read ({type(error).__name__}); remove it to repeat that class") from error
    if conditions != _conditions(options, protocol):
        raise ConfigError(f"{file} was made with other options or data; give another folder by --output, or remove it")
    return stored


def _make(options: ReproductionOptions, protocol: Protocol, name: str, seed: int, folder: Path) -> None:
    """Train and test one class, unless its file is there."""
    file = _file(folder, name, seed)
    if file.exists():
        _stored(options, protocol, file)
        log.info("%s, seed %d: done before", name, seed)
        return
    experiment = protocol.load(options.data, name, seed)
    if options.oe_limit:
        experiment = protocols.limited(experiment, options.oe_limit, seed)
    if options.offline:
        experiment = protocols.offline(protocol, experiment, seed)
    sizes = (len(experiment.training.images), len(experiment.test.labels))
    log.info("%s, seed %d: training on %d images, testing on %d", name, seed, *sizes)
    start = time.perf_counter()

    def report(epoch: int, loss: float) -> None:
        spent, epochs = time.perf_counter() - start, protocol.options.epochs
        log.info("%s, seed %d: epoch %d/%d  loss %.4f  %.0f s", name, seed, epoch + 1, epochs, loss, spent)

    try:
        outcome = protocols.run(
            protocol,
            experiment,
            name,
            seed=seed,
            report=report,
            weights=options.weights,
            pretrained=options.pretrained,
        )
    except (FloatingPointError, ImageError) as error:
        raise TrainingFailed(f"{name}, seed {seed}: {error}") from error
    stored = {
        "class": name,
        "seed": seed,
        "conditions": _conditions(options, protocol),
        **formatting.json_values(outcome),
    }
    stored["seconds"] = round(time.perf_counter() - start, 1)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(stored, indent=1) + "\n")
    partial.replace(file)  # whole, or not at all


class TrainingFailed(FCDDError):
    """A training diverged, or its data went away."""


def _conditions(options: ReproductionOptions, protocol: Protocol) -> dict[str, Any]:
    """What a stored result must agree with, the seed aside."""
    training = json.loads(json.dumps(dataclasses.asdict(protocol.options)))
    del training["seed"]
    weights = hashlib.sha256(options.weights.read_bytes()).hexdigest() if options.weights else None
    return {
        "protocol": protocol.name,
        "data": str(options.data.resolve()),
        "network": protocol.network,
        "pretrained": options.pretrained,
        "weights_sha256": weights,
        "offline": options.offline,
        "oe_limit": options.oe_limit,
        **training,
    }


def _document(options: ReproductionOptions, protocol: Protocol, results: list[ClassResult]) -> dict[str, Any]:
    figures = protocols.published(protocol.name)
    names = protocol.classes_in(options.data)
    published = {source: table for source, table in figures.items() if source != "metric"}
    rows = []
    for result in results:
        position = names.index(result.name)
        rows.append(
            {
                "class": result.name,
                **{kind: values for kind in ("image", "pixel", "aupro") if (values := getattr(result, kind))},
                "published": {
                    source: table["values"][position] for source, table in published.items() if table["values"]
                },
            }
        )
    return {
        "protocol": protocol.name,
        "metric": figures["metric"],
        "conditions": _conditions(options, protocol),
        "differences": [*protocols.NOTES, *protocol.notes],
        "classes": rows,
        "published_means": {source: table["mean"] for source, table in published.items()},
        "complete": len(results) == len(names),
    }


def _markdown(document: dict[str, Any]) -> str:
    """The report for a person: one row per class, ours first, percent."""
    rows = document["classes"]
    kinds = [kind for kind in ("image", "pixel", "aupro") if any(kind in row for row in rows)]
    sources = list(document["published_means"])
    titles = {"image": "image AUROC", "pixel": "pixel AUROC", "aupro": "AUPRO"}
    header = ["class", *(titles[kind] for kind in kinds), *(f"published: {source}" for source in sources)]
    table = [[row["class"], *(_spread(row.get(kind, [])) for kind in kinds), *_figures(row, sources)] for row in rows]
    means = [_spread([float(np.mean([np.mean(row[kind]) for row in rows if kind in row]))]) for kind in kinds]
    table.append(["**mean**", *means, *(f"{document['published_means'][source]:g}" for source in sources)])
    shown = {name: value for name, value in document["conditions"].items() if value not in (None, [], False)}
    conditions = ", ".join(f"{name} {value}" for name, value in shown.items())
    if not document["complete"]:
        conditions += "; a part of the classes: the published means are over all"
    lines = [
        f"# {document['protocol']}",
        "",
        f"Percent. The published figures are of {document['metric']} AUROC unless they say otherwise. {conditions}.",
        "",
        *_table([header, ["---"] * len(header), *table]),
        "",
        "Differences from the official code:",
        "",
        *(f"- {note}" for note in document["differences"]),
    ]
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    """Mean, and standard deviation over the repetitions if there are some."""
    if not values:
        return "-"
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def _figures(row: dict[str, Any], sources: list[str]) -> Iterator[str]:
    return (f"{row['published'][source]:g}" if source in row["published"] else "-" for source in sources)


def _table(rows: list[list[str]]) -> Iterator[str]:
    return (f"| {' | '.join(row)} |" for row in rows)
