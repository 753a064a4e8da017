"""Which scored image a label means: that of its whole location, else the one whose location ends in its name."""

import duckdb
import pyarrow as pa

from fcdd.errors import ConfigError

# Of names that are no whole locations; images are looked up by their file name, of which there are few alike.
_CANDIDATES = """
WITH named AS (SELECT row, image_uri, name, regexp_extract(name, '[^/]*$') AS file FROM
               (SELECT row_number() OVER () - 1 AS row, image_uri, replace('^' || name, '^./', '^')[2:] AS name
                FROM given_labels) WHERE name NOT LIKE '%://%' AND NOT starts_with(name, '/')),
     known AS (SELECT DISTINCT image_uri, file FROM
               (SELECT image_uri, regexp_extract(image_uri, '[^/]*$') AS file FROM scores)
               SEMI JOIN named USING (file)),
     open AS (FROM named ANTI JOIN known USING (image_uri))
SELECT row, any_value(name), min(known.image_uri), max(known.image_uri), count(*)
FROM open JOIN known USING (file) WHERE ends_with(known.image_uri, '/' || name) GROUP BY row ORDER BY row
"""


def matched(connection: duckdb.DuckDBPyConnection, labels: pa.Table) -> pa.Table:
    """The labels (`label_files.read`) under the locations of the images in the view `scores`; others stay as they are.

    Raises ConfigError for a name that is the end of several images' locations, and for two labels of one image.
    """
    connection.register("given_labels", labels)
    found = connection.execute(_CANDIDATES).fetchall()
    connection.unregister("given_labels")
    uris = labels["image_uri"].to_pylist()
    for row, name, first, last, count in found:
        if count > 1:
            raise ConfigError(
                f"{count} scored images end in {name!r}, among them {first} and {last}: give more of the path in the "
                "labels, or choose one night with --date"
            )
        uris[row] = first
    if len(set(uris)) < len(uris):
        twice = next(uri for uri in uris if uris.count(uri) > 1)
        raise ConfigError(f"two labels are of one image, {twice}; keep one of them")
    return labels.set_column(labels.column_names.index("image_uri"), "image_uri", pa.array(uris, pa.string()))
