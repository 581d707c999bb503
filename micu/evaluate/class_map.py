"""Names that one class has in two data sets."""

import csv
import io
from pathlib import Path

from micu.base.errors import ManifestError
from micu.base.table import read_bytes


def read_class_map(path: Path) -> dict[str, str]:
    """Read pairs of names: the first two columns of a CSV file, the first of them `label`.

    Returns:
        Each name of the second column that differs → its `label`, by which both go from here on.

    Raises:
        ManifestError: The file is missing, empty, or has a name twice.
    """
    if not path.is_file():
        raise ManifestError(
            f"{path}: no such class map; expected a CSV file whose first two columns are label and "
            "the other name"
        )
    try:
        text = read_bytes(path).decode("utf-8-sig")
        header, *lines = [*csv.reader(io.StringIO(text, newline=""), strict=True)] or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{path}: not a CSV file in UTF-8: {error}") from error
    if len(header) < 2 or header[0].strip() != "label" or not lines:
        raise ManifestError(
            f"{path}: expected the column label, one of other names and at least one row, got "
            f"{', '.join(header) or 'nothing'} and {len(lines)} rows"
        )
    seen: dict[str, int] = {}
    renamed: dict[str, str] = {}
    for number, line in enumerate(lines, 2):
        name, other = (*(text.strip() for text in line), "", "")[:2]
        for text in dict.fromkeys((name, other)):
            if not text:
                raise ManifestError(f"{path}: line {number}: a name is empty")
            if text in seen:
                raise ManifestError(f"{path}: line {number} repeats {text!r} of line {seen[text]}")
            seen[text] = number
        if other != name:
            renamed[other] = name
    return renamed
