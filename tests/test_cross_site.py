"""Leaving a site out: what is pretrained on, what is decoded, and how coordinates are compared."""

import numpy as np
import pytest
import yaml
from transformers import AutoModel

from rpnt_hf import RPNTModel
from rpnt_hf.data.builder import BuilderConfig, build_dataset
from rpnt_hf.data.loading import load_rows, view_rows
from rpnt_hf.data.rows import row_behavior, row_counts
from rpnt_hf.data.simulate_sites import simulate_sites
from rpnt_hf.errors import ConfigurationError, DatasetError
from rpnt_hf.evaluation.cross_site import (
    COORDINATES,
    Target,
    compare_arms,
    evaluate_cross_site,
    leave_sites_out,
    list_sites,
)
from rpnt_hf.scripts import load_script

BIN_SIZE = 0.05
SIZE = {"num_sites": 3, "num_controls": 0, "num_units": 4, "num_trials": 20, "seed": 2}


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    recordings = simulate_sites(simultaneous=False, **SIZE).recordings
    return build_dataset(recordings, tmp_path_factory.mktemp("days") / "data", BuilderConfig(BIN_SIZE))


@pytest.fixture(scope="module")
def simultaneous(tmp_path_factory):
    recordings = simulate_sites(**SIZE).recordings
    return build_dataset(recordings, tmp_path_factory.mktemp("probes") / "data", BuilderConfig(BIN_SIZE))


def rows_of(folder, split="train"):
    return view_rows(load_rows(folder, split=split))


def test_the_site_stands_alone_three_times_and_differs_in_its_coordinates_only(days, tmp_path):
    sites = list_sites(days)
    target = sorted(sites, key=lambda one: one.name)[1]
    leave_sites_out(days, None, [target], sites, tmp_path / "out")
    for split in ("train", "validation", "test"):
        rows = rows_of(tmp_path / "out", split)
        arms = {name: [row for row in rows if row["session_id"] == target.arm(name)] for name in COORDINATES}
        original = [row for row in rows_of(days, split) if row["session_id"] == target.session_id]
        assert not any(row["session_id"] == target.session_id for row in rows)
        for found in arms.values():
            for row, own in zip(found, original, strict=True):
                np.testing.assert_array_equal(row_counts(row), row_counts(own))
                np.testing.assert_array_equal(row_behavior(row), row_behavior(own))
                assert row["trials"] == own["trials"] and row["site_ids"] == [target.site_id]
        np.testing.assert_array_equal(arms["true"][0]["site_positions"][0], sites[target])
        assert np.isnan(arms["unknown"][0]["site_positions"]).all()
        shuffled = arms["shuffled"][0]["site_positions"][0]
        assert any(np.array_equal(shuffled, place) for other, place in sites.items() if other != target)


def test_folders_of_one_name_are_told_apart_by_the_cache_of_datasets(days, tmp_path):
    sites = list_sites(days)
    for target in sites:
        leave_sites_out(days, None, [target], sites, tmp_path / target.site_id / "data")
        sessions = {row["session_id"] for row in rows_of(tmp_path / target.site_id / "data")}
        assert target.arm("true") in sessions and target.session_id not in sessions


def test_a_site_of_simultaneous_probes_leaves_the_others_of_its_session(simultaneous, tmp_path):
    sites = list_sites(simultaneous)
    (session,) = {one.session_id for one in sites}
    target = Target(session, "S01")
    leave_sites_out(simultaneous, None, [target], sites, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    (rest,) = {tuple(row["site_ids"]) for row in rows if row["session_id"] == session}
    assert rest == ("S00", "S02")
    row = next(row for row in rows if row["session_id"] == session)
    own = rows_of(simultaneous)[0]
    assert row["unit_sites"] == [0] * 4 + [1] * 4
    np.testing.assert_array_equal(row_counts(row), row_counts(own)[:, [0, 1, 2, 3, 8, 9, 10, 11]])
    alone = next(row for row in rows if row["session_id"] == target.arm("true"))
    np.testing.assert_array_equal(row_counts(alone), row_counts(own)[:, 4:8])


def test_sites_that_are_left_out_together_are_nowhere_else(days, tmp_path):
    sites = list_sites(days)
    *targets, kept = sites
    leave_sites_out(days, None, targets, sites, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    arms = {target.arm(name) for target in targets for name in COORDINATES}
    assert {row["session_id"] for row in rows} == {kept.session_id} | arms
    for row in rows:
        if row["session_id"].endswith("shuffled"):
            np.testing.assert_array_equal(row["site_positions"][0], sites[kept])
    with pytest.raises(DatasetError, match="of a site that is not left out"):
        leave_sites_out(days, None, list(sites), sites, tmp_path / "none")


def test_without_coordinates_there_is_nothing_to_shuffle(days, tmp_path):
    sites = list_sites(days)
    target = next(iter(sites))
    nowhere = {one: place * (np.nan if one == target else 1) for one, place in sites.items()}
    with pytest.raises(DatasetError, match=r"positions of .* must be known"):
        leave_sites_out(days, None, [target], nowhere, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_that_do_not_exist_are_refused(days, tmp_path):
    with pytest.raises(ConfigurationError, match="`targets` must be sites of the dataset, as SESSION/SITE"):
        evaluate_cross_site(days, tmp_path, targets=["S01"])
    with pytest.raises(ConfigurationError, match="`methods` must be among"):
        evaluate_cross_site(days, tmp_path, methods=["frozen"])


def make_table(gain, num_targets=8):
    rng = np.random.default_rng(0)
    rows = []
    for target in range(num_targets):
        base = rng.uniform(0.3, 0.6)
        for method, coordinates, score in (
            ("scratch", "true", base), ("full", "true", base + gain + rng.normal(0, 0.01)),
            ("full", "shuffled", base + rng.normal(0, 0.01)), ("full", "unknown", base + rng.normal(0, 0.01)),
        ):  # fmt: skip
            rows.append(
                {
                    "target": str(target),
                    "method": method,
                    "coordinates": coordinates,
                    "amount": "10 %",
                    "r2": score,
                }
            )
    return rows


def test_coordinates_are_compared_over_targets():
    found = {(row["first"], row["second"]): row for row in compare_arms(make_table(0.1))}
    row = found["pretrained, true", "pretrained, shuffled"]
    assert (
        row["targets"] == 8
        and row["verdict"] == "ahead"
        and row["difference"] == pytest.approx(0.1, abs=0.02)
    )
    assert found["pretrained, true", "from scratch, true"]["verdict"] == "ahead"
    assert {row["verdict"] for row in compare_arms(make_table(0.0))} <= {"tie"}
    assert compare_arms(make_table(0.1, num_targets=1)) == []


@pytest.mark.slow
def test_a_site_is_left_out_and_decoded_in_every_way(days, tmp_path):
    folder = tmp_path / "recipes"
    folder.mkdir()
    fields = {"unit_embedding": "slots", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    fields |= {"mrope_axes": [{"name": "time", "num_pairs": 2}, {"name": "site_x", "num_pairs": 1}]}
    common = {"preset": "tiny", "num_slots": 4, "window_bins": 20, "epochs": 1}
    (folder / "own_pretrain.yaml").write_text(yaml.safe_dump({**common, "model": fields, "batch_size": 4}))
    (folder / "own_finetune.yaml").write_text(
        yaml.safe_dump({**common, "batch_size": 4, "validate_every": 1})
    )
    (folder / "own_comparators.yaml").write_text("{}\n")
    target = next(iter(list_sites(days))).name
    options = {"recipe": f"{folder}/own", "targets": [target], "amounts": ["10%"], "min_steps": 2}
    results = evaluate_cross_site(days, tmp_path / "out", **options)
    assert not results["failed"]
    assert [(row["method"], row["coordinates"]) for row in results["table"]] == [
        ("scratch", "true"),
        *(("full", name) for name in COORDINATES),
        *(("full from decoder", name) for name in COORDINATES),
    ]
    assert len({row["r2"] for row in results["table"]}) == 7
    assert (tmp_path / "out" / "sites_10--percent.png").is_file()
    assert "![sites 10--percent](sites_10--percent.png)" in (tmp_path / "out" / "results.md").read_text()
    again = evaluate_cross_site(days, tmp_path / "out", **options)
    assert again["table"] == results["table"]

    names = [one.name for one in list(list_sites(days))[:2]]
    options |= {"targets": names, "methods": ["scratch", "full"], "together": True}
    results = evaluate_cross_site(days, tmp_path / "together", **options)
    assert not results["failed"] and {row["target"] for row in results["table"]} == set(names)
    (folder,) = (tmp_path / "together").glob("together_*")
    (base,) = (folder / "evaluation" / "bases").iterdir()
    assert base.name.startswith("pretrained_1sessions_")


@pytest.mark.slow
@pytest.mark.parametrize("script", ["pretrain", "finetune"])
def test_training_writes_a_folder_that_loads_by_its_name(
    simultaneous, repository, tmp_path, monkeypatch, script
):
    monkeypatch.chdir(tmp_path)
    config = repository / "training" / "configs" / f"neuropixel_{script}.yaml"
    small = {
        "hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1,
        "mrope_axes": [{"name": "time", "num_pairs": 3}, {"name": "site_x", "num_pairs": 1}],
    }  # fmt: skip
    argv = [
        "--config",
        str(config),
        "--data",
        str(simultaneous),
        "--output_dir",
        "rpnt-neuropixel",
        "--epochs",
        "1",
    ]
    argv += [
        "--model",
        yaml.safe_dump(small, default_flow_style=True),
        "--window_bins",
        "20",
        "--cpu",
        "true",
    ]
    load_script(f"training/{script}.py").main([*argv, "--mixed_precision", "no"])
    model = AutoModel.from_pretrained("rpnt-neuropixel")
    assert isinstance(model, RPNTModel) and len(model.spatial_layers) == 2
