-- Trino, Hive connector: replace s3://factory/results and the schema hive.fcdd, run once; then, after each night:
--   CALL hive.system.sync_partition_metadata('fcdd', 'scores_parts', 'ADD');   and the same for the other tables
-- Ask the views scores, quarantine, deleted, drift: they show what the commit records name, of every night only the run
-- that counts. The tables of parts also hold superseded and unfinished runs.

CREATE TABLE hive.fcdd.runs (
    run_id varchar,
    collection varchar,
    day date,
    committed_at varchar,
    supersedes varchar,
    num_listed bigint,
    num_scored bigint,
    num_quarantined bigint,
    num_anomalous bigint,
    threshold double,
    map_threshold double,
    alpha double,
    scores array(row(path varchar)),
    quarantine array(row(path varchar)),
    deleted array(row(path varchar)),
    drift row(verdict varchar, reasons array(varchar), part row(path varchar))
)
WITH (format = 'JSON', external_location = 's3://factory/results/runs/');

CREATE TABLE hive.fcdd.scores_parts (
    "row_id" bigint,
    "image_uri" varchar,
    "image_etag" varchar,
    "image_bytes" bigint,
    "image_last_modified" timestamp(6),
    "image_group" varchar,
    "width" integer,
    "height" integer,
    "num_frames" integer,
    "image_format" varchar,
    "image_hash" varbinary,
    "anomaly_score" real,
    "score_mean" real,
    "score_max" real,
    "score_top1pct" real,
    "p_value" double,
    "is_anomalous" boolean,
    "heatmap" varbinary,
    "heatmap_height" integer,
    "heatmap_width" integer,
    "regions" array(row(x0 integer, y0 integer, x1 integer, y1 integer, area_fraction real, peak real)),
    "brightness" real,
    "contrast" real,
    "sharpness" real,
    "run_id" varchar,
    "model_digest" varchar,
    "scored_at" timestamp(6),
    "collection" varchar,
    "date" date,
    "run" varchar
)
WITH (
    format = 'PARQUET',
    external_location = 's3://factory/results/scores/',
    partitioned_by = ARRAY['collection', 'date', 'run']
);

CREATE TABLE hive.fcdd.quarantine_parts (
    "row_id" bigint,
    "image_uri" varchar,
    "image_etag" varchar,
    "image_bytes" bigint,
    "image_last_modified" timestamp(6),
    "image_group" varchar,
    "stage" varchar,
    "reason" varchar,
    "detail" varchar,
    "attempts" integer,
    "run_id" varchar,
    "model_digest" varchar,
    "scored_at" timestamp(6),
    "collection" varchar,
    "date" date,
    "run" varchar
)
WITH (
    format = 'PARQUET',
    external_location = 's3://factory/results/quarantine/',
    partitioned_by = ARRAY['collection', 'date', 'run']
);

CREATE TABLE hive.fcdd.deleted_parts (
    "image_uri" varchar,
    "image_etag" varchar,
    "last_run_id" varchar,
    "run_id" varchar,
    "model_digest" varchar,
    "scored_at" timestamp(6),
    "collection" varchar,
    "date" date,
    "run" varchar
)
WITH (
    format = 'PARQUET',
    external_location = 's3://factory/results/deleted/',
    partitioned_by = ARRAY['collection', 'date', 'run']
);

CREATE TABLE hive.fcdd.drift_parts (
    "scope" varchar,
    "image_group" varchar,
    "num_images" bigint,
    "num_calibration" bigint,
    "num_alarms" bigint,
    "alarms_low" bigint,
    "alarms_high" bigint,
    "verdict" varchar,
    "findings" array(row(what varchar, test varchar, effect double, p_value double, verdict varchar, sentence varchar)),
    "average_map" varbinary,
    "nominal_map" varbinary,
    "run_id" varchar,
    "model_digest" varchar,
    "scored_at" timestamp(6),
    "collection" varchar,
    "date" date,
    "run" varchar
)
WITH (
    format = 'PARQUET',
    external_location = 's3://factory/results/drift/',
    partitioned_by = ARRAY['collection', 'date', 'run']
);

CREATE OR REPLACE VIEW hive.fcdd.current_runs AS
SELECT * FROM (
    SELECT *, row_number() OVER (PARTITION BY collection, day ORDER BY committed_at DESC, run_id DESC) AS place
    FROM hive.fcdd.runs
    WHERE run_id NOT IN (SELECT supersedes FROM hive.fcdd.runs WHERE supersedes IS NOT NULL)
) AS standing
WHERE place = 1;

CREATE OR REPLACE VIEW hive.fcdd.scores AS
SELECT * FROM hive.fcdd.scores_parts
WHERE regexp_extract("$path", 'scores/collection=.*$') IN (
    SELECT t.path FROM hive.fcdd.current_runs CROSS JOIN UNNEST(scores) AS t(path)
);

CREATE OR REPLACE VIEW hive.fcdd.quarantine AS
SELECT * FROM hive.fcdd.quarantine_parts
WHERE regexp_extract("$path", 'quarantine/collection=.*$') IN (
    SELECT t.path FROM hive.fcdd.current_runs CROSS JOIN UNNEST(quarantine) AS t(path)
);

CREATE OR REPLACE VIEW hive.fcdd.deleted AS
SELECT * FROM hive.fcdd.deleted_parts
WHERE regexp_extract("$path", 'deleted/collection=.*$') IN (
    SELECT t.path FROM hive.fcdd.current_runs CROSS JOIN UNNEST(deleted) AS t(path)
);

CREATE OR REPLACE VIEW hive.fcdd.drift AS
SELECT * FROM hive.fcdd.drift_parts
WHERE regexp_extract("$path", 'drift/collection=.*$') IN (
    SELECT drift.part.path FROM hive.fcdd.current_runs WHERE drift.part IS NOT NULL
);
