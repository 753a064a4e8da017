"""How well does a detector trained on nominal ELPV cells and synthetic anomalies find defective cells?

    python -m benchmarks.elpv [--network NAME] [--image-size PX] [--loss image|pixel] [--epochs N] [--seed N] ...

The split is the demo's: trained on 80 % of 70 % of the nominal cells (defect probability 0), tested on the other
30 % and on all anomalous cells (probability 1). One process, no Ray; prints one JSON line.
"""

import argparse
import copy
import dataclasses
import json
import time

import numpy as np
import torch

from fcdd import augmentation, images, metrics, networks, normalization, splits, supervision, training
from fcdd.images import View
from fcdd.inference import Runner
from fcdd.paper import datasets
from fcdd.paper.datasets import LabelledImage
from fcdd.scores import summarise
from fcdd.supervision import TrainingSet
from fcdd.training import Sampling, TrainOptions


def parse() -> argparse.Namespace:
    """Options; the defaults are those of the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="whitened:efficientnet_lite0:stage4+stage3+stage5:2")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--loss", choices=("image", "pixel"), default="pixel")
    parser.add_argument("--anomalies", choices=sorted(supervision.SYNTHETIC), default="mixed")
    parser.add_argument("--augmentation", choices=("none", "flips", "brightness", "all"), default="none")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--gaussian-std", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--each-epoch", action="store_true", help="print a line after each epoch, and one before")
    parser.add_argument("--smoke", action="store_true", help="one epoch of few images")
    return parser.parse_args()


def load(cells: list[LabelledImage], size: int) -> np.ndarray:
    """(N, size, size, 3) uint8."""
    return np.stack([images.decode(c.path.read_bytes(), View((size, size), 3)).pixels for c in cells])


def main() -> None:
    """Train, test, print."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    size = (arguments.image_size, arguments.image_size)
    cells = datasets.elpv()
    nominal = [cell for cell in cells if cell.probability == 0]
    held_out = [cell for cell in nominal if splits.is_held_out(cell.path.name, 0.3)]
    fitted = [c for c in nominal if c not in held_out and not splits.is_held_out(f"{c.cell_type}/{c.path.name}", 0.2)]
    anomalous = [cell for cell in cells if cell.probability == 1]
    if arguments.smoke:
        fitted, held_out, anomalous, arguments.epochs = fitted[:64], held_out[:16], anomalous[:16], 1
    fields = {field.name for field in dataclasses.fields(TrainOptions)}
    options = TrainOptions(**{name: value for name, value in vars(arguments).items() if name in fields})
    sampling = Sampling(
        anomalies=supervision.SYNTHETIC[arguments.anomalies],
        augment=augmentation.light(size, arguments.augmentation),
        seed=arguments.seed,
    )
    start = time.perf_counter()
    pixels = load(fitted, arguments.image_size)
    torch.manual_seed(options.seed)
    network = networks.build(arguments.network, in_channels=3, image_size=size)
    scaling = networks.input_normalization(arguments.network)
    if scaling is None:
        scaling = normalization.estimate("mean_std", torch.from_numpy(pixels))
    else:
        networks.load_pretrained(network, arguments.network)
    training.fit_statistics(network, scaling, pixels, seed=options.seed)
    trainer = training.Trainer(
        network, network.receptive_field, scaling, options, num_images=len(pixels), input_size=size
    )
    labels = np.repeat([0, 1], [len(held_out), len(anomalous)])
    test = load(held_out + anomalous, arguments.image_size)
    counts = {"trained": len(fitted), "nominal": len(held_out), "anomalous": len(anomalous)}

    def report(epoch: int, seconds: float) -> None:
        scored = summarise(Runner(copy.deepcopy(network), scaling, test.shape[1:3])(test))
        auroc = {
            name: round(metrics.image_metrics(labels, getattr(scored, name).astype(float), resamples=0).auroc.value, 4)
            for name in ("mean", "maximum", "top1pct")
        }
        conditions = {k: v for k, v in vars(arguments).items() if k not in ("smoke", "each_epoch", "threads")}
        print(
            json.dumps({**conditions, **counts, "epoch": epoch, "seconds": round(seconds), "auroc": auroc}), flush=True
        )

    seconds = time.perf_counter() - start
    if arguments.each_epoch:
        report(0, seconds)
    batches = training.batches(TrainingSet(list(pixels)), sampling, options)
    for epoch in range(options.epochs):
        start = time.perf_counter()
        network.train()
        for _ in range(training.num_steps(len(pixels), options)):
            trainer.step(next(batches))
        seconds += time.perf_counter() - start
        if arguments.each_epoch or epoch + 1 == options.epochs:
            report(epoch + 1, seconds)


if __name__ == "__main__":
    main()
