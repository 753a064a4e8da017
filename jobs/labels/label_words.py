"""What people write where a label is meant: numbers, or words like good and bad."""

import re
from collections.abc import Sequence

from fcdd.errors import ConfigError

NOMINAL, ANOMALOUS, NEITHER = 0, 1, -1
WORDS = {
    NOMINAL: ("good", "ok", "okay", "nominal", "normal", "pass", "passed", "false alarm"),
    ANOMALOUS: (
        *("bad", "nok", "not ok", "ng", "anomalous", "anomaly", "abnormal", "defect", "defects", "defective", "faulty"),
        *("fail", "failed", "reject", "rejected", "real defect"),
    ),
    NEITHER: ("bad image", "unusable"),
}
_MEANT = {word: label for label, words in WORDS.items() for word in words}


def label_of(word: str) -> int | None:
    """The label that a word or a number means, in any case of its letters; None if it means none."""
    text = word.strip().lower()
    if text in ("0", "1", "-1"):
        return int(text)
    return _MEANT.get(" ".join(re.split(r"[\s_-]+", text)))


def labels_of(words: Sequence[str | None], uri: str) -> list[int]:
    """The label of each word in a file. Raises ConfigError for what means none."""
    labels = [label_of(word) if word else None for word in words]
    if unknown := {word for word, label in zip(words, labels, strict=True) if label is None}:
        examples = ", ".join(repr(word) for word in sorted(unknown, key=str)[:5])
        raise ConfigError(
            f"expected labels 0 (nominal), 1 (anomalous) and -1 (a bad image) in {uri}, or words such as good and bad, "
            f"ok and nok, nominal and anomalous; got {examples}. What kind of defect it is belongs into a column "
            "defect_class"
        )
    return [label for label in labels if label is not None]
