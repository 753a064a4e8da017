"""`fcdd query`: ready questions about committed runs, and SQL of your own, over their Parquet files with DuckDB."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg

from fcdd.errors import ConfigError
from jobs import results
from jobs.catalog import views
from jobs.results import Results
from jobs.shell import formatting, limits, process, tables
from jobs.shell.settings import JobSettings, Night
from jobs.shell.tables import Format
from jobs.viewing import explained, queries
from jobs.viewing.queries import MAX_COMPARED, TOP_COLUMNS, Question, Top

# Options that only some questions know.
_BELONGS = {
    **dict.fromkeys(("top", "alarms", "alpha", "discoveries", "duplicates"), ("top",)),
    "group": ("top", "alarms", "quarantine"),
    "uri": ("history",),
    "by": ("alarms",),
    "sql": ("sql",),
}
# Images that are shown when nobody says how many.
_SHOWN = 10
# What a table for people shows of the runs.
_RUNS = "date, collection, run_id, num_scored, num_anomalous, num_quarantined, drift_verdict FROM runs"

log = logging.getLogger(__name__)


class QuerySettings(JobSettings):
    """Ask committed runs. The questions:

    top         the most anomalous images by one bundle; near-duplicates are one line, with how many they are, but
                for --alarms and --discoveries, which list all
    history     one image, night by night (--uri)
    alarms      images, alarms and unreadable images, per night and camera
    quarantine  why images were not scored
    changes     what is different in the last night, of the images that the night before had too
    runs        the commit records
    sql         a SELECT of your own (--sql) over scores, quarantine, deleted, drift, labels, runs

    Of every night only the run that counts is read; nothing is ever written, and no other file can be read.
    """

    verb: ClassVar[str] = "query"

    question: CliPositionalArg[Literal["top", "history", "alarms", "quarantine", "changes", "runs", "sql"]] = Field(
        "top", description="which question"
    )
    results: str = Field(description="location of the results")
    collection: str | None = Field(None, description="only this image collection")
    date: Night | None = Field(None, description="only this night, YYYY-MM-DD")
    since: Night | None = Field(None, description="only from this night on")
    until: Night | None = Field(None, description="only until this night, inclusive")
    top: int | None = Field(
        None, ge=1, le=10_000, description="top: how many images; default: 10, of --alarms and --discoveries all"
    )
    alarms: bool = Field(False, description="top: only images that are anomalous")
    alpha: float | None = Field(None, gt=0, lt=1, description="top: only images with a p-value of at most this")
    discoveries: bool = Field(False, description="top: only images on their run's list at its false-discovery rate")
    group: str | None = Field(None, description="top, alarms, quarantine: only images of this camera or folder")
    duplicates: bool = Field(False, description="top: show near-duplicates too, not only the worst of each")
    uri: str | None = Field(None, description="history: the image, by its location or the end of it")
    by: Literal["group", "folder", "night"] = Field("group", description="alarms: per camera, folder, or whole night")
    sql: str | None = Field(None, description="one SELECT; implies the question sql")
    explain: bool = Field(False, description="show how it is answered instead: files, row groups and bytes read")
    timeout_s: float = Field(600, gt=0, description="seconds a question may take")
    memory_gb: float = Field(
        views.MEMORY_GB, gt=0.1, description="memory a question may take; what is sorted goes to the disk beyond it"
    )
    format: Format = Field("table", description="table for people; csv, json, parquet, arrow for programs")
    output: str | None = Field(
        None, description="file or object to write the answer to; its ending names the format where --format does not"
    )

    @model_validator(mode="after")
    def _belong(self) -> Self:
        """An option of another question would be believed to have been followed."""
        kind = self.kind()
        for name, questions in _BELONGS.items():
            if name in self.model_fields_set and kind not in questions and getattr(self, name) not in (None, False):
                raise ValueError(f"--{name} belongs to the question {' or '.join(questions)}, not to {kind}")
        return self

    @property
    def lists_all(self) -> bool:
        """Whether near-duplicates are shown and no number ends the list: each of these images is to be looked at."""
        return self.alarms or self.discoveries

    @property
    def is_plain(self) -> bool:
        """Whether nobody asks which images look alike."""
        return self.duplicates and not self.lists_all

    @property
    def count(self) -> int | None:
        """How many images are shown; None: all of them."""
        return self.top or (None if self.lists_all else _SHOWN)

    @property
    def asked_for(self) -> int | None:
        """Of how many images the question is."""
        if self.lists_all:
            return None
        return self.count if self.duplicates else max(MAX_COMPARED, self.count or 0)

    def kind(self) -> str:
        """The name of the question."""
        return "sql" if self.sql is not None and "question" not in self.model_fields_set else self.question


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: query(QuerySettings.parse(argv)))


def query(settings: QuerySettings) -> None:
    """Ask, and print or write the answer."""
    if settings.date and (settings.since or settings.until):
        raise ConfigError("--date is one night, --since and --until are a range; give one or the other")
    if settings.explain and (settings.output or settings.format != "table"):
        raise ConfigError(
            "--explain prints how a question is answered, not the answer; leave out --format and --output"
        )
    kind = settings.kind()
    found = results.open(
        settings.results,
        collection=settings.collection,
        since=settings.date or settings.since,
        until=settings.date or settings.until,
    )
    # Alarms are decisions, and stand whatever bundle made them; ranks across bundles mean nothing.
    is_ranked = kind == "top" and not settings.lists_all
    found = replace(found.of_latest_bundle() if is_ranked else found, memory_gb=settings.memory_gb)
    with (
        limits.seconds(settings.timeout_s, found.interrupt),
        limits.signals(found.interrupt),
        views.readable("the question cannot be answered"),
        limits.memory(settings.memory_gb),
    ):
        _answer(kind, settings, found)


def _answer(kind: str, settings: QuerySettings, found: Results) -> None:
    question = _question(kind, settings, found)
    if settings.explain:
        print("\n".join(explained.explained(found.explain(*question))))
    elif kind == "top" and not settings.is_plain:
        top = queries.most_anomalous(found, question, settings.count, all_shown=settings.lists_all)
        by = " in thresholds of their runs, which are of several bundles" if found.has_several_bundles else ""
        table, title = top.rows, _title(settings) + by + _groups(settings, top)
        if settings.format == "table" and not settings.output:
            empty = [] if any(table["image_group"].to_pylist()) else ["image_group"]
            table = table.drop_columns(["score_max", "run_id", *empty])
        elif settings.top is None and not settings.lists_all and table.num_rows == _SHOWN:
            log.info("these are the %d most anomalous images; --top says how many others", _SHOWN)
        elif settings.lists_all and table.num_rows < top.num_images:
            log.warning("of %d images these are the worst %d; without --top all", top.num_images, table.num_rows)
        tables.write(table.to_reader(), settings.format, settings.output, title)
    else:
        title = _title(settings) if kind == "top" else ""
        if kind == "changes" and settings.format == "table":
            tables.print_table(queries.run_totals(found).to_reader())
            common = queries.num_common(found)
            title = f"changed, of the {common} images that both nights have"
            if not common:
                print("the two nights have no image in common: what is the same by name is compared")
                return
        tables.write(found.sql(*question).to_arrow_reader(), settings.format, settings.output, title)


def _question(kind: str, settings: QuerySettings, found: Results) -> Question:
    if settings.group is not None:
        queries.check_group(found, settings.group)
    if kind == "top":
        return queries.top(
            count=settings.asked_for,
            columns=TOP_COLUMNS if settings.is_plain else f"{TOP_COLUMNS}, image_hash, heatmap",
            alarms=settings.alarms,
            alpha=settings.alpha,
            discoveries=settings.discoveries,
            group=settings.group,
            in_thresholds=settings.lists_all and found.has_several_bundles,
        )
    if kind == "history":
        if settings.uri is None:
            raise ConfigError("whose history? add --uri, as `fcdd query top` shows it")
        return queries.history_of_known(found, settings.uri)
    if kind == "sql":
        if settings.sql is None:
            raise ConfigError("which question? add --sql 'SELECT ...'")
        return Question(settings.sql, {})
    if kind == "alarms":
        return queries.alarms(settings.by, settings.group)
    if kind == "changes":
        return queries.changes(found)
    if kind == "quarantine":
        return queries.quarantine(settings.group)
    return Question(f"SELECT {_RUNS}" if settings.format == "table" and not settings.output else "FROM runs", {})


def _groups(settings: QuerySettings, top: Top) -> str:
    """How many alarms there are, how many look like others, and how to see all."""
    if not settings.alarms:
        return ""
    alarms, shown = formatting.plural(top.num_images, "alarm"), top.rows.num_rows
    alike = f" in {top.num_groups} groups that look alike" if top.num_groups < top.num_images else ""
    more = f", the worst {shown} are shown (--top {top.num_images}: all)" if shown < top.num_images else ""
    return f"; {alarms}{alike}{more}"


def _title(settings: QuerySettings) -> str:
    nights = str(settings.date or "") or " to ".join(str(day) for day in (settings.since, settings.until) if day)
    return f"{settings.collection or 'all collections'}, {nights or 'all nights'}: top by anomaly score"


if __name__ == "__main__":
    process.exit_with(main())
