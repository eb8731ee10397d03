"""`rpnt connectivity`: which sites draw on which, by a pretrained model and by baselines."""

import argparse
from pathlib import Path

from rpnt_hf.commands.output import print_json, print_text

DESCRIPTION = """\
Map the functional connectivity between the sites of a recording: from a pretrained model with a spatial stage
(what it costs the target to put another trial of the source in its place, and spatial attention), beside
correlation, partial correlation and regression on the past. Every map is tested against the same map of
shuffled trials, at a false discovery rate of 0.05. A map speaks of prediction, not of anatomy.
"""
EXAMPLES = """\
examples:
  rpnt connectivity rpnt-neuropixel dataset --out maps --plot
  rpnt connectivity rpnt-neuropixel dataset --out maps --align go_cue --before 10 --bins 10 40
  rpnt connectivity rpnt-neuropixel dataset --out maps --session-id SESSION --splits train --shuffles 50

writes (below DIR/SESSION where there are several sessions):
  DIR/connectivity.json   maps, their excess over the shuffles, p- and q-values, significant pairs, settings
  DIR/connectivity.csv    the same, one line for each pair and estimator
  DIR/ESTIMATOR.png       with --plot: the matrix, and arrows between the places of the sites

The last line of the output is JSON: of each session and estimator the significant pairs, and how many the
same test finds in shuffled data.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `rpnt connectivity`.

    Args:
        parser (`argparse.ArgumentParser`): Where to.
    """
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="folder or Hub id of a pretrained model")
    add("data", metavar="DATASET", help="folder of `rpnt build`, or Hub name")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    add("--plot", action="store_true", help="draw every map")
    add("--dataset-config", metavar="NAME", help="part of the corpus")
    add("--session-id", metavar="ID", help="session to map; all where left out")
    splits = ("train", "validation", "test")
    add("--splits", nargs="+", default=["test"], choices=splits, help="what is looked at (default test)")
    add("--window-bins", type=int, metavar="N", help="bins of a window at each trial (default: of training)")
    events = ("start", "go_cue", "move_onset")
    add("--align", default="start", choices=events, help="event that windows are cut at (default start)")
    add("--before", type=int, default=0, metavar="N", help="bins of a window before that event (default 0)")
    add("--bins", type=int, nargs=2, metavar=("FIRST", "STOP"), help="bins of the window to average (all)")
    add("--shuffles", type=int, default=20, metavar="N", help="shuffles of the trials (default 20)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the shuffles (default 0)")


def run(arguments: argparse.Namespace) -> None:
    """Runs `rpnt connectivity`.

    Args:
        arguments (`argparse.Namespace`): As `add_arguments` describes them.

    Raises:
        CheckpointError: The checkpoint is missing, is not pretrained, or has no spatial stage.
        ConfigurationError: An option is out of range.
        DatasetError: The dataset cannot be loaded, or has one site only.
        HubError: The checkpoint is on the Hub, and cannot be had from there.
        InputError: The dataset does not fit the checkpoint.
    """
    from rpnt_hf.analysis.connectivity import load_pretrained, map_connectivity, write_connectivity
    from rpnt_hf.data.loading import load_rows, select_sessions, view_rows

    model, processor = load_pretrained(arguments.checkpoint)
    rows = [
        row
        for split in arguments.splits
        for row in view_rows(load_rows(arguments.data, arguments.dataset_config, split))
    ]
    chosen = select_sessions(rows, None if arguments.session_id is None else [arguments.session_id])
    sessions = sorted({row["session_id"] for row in chosen})
    report = {}
    for session_id in sessions:
        found = map_connectivity(
            model,
            processor,
            [row for row in chosen if row["session_id"] == session_id],
            window_bins=arguments.window_bins,
            align=arguments.align,
            before=arguments.before,
            bins=None if arguments.bins is None else tuple(arguments.bins),
            num_shuffles=arguments.shuffles,
            seed=arguments.seed,
        )
        out = arguments.out if len(sessions) == 1 else arguments.out / session_id
        for path in write_connectivity(found, out, plot=arguments.plot):
            print_text(arguments, path)
        maps = found.to_dict()["maps"]
        names = ("significant_pairs", "control_discoveries")
        report[session_id] = {
            estimator: {name: one[name] for name in names} for estimator, one in maps.items()
        }
    print_json(report)
