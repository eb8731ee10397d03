"""Pictures: each is drawn and written without a display, and leaves the style of the caller alone."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from rpnt_hf.analysis.plots import (
    plot_amounts,
    plot_attention,
    plot_calibration,
    plot_connectivity,
    plot_context_kernels,
    plot_dataset,
    plot_overview,
    plot_predictions,
    plot_raster,
    plot_recording,
    plot_sessions,
    plot_training_curves,
    plot_trajectories,
    plot_velocity_traces,
    save_figure,
)
from rpnt_hf.data.nwb import BehaviorSeries, Recording
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


@pytest.fixture(scope="module")
def drawn():
    """The style of the caller before and after, and the pictures."""
    before = dict(matplotlib.rcParams)
    figures = draw_all()
    return before, dict(matplotlib.rcParams), figures


def test_every_picture_is_a_figure_that_is_written_to_a_file(drawn, tmp_path):
    for name, figure in drawn[2].items():
        assert isinstance(figure, Figure)
        path = save_figure(figure, tmp_path / "new" / f"{name}.png")
        assert path.stat().st_size > 10_000
        assert path.read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "new").iterdir())) == 5


def test_drawing_leaves_the_style_of_the_caller_alone(drawn):
    before, after, _ = drawn
    assert before == after


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


def test_a_name_that_is_no_picture_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"must end in \.png or \.pdf or \.svg, got '.*curve\.txt'"):
        save_figure(plot_training_curves(HISTORY), tmp_path / "curve.txt")
    assert not list(tmp_path.iterdir())


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


SITES = ["M1", "PMd", "S1"]


def panel_titled(figure: Figure, part: str) -> matplotlib.axes.Axes:
    return next(axes for axes in figure.axes if part in axes.get_title(loc="left"))


def test_units_of_a_site_stand_together_in_its_colour_with_its_name():
    sites = [2, 0, 0, 2, 1, 0, 1]
    axes = plot_raster(SPIKES, 3.0, 6.0, unit_sites=sites, site_ids=SITES).axes[0]
    drawn = [line.get_positions() for line in axes.collections]
    colors = [tuple(line.get_color()) for line in axes.collections]
    order = [1, 2, 5, 4, 6, 0, 3]  # by site; inside a site the most active first, and all have 40 spikes
    assert [np.array_equal(found, SPIKES[unit]) for found, unit in zip(drawn, order, strict=True)] == [
        True
    ] * 7
    assert len(set(colors)) == 3 and len(set(colors[:3])) == 1 and len(set(colors[3:5])) == 1
    assert [text.get_text() for text in axes.texts] == SITES


def test_a_raster_of_one_site_is_black_and_needs_no_names():
    axes = plot_raster(SPIKES, 3.0, 6.0, unit_sites=[0] * 7, site_ids=["M1"]).axes[0]
    assert not axes.texts
    assert {tuple(line.get_color()) for line in axes.collections} == {matplotlib.colors.to_rgba("#1a1a1a")}


def test_a_raster_refuses_sites_that_do_not_fit():
    with pytest.raises(InputError, match="must index the 1 `site_ids`"):
        plot_raster(SPIKES, 3.0, 6.0, unit_sites=[0, 1, 0, 0, 0, 0, 0], site_ids=["M1"])


def causal_attention(heads=3, bins=12, anchors=2):
    weights = RNG.uniform(0.1, 1.0, (heads, bins, anchors + bins))
    weights[..., anchors:] *= np.tri(bins)
    return weights / weights.sum(axis=-1, keepdims=True)


def test_attention_maps_show_the_weights_on_bins_and_hide_the_future():
    weights = causal_attention()
    figure = plot_attention(weights, 0.05, num_anchors=2, start_time=1.0, title="layer 1")
    for head in range(3):
        axes = figure.axes[head]
        shown = axes.images[0].get_array()
        np.testing.assert_allclose(shown.filled(0.0), weights[head][:, 2:])
        assert shown.mask[np.triu_indices(12, 1)].all() and not shown.mask[np.tril_indices(12)].any()
        assert axes.images[0].get_extent() == pytest.approx([1.0, 1.6, 1.6, 1.0])
        share = 100 * weights[head][:, :2].sum(axis=-1).mean()
        assert axes.get_title(loc="left") == f"head {head + 1} ({share:.0f} % to anchors)"
        assert axes.get_xlabel() == "attended bin (s)"
    lines = panel_titled(figure, "Mean over bins").lines
    assert [line.get_label() for line in lines] == ["head 1", "head 2", "head 3"]
    np.testing.assert_allclose(lines[1].get_ydata()[4], np.diagonal(weights[1][:, 2:], -4).mean())
    np.testing.assert_allclose(lines[1].get_xdata()[4], 0.2)


def test_attention_of_many_heads_shows_four_maps_and_every_curve():
    figure = plot_attention(causal_attention(heads=6, anchors=0), 0.05)
    assert sum(bool(axes.images) for axes in figure.axes if "head" in axes.get_title(loc="left")) == 4
    assert len(panel_titled(figure, "Mean over bins").lines) == 6


def test_attention_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"\(heads, bins, 4 anchors \+ bins\), got \(3, 12, 14\)"):
        plot_attention(causal_attention(), 0.05, num_anchors=4)


def test_kernel_maps_show_the_mean_kernel_of_each_layer_and_head():
    kernels = RNG.dirichlet(np.ones(6), (2, 3, 20)).reshape(2, 3, 20, 2, 3)
    figure = plot_context_kernels(list(kernels), 0.05, "a decoder")
    maps = [axes for axes in figure.axes if axes.images and axes.get_label() != "<colorbar>"]
    assert len(maps) == 6
    for axes, mean in zip(maps, kernels.mean(axis=2).reshape(6, 2, 3), strict=True):
        np.testing.assert_allclose(axes.images[0].get_array(), mean)
        assert [float(text.get_text()) for text in axes.texts] == pytest.approx(mean.ravel(), abs=0.006)
    curves = panel_titled(figure, "Smoothing").lines
    np.testing.assert_allclose(curves[1].get_ydata(), 100 * (1 - kernels[1, ..., 0, 0].mean(axis=0)))
    assert panel_titled(figure, "Smoothing").get_xlabel() == "time in the window (s)"


def test_kernels_of_other_shapes_are_refused():
    with pytest.raises(InputError, match="for each layer"):
        plot_context_kernels([], 0.05)


def arrows(figure: Figure) -> list[matplotlib.patches.FancyArrowPatch]:
    return [
        patch for patch in figure.axes[1].patches if isinstance(patch, matplotlib.patches.FancyArrowPatch)
    ]


def test_connectivity_is_a_matrix_and_arrows_from_source_to_follower():
    strength = np.array([[9.0, 0.5, 0.0], [0.0, 9.0, np.nan], [1.0, 0.0, 9.0]])
    places = np.array([[0.0, 0.0, 1.0], [4.0, 0.0, 1.0], [0.0, 3.0, 1.0]])
    figure = plot_connectivity(strength, SITES, places, label="bits/s")
    shown = figure.axes[0].images[0].get_array()
    assert shown.mask.tolist() == [[True, False, False], [False, True, True], [False, False, True]]
    assert shown[2, 0] == 1.0 and shown[0, 1] == 0.5
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == SITES
    ends = {(arrow._posA_posB[0], arrow._posA_posB[1]): arrow.get_linewidth() for arrow in arrows(figure)}
    first, second = ((4.0, 0.0), (0.0, 0.0)), ((0.0, 0.0), (0.0, 3.0))  # site 1 to 0, site 0 to 2
    assert set(ends) == {first, second} and ends[second] > ends[first]
    assert figure.axes[1].get_xlabel() == "x (mm)" and figure.axes[1].get_ylabel() == "y (mm)"
    assert any(axes.get_ylabel() == "bits/s" for axes in figure.axes)


def test_connectivity_draws_the_two_axes_along_which_sites_spread():
    places = np.array([[0.0, 1.0, 0.0], [0.1, 1.0, 2.0], [0.0, 1.0, 5.0]])
    figure = plot_connectivity(np.ones((3, 3)), SITES, places)
    assert (figure.axes[1].get_xlabel(), figure.axes[1].get_ylabel()) == ("x (mm)", "z (mm)")


def test_connectivity_without_places_stands_on_a_circle_and_says_so():
    figure = plot_connectivity(np.ones((3, 3)), SITES)
    points = np.array([line.get_xydata()[0] for line in figure.axes[1].lines])
    np.testing.assert_allclose(np.hypot(*points.T), 1.0)
    assert "places unknown" in figure.axes[1].get_title(loc="left") and len(arrows(figure)) == 6


def test_connectivity_marks_what_is_significant_and_opens_sites_of_unknown_place():
    places = np.array([[0.0, 0.0, 1.0], [np.nan] * 3, [0.0, 3.0, 1.0]])
    significant = np.zeros((3, 3), dtype=bool)
    significant[0, 1] = True
    figure = plot_connectivity(-np.ones((3, 3)), SITES, places, significant)
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[1.0, 0.0]]
    assert len(arrows(figure)) == 1
    assert [line.get_markerfacecolor() for line in figure.axes[1].lines] == ["#1a1a1a", "white", "#1a1a1a"]
    low, high = figure.axes[0].images[0].get_clim()
    assert (low, high) == (-1.0, 1.0)


@pytest.mark.parametrize("count", [3, 14, 40])
def test_connectivity_of_any_number_of_sites_stays_inside_its_picture(count):
    names = [f"long-area-{site}" for site in range(count)]
    figure = plot_connectivity(RNG.normal(size=(count, count)), names, significant=np.ones((count, count)))
    figure.draw_without_rendering()
    bounds = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert bounds.x0 >= 0 and bounds.y0 >= 0 and bounds.x1 <= width and bounds.y1 <= height
    assert len(arrows(figure)) == min(count * (count - 1), 60)
    assert any("strongest 60 of" in text.get_text() for text in figure.axes[1].texts) == (count > 8)
    assert len(figure.axes[0].get_xticklabels()) <= 28


def test_connectivity_that_does_not_fit_its_sites_is_refused():
    with pytest.raises(InputError, match=r"shape \(2, 2\)"):
        plot_connectivity(np.ones((3, 3)), SITES[:2])


def test_a_recording_is_drawn_with_rates_behaviour_and_gaps():
    velocity = BehaviorSeries("cursor_vel", TIMES, TRUE, ["x", "y"], "cm/s")
    recording = Recording.from_arrays(
        "day1",
        [*SPIKES, np.array([])],
        behavior={"cursor_vel": velocity},
        trials=pd.DataFrame({"start_time": [3.5], "stop_time": [4.0]}),
        obs_intervals=np.array([[3.0, 4.5], [5.0, 6.0]]),
    )
    figure = plot_recording(recording, 3.0, 5.0)
    raster, series, rates, timeline = figure.axes
    assert raster.get_title(loc="left") == "day1: 8 units" and len(raster.collections) == 8
    np.testing.assert_allclose(series.lines[1].get_ydata(), TRUE[TIMES <= 5.0, 1], rtol=1e-6)
    assert series.get_ylabel() == "cursor_vel\n(cm/s)"
    assert "spikes/s, 1 silent" in rates.get_title(loc="left")
    assert rates.get_ylabel() == "mean rate (spikes/s)" and rates.get_ylim()[0] < 0
    np.testing.assert_allclose(np.sort(rates.lines[0].get_ydata()), [0.0, *[16.0] * 7])
    assert timeline.get_xlabel().endswith("grey: not observed")
    shaded = [(patch.get_x(), patch.get_width()) for patch in timeline.patches if hasattr(patch, "get_x")]
    assert (4.5, 0.5) in shaded and (3.0, 2.0) in shaded


def test_a_recording_without_gaps_and_silent_units_has_no_room_for_them():
    figure = plot_recording(Recording.from_arrays("day1", SPIKES * 100))
    _, _, rates, timeline = figure.axes
    figure.draw_without_rendering()
    assert figure.get_tightbbox().x1 <= figure.get_size_inches()[0]
    low, high = rates.get_ylim()
    assert 1 <= low < 13 < high <= 100 and "grey" not in timeline.get_xlabel()


def test_a_recording_without_behaviour_says_so():
    figure = plot_recording(Recording.from_arrays("day1", SPIKES))
    assert any(text.get_text() == "no behaviour that can be used" for text in figure.axes[1].texts)


def test_a_dataset_is_drawn_session_by_session():
    sessions = [
        {
            "session_id": "a",
            "minutes": {"train": 2.0, "validation": 0.5, "test": 1.0},
            "rates": [1.0, 2.0, 3.0],
        },
        {"session_id": "b", "minutes": {"train": 1.0, "test": 0.25}, "rates": []},
    ]
    left, right = plot_dataset(sessions, "two sessions").axes[:2]
    assert [label.get_text() for label in left.get_yticklabels()] == ["a", "b"]
    widths = [[bar.get_width() for bar in bars] for bars in left.containers]
    assert widths == [[2.0, 1.0], [0.5, 0.0], [1.0, 0.25]]
    assert [bar.get_x() for bar in left.containers[2]] == [2.5, 1.0]
    assert right.lines[1].get_xdata().tolist() == [2.0] and "spikes/s" in right.get_xlabel()
    with pytest.raises(InputError, match="at least one session"):
        plot_dataset([])


def predictions(num_bins=100, **columns):
    values = RNG.standard_normal((num_bins, 2))
    table = {"time": 0.05 * np.arange(num_bins), "x": values[:, 0], "x_predicted": values[:, 1]}
    return pd.DataFrame({**table, "scored": True, "fitted": False, **columns})


def test_predictions_are_drawn_where_most_bins_can_be_scored():
    fitted = np.arange(100) < 60
    table = predictions(fitted=fitted)
    figure = plot_predictions(table, "m", "Session a", max_seconds=1.0)
    truth, decoded = figure.axes[0].lines[1:3]
    assert truth.get_xdata()[0] >= 0.05 * 60 and len(truth.get_xdata()) == 20
    np.testing.assert_array_equal(decoded.get_ydata(), table["x_predicted"][60:80])
    assert figure.axes[0].get_title(loc="left") == "Session a: bins that the decoder was not fitted to"
    assert figure.axes[0].get_ylabel() == "x (m)"
    only_fitted = plot_predictions(predictions(fitted=True), "m").axes[0].get_title(loc="left")
    assert "bins that the decoder was fitted to" in only_fitted


def test_events_beside_site_colours_are_told_apart_by_dashes():
    events = {f"event {i}": [3.5 + 0.1 * i] for i in range(5)}
    lines = plot_raster(SPIKES, 3.0, 6.0, events, unit_sites=[0, 1] * 3 + [0], site_ids=SITES).axes[0].lines
    assert {line.get_color() for line in lines} == {"#1a1a1a"}
    assert len({str(line.get_linestyle()) + str(line._dash_pattern) for line in lines[:4]}) == 4
    assert [line.get_xdata()[0] for line in lines] == pytest.approx([3.5, 3.6, 3.7, 3.8, 3.9])


def test_few_shot_curves_have_ticks_at_their_trials_and_their_intervals():
    points = [(16, 0.6, 0.5, 0.7), (8, 0.5, 0.4, 0.6), (17, 0.61, 0.5, 0.7)]
    figure = plot_amounts({"ridge": points, "RPNT": [(8, 0.7, 0.6, 0.8)]}, "few")
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["8", "16"]
    ridge, rpnt = axes.containers
    np.testing.assert_allclose(ridge.lines[0].get_xydata(), [[8, 0.5], [16, 0.6], [17, 0.61]], rtol=0.02)
    np.testing.assert_allclose(ridge.lines[2][0].get_segments()[0][:, 1], [0.4, 0.6])
    assert ridge.lines[0].get_xdata()[0] < 8 < rpnt.lines[0].get_xdata()[0]  # intervals beside one another
    assert axes.get_ylabel() == "test $R^2$ (95 % interval)"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ridge", "RPNT"]


def test_scores_below_zero_stand_at_the_edge_and_the_axis_says_so():
    axes = plot_amounts({"kalman": [(8, -3.0, -9.0, 0.1), (16, 0.5, np.nan, np.nan)]}).axes[0]
    assert axes.containers[0].lines[0].get_ydata().tolist() == [0.0, 0.5]
    assert (
        axes.get_ylabel() == "test $R^2$ (95 % interval, below 0 at the edge)" and axes.get_ylim()[0] > -0.1
    )
    axes = plot_sessions({"kalman": {"a": -3.0}, "ridge": {"a": 0.5}}).axes[0]
    assert axes.lines[0].get_ydata().tolist() == [0.0, 0.5]
    assert axes.get_ylabel() == "test $R^2$ (below 0 at the edge)"


def test_many_decoders_differ_in_colour_or_dashes_and_in_markers():
    names = [f"decoder {i}" for i in range(10)]
    axes = plot_amounts({name: [(8, 0.5, 0.4, 0.6), (16, 0.6, 0.5, 0.7)] for name in names}).axes[0]
    lines = [container.lines[0] for container in axes.containers]
    looks = {(line.get_color(), str(line.get_linestyle())) for line in lines}
    assert len(looks) == 10
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 10


def test_sessions_are_joined_over_decoders_and_may_be_absent():
    axes = plot_sessions({"ridge": {"a": 0.5, "b": 0.4}, "RPNT": {"a": 0.7}}).axes[0]
    points = [line for line in axes.lines if line.get_marker() != "None"]
    assert [line.get_label() for line in points] == ["a", "b"]
    assert points[0].get_ydata().tolist() == [0.5, 0.7] and np.isnan(points[1].get_ydata()[1])
    means = [line.get_ydata()[0] for line in axes.lines if line.get_linewidth() > 2]
    assert means == pytest.approx([0.45, 0.7])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["ridge", "RPNT"]


def test_one_session_is_not_joined_and_many_are_not_named():
    assert len(plot_sessions({"ridge": {"a": 0.5}, "RPNT": {"a": 0.7}}).axes[0].lines) == 1
    many = {f"session {i}": 0.5 for i in range(20)}
    figure = plot_sessions({"ridge": many, "RPNT": many})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["20 sessions", "mean"]


def test_calibration_is_drawn_in_percent_beside_the_diagonal():
    axes = plot_calibration({"before": [(0.9, 0.7), (0.5, 0.3)]}).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[0, 0], [100, 100]]
    np.testing.assert_allclose(axes.lines[1].get_xydata(), [[50, 30], [90, 70]])


def test_every_axis_with_numbers_has_a_label_and_numbers_have_units(drawn):
    figures = {
        **drawn[2],
        "attention": plot_attention(causal_attention(), 0.05, 2),
        "amounts": plot_amounts({"RPNT": [(8, 0.5, 0.4, 0.6), (16, 0.6, 0.5, 0.7)]}),
        "calibration": plot_calibration({"before": [(0.5, 0.3), (0.9, 0.7)]}),
        "recording": plot_recording(Recording.from_arrays("day1", SPIKES)),
    }
    for name, figure in figures.items():
        labels = " ".join(axes.get_xlabel() + axes.get_ylabel() for axes in figure.axes)
        assert any(unit in labels for unit in ("(s)", "(%)", "(cm)", "cm/s", "$R^2$", "nats")), name
