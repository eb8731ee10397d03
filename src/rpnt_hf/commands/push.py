"""`rpnt push`: a checkpoint or a dataset to the Hub."""

import argparse
from pathlib import Path

from rpnt_hf.commands.output import print_json, print_text

DESCRIPTION = """\
Push a checkpoint or a built dataset to the Hub, in one commit.

Of a checkpoint: weights (safetensors only), configuration, processor, card, evaluation results, and the code
that loads them where this package is not installed. Of a dataset: Parquet and card. A folder that holds
anything else is refused, but for what training leaves there, which stays.
"""
EXAMPLES = """\
examples:
  rpnt push demo_out/decoder my-lab/reach-decoder --dry-run
  rpnt push demo_out/decoder my-lab/reach-decoder --private
  rpnt push dataset my-lab/reaching

The last line of the output is JSON: repo_id, repo_type, files, bytes, and url and commit (null in a dry run).
A token with the right to write is needed: `hf auth login`, or HF_TOKEN.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `rpnt push`.

    Args:
        parser (`argparse.ArgumentParser`): Where to.
    """
    parser.add_argument(
        "folder", type=Path, metavar="CHECKPOINT_OR_DATASET", help="folder of a checkpoint or a built dataset"
    )
    parser.add_argument(
        "repo_id", metavar="REPO_ID", help="where to, OWNER/NAME; made where it does not exist"
    )
    parser.add_argument("--private", action="store_true", help="make it private")
    parser.add_argument("--revision", metavar="R", help="branch to push to (default main)")
    parser.add_argument(
        "--dry-run", action="store_true", help="list what would go and what stays; contact nobody"
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs `rpnt push`.

    Args:
        arguments (`argparse.Namespace`): `folder`, `repo_id`, `private`, `revision` and `dry_run`.

    Raises:
        CheckpointError: The folder is no whole checkpoint, or holds something that is not to be pushed.
        DatasetError: Likewise of a dataset.
        HubError: The Hub cannot be reached or refuses, or there is no token.
    """
    from rpnt_hf.push import plan_push, push

    plan = plan_push(arguments.folder, arguments.repo_id)
    sizes = plan.sizes()
    for name, size in sizes.items():
        print_text(arguments, f"{size:>12,}  {name}")
    for name, reason in plan.staying.items():
        print_text(arguments, f"{'stays':>12}  {name} ({reason})")
    url, commit = None, None
    if not arguments.dry_run:
        url, commit = push(plan, arguments.private, arguments.revision)
    report = {"repo_id": plan.repo_id, "repo_type": plan.repo_type, "url": url, "commit": commit}
    print_json({**report, "files": len(sizes), "bytes": sum(sizes.values())})
