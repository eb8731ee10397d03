"""Small decoders with every switch that changes a step, for tests of streams and exports."""

import numpy as np
import torch

from rpnt_hf import RPNTConfig, RPNTForMotorDecoding, RPNTProcessor

UNITS, SITES = 4, 2
SWITCHES = {
    "default": {},
    "no stem": {"stem_kernel": 1},
    "recurrent stem": {"stem_kernel": 1, "recurrent_stem": True},
    "both stems": {"recurrent_stem": True, "layer_scale": 0.5},
    "no kernels": {"context_attention": {"enabled": False}},
    "wide kernels": {"context_attention": {"kernel_size": (5, 4), "context_size": 8}},
    "taps over queries": {"context_attention": {"kernel_size": (3, 1), "context_size": 8}},
    "taps over keys": {"context_attention": {"kernel_size": (1, 3), "context_size": 8}},
    "one tap": {"context_attention": {"kernel_size": (1, 1), "context_size": 8}},
    "no anchors": {"num_anchors": 0, "position_encoding": "rope"},
    "window of one": {"attention_window": 1},
    "window of one without anchors": {"attention_window": 1, "num_anchors": 0, "position_encoding": "rope"},
    "window of two": {"attention_window": 2},
    "spatial": {"num_spatial_layers": 2},
    "spatial without anchors": {"num_spatial_layers": 1, "num_anchors": 0},
    "slots": {"unit_embedding": "slots", "num_units": UNITS},
    "time only": {"position_encoding": "rope"},
    "sinusoidal": {"position_encoding": "sinusoidal"},
    "no positions": {"position_encoding": "none"},
    "variance": {"predict_variance": True},
    "another activation": {"hidden_act": "gelu_pytorch_tanh"},
    "labels": {"label_mean": [30.0, -5.0], "label_std": [2.0, 0.5]},
}


def make(sites=SITES, **overrides):
    torch.manual_seed(0)
    settings = {"num_units": UNITS * sites, "attention_window": 7, "initializer_range": 0.2, **overrides}
    return RPNTForMotorDecoding(RPNTConfig.preset("tiny", **settings)).eval()


def make_counts(batch=1, bins=30, sites=SITES):
    return torch.poisson(torch.ones(batch, sites, bins, UNITS))


def make_processor(**overrides):
    """Session "today" has five units at two sites, and metadata; "earlier" has one unit."""
    processor = RPNTProcessor(bin_size=0.05, subjects=["A", "B"], corpus_start="2026-01-01", **overrides)
    processor.add_session("earlier", ["x"])
    processor.add_session(
        "today",
        ["a", "b", "c", "d", "e"],
        unit_sites=[1, 0, 1, 1, 0],
        site_positions=[[0.5, 1.0, np.nan], [2.0, 0.0, 1.0]],
        subject_id="B",
        recording_date="2026-03-04",
    )
    return processor
