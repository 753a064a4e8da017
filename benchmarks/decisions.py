"""Do the promises over scores hold on real images (false alarms, discoveries, drift, near-duplicates), at what cost?

    python -m benchmarks.decisions [--splits 20] [--runs 100] [--seed 0] [--smoke]

One whitened network is trained on 28 % of the nominal ELPV cells; all others are scored once, as they are and
disturbed. A split draws calibration images and a run of 500 from them at random, and decides by the code of the jobs.
Prints what goes into results/.
"""

import argparse
import copy
import functools
import io
import itertools
import json
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image, ImageChops, ImageFilter
from scipy import stats

from fcdd import (
    augmentation,
    calibration,
    drift,
    duplicates,
    heatmap,
    images,
    networks,
    normalization,
    regions,
    splits,
    supervision,
    training,
)
from fcdd.calibration import STATISTICS, Calibration, Decider, Nominal
from fcdd.drift import AlarmLaw
from fcdd.images import DecodedImage, View
from fcdd.inference import Runner
from fcdd.paper import datasets
from fcdd.paper.datasets import LabelledImage
from fcdd.scores import summarise
from fcdd.supervision import TrainingSet
from fcdd.training import Sampling, TrainOptions
from jobs.scoring import decisions
from jobs.scoring.decisions import Counts

NETWORK = "whitened:efficientnet_lite0:stage4+stage3+stage5:2"
SIZE = (224, 224)
RUN = 500
TRAINED_SHARE = 0.28
ALPHAS = (0.01, 0.05, 0.1)
RATES = (0.05, 0.1, 0.2)
MIXTURES = (0.01, 0.05, 0.2)
DEFECTS, BASELINE_DEFECTS = 0.02, 0.001
Change = Callable[[Image.Image], Image.Image]
T = TypeVar("T")


def unchanged(image: Image.Image) -> Image.Image:
    """As it is."""
    return image


def scaled(factor: float, image: Image.Image) -> Image.Image:
    """Brighter or darker."""
    return image.point(lambda value: min(255, round(value * factor)))


def blurred(image: Image.Image) -> Image.Image:
    """A lens out of focus: 1.5 pixels."""
    return image.filter(ImageFilter.GaussianBlur(1.5))


@functools.cache
def _dirt(size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """How much light is left: a soft round spot of 5 % of the area takes 35 %."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    radius = np.sqrt(0.05 * width * height / np.pi)
    distance = np.hypot(y - DIRT_AT[1] * height, x - DIRT_AT[0] * width)
    light: npt.NDArray[np.float64] = 1 - 0.35 * np.clip((radius - distance) / 6 + 0.5, 0, 1)
    return light


DIRT_AT = (0.67, 0.3)  # of width and height


def dirty(image: Image.Image) -> Image.Image:
    """A spot on the lens, at the same place of every image."""
    return Image.fromarray((np.asarray(image) * _dirt(image.size)).round().astype(np.uint8))


def broken(image: Image.Image) -> Image.Image:
    """A dead patch of 4 % of the area, at a place of its own."""
    generator = np.random.default_rng(int(np.asarray(image, np.int64).sum()))
    side = int(0.2 * min(image.size))
    left, top = (int(generator.integers(0, size - side)) for size in image.size)
    patched = image.copy()
    patched.paste(scaled(0.4, image.crop((left, top, left + side, top + side))), (left, top))
    return patched


CHANGES: dict[str, Change] = {
    "brightness +10 %": functools.partial(scaled, 1.1),
    "brightness -10 %": functools.partial(scaled, 0.9),
    "blur of 1.5 px": blurred,
    "dirt on 5 % of the lens": dirty,
}


class Images:
    """Scored images of one kind: what a run stores of each."""

    def __init__(self, cells: list[LabelledImage], change: Change, runner: Runner) -> None:
        decoded = [_decode(cell, change) for cell in cells]
        pixels = [np.stack([image.pixels for image in part]) for part in _pieces(decoded, 64)]
        scored = summarise(np.concatenate([runner(each) for each in pixels]))
        self.maps, self.scores = scored.maps, scored.maximum
        self.statistics = np.array([[getattr(image, name) for name in STATISTICS] for image in decoded], np.float32)
        self.groups = np.array([cell.cell_type for cell in cells], object)
        self.hashes = [image.hash for image in decoded]

    def nominal(self, chosen: npt.NDArray[np.int64]) -> Nominal:
        """For a calibration."""
        scores, groups = self.scores[chosen], self.groups[chosen].tolist()
        return Nominal(scores, scores, self.statistics[chosen], ["PNG"] * len(chosen), groups, self.maps[chosen])


def _pieces(items: list[DecodedImage], size: int) -> list[list[DecodedImage]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _decode(cell: LabelledImage, change: Change) -> DecodedImage:
    sink = io.BytesIO()
    with Image.open(cell.path) as original:
        change(original.convert("L")).save(sink, "PNG", compress_level=1)
    return images.decode(sink.getvalue(), View(SIZE, 3))


def train(cells: list[LabelledImage], seed: int, epochs: int) -> Runner:
    """The demo's recipe."""
    options = TrainOptions(
        epochs=epochs,
        batch_size=32,
        learning_rate=1e-3,
        weight_decay=0.0,
        loss="pixel",
        gaussian_std=8.0,
        seed=seed,
    )
    sampling = Sampling(anomalies=supervision.SYNTHETIC["defects"], augment=augmentation.light(SIZE, "none"), seed=seed)
    pixels = np.stack([_decode(cell, unchanged).pixels for cell in cells])
    torch.manual_seed(seed)
    network = networks.build(NETWORK, in_channels=3, image_size=SIZE)
    scaling = networks.input_normalization(NETWORK) or normalization.estimate("mean_std", torch.from_numpy(pixels))
    networks.load_pretrained(network, NETWORK)
    training.fit_statistics(network, scaling, pixels, seed=seed)
    trainer = training.Trainer(
        network, network.receptive_field, scaling, options, num_images=len(pixels), input_size=SIZE
    )
    network.train()
    steps = epochs * training.num_steps(len(pixels), options)
    for batch in itertools.islice(training.batches(TrainingSet(list(pixels)), sampling, options), steps):
        trainer.step(batch)
    return Runner(copy.deepcopy(network), scaling, SIZE)


def false_alarms(nominal: Images, num_splits: int, generator: np.random.Generator) -> None:
    """The measured false-alarm rate over random splits."""
    for alpha in ALPHAS:
        rates = []
        for _ in range(num_splits):
            order = generator.permutation(len(nominal.scores))
            run, held_out = order[:RUN], order[RUN:]
            decide = Decider(Calibration.fit(nominal.nominal(held_out), alpha=alpha), alpha)
            rates.append(decide(nominal.scores[run], nominal.scores[run], nominal.groups[run].tolist())[1].mean())
        low, high = (limit / RUN for limit in stats.binom(RUN, alpha).interval(0.95))
        law = tuple(limit / RUN for limit in drift.alarm_interval([AlarmLaw.at(RUN, len(held_out), alpha)]))
        mean, inside = float(np.mean(rates)), sum(low <= rate <= high for rate in rates)
        within_law = sum(law[0] <= rate <= law[1] for rate in rates)
        print(
            f"| {alpha:g} | {mean:.4f} | {low:.4f} to {high:.4f} | {'yes' if low <= mean <= high else 'NO'} | "
            f"{inside} of {num_splits} | {law[0]:.4f} to {law[1]:.4f} | {within_law} of {num_splits} |"
        )


def false_discoveries(nominal: Images, anomalous: Images, rounds: int, generator: np.random.Generator) -> None:
    """The mean false-discovery proportion of the Benjamini-Hochberg list."""
    for share in MIXTURES:
        for rate in RATES:
            proportions, found, lengths = [], [], []
            for _ in range(rounds):
                order, count = generator.permutation(len(nominal.scores)), round(share * RUN)
                run, held_out = order[: RUN - count], order[RUN - count :]
                bad = generator.choice(len(anomalous.scores), count, replace=False)
                scores = np.concatenate([nominal.scores[run], anomalous.scores[bad]])
                p = calibration.p_values(scores, np.sort(nominal.scores[held_out]))
                values, copies = np.unique(p, return_counts=True)
                counts = dict(zip(values.tolist(), copies.tolist(), strict=True))
                cut, length = calibration.benjamini_hochberg(counts, rate)
                false = int((p[: len(run)] <= cut).sum())
                proportions.append(false / max(1, length))
                found.append((length - false) / count)
                lengths.append(length)
            error = 2 * np.std(proportions) / np.sqrt(rounds)
            print(
                f"| {share:.0%} | {rate:g} | {np.mean(proportions):.4f} ± {error:.4f} | {np.mean(found):.2f} | "
                f"{np.mean(lengths):.1f} | {np.mean(np.array(lengths) == 0):.0%} |"
            )


def drifts(kinds: dict[str, Images], anomalous: Images, runs: int, generator: np.random.Generator) -> None:
    """How often each change is noticed, and how often nothing is."""
    nominal = kinds["nothing"]
    broken_cells = kinds.pop("broken")
    plan = [(name, BASELINE_DEFECTS, anomalous) for name in kinds]
    plan += [("2 % defective cells", DEFECTS, anomalous), ("2 % cells with a dead patch", DEFECTS, broken_cells)]
    for name, share, defective in plan:
        verdicts, reasons, places = [], dict[str, int](), []
        for _ in range(runs):
            order = generator.permutation(len(nominal.scores))
            count = int(generator.binomial(RUN, share)) if share == BASELINE_DEFECTS else round(share * RUN)
            run, held_out = order[: RUN - count], order[RUN - count :][: len(nominal.scores) - RUN]
            fitted = Calibration.fit(nominal.nominal(held_out), alpha=0.01)
            bad = generator.choice(len(defective.scores), count, replace=False)
            source = kinds.get(name, nominal)
            scopes = decisions.judge(_counts(fitted, [(source, run), (defective, bad)]), fitted, 0.01)
            findings = [(scope.group, each) for scope in scopes for each in scope.findings]
            verdicts.append(drift.worst([each.verdict for _, each in findings]))
            for each in {each.what for _, each in findings if each.verdict == "drifted"}:
                reasons[each] = reasons.get(each, 0) + 1
            average = scopes[0].tally.average_map() - np.array(fitted.pooled.map_mean)
            row, column = np.unravel_index(int(average.argmax()), average.shape)
            places.append(((column + 0.5) / average.shape[1], (row + 0.5) / average.shape[0]))
        drifted, watched, fine = (f"{verdicts.count(verdict)} of {runs}" for verdict in reversed(drift.VERDICTS))
        why = ", ".join(
            f"{what} {count / runs:.0%}" for what, count in sorted(reasons.items(), key=lambda r: -r[1])[:4]
        )
        print(f"| {name} | {drifted} | {watched} | {fine} | {why} |", flush=True)
        if name.startswith("dirt"):
            x, y = np.mean(places, axis=0)
            print(f"\nhottest place of the average map: {x:.2f}, {y:.2f} of width and height; dirt at {DIRT_AT}\n")


def _counts(fitted: Calibration, parts: list[tuple[Images, npt.NDArray[np.int64]]]) -> Counts:
    """As the job counts the rows of a run."""
    decide, counts = Decider(fitted, 0.01), Counts()
    for source, chosen in parts:
        if len(chosen):
            scores, groups = source.scores[chosen], source.groups[chosen].tolist()
            p, alarms = decide(scores, scores, groups)
            rows = _rows(scores, p, alarms, groups, source.maps[chosen], source.statistics[chosen])
            counts.add(decisions.count_rows(rows, fitted))
    return counts


def _rows(
    scores: npt.NDArray[np.float32],
    p: npt.NDArray[np.float64],
    alarms: npt.NDArray[np.bool_],
    groups: list[str],
    maps: npt.NDArray[np.float32],
    statistics: npt.NDArray[np.float32],
) -> pa.Table:
    """What the decisions read of published rows."""
    columns = {
        "anomaly_score": scores,
        "p_value": p,
        "is_anomalous": alarms,
        "image_group": groups,
        "image_format": ["PNG"] * len(scores),
        "heatmap": heatmap.encode_each(maps),
        **dict(zip(STATISTICS, np.asarray(statistics, np.float32).T, strict=True)),
    }
    return pa.table(columns)


def near_duplicates(cells: list[LabelledImage], runner: Runner) -> None:
    """How many pictures of the same cell are joined, and how many pairs of different cells."""
    generator = np.random.default_rng(0)

    def noisy(image: Image.Image) -> Image.Image:
        values = np.asarray(image) + generator.normal(0, 3, (image.height, image.width))
        return Image.fromarray(values.clip(0, 255).astype(np.uint8))

    originals = Images(cells, unchanged, runner)
    pairs = joined = 0
    for one, other in itertools.combinations(range(len(cells)), 2):
        near = np.bitwise_count(
            np.frombuffer(originals.hashes[one], np.uint8) ^ np.frombuffer(originals.hashes[other], np.uint8)
        ).sum()
        pairs += 1
        if near <= duplicates.MAX_DISTANCE:
            two = [originals.hashes[one], originals.hashes[other]], [originals.maps[one], originals.maps[other]]
            joined += int(duplicates.group(*two)[1] == 0)
    print(f"| different cells | {joined} of {pairs} pairs |")
    shots: dict[str, Change] = {
        "5 % brighter": functools.partial(scaled, 1.05),
        "noise of 3 levels": noisy,
        "shifted by 3 and 2 px": lambda image: ImageChops.offset(image, 3, 2),
        "turned by 1 degree": lambda image: image.rotate(
            1, Image.Resampling.BILINEAR, fillcolor=image.getpixel((2, 2))
        ),
    }
    for name, change in shots.items():
        changed = Images(cells, change, runner)
        together = sum(
            int(duplicates.group([a, b], [m, n])[1] == 0)
            for a, b, m, n in zip(originals.hashes, changed.hashes, originals.maps, changed.maps, strict=True)
        )
        print(f"| {name} | {together / len(cells):.0%} |")


def cost(cells: list[LabelledImage], network: str, side: int) -> None:
    """Time per image of deciding, beside that of decoding and of the network, on one thread of one process."""
    size, count = (side, side), len(cells)
    data, groups = [cell.path.read_bytes() for cell in cells], [cell.cell_type for cell in cells]
    built = networks.build(network, in_channels=3, image_size=size).eval()
    scaling = networks.input_normalization(network)
    scaling = scaling or normalization.estimate("mean_std", torch.zeros((1, *size, 3), dtype=torch.uint8))
    field, runner = built.receptive_field, Runner(built, scaling, size)
    timed: dict[str, float] = {}

    def measure(name: str, work: Callable[[], T]) -> T:
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            result = work()
            seconds.append(time.perf_counter() - started)
        timed[name] = 1e6 * min(seconds) / count
        return result

    decoded = measure("decode", lambda: [images.decode(each, View(size, 3)) for each in data])
    pixels = np.stack([image.pixels for image in decoded])
    maps = measure(
        "network", lambda: np.concatenate([runner(pixels[start : start + 64]) for start in range(0, count, 64)])
    )
    greys = [Image.fromarray(each).convert("L") for each in pixels]
    measure("sharpness and hash", lambda: [(images.sharpness(g), images.difference_hash(g)) for g in greys])
    scores, statistics = maps.max((1, 2)), [[getattr(image, name) for name in STATISTICS] for image in decoded]
    nominal = Nominal(scores, scores, np.array(statistics, np.float32), ["PNG"] * count, groups, maps)
    fitted = Calibration.fit(nominal, alpha=0.05)
    p, alarms = measure("p-values and alarms", lambda: Decider(fitted, 0.05)(scores, scores, groups))
    find = functools.partial(regions.find, receptive_field=field, input_size=size, image_size=(300, 300))
    measure("regions", lambda: [find(m, fitted.map_threshold) for m in maps if m.max() > fitted.map_threshold])
    rows = _rows(scores, p, alarms, groups, maps, np.asarray(nominal.statistics, np.float32))
    many = pa.concat_tables([rows] * 20)
    counts = measure("count for list and drift", lambda: decisions.count_rows(many, fitted))
    timed["count for list and drift"] /= 20
    started = time.perf_counter()
    decisions.judge(counts, fitted, 0.05)
    once = time.perf_counter() - started
    work = timed["decode"] + timed["network"] - timed["sharpness and hash"]
    for name, microseconds in timed.items():
        print(f"| {network}, {side} px | {name} | {microseconds:.0f} | {microseconds / work:.2%} |")
    deciding = sum(list(timed.values())[2:])
    print(f"| {network}, {side} px | **all decisions** | {deciding:.0f} | **{deciding / work:.2%}** |")
    print(f"| {network}, {side} px | the verdict, once per run | {once:.2f} s | - |", flush=True)


def main() -> None:
    """Train once, then all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--runs", type=int, default=100, help="undrifted and drifted runs of each kind")
    parser.add_argument("--rounds", type=int, default=200, help="random mixtures for the false-discovery proportion")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only-cost", action="store_true", help="only what deciding costs")
    parser.add_argument("--smoke", action="store_true", help="few images, one epoch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cells = datasets.elpv()
    if arguments.only_cost:
        costs([cell for cell in cells if cell.probability == 0])
        return
    nominal = [cell for cell in cells if cell.probability == 0]
    anomalous = [cell for cell in cells if cell.probability == 1]
    fitted = [cell for cell in nominal if splits.is_held_out(cell.path.name, TRAINED_SHARE)]
    others = [cell for cell in nominal if not splits.is_held_out(cell.path.name, TRAINED_SHARE)]
    if arguments.smoke:
        fitted, others, anomalous = fitted[:64], others[:640], anomalous[:110]
        arguments.splits = arguments.runs = arguments.rounds = 3
    counts = {"trained": len(fitted), "nominal": len(others), "anomalous": len(anomalous), "run": RUN}
    print(json.dumps(vars(arguments) | counts), flush=True)
    runner = train(fitted, arguments.seed, 1 if arguments.smoke else 3)
    kinds = {"nothing": Images(others, unchanged, runner)}
    bad = Images(anomalous, unchanged, runner)
    generator = np.random.default_rng(arguments.seed)
    print("\n| alpha | mean false-alarm rate | 95 % binomial interval | inside | splits inside | law | splits in it |")
    print("|---|---|---|---|---|---|---|")
    false_alarms(kinds["nothing"], arguments.splits, generator)
    print("\n| anomalies | asked FDR | mean false-discovery proportion | found | length | empty |")
    print("|---|---|---|---|---|---|")
    false_discoveries(kinds["nothing"], bad, arguments.rounds, generator)
    print("", flush=True)
    kinds |= {name: Images(others, change, runner) for name, change in (CHANGES | {"broken": broken}).items()}
    print("| change | drifted | watch | ok | because of |\n|---|---|---|---|---|")
    drifts(kinds, bad, arguments.runs, generator)
    print("\n| picture | joined |\n|---|---|")
    near_duplicates(anomalous[:400], runner)
    costs(others)


def costs(cells: list[LabelledImage]) -> None:
    """Of the smallest network and of the demo's."""
    torch.set_num_threads(1)
    print("\n| network | step | microseconds per image | share of the rest |\n|---|---|---|---|")
    cost(cells[:512], "cnn32", 32)
    cost(cells[:256], NETWORK, SIZE[0])


if __name__ == "__main__":
    main()
