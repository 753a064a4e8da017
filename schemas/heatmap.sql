-- The `heatmap` column in DuckDB, without this package (schemas/heatmap.md has the format):
--
--   duckdb> .read schemas/heatmap.sql
--   duckdb> SELECT image_uri, heatmap_decode(heatmap) FROM scores ORDER BY anomaly_score DESC LIMIT 10;
--
-- heatmap_decode is a list of rows of DOUBLE, NULL for bytes that are no heatmap of version 1; heatmap_low and
-- heatmap_high are the smallest and largest value.

CREATE OR REPLACE MACRO heatmap_byte(h, i) AS ('0x' || substr(h, 2 * i + 1, 2))::INTEGER;

CREATE OR REPLACE MACRO heatmap_u16(h, i) AS heatmap_byte(h, i) + 256 * heatmap_byte(h, i + 1);

-- An IEEE 754 float of 32 bits: sign, 8 bits of exponent, 23 of fraction.
CREATE OR REPLACE MACRO heatmap_float(sign, exponent, fraction) AS
    sign * if(exponent = 0, fraction * pow(2.0, -149), (1 + fraction / 8388608.0) * pow(2.0, exponent - 127));

CREATE OR REPLACE MACRO heatmap_f32(h, i) AS heatmap_float(
    if(heatmap_byte(h, i + 3) > 127, -1.0, 1.0),
    2 * (heatmap_byte(h, i + 3) % 128) + heatmap_byte(h, i + 2) // 128,
    heatmap_byte(h, i) + 256 * heatmap_byte(h, i + 1) + 65536 * (heatmap_byte(h, i + 2) % 128));

CREATE OR REPLACE MACRO heatmap_low(heatmap) AS heatmap_f32(hex(heatmap), 5);
CREATE OR REPLACE MACRO heatmap_high(heatmap) AS heatmap_f32(hex(heatmap), 9);

-- Cells are zigzag-coded differences (0, 1, 2, 3, ... stand for 0, -1, 1, -2, ...): summed along rows, then columns.
CREATE OR REPLACE MACRO heatmap_hex(heatmap) AS CASE
    WHEN octet_length(heatmap) >= 13 AND heatmap_byte(hex(heatmap), 0) = 1
     AND octet_length(heatmap) = 13 + heatmap_u16(hex(heatmap), 1) * heatmap_u16(hex(heatmap), 3)
    THEN hex(heatmap) END;

CREATE OR REPLACE MACRO heatmap_decode(heatmap) AS (
    WITH header AS (
        SELECT heatmap_hex(heatmap) AS h, heatmap_u16(h, 1) AS height, heatmap_u16(h, 3) AS width,
               heatmap_f32(h, 5) AS low, heatmap_f32(h, 9) AS high),
    cells AS (
        SELECT y, x, low, high,
               if(z % 2 = 0, z // 2, -((z + 1) // 2)) AS delta
        FROM (SELECT i // width AS y, i % width AS x, low, high, heatmap_byte(h, 13 + i) AS z
              FROM (SELECT *, unnest(range(height * width)) AS i FROM header))),
    across AS (SELECT *, sum(delta) OVER (PARTITION BY y ORDER BY x) AS along FROM cells),
    levels AS (SELECT y, x, low, high, sum(along) OVER (PARTITION BY x ORDER BY y) AS level FROM across)
    SELECT list(values_of_row ORDER BY y) FROM (
        SELECT y, list(low + ((level % 256 + 256) % 256) * (high - low) / 255 ORDER BY x) AS values_of_row
        FROM levels GROUP BY y));
