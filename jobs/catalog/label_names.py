"""Which scored image a label means: that of its whole location, else the one whose location ends in its name."""

import duckdb
import pyarrow as pa

from fcdd.errors import ConfigError

# Of names that are no whole locations; images are looked up by their file name, of which there are few alike.
_CANDIDATES = """
WITH known AS (SELECT DISTINCT image_uri FROM scores),
     named AS (SELECT row_number() OVER () - 1 AS row, image_uri, replace('^' || name, '^./', '^')[2:] AS name
               FROM given_labels),
     open AS (SELECT * FROM named ANTI JOIN known USING (image_uri)
              WHERE name NOT LIKE '%://%' AND NOT starts_with(name, '/'))
SELECT row, any_value(name), min(k.image_uri), max(k.image_uri), count(*)
FROM open JOIN known k ON regexp_extract(k.image_uri, '[^/]*$') = regexp_extract(name, '[^/]*$')
WHERE ends_with(k.image_uri, '/' || name) GROUP BY row ORDER BY row
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
