"""Pictures of recordings, decoded movement, scores and networks, in one style.

Figures are made without pyplot, so they need no display and leave no state; `save_figure` writes them.
Colours can be told apart by colour-blind readers and in grey print. Not for analyses: these functions only
draw what they get.
"""

from rpnt_hf.analysis.plots.movement import (
    plot_overview,
    plot_predictions,
    plot_trajectories,
    plot_velocity_traces,
)
from rpnt_hf.analysis.plots.networks import plot_attention, plot_connectivity, plot_context_kernels
from rpnt_hf.analysis.plots.recordings import plot_dataset, plot_raster, plot_recording
from rpnt_hf.analysis.plots.scores import (
    plot_amounts,
    plot_calibration,
    plot_sessions,
    plot_training_curves,
)
from rpnt_hf.analysis.plots.style import save_figure

__all__ = [
    "plot_amounts",
    "plot_attention",
    "plot_calibration",
    "plot_connectivity",
    "plot_context_kernels",
    "plot_dataset",
    "plot_overview",
    "plot_predictions",
    "plot_raster",
    "plot_recording",
    "plot_sessions",
    "plot_training_curves",
    "plot_trajectories",
    "plot_velocity_traces",
    "save_figure",
]
