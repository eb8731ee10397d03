"""Options of optimiser and schedule (optimization.py)."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rpnt_hf.errors import ConfigurationError
from rpnt_hf.optimization import OptimizerConfig, make_optimizer, make_schedule


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.units = nn.Embedding(3, 4)
        self.body = nn.Linear(4, 4)


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant"])
def test_the_body_learns_at_its_share_of_the_rate_through_the_whole_schedule(schedule):
    network, options = Network(), OptimizerConfig(learning_rate=0.01, schedule=schedule)
    optimizer = make_optimizer(network, options, body_rate=0.1)
    steps = make_schedule(optimizer, options, 20)
    rates = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    seen = []
    for _ in range(20):
        units, body = rates[id(network.units.weight)]["lr"], rates[id(network.body.weight)]["lr"]
        assert body == pytest.approx(0.1 * units)
        assert rates[id(network.body.bias)]["lr"] == body
        seen.append(units)
        optimizer.step()
        steps.step()
    assert max(seen) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(("embedding", "rate"), [("vocabulary", 0.01), ("slots", 0.001)])
def test_slots_are_part_of_the_body_and_rows_of_units_are_not(embedding, rate):
    network = Network()
    network.config = SimpleNamespace(unit_embedding=embedding)
    optimizer = make_optimizer(network, OptimizerConfig(learning_rate=0.01), body_rate=0.1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(network.units.weight)] == pytest.approx(rate)
    assert rates[id(network.body.weight)] == pytest.approx(0.001)


def test_units_can_have_a_rate_of_their_own():
    network = Network()
    optimizer = make_optimizer(network, OptimizerConfig(learning_rate=0.01), body_rate=0.1, unit_rate=0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(network.units.weight)] == pytest.approx(0.005)
    assert rates[id(network.body.weight)] == pytest.approx(0.001)


def test_only_matrices_of_the_body_decay():
    network = Network()
    optimizer = make_optimizer(network, OptimizerConfig(weight_decay=0.3))
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(network.body.weight)}
    assert len(torch.optim.AdamW(network.parameters()).param_groups[0]["params"]) == sum(
        len(group["params"]) for group in optimizer.param_groups
    )


@pytest.mark.parametrize("rate", [0.0, -1.0, 1.5])
def test_a_share_outside_its_range_is_refused(rate):
    with pytest.raises(ConfigurationError, match=r"`body_rate` must be in \(0, 1\]"):
        make_optimizer(Network(), OptimizerConfig(), body_rate=rate)
    with pytest.raises(ConfigurationError, match=r"`unit_rate` must be in \(0, 1\]"):
        make_optimizer(Network(), OptimizerConfig(), unit_rate=rate)
