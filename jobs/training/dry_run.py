"""`fcdd train --dry-run`: everything that can be known before the first step, and nothing written."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from fcdd import networks
from fcdd.calibration import images_needed
from fcdd.errors import ConfigError
from fcdd.io import storage
from fcdd.io.storage import ObjectInfo
from jobs.shell import machine
from jobs.sources import fetching, listing
from jobs.sources.fetching import Failure
from jobs.training import checks, chosen, ignoring, prepare
from jobs.training.checkpoints import Checkpoints
from jobs.training.prepare import Inputs
from jobs.training.settings import TrainSettings, with_preset
from jobs.training.train_loop import LoopConfig

# So many images are decoded, spread over the list: a wrong folder, or files that are none, are found by a few.
LOOKED_AT = 16


def dry_run(settings: TrainSettings) -> None:
    """Print what a training would do. Raises ConfigError for what would stop it before its first step."""
    given, settings = settings.model_fields_set, with_preset(settings)
    location = storage.normalize(settings.checkpoints or storage.join(settings.bundle, "_checkpoints"))
    store = Checkpoints(location, settings.keep_checkpoints)
    checks.check_options(settings)
    checks.check_places(settings, store)
    checks.warn_of_ignored_options(given, settings)
    listed = prepare.list_nominal(settings)
    settings = chosen.with_image_size(settings, listed)
    inputs = prepare.find_inputs(settings, listed)
    counts_variants = networks.needs_statistics(settings.network) and not networks.names_modes(settings.network)
    prepare.check_enough(settings, inputs)
    conditions = checks.conditions(settings, listing.digest(listed))
    checks.check_resumable(settings, store, conditions)
    settings = chosen.with_stages(chosen.with_full_scale(settings, inputs.training))
    weights = prepare.initial_weights(settings, writes=False)
    _check_folder(storage.normalize(settings.bundle))
    loop = prepare.loop_config(settings, inputs, frozenset(), weights, location, conditions)
    print("\n".join(f"{name:12} {text}" for name, text in _lines(settings, inputs, loop, counts_variants)))


def _lines(
    settings: TrainSettings, inputs: Inputs, loop: LoopConfig, counts_variants: bool
) -> Iterator[tuple[str, str]]:
    height, width = loop.input_size
    field = networks.geometry(settings.network, loop.input_size)
    size = (
        f"{height}x{width} pixels ({height * width / 1e6:.2f} megapixels), a map of {field.height}x{field.width} cells"
    )
    if settings.crop:
        size += f", of the part {settings.crop} of each image"
    held_out, steps = len(inputs.calibration), -(-len(inputs.training) // settings.batch_size)
    listed = sum(info.size for info in inputs.listed) / 1e9
    yield "images", f"{len(inputs.listed)} under {storage.normalize(settings.images)}, {listed:.3f} GB"
    looked_at, sizes = _looked_at(inputs.training, loop)
    yield "looked at", looked_at
    if (ignored := ignoring.ignored_cells(settings, sizes)) is not None:
        yield "ignored", f"{ignored.mean():.0%} of the map, under the mask {settings.ignore}"
    yield (
        "training on",
        f"{len(inputs.training)}: {loop.options.epochs} epochs of {steps} steps of {settings.batch_size}",
    )
    needed = images_needed(settings.alpha)
    how = "all of these, each left out of its statistics" if inputs.is_leave_one_out else f"{held_out} held out"
    yield "calibrated", f"by {how}; a false-alarm rate of {settings.alpha:g} needs {needed}"
    counts = {"outliers": len(inputs.outliers), "labelled ones": len(inputs.anomalous)}
    also = "".join(f", {count} {name}" for name, count in counts.items() if count)
    yield "anomalies", f"{settings.anomalies} (synthetic){also}"
    if inputs.labelled:
        yield "measured on", f"{len(inputs.labelled)} labelled images"
    start = "from ImageNet weights, which are at hand"
    has_weights = settings.pretrained and networks.is_pretrained(settings.network)
    yield "network", f"{settings.network}, input of {size}, {start if has_weights else 'from random weights'}"
    if counts_variants:
        yield (
            "",
            "if the images show one variant of the product: the training counts them, and may take another network",
        )
    yield "memory", _memory(settings, loop)
    where = f"{settings.num_workers} of Ray Train" if settings.num_workers else "none: this process, without Ray"
    yield "workers", where + (", a GPU each" if settings.num_workers and settings.gpu else "")
    yield "bundle", storage.normalize(settings.bundle)
    yield "", "dry run: nothing is missing, and nothing was written"


def _looked_at(infos: Sequence[ObjectInfo], loop: LoopConfig) -> tuple[str, set[tuple[int, int]]]:
    """A few images in words, and their sizes (height, width). Raises ConfigError when none of them can be decoded."""
    some = infos[:: -(-len(infos) // LOOKED_AT)]
    found = list(zip(some, fetching.fetch_all(some, loop.view), strict=True))
    broken = [f"{info.uri}: {each.error}" for info, each in found if isinstance(each, Failure)]
    sizes = {(each.width, each.height) for _, each in found if not isinstance(each, Failure)}
    if not sizes:
        raise ConfigError(f"not one of {len(some)} images that were looked at can be decoded; the first is {broken[0]}")
    low, high = min(sizes), max(sizes)
    span = f"{low[0]}x{low[1]}" + (f" to {high[0]}x{high[1]}" if len(sizes) > 1 else "")
    also = f"; {len(broken)} cannot be decoded, the first is {broken[0]}" if broken else ""
    return f"{len(some)}: {span} pixels{also}", {(height, width) for width, height in sizes}


def _memory(settings: TrainSettings, loop: LoopConfig) -> str:
    """What the workers take, beside what this machine has; where there is a cluster, they may run elsewhere."""
    height, width = loop.input_size
    decoded = 0 if loop.stream else len(loop.images) * height * width * loop.channels
    wanted, processes = machine.TRAINING_BYTES + decoded, max(1, settings.num_workers)
    free = psutil.virtual_memory().available
    kept = "streamed in every epoch" if loop.stream else f"{decoded / 1e9:.2f} GB of decoded images"
    times = f"{processes} x " if processes > 1 else ""
    text = f"about {times}{wanted / 1e9:.1f} GB ({kept}); {free / 1e9:.1f} GB are free on this machine"
    if processes * wanted > free and not os.environ.get("RAY_ADDRESS"):
        text += ": too little, unless they run elsewhere; fewer --workers, or a smaller --memory-gb"
    return text


def _check_folder(location: str) -> None:
    """Raises ConfigError for a local folder that cannot be written to; a store cannot be asked without writing."""
    scheme, _, path = location.partition("://")
    there = next(each for each in (Path(path), *Path(path).parents) if each.exists())
    if scheme == "file" and not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise ConfigError(f"{there} is no folder that this user can write to; give another --bundle")
