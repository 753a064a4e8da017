"""The published tables of a run, which begin with what it keeps of the run before: parts, named as they are.

An image that was scored again, since it is another file by now, is in the run once: its manifest row has the row id
that it had, and a part that holds its old row is copied without that row.
"""

from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.catalog import manifest_parts, part_files, views
from jobs.catalog.staging import Bitmap
from schemas import Layout, Part, RunRecord
from schemas.runs import Plan


@dataclass(slots=True)
class Tables:
    """Published parts of a run and what is counted of them; `proof` has the row ids of all of them, each once."""

    proof: Bitmap
    scores: list[Part] = field(default_factory=list)
    quarantine: list[Part] = field(default_factory=list)
    deleted: list[Part] = field(default_factory=list)
    anomalous: int = 0
    # Of the images that are kept, as far as it was listed.
    kept_bytes: int = 0
    duplicates: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


def kept(layout: Layout, before: RunRecord | None, plan: Plan) -> Tables:
    """Of the run `before`, whose commit proved that its parts are all its images, each once."""
    tables = Tables(Bitmap(plan.num_images))
    if before is None:
        return tables
    tables.proof.set_range(0, before.num_listed)
    tables.deleted += before.deleted
    tables.anomalous = before.num_anomalous
    tables.scores += before.scores
    if plan.intent.is_retry:  # of all that was quarantined; its bytes are in the plan
        tried_again = Bitmap(plan.num_images)
        for part in before.quarantine:
            tried_again.add(part_files.read_published(layout, part, ["row_id"])["row_id"].to_numpy())
        tables.proof = tables.proof.without(tried_again)
        return tables
    tables.quarantine += before.quarantine
    tables.kept_bytes, tables.reasons = before.num_bytes, Counter(before.quarantine_reasons)
    replaced = _replaced(layout, plan)
    if replaced is not None:
        tables.proof = tables.proof.without(replaced)
        _leave_out(layout, plan, replaced, tables)
    return tables


def _replaced(layout: Layout, plan: Plan) -> Bitmap | None:
    """Row ids of the run before that the manifest has again; None if there are none."""
    intent = plan.intent
    if plan.num_images == intent.kept_images + plan.num_rows:
        return None
    found = Bitmap(plan.num_images)
    for index in range(len(plan.parts)):
        ids = manifest_parts.read(layout, intent.run_id, index)["row_id"].to_numpy()
        found.add(ids[ids < intent.kept_images])
    return found


def _leave_out(layout: Layout, plan: Plan, replaced: Bitmap, tables: Tables) -> None:
    """Copies take the place of the parts that hold rows which are replaced, and these no longer count."""
    for number, part in enumerate(tables.scores):
        if (again := replaced.has(_row_ids(layout, part))).any():
            gone, tables.scores[number] = _copied(layout, plan, "scores", number, part, again)
            tables.anomalous -= int(pc.sum(gone["is_anomalous"]).as_py() or 0)
            tables.kept_bytes -= _bytes(gone)
    for number, part in enumerate(tables.quarantine):
        if (again := replaced.has(_row_ids(layout, part))).any():
            gone, tables.quarantine[number] = _copied(layout, plan, "quarantine", number, part, again)
            tables.reasons -= Counter(gone["reason"].to_pylist())
            tables.kept_bytes -= _bytes(gone)
    tables.scores[:] = [part for part in tables.scores if part.rows]
    tables.quarantine[:] = [part for part in tables.quarantine if part.rows]
    # What was listed may have had no sizes, or those of other files: of explicit lists, and where a retry came between.
    tables.kept_bytes = max(0, tables.kept_bytes)


def _row_ids(layout: Layout, part: Part) -> npt.NDArray[np.int64]:
    """Of a part, of which nothing else is read: most hold no row that is replaced."""
    with closing(views.connect(layout.results)) as connection, views.readable(f"{part.path} cannot be read"):
        [path] = views.part_paths(layout.results, [part])
        found: npt.NDArray[np.int64] = connection.read_parquet(path).select("row_id").fetchnumpy()["row_id"]
    return np.asarray(found)


def _copied(
    layout: Layout, plan: Plan, table: str, number: int, part: Part, again: npt.NDArray[np.bool_]
) -> tuple[pa.Table, Part]:
    """The rows of a part that are replaced, and a copy without them, which is not written if it has no row."""
    rows, intent = part_files.read_published(layout, part), plan.intent
    rest = rows.filter(pa.array(~again))
    if not rest.num_rows:
        return rows, part.model_copy(update={"rows": 0})
    name = f"part-kept-{number:05d}-{{}}.parquet"
    path = layout.part(table, intent.collection, intent.day, intent.run_id, name)
    return rows.filter(pa.array(again)), part_files.publish(layout, path, rest)


def _bytes(rows: pa.Table) -> int:
    return int(pc.sum(pc.max_element_wise(rows["image_bytes"], 0)).as_py() or 0)
