"""`fcdd metrics`: what became of the latest runs, for Prometheus, from their commit records."""

import logging
import threading
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from fcdd.errors import ConfigError
from fcdd.io import storage
from jobs.shell import process
from jobs.shell.settings import JobSettings
from jobs.viewing import gauges
from schemas import Layout

log = logging.getLogger(__name__)


class MetricsSettings(JobSettings):
    """Tell Prometheus of the latest run of every collection, and of every drift, quarantine and alarm in it.

    The page is read by anyone who reaches the port: it holds numbers and names of collections, no images.
    """

    verb: ClassVar[str] = "metrics"

    results: str = Field(description="location of the results")
    collection: str | None = Field(None, description="only this collection")
    port: int = Field(9464, ge=1, le=65535, description="port of the page")
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0: every interface")
    once: bool = Field(False, description="print the page and end: for a Pushgateway or a textfile collector")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: serve(MetricsSettings.parse(argv)))


def serve(settings: MetricsSettings) -> None:
    """Serve the page until interrupted, or print it."""
    try:
        import prometheus_client
    except ImportError as error:
        raise ConfigError("to serve metrics: pip install 'fcdd-at-scale[cluster]'") from error
    registry = prometheus_client.CollectorRegistry(auto_describe=False)
    registry.register(gauges.Records(Layout(storage.normalize(settings.results)), settings.collection))
    if settings.once:
        print(prometheus_client.generate_latest(registry).decode(), end="")
        return
    try:
        prometheus_client.start_http_server(settings.port, settings.host, registry)
    except OSError as error:
        raise ConfigError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from error
    log.info("metrics at http://%s:%d/metrics   (Ctrl-C stops)", settings.host, settings.port)
    threading.Event().wait()


if __name__ == "__main__":
    process.exit_with(main())
