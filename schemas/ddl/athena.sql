-- Amazon Athena (engine 3): replace s3://factory/results, run once; then, after each night:
--   MSCK REPAIR TABLE fcdd_scores_parts;   and the same for the other tables of parts
-- Ask the views fcdd_scores, fcdd_quarantine, fcdd_deleted, fcdd_drift: they show what the commit records name, of every
-- night only the run that counts. The tables of parts also hold superseded and unfinished runs.

CREATE EXTERNAL TABLE fcdd_runs (
    run_id string,
    collection string,
    day date,
    committed_at string,
    supersedes string,
    num_listed bigint,
    num_scored bigint,
    num_quarantined bigint,
    num_anomalous bigint,
    threshold double,
    map_threshold double,
    alpha double,
    scores array<struct<path: string>>,
    quarantine array<struct<path: string>>,
    deleted array<struct<path: string>>,
    drift struct<verdict: string, reasons: array<string>, part: struct<path: string>>
)
ROW FORMAT SERDE 'org.openx.data.jsonserde.JsonSerDe'
LOCATION 's3://factory/results/runs/';

CREATE EXTERNAL TABLE fcdd_scores_parts (
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
    `scored_at` timestamp
)
PARTITIONED BY (`collection` string, `date` date, `run` string)
STORED AS PARQUET
LOCATION 's3://factory/results/scores/';

CREATE EXTERNAL TABLE fcdd_quarantine_parts (
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
    `scored_at` timestamp
)
PARTITIONED BY (`collection` string, `date` date, `run` string)
STORED AS PARQUET
LOCATION 's3://factory/results/quarantine/';

CREATE EXTERNAL TABLE fcdd_deleted_parts (
    `image_uri` string,
    `image_etag` string,
    `last_run_id` string,
    `run_id` string,
    `model_digest` string,
    `scored_at` timestamp
)
PARTITIONED BY (`collection` string, `date` date, `run` string)
STORED AS PARQUET
LOCATION 's3://factory/results/deleted/';

CREATE EXTERNAL TABLE fcdd_drift_parts (
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
    `scored_at` timestamp
)
PARTITIONED BY (`collection` string, `date` date, `run` string)
STORED AS PARQUET
LOCATION 's3://factory/results/drift/';

CREATE OR REPLACE VIEW fcdd_current_runs AS
SELECT * FROM (
    SELECT *, row_number() OVER (PARTITION BY collection, day ORDER BY committed_at DESC, run_id DESC) AS place
    FROM fcdd_runs
    WHERE run_id NOT IN (SELECT supersedes FROM fcdd_runs WHERE supersedes IS NOT NULL)
) AS standing
WHERE place = 1;

CREATE OR REPLACE VIEW fcdd_scores AS
SELECT * FROM fcdd_scores_parts
WHERE regexp_extract("$path", 'scores/collection=.*$') IN (
    SELECT t.path FROM fcdd_current_runs CROSS JOIN UNNEST(scores) AS t(path)
);

CREATE OR REPLACE VIEW fcdd_quarantine AS
SELECT * FROM fcdd_quarantine_parts
WHERE regexp_extract("$path", 'quarantine/collection=.*$') IN (
    SELECT t.path FROM fcdd_current_runs CROSS JOIN UNNEST(quarantine) AS t(path)
);

CREATE OR REPLACE VIEW fcdd_deleted AS
SELECT * FROM fcdd_deleted_parts
WHERE regexp_extract("$path", 'deleted/collection=.*$') IN (
    SELECT t.path FROM fcdd_current_runs CROSS JOIN UNNEST(deleted) AS t(path)
);

CREATE OR REPLACE VIEW fcdd_drift AS
SELECT * FROM fcdd_drift_parts
WHERE regexp_extract("$path", 'drift/collection=.*$') IN (
    SELECT drift.part.path FROM fcdd_current_runs WHERE drift.part IS NOT NULL
);
