"""The summary of a committed run that a person or a log reads."""

import sys

from rich import box
from rich.console import Console
from rich.table import Table

from fcdd import drift
from fcdd.drift import AlarmLaw
from jobs.shell import formatting
from jobs.sources import listing
from schemas import RunRecord


def print_summary(record: RunRecord) -> None:
    """Counts, rates, drift and bytes of a run, as a table."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False, title=f"run {record.run_id}", title_justify="left")
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(record.quarantine_reasons.items()))
    expected, more = "by group", ""
    if not record.group_thresholds:
        low, high = drift.alarm_interval([AlarmLaw.at(record.num_scored, record.num_calibration, record.alpha)])
        expected = f"{low} to {high} expected of nominal images"
        more = ", more than nominal images raise" if record.num_anomalous > high else ""
    alarms = f"{record.num_anomalous}{more}  (false-alarm rate {record.alpha:g}: {expected}; smallest possible p-value "
    alarms += f"{record.smallest_p_value:.4g})"
    listed = f"p <= {record.fdr_p_value:.4g}; " if record.num_discoveries else ""
    why = [(record.drift.in_words, "")] + [("", reason) for reason in record.drift.reasons]
    rows = [
        ("collection", f"{record.collection}, {record.day}"),
        ("listed", f"{record.num_listed}"),
        ("scored", f"{record.num_scored}"),
        ("alarms", alarms),
        ("list to review", f"{record.num_discoveries}  ({listed}{100 * record.fdr:g} % of such a list may be nominal)"),
        ("quarantined", f"{record.num_quarantined}" + (f"  ({reasons})" if reasons else "")),
        ("rate", f"{record.images_per_second:.1f} images/s"),
    ]
    if decoding := record.gpu_decoding:
        checked = f"{decoding.checked} of them compared with a CPU's, scores at most "
        checked += f"{decoding.largest_difference:.2g} of the threshold apart"
        rows.append(("decoded by GPU", f"{decoding.images}  ({checked})"))
        rows += [("", f"then by CPUs: {formatting.printable(decoding.refused)}")] if decoding.refused else []
    others = {rule: count for rule, count in sorted(record.skipped.items()) if rule != listing.SCORED_BEFORE}
    if others:
        rows.append(("not images", ", ".join(f"{rule} {count}" for rule, count in others.items())))
    if before := record.skipped.get(listing.SCORED_BEFORE):
        rows.append(("not new", f"{before}  (other nights have them)"))
    if record.num_deleted:
        rows.append(("deleted", f"{record.num_deleted}  (scored before, gone now)"))
    if record.supersedes:
        rows.append(("supersedes", record.supersedes))
    written = sum(part.bytes for part in (*record.scores, *record.quarantine))
    rows.append(("written", f"{len(record.scores) + len(record.quarantine)} files, {written / 1e6:.2f} MB"))
    rows += [("drift" if verdict else "", formatting.printable(verdict or reason)) for verdict, reason in why]
    for name, value in rows:
        table.add_row(name, value)
    Console(width=None if sys.stdout.isatty() else 160, markup=False, highlight=False).print(table)
