"""Listing an image collection: what is an image, what a run must do, and the record of both.

The manifest is the immutable definition of a run: one row per image, sorted by URI, without duplicates,
numbered from 0, in Parquet parts under the run's staging folder. `plan.json` is created last, once, and names
the manifest by its digest: of two processes that list at the same time, one adopts the other's plan.
"""

import hashlib
import io
import logging
from collections.abc import Iterator
from datetime import date, datetime

import pyarrow as pa
import pyarrow.parquet as pq

from fcdd import images, storage
from fcdd.errors import ConfigError
from fcdd.storage import ObjectInfo
from schemas import MANIFEST, Layout, conform
from schemas.runs import Plan

# A decode task reads the part its slice is in, so parts are not much larger than slices.
PART_ROWS = 8_192

log = logging.getLogger(__name__)


def list_images(prefix: str) -> list[ObjectInfo]:
    """Image objects under a prefix, sorted by URI, each once; others are counted in the log.

    An image is an object with an image extension whose path below the prefix has no part that starts
    with "_" or ".". Raises ConfigError when there is none, or the location cannot be listed.
    """
    found: dict[str, ObjectInfo] = {}
    skipped = 0
    for page in storage.pages(prefix):
        for info in page:
            if _is_image(info.uri.removeprefix(prefix)):
                found[info.uri] = info
            else:
                skipped += 1
    if not found:
        raise ConfigError(
            f"no images under {prefix} ({skipped} other objects); expected files ending in "
            f"{', '.join(images.EXTENSIONS)}"
        )
    if skipped:
        log.info("skipped %d objects under %s that are not images by name", skipped, prefix)
    return [found[uri] for uri in sorted(found)]


def digest(infos: list[ObjectInfo]) -> str:
    """sha256 over (uri, etag, size) of every image, in order."""
    sha = hashlib.sha256()
    for info in infos:
        sha.update(f"{info.uri}\0{info.etag}\0{info.size}\n".encode())
    return sha.hexdigest()


def name_run(collection: str, day: date, images_uri: str, bundle_digest: str) -> str:
    """The same command has the same run id: it finds what it left, whether committed or half done."""
    identity = "\0".join((collection, day.isoformat(), images_uri, bundle_digest))
    return f"{day:%Y%m%d}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def load_or_create_plan(
    layout: Layout,
    *,
    run_id: str,
    collection: str,
    day: date,
    images_uri: str,
    bundle: str,
    bundle_digest: str,
    now: datetime,
) -> Plan:
    """The plan of this run: the one an interrupted attempt left, else a new one from a fresh listing."""
    try:
        plan = Plan.model_validate_json(storage.read(layout.plan(run_id)))
        log.info("resuming run %s with %d images, listed at %s", run_id, plan.num_images, plan.started_at)
        return plan
    except FileNotFoundError:
        pass
    infos = list_images(images_uri)
    manifest_digest = digest(infos)
    for index, part in enumerate(_parts(infos)):
        storage.write(f"{layout.manifest(run_id, manifest_digest)}/part-{index:05d}.parquet", part)
    plan = Plan(
        run_id=run_id,
        collection=collection,
        day=day,
        images=images_uri,
        bundle=bundle,
        bundle_digest=bundle_digest,
        manifest_digest=manifest_digest,
        num_images=len(infos),
        started_at=now,
    )
    try:
        storage.create(layout.plan(run_id), plan.model_dump_json(indent=1).encode())
    except FileExistsError:
        log.warning("another process planned run %s meanwhile; its plan stands", run_id)
        return Plan.model_validate_json(storage.read(layout.plan(run_id)))
    log.info("listed %d images under %s as run %s", len(infos), images_uri, run_id)
    return plan


def part_uris(layout: Layout, plan: Plan) -> list[str]:
    """The manifest's parts; together they must hold the plan's images."""
    count = -(-plan.num_images // PART_ROWS)
    return [f"{layout.manifest(plan.run_id, plan.manifest_digest)}/part-{index:05d}.parquet" for index in range(count)]


def _parts(infos: list[ObjectInfo]) -> Iterator[bytes]:
    for start in range(0, len(infos), PART_ROWS):
        rows = infos[start : start + PART_ROWS]
        table = pa.table(
            {
                "row_id": pa.array(range(start, start + len(rows)), pa.int64()),
                "image_uri": [info.uri for info in rows],
                "image_etag": [info.etag for info in rows],
                "image_bytes": [info.size for info in rows],
                "image_last_modified": [info.last_modified for info in rows],
            }
        )
        sink = io.BytesIO()
        pq.write_table(conform(table, MANIFEST), sink, compression="zstd", use_dictionary=False)
        yield sink.getvalue()


def _is_image(key: str) -> bool:
    hidden = any(part.startswith(("_", ".")) for part in key.split("/") if part)
    return not hidden and key.lower().endswith(images.EXTENSIONS)
