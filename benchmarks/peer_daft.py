"""What one would write with Daft: its documented pattern of download, decode, resize, a class that scores, Parquet.

    python benchmarks/peer_daft.py BUNDLE IMAGES OUTPUT FIRST

FIRST is a file that is written when the first images are scored. No isolation, no quarantine, no proof, no heatmaps.
"""

import os
import sys
import time
from pathlib import Path

import daft
import numpy as np
from daft import DataType, Series, col


@daft.cls(max_concurrency=int(os.environ.get("PEER_WORKERS", "2")))
class Scorer:
    """Loads the network once."""

    def __init__(self, uri: str, first: str) -> None:
        import torch

        from fcdd import bundle, detector

        torch.set_num_threads(1)
        self.spec, weights = bundle.load(uri)
        self.network = detector.deserialize(weights, self.spec.network, self.spec.channels, self.spec.input_size).eval()
        self.first = Path(first)

    @daft.method.batch(return_dtype=DataType.float32(), batch_size=16)  # type: ignore[untyped-decorator]
    def score(self, images: Series) -> list[float]:
        """The maximum of each map."""
        import torch

        from fcdd import objective

        pixels = torch.from_numpy(np.stack(images.to_pylist()))
        with torch.inference_mode():
            maps = objective.anomaly_map(self.network(self.spec.normalization(pixels)))
        if not self.first.exists():
            self.first.write_text(str(time.time()))
        found: list[float] = maps.amax((1, 2, 3)).tolist()
        return found


def main() -> None:
    """Score every image."""
    uri, images, output, first = sys.argv[1:]
    config = None
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        s3 = daft.io.S3Config(
            endpoint_url=endpoint,
            key_id=os.environ["AWS_ACCESS_KEY_ID"],
            access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
        )
        config = daft.io.IOConfig(s3=s3)
    from fcdd import bundle

    height, width = bundle.load(uri)[0].input_size
    frame = daft.from_glob_path(f"{images}/**/*.*", io_config=config)
    encoded = col("path").download(on_error="null", io_config=config)
    image = encoded.decode_image(on_error="null", mode="RGB").resize(width, height)
    scored = frame.with_column("score", Scorer(uri, first).score(image)).select("path", "score")
    scored.write_parquet(output, io_config=config)


if __name__ == "__main__":
    main()
