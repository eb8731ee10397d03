"""`rpnt download NAME`: the recordings of a corpus from the DANDI archive."""

import argparse
from pathlib import Path

from rpnt_hf.commands.output import print_json, print_text

DESCRIPTION = """\
Download the recordings of a corpus from the DANDI archive (needs the extra `dandi`).

A download that was interrupted goes on where it stopped when the same command is given again; what is whole
is not fetched again; a file gets its name when its bytes are those that the archive states.
"""
EXAMPLES = """\
examples:
  rpnt download perich_miller --out 000688 --dry-run
  rpnt download perich_miller --out 000688 --subjects C M --sessions 'CO-2013*'
  rpnt build perich_miller --nwb-dir 000688 --bin-size 0.05 --out dataset

writes:
  DIR/sub-*/*.nwb          the recordings
  DIR/rpnt_download.json   manifest: asset, version, bytes and sha256 of each
  DIR/dandiset.yaml        licence and citation, for the cards of datasets built from them

The last line of the output is JSON: dandiset, version, files, bytes, and fetched (files that were not there).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `rpnt download`.

    Args:
        parser (`argparse.ArgumentParser`): Where to.
    """
    add = parser.add_argument
    add("name", metavar="NAME", help="corpus: a builder of `rpnt build` whose recordings are on DANDI")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the recordings")
    subjects = "subjects to take, such as C or '[CM]' (all)"
    add("--subjects", nargs="+", default=[], metavar="PATTERN", help=subjects)
    sessions = "sessions to take, such as 'CO-2013*' (all)"
    add("--sessions", nargs="+", default=[], metavar="PATTERN", help=sessions)
    add("--version", metavar="V", help="version of the dandiset (the last published one)")
    instance = "archive to ask, by name or URL (DANDI_INSTANCE, else dandi)"
    add("--dandi-instance", metavar="URL", help=instance)
    add("--dry-run", action="store_true", help="list files with their sizes; fetch nothing")


def run(arguments: argparse.Namespace) -> None:
    """Runs `rpnt download`.

    Args:
        arguments (`argparse.Namespace`): `name`, `out`, `subjects`, `sessions`, `version`, `dandi_instance`
            and `dry_run`.

    Raises:
        ConfigurationError: There is no such corpus, or it is not on DANDI.
        DownloadError: The archive refuses, sends other bytes than it states, or the folder cannot be written.
        ImportError: The `dandi` extra is not installed.
    """
    from rpnt_hf.data.download import download_dandiset
    from rpnt_hf.errors import ConfigurationError
    from rpnt_hf.scripts import load_builder

    dandiset = getattr(load_builder(arguments.name), "DANDISET", None)
    if dandiset is None:
        raise ConfigurationError(
            f"The corpus must be one that DANDI has, such as perich_miller, got '{arguments.name}', whose "
            "recordings are not there."
        )
    found = download_dandiset(
        dandiset,
        arguments.out,
        version=arguments.version,
        subjects=arguments.subjects,
        sessions=arguments.sessions,
        instance=arguments.dandi_instance,
        dry_run=arguments.dry_run,
    )
    for asset in found.assets:
        print_text(arguments, f"{asset.bytes:>14,}  {asset.path}")
    report = {"dandiset": found.dandiset, "version": found.version, "files": len(found.assets)}
    report |= {"bytes": sum(asset.bytes for asset in found.assets), "fetched": len(found.fetched)}
    print_json(report)
