-- Spark SQL: replace s3a://factory/results, run once (with a metastore) or once per session; then, after each night:
--   MSCK REPAIR TABLE fcdd_scores_parts;   and the same for the other tables of parts
-- Ask the views fcdd_scores, fcdd_quarantine, fcdd_deleted, fcdd_drift: they show what the commit records name, of every
-- night only the run that counts. The tables of parts also hold superseded and unfinished runs.

CREATE TABLE fcdd_runs (
    run_id STRING,
    collection STRING,
    day DATE,
    committed_at STRING,
    supersedes STRING,
    num_listed BIGINT,
    num_scored BIGINT,
    num_quarantined BIGINT,
    num_anomalous BIGINT,
    threshold DOUBLE,
    map_threshold DOUBLE,
    alpha DOUBLE,
    scores ARRAY<STRUCT<path: STRING>>,
    quarantine ARRAY<STRUCT<path: STRING>>,
    deleted ARRAY<STRUCT<path: STRING>>,
    drift STRUCT<verdict: STRING, reasons: ARRAY<STRING>, part: STRUCT<path: STRING>>
)
USING JSON
OPTIONS (path 's3a://factory/results/runs', pathGlobFilter '*.json');

CREATE TABLE fcdd_scores_parts (
    `row_id` bigint,
    `image_uri` string,
    `image_etag` string,
    `image_bytes` bigint,
    `image_last_modified` timestamp,
    `image_group` string,
    `width` int,
    `height` int,
    `num_frames` int,
    `image_format` string,
    `image_hash` binary,
    `anomaly_score` float,
    `score_mean` float,
    `score_max` float,
    `score_top1pct` float,
    `p_value` double,
    `is_anomalous` boolean,
    `heatmap` binary,
    `heatmap_height` int,
    `heatmap_width` int,
    `regions` array<struct<x0: int, y0: int, x1: int, y1: int, area_fraction: float, peak: float>>,
    `brightness` float,
    `contrast` float,
    `sharpness` float,
    `run_id` string,
    `model_digest` string,
    `scored_at` timestamp,
    `collection` STRING,
    `date` DATE,
    `run` STRING
)
USING PARQUET
OPTIONS (path 's3a://factory/results/scores')
PARTITIONED BY (`collection`, `date`, `run`);

CREATE TABLE fcdd_quarantine_parts (
    `row_id` bigint,
    `image_uri` string,
    `image_etag` string,
    `image_bytes` bigint,
    `image_last_modified` timestamp,
    `image_group` string,
    `stage` string,
    `reason` string,
    `detail` string,
    `attempts` int,
    `run_id` string,
    `model_digest` string,
    `scored_at` timestamp,
    `collection` STRING,
    `date` DATE,
    `run` STRING
)
USING PARQUET
OPTIONS (path 's3a://factory/results/quarantine')
PARTITIONED BY (`collection`, `date`, `run`);

CREATE TABLE fcdd_deleted_parts (
    `image_uri` string,
    `image_etag` string,
    `last_run_id` string,
    `run_id` string,
    `model_digest` string,
    `scored_at` timestamp,
    `collection` STRING,
    `date` DATE,
    `run` STRING
)
USING PARQUET
OPTIONS (path 's3a://factory/results/deleted')
PARTITIONED BY (`collection`, `date`, `run`);

CREATE TABLE fcdd_drift_parts (
    `scope` string,
    `image_group` string,
    `num_images` bigint,
    `num_calibration` bigint,
    `num_alarms` bigint,
    `alarms_low` bigint,
    `alarms_high` bigint,
    `verdict` string,
    `findings` array<struct<what: string, test: string, effect: double, p_value: double, verdict: string, sentence: string>>,
    `average_map` binary,
    `nominal_map` binary,
    `run_id` string,
    `model_digest` string,
    `scored_at` timestamp,
    `collection` STRING,
    `date` DATE,
    `run` STRING
)
USING PARQUET
OPTIONS (path 's3a://factory/results/drift')
PARTITIONED BY (`collection`, `date`, `run`);

CREATE OR REPLACE VIEW fcdd_current_runs AS
SELECT * FROM (
    SELECT *, row_number() OVER (PARTITION BY collection, day ORDER BY committed_at DESC, run_id DESC) AS place
    FROM fcdd_runs
    WHERE run_id NOT IN (SELECT supersedes FROM fcdd_runs WHERE supersedes IS NOT NULL)
) AS standing
WHERE place = 1;

CREATE OR REPLACE VIEW fcdd_scores AS
SELECT * FROM fcdd_scores_parts
WHERE regexp_extract(_metadata.file_path, '(scores/collection=.*)$', 1) IN (
    SELECT part.path FROM fcdd_current_runs LATERAL VIEW explode(scores) t AS part
);

CREATE OR REPLACE VIEW fcdd_quarantine AS
SELECT * FROM fcdd_quarantine_parts
WHERE regexp_extract(_metadata.file_path, '(quarantine/collection=.*)$', 1) IN (
    SELECT part.path FROM fcdd_current_runs LATERAL VIEW explode(quarantine) t AS part
);

CREATE OR REPLACE VIEW fcdd_deleted AS
SELECT * FROM fcdd_deleted_parts
WHERE regexp_extract(_metadata.file_path, '(deleted/collection=.*)$', 1) IN (
    SELECT part.path FROM fcdd_current_runs LATERAL VIEW explode(deleted) t AS part
);

CREATE OR REPLACE VIEW fcdd_drift AS
SELECT * FROM fcdd_drift_parts
WHERE regexp_extract(_metadata.file_path, '(drift/collection=.*)$', 1) IN (
    SELECT drift.part.path FROM fcdd_current_runs WHERE drift.part IS NOT NULL
);
