"""Pictures: each is drawn and written without a display, and leaves the style of the caller alone."""

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from rpnt_hf.analysis.plots import (
    plot_overview,
    plot_raster,
    plot_training_curves,
    plot_trajectories,
    plot_velocity_traces,
    save_figure,
)
from rpnt_hf.errors import InputError

RNG = np.random.default_rng(0)
TRUE = np.cumsum(RNG.standard_normal((60, 2)), axis=0)
DECODED = TRUE + RNG.standard_normal((60, 2))
TIMES = 3.0 + 0.05 * np.arange(60)
SPIKES = [np.sort(RNG.uniform(3, 6, 40)) for _ in range(7)]
HISTORY = [
    {"epoch": i, "train_loss": 1 / (i + 1), "validation_r2": 0.1 * i, "seconds": 3.0} for i in range(5)
]


def draw_all():
    reaches = [TRUE[:20], TRUE[20:35]]
    decoded = [DECODED[:20], DECODED[20:35]]
    return {
        "traces": plot_velocity_traces(
            TRUE, {"ridge": DECODED, "RPNT": TRUE}, TIMES, {"ridge": 0.7, "RPNT": None}
        ),
        "trajectories": plot_trajectories(reaches, {"RPNT": decoded}, [0.0, np.nan], 0.05, {"RPNT": 0.9}),
        "curves": plot_training_curves({"scratch": HISTORY, "pretrained": HISTORY}),
        "raster": plot_raster(SPIKES, 3.0, 6.0, {"go cue": [3.5, 4.5, 99.0]}),
        "overview": plot_overview(SPIKES, TRUE, DECODED, TIMES, r2=0.8),
    }


def test_every_picture_is_a_figure_that_is_written_to_a_file(tmp_path):
    for name, figure in draw_all().items():
        assert isinstance(figure, Figure)
        path = save_figure(figure, tmp_path / "new" / f"{name}.png")
        assert path.stat().st_size > 10_000
        assert path.read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "new").iterdir())) == 5


def test_drawing_leaves_the_style_of_the_caller_alone():
    before = dict(matplotlib.rcParams)
    draw_all()
    assert dict(matplotlib.rcParams) == before


def test_the_score_of_each_decoder_stands_in_the_legend():
    figure = plot_velocity_traces(TRUE, {"ridge": DECODED, "RPNT": TRUE}, TIMES, {"ridge": 0.712})
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["true", "ridge ($R^2$ 0.71)", "RPNT"]


def test_lines_break_where_bins_do_not_follow_one_another():
    times = np.concatenate([TIMES[:30], TIMES[30:] + 1.0])
    line = plot_velocity_traces(TRUE, DECODED, times).axes[0].lines[1]
    assert np.flatnonzero(np.isnan(line.get_xdata())).tolist() == [30]


def test_trajectories_are_integrated_velocity_from_the_origin():
    velocity = np.tile([[2.0, 0.0]], (10, 1))
    figure = plot_trajectories([velocity], [velocity], [0.0], bin_size=0.1)
    line = figure.axes[0].lines[0]
    assert (line.get_xdata()[0], line.get_xdata()[-1]) == (0.0, pytest.approx(2.0))


def test_training_curves_show_losses_and_scores_only():
    figure = plot_training_curves(HISTORY)
    labels = [line.get_label() for axes in figure.axes for line in axes.lines]
    assert labels == ["train loss", "validation $R^2$"]


def test_bad_input_is_refused():
    with pytest.raises(InputError, match=r"must have shape \(60, up to 2\), got \(60, 2\) and \(59, 2\)"):
        plot_velocity_traces(TRUE, DECODED[1:], TIMES)
    with pytest.raises(InputError, match="at least one reach"):
        plot_trajectories([], [], [], 0.05)
    with pytest.raises(InputError, match="Every group must have the 1 reaches"):
        plot_trajectories([TRUE], [DECODED[1:]], [0.0], 0.05)
    with pytest.raises(InputError, match="entries with a loss"):
        plot_training_curves([{"epoch": 1}])
    with pytest.raises(InputError, match="`stop` after `start`"):
        plot_raster(SPIKES, 3.0, 3.0)
