"""How commands write what they made."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def write_table(table: "pd.DataFrame", path: Path) -> None:
    """Writes a table as Parquet, or as CSV where the name says so, whole or not at all; replaces a file.

    Args:
        table (`pd.DataFrame`): What to write.
        path (`Path`): File to write; its folder is made where it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        unfinished = Path(folder) / path.name
        if path.suffix == ".csv":
            table.to_csv(unfinished, index=False)
        else:
            table.to_parquet(unfinished, index=False)
        unfinished.replace(path)
