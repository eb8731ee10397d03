"""How commands say what they found: text for people, one line of JSON for programs, tables in files."""

import argparse
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpnt_hf.analysis import PICTURES
from rpnt_hf.disk import explain_disk_errors
from rpnt_hf.errors import DiskError

if TYPE_CHECKING:
    import pandas as pd

TABLES = (".csv", ".parquet")


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that every command has.

    Args:
        parser (`argparse.ArgumentParser`): Parser of a command.
    """
    group = parser.add_argument_group("output")
    group.add_argument(
        "--json", action="store_true", help="print the result as one line of JSON, and no text"
    )
    group.add_argument("--quiet", action="store_true", help="only warnings and errors; no progress bars")


def picture_path(name: str) -> Path:
    """Reads the file after `--plot`, before any work is done.

    Args:
        name (`str`): The word of the command line.

    Returns:
        `Path`: The file.

    Raises:
        ArgumentTypeError: Its ending is no format of pictures.
    """
    return _path_with_ending(name, PICTURES)


def table_path(name: str) -> Path:
    """Reads the name of a table, before any work is done.

    Args:
        name (`str`): The word of the command line.

    Returns:
        `Path`: The file.

    Raises:
        ArgumentTypeError: Its ending is no format of tables.
    """
    return _path_with_ending(name, TABLES)


def _path_with_ending(name: str, endings: tuple[str, ...]) -> Path:
    if Path(name).suffix.lower() not in endings:
        raise argparse.ArgumentTypeError(f"the file must end in {' or '.join(endings)}, got '{name}'")
    return Path(name)


def print_text(arguments: argparse.Namespace, text: object) -> None:
    """Prints something for people, which `--json` leaves out.

    Args:
        arguments (`argparse.Namespace`): With `json`.
        text (`object`): What to print.
    """
    if not arguments.json:
        print(text)


def print_json(result: Any) -> None:
    """Prints a result as one line of JSON.

    Args:
        result (`Any`): Mappings, lists, numbers and texts; a number that is not finite becomes null.
    """
    print(json.dumps(_finite(result), allow_nan=False, default=_plain), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    """Numbers and arrays of NumPy as those of Python, anything else as text."""
    return _finite(value.tolist()) if hasattr(value, "tolist") else str(value)


def write_table(table: "pd.DataFrame", path: Path) -> None:
    """Writes a table as Parquet, or as CSV where the name says so, whole or not at all; replaces a file.

    Args:
        table (`pd.DataFrame`): What to write.
        path (`Path`): From `table_path`; its folder is made where it is missing.

    Raises:
        DiskError: It cannot be written.
    """
    with explain_disk_errors(path, DiskError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
            unfinished = Path(folder) / path.name
            if path.suffix.lower() == ".csv":
                table.to_csv(unfinished, index=False)
            else:
                table.to_parquet(unfinished, index=False)
            unfinished.replace(path)
