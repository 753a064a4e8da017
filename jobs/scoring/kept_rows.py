"""What a run that adds to its night keeps of the run before: its published parts as they are.

An image that was scored again, since it is another file by now or was tried again, is in the run once: its manifest row
has the row id that it had, and its old row is left out of a copy of the part that holds it.
"""

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from jobs.catalog import manifest_parts, part_files
from jobs.catalog.staging import Bitmap
from schemas import Layout, Part, RunRecord
from schemas.runs import Plan


@dataclass(slots=True)
class Kept:
    """Parts and counts of what is kept; `proof` holds the row ids, as a start of the proof of the run."""

    proof: Bitmap
    scores: list[Part] = field(default_factory=list)
    quarantine: list[Part] = field(default_factory=list)
    deleted: list[Part] = field(default_factory=list)
    anomalous: int = 0
    bytes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


def kept(layout: Layout, before: RunRecord | None, plan: Plan) -> Kept:
    """Of the run `before`, whose commit proved that its parts are all its images, each once."""
    result = Kept(Bitmap(plan.num_images))
    if before is None:
        return result
    result.proof.set_range(0, before.num_listed)
    result.deleted += before.deleted
    result.anomalous = before.num_anomalous
    if plan.intent.is_retry:  # of all that was quarantined; its bytes are in the plan
        tried_again = Bitmap(plan.num_images)
        for part in before.quarantine:
            tried_again.add(part_files.read_published(layout, part, ["row_id"])["row_id"].to_numpy())
        result.scores += before.scores
        result.proof = result.proof.without(tried_again)
        return result
    result.bytes, result.reasons = before.num_bytes, Counter(before.quarantine_reasons)
    replaced = _replaced(layout, plan)
    for table, parts, keep in (
        ("scores", before.scores, result.scores),
        ("quarantine", before.quarantine, result.quarantine),
    ):
        for number, part in enumerate(parts):
            keep += [part] if replaced is None else _without(layout, plan, (table, number), part, replaced, result)
    if replaced is not None:
        result.proof = result.proof.without(replaced)
    return result


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


def _without(
    layout: Layout, plan: Plan, named: tuple[str, int], part: Part, replaced: Bitmap, result: Kept
) -> list[Part]:
    """The part, or a copy without the rows that are replaced, which no longer count."""
    ids = part_files.read_published(layout, part, ["row_id"])["row_id"].to_numpy()
    again = replaced.has(ids)
    if not again.any():
        return [part]
    (table, number), intent = named, plan.intent
    rows = part_files.read_published(layout, part)
    gone, rest = rows.filter(pa.array(again)), rows.filter(pa.array(~again))
    result.bytes -= int(pc.sum(pc.max_element_wise(gone["image_bytes"], 0)).as_py() or 0)
    if table == "scores":
        result.anomalous -= int(pc.sum(gone["is_anomalous"]).as_py() or 0)
    else:
        result.reasons -= Counter(gone["reason"].to_pylist())
    if not rest.num_rows:
        return []
    name = f"kept-{number:05d}-{{}}.parquet"
    return [part_files.publish(layout, layout.part(table, intent.collection, intent.day, intent.run_id, name), rest)]
