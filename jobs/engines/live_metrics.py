"""What a run does, as metrics of Ray, which Prometheus reads from the nodes while the run lasts.

What became of runs that are over, and whether one is missing, `fcdd metrics` takes from their records.
"""

from collections import Counter

from ray.util import metrics

from jobs.engines.stages import Receipt, seconds_of


class LiveMetrics:
    """Counts receipts of staged shards. Ray names them ray_fcdd_...; counters end in _total."""

    def __init__(self, collection: str) -> None:
        self._tags = {"collection": collection}
        by = ("collection",)
        self.scored = metrics.Counter("fcdd_images_scored", description="images scored", tag_keys=by)
        self.quarantined = metrics.Counter(
            "fcdd_images_quarantined", description="images quarantined", tag_keys=(*by, "reason")
        )
        self.alarms = metrics.Counter("fcdd_alarms", description="anomalous images", tag_keys=by)
        self.bytes = metrics.Counter("fcdd_image_bytes", description="encoded bytes of staged images", tag_keys=by)
        self.seconds = metrics.Counter(
            "fcdd_stage_seconds", description="seconds of workers, by stage", tag_keys=(*by, "stage")
        )
        self.queue = metrics.Gauge("fcdd_queue_images", description="images listed and not staged yet", tag_keys=by)

    def count(self, receipt: Receipt) -> None:
        """Count a staged shard."""
        counted = [
            (self.scored, receipt["rows"] - receipt["failed"], {}),
            (self.alarms, receipt["alarms"], {}),
            (self.bytes, receipt["bytes"], {}),
            *((self.quarantined, n, {"reason": reason}) for reason, n in Counter(receipt["reasons"]).items()),
            *((self.seconds, value, {"stage": stage}) for stage, value in seconds_of(receipt).items()),
        ]
        for counter, amount, tags in counted:
            if amount > 0:  # Ray refuses to count nothing
                counter.inc(amount, self._tags | tags)

    def waiting(self, images: int) -> None:
        """Images that are listed and not staged."""
        self.queue.set(images, self._tags)
