"""Where the units of a new, labelled session begin."""

import datetime

import numpy as np
import pytest
import torch

from rpnt_hf import RPNTConfig, RPNTForMotorDecoding, RPNTForPreTraining, RPNTProcessor, token_map
from rpnt_hf.initialization import from_checkpoint
from rpnt_hf.token_map import PENALTIES, fit_token_map, place_units

BIN_SIZE = 0.1
ANGLES = np.array([0.3, 1.2, 2.0, 3.1, 4.4, 5.5])


def make_row(session_id, angles, seed, num_bins=400, unit_sites=None):
    """Counts of units that each follow one direction of a random smooth velocity."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(num_bins + 20, 2))
    velocity = np.stack([np.convolve(s, np.ones(10) / 3, "same")[10:-10] for s in steps.T], axis=1)
    rates = 4 * np.exp(0.5 * velocity @ np.stack([np.cos(angles), np.sin(angles)]))
    sites = [0] * len(angles) if unit_sites is None else unit_sites
    return {
        "session_id": session_id, "subject_id": "A", "task": "t", "bin_size": BIN_SIZE, "start_time": 0.0,
        "recording_date": datetime.date(2020, 1, 1), "site_ids": ["M1", "PMd"][: max(sites) + 1],
        "site_positions": [[np.nan] * 3] * (max(sites) + 1), "num_bins": num_bins, "num_context_bins": 0,
        "unit_ids": [str(n) for n in range(len(angles))], "unit_sites": sites,
        "counts": rng.poisson(rates).astype(np.uint8).tobytes(), "observed": bytes([1] * num_bins),
        "behavior": (10 * velocity).astype(np.float32).tobytes(), "behavior_names": ["x", "y"],
        "behavior_units": ["cm/s", "cm/s"], "trials": [],
    }  # fmt: skip


def make_decoder(rows, **fields):
    torch.manual_seed(0)
    processor = RPNTProcessor.from_rows(rows)
    config = RPNTConfig.preset(
        "tiny", num_units=processor.num_units, label_mean=[0.0, 0.0], label_std=[10.0, 5.0], **fields
    )
    return RPNTForMotorDecoding(config), processor


def rows_of(model, processor, session_id):
    weight = model.model.embeddings.unit_embedding.weight.detach().double().numpy()
    return weight[list(processor.session_rows(session_id))]


def counts_of(row):
    return np.frombuffer(row["counts"], np.uint8).reshape(row["num_bins"], -1).astype(np.float64)


def tokens_of(model, processor, row):
    """Tokens that the network itself makes, (T, D)."""
    units = torch.tensor(list(processor.session_rows(row["session_id"])))[None, None]
    with torch.no_grad():
        found = model.model.embeddings.tokens(
            torch.from_numpy(counts_of(row))[None, None].float(), units, torch.ones_like(units).bool()
        )
    return found[0, 0].double().numpy()


def features_of(row, step=1):
    """The slow way: behaviour at 17 moments about each bin, one number after the other."""
    behavior = np.frombuffer(row["behavior"], np.float32).reshape(-1, 2)
    features = np.empty((row["num_bins"], 34))
    for bin_index in range(row["num_bins"]):
        for moment in range(17):
            at = min(max(bin_index + step * (moment - 8), 0), row["num_bins"] - 1)
            features[bin_index, 2 * moment : 2 * moment + 2] = behavior[at] / np.array([10.0, 5.0])
    return features


def ridge_map(x, y):
    centred = x - x.mean(axis=0)
    penalty = 1e-3 * len(x) * np.eye(x.shape[1])
    slopes = np.linalg.solve(centred.T @ centred + penalty, centred.T @ (y - y.mean(axis=0)))
    return slopes, y.mean(axis=0) - x.mean(axis=0) @ slopes


def test_the_map_is_the_ridge_regression_of_the_networks_own_tokens():
    rows = [make_row("a", ANGLES, 0), make_row("b", ANGLES[:4], 1)]
    model, processor = make_decoder(rows)
    assert model.token_map is None
    fit_token_map(model, processor, rows)
    x = np.concatenate([features_of(row) for row in rows])
    y = np.concatenate([tokens_of(model, processor, row) for row in rows])
    slopes, constant = ridge_map(x, y)
    np.testing.assert_allclose(model.token_map[:-1], slopes, atol=1e-5)
    np.testing.assert_allclose(model.token_map[-1], constant, atol=1e-5)


def test_units_are_placed_by_the_penalty_of_the_least_leave_one_out_error():
    known, new = make_row("a", ANGLES, 0), make_row("b", ANGLES[:4], 1, num_bins=40)
    model, processor = make_decoder([known, new])
    fit_token_map(model, processor, [known])
    others = rows_of(model, processor, "a")
    place_units(model, processor, [known, new], ["b"])
    target = np.concatenate([features_of(new), np.ones((40, 1))], axis=1) @ model.token_map.double().numpy()
    roots = np.sqrt(counts_of(new) / 4)

    def ridge(penalty, kept):
        x, y = roots[kept], target[kept]
        return np.linalg.solve(x.T @ x + penalty * np.eye(4), x.T @ y)

    def error(penalty):
        missed = [target[i] - roots[i] @ ridge(penalty, [j for j in range(40) if j != i]) for i in range(40)]
        return np.mean(np.square(missed))

    best = min(PENALTIES, key=error)
    np.testing.assert_allclose(
        rows_of(model, processor, "b"), token_map.GAIN * ridge(best, range(40)), atol=1e-5
    )
    np.testing.assert_array_equal(rows_of(model, processor, "a"), others)


def test_units_that_fire_alike_are_placed_alike():
    """The same units under another name, in another order, in other movements."""
    order = np.array([4, 2, 0, 5, 1, 3])
    known, new = make_row("a", ANGLES, 0, num_bins=2000), make_row("b", ANGLES[order], 1)
    model, processor = make_decoder([known, new])
    fit_token_map(model, processor, [known])

    def likeness():
        with torch.no_grad():
            placed = tokens_of(model, processor, new)
            twin = np.sqrt(counts_of(new) / 6) @ rows_of(model, processor, "a")[order]
        placed, twin = placed - placed.mean(0), twin - twin.mean(0)
        return (placed * twin).sum() / np.sqrt((placed**2).sum() * (twin**2).sum())

    assert abs(likeness()) < 0.3
    place_units(model, processor, [new], ["b"])
    assert likeness() > 0.7


def test_units_of_a_site_are_placed_by_the_bins_in_which_it_was_recorded():
    known = make_row("a", ANGLES, 0)
    new = make_row("b", ANGLES, 1, unit_sites=[0, 0, 0, 1, 1, 1])
    alone = make_row("c", ANGLES[:3], 1)
    counts = counts_of(new)
    alone |= {"counts": counts[:, :3].astype(np.uint8).tobytes(), "behavior": new["behavior"]}
    new["observed"] = np.array([[1, 0]] * 400, np.uint8).tobytes()
    model, processor = make_decoder([known, new, alone])
    fit_token_map(model, processor, [known])
    before = rows_of(model, processor, "b")
    place_units(model, processor, [new, alone], ["b", "c"])
    after = rows_of(model, processor, "b")
    np.testing.assert_allclose(after[:3], rows_of(model, processor, "c"))
    np.testing.assert_array_equal(after[3:], before[3:])


def test_bins_without_behavior_teach_nothing():
    known, new = make_row("a", ANGLES, 0), make_row("b", ANGLES[:4], 1)
    behavior = np.frombuffer(new["behavior"], np.float32).reshape(-1, 2).copy()
    behavior[300:] = np.nan
    new["behavior"] = behavior.tobytes()
    model, processor = make_decoder([known, new])
    fit_token_map(model, processor, [known])
    place_units(model, processor, [new], ["b"])
    placed = rows_of(model, processor, "b")
    assert np.isfinite(placed).all()
    counts = counts_of(new)
    counts[300:] = 200
    place_units(model, processor, [{**new, "counts": counts.astype(np.uint8).tobytes()}], ["b"])
    np.testing.assert_array_equal(rows_of(model, processor, "b"), placed)


def test_every_third_bin_is_enough_where_there_are_many(monkeypatch):
    rows = [make_row("a", ANGLES, seed, num_bins=200 + seed) for seed in range(3)]
    model, processor = make_decoder(rows)
    monkeypatch.setattr(token_map, "MAX_BINS", 250)
    fit_token_map(model, processor, rows)
    x = np.concatenate([features_of(row) for row in rows])[::3]
    y = np.concatenate([tokens_of(model, processor, row) for row in rows])[::3]
    slopes, constant = ridge_map(x, y)
    np.testing.assert_allclose(model.token_map[:-1], slopes, atol=1e-5)
    np.testing.assert_allclose(model.token_map[-1], constant, atol=1e-5)


@pytest.mark.parametrize(("bin_size", "step"), [(0.02, 5), (0.05, 2), (0.1, 1), (0.5, 1)])
def test_moments_are_a_tenth_of_a_second_apart(bin_size, step):
    rows = [{**make_row("a", ANGLES, 0), "bin_size": bin_size}]
    model, processor = make_decoder(rows)
    fit_token_map(model, processor, rows)
    assert model.config.token_map_moments == [step * moment for moment in range(-8, 9)]


def test_a_map_is_saved_with_the_decoder_and_lost_in_pretraining(tmp_path):
    rows = [make_row("a", ANGLES, 0)]
    model, processor = make_decoder(rows)
    fit_token_map(model, processor, rows)
    model.save_pretrained(tmp_path / "decoder")
    processor.save_pretrained(tmp_path / "decoder")
    loaded = RPNTForMotorDecoding.from_pretrained(tmp_path / "decoder")
    assert torch.equal(loaded.token_map, model.token_map) and loaded.token_map.any()

    pretrained, processor, _ = from_checkpoint(
        RPNTForPreTraining, str(tmp_path / "decoder"), {}, rows, window_bins=40
    )
    pretrained.save_pretrained(tmp_path / "pretrained")
    processor.save_pretrained(tmp_path / "pretrained")
    again, _, _ = from_checkpoint(
        RPNTForMotorDecoding, str(tmp_path / "pretrained"), {}, rows, window_bins=40
    )
    assert again.token_map is None and again.config.token_map_step is None
