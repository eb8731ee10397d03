"""`rpnt build neuropixel`: groups, areas and probes; coordinates; absent sites; days that are paired."""

import datetime
import json

import numpy as np
import pynwb
import pytest

from rpnt_hf.cli import main
from rpnt_hf.data.loading import load_rows, view_rows
from rpnt_hf.data.rows import row_counts, row_site_observed
from rpnt_hf.data.simulate_sites import simulate_sites

BIN_SIZE = "0.05"


def build(nwb_dir, out, *options):
    return main(
        [
            "build",
            "neuropixel",
            "--nwb-dir",
            str(nwb_dir),
            "--out",
            str(out),
            "--bin-size",
            BIN_SIZE,
            *options,
        ]
    )


def rows_of(folder, split="train"):
    return view_rows(load_rows(folder, split=split))


def write_probes(path, coordinates=True, obs_intervals=None, group_position=None):
    """Two probes of two groups each; areas A, B, A, unknown; 6 units, 20 trials of 1 s."""
    start = datetime.datetime(2021, 5, 6, tzinfo=datetime.UTC)
    nwbfile = pynwb.NWBFile("probes", path.stem, start, session_id=path.stem)
    nwbfile.subject = pynwb.file.Subject(subject_id="P", age="P1Y")
    devices = [nwbfile.create_device(f"probe{index}") for index in range(2)]
    areas = ["A", "B", "A", "unknown"]
    groups = [
        nwbfile.create_electrode_group(
            f"shank{index}",
            "a shank",
            "area",
            devices[index // 2],
            position=group_position and group_position[index],
        )
        for index in range(4)
    ]
    for unit, group in enumerate([0, 0, 1, 2, 2, 3]):
        place = {"x": 1000.0 * group, "y": 100.0 * unit, "z": 500.0} if coordinates else {}
        nwbfile.add_electrode(group=groups[group], location=areas[group], **place)
        own = {} if obs_intervals is None else {"obs_intervals": np.asarray(obs_intervals[group])}
        times = np.arange(0.013 + 0.01 * unit, 20, 0.2)
        nwbfile.add_unit(spike_times=times, electrodes=[unit], electrode_group=groups[group], **own)
    nwbfile.add_trial_column("feedback", "1 rewarded, -1 not")
    for trial in range(20):
        nwbfile.add_trial(start_time=float(trial), stop_time=trial + 1.0, feedback=1.0 if trial % 3 else -1.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(nwbfile)
    return path


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probes")
    write_probes(folder / "nwb" / "day1.nwb")
    return folder / "nwb"


@pytest.mark.parametrize(
    ("sites", "names", "units", "x"),
    [
        ("groups", ["shank0", "shank1", "shank2", "shank3"], [0, 0, 1, 2, 2, 3], [0, 1, 2, 3]),
        ("areas", ["A", "B", "area"], [0, 0, 1, 0, 0, 2], [1.0, 1, 3]),
        ("probes", ["probe0", "probe1"], [0, 0, 0, 1, 1, 1], [1 / 3, 7 / 3]),
    ],
)
def test_sites_are_groups_areas_or_probes_and_lie_where_their_units_are(
    probes, tmp_path, sites, names, units, x
):
    assert build(probes, tmp_path / "data", "--allow-no-behavior", "--sites", sites) == 0
    row = rows_of(tmp_path / "data")[0]
    assert row["site_ids"] == names and row["unit_sites"] == units
    np.testing.assert_allclose([place[0] for place in row["site_positions"]], x)


def test_unknown_coordinates_stay_unknown_unless_groups_or_a_table_know_them(tmp_path):
    write_probes(tmp_path / "nwb" / "day1.nwb", coordinates=False)
    assert build(tmp_path / "nwb", tmp_path / "none", "--allow-no-behavior") == 0
    assert np.isnan(rows_of(tmp_path / "none")[0]["site_positions"]).all()
    assert "coordinates are unknown of 4 of 4 sites" in (tmp_path / "none" / "README.md").read_text()
    table = tmp_path / "sites.csv"
    table.write_text("session_id,site_id,x,y,z\n,shank0,1,2,3\nday1,shank1,4,5,\n,shank1,9,9,9\n")
    assert build(tmp_path / "nwb", tmp_path / "table", "--allow-no-behavior", "--sites-csv", str(table)) == 0
    places = np.array(rows_of(tmp_path / "table")[0]["site_positions"])
    np.testing.assert_array_equal(places[0], [1, 2, 3])
    np.testing.assert_array_equal(places[1], [4, 5, np.nan])
    assert np.isnan(places[2:]).all()
    positions = [(1000.0 * index, 0.0, 500.0) for index in range(4)]
    write_probes(tmp_path / "grouped" / "day1.nwb", coordinates=False, group_position=positions)
    assert build(tmp_path / "grouped", tmp_path / "position", "--allow-no-behavior", "--sites", "probes") == 0
    places = np.array(rows_of(tmp_path / "position")[0]["site_positions"])
    np.testing.assert_allclose(places, [[1 / 3, 0, 0.5], [7 / 3, 0, 0.5]])


def test_small_sites_are_left_out_and_the_card_says_so(probes, tmp_path):
    assert build(probes, tmp_path / "data", "--allow-no-behavior", "--min-units", "2") == 0
    assert rows_of(tmp_path / "data")[0]["site_ids"] == ["shank0", "shank2"]
    assert "fewer than 2 units" in (tmp_path / "data" / "README.md").read_text()
    assert build(probes, tmp_path / "none", "--allow-no-behavior", "--min-units", "5") == 2


def test_a_column_of_the_trials_gives_classes(probes, tmp_path):
    assert build(probes, tmp_path / "data", "--allow-no-behavior", "--label-column", "feedback") == 0
    for row in rows_of(tmp_path / "data"):
        for trial in row["trials"]:
            feedback = json.loads(trial["trial_columns"])["feedback"]
            assert trial["label"] == {-1.0: 0, 1.0: 1}[feedback]
    assert build(probes, tmp_path / "none", "--allow-no-behavior", "--label-column", "choice") == 2


def test_a_site_is_absent_where_only_its_units_were_not_observed(tmp_path):
    whole, part = [[0.0, 20.0]], [[0.0, 8.0], [12.0, 20.0]]
    write_probes(tmp_path / "nwb" / "day1.nwb", obs_intervals=[whole, part, whole, whole])
    assert build(tmp_path / "nwb", tmp_path / "data", "--allow-no-behavior", "--context-length", "0") == 0
    seen = {0: 0, 1: 0}
    for row in [
        row for split in ("train", "validation", "test") for row in rows_of(tmp_path / "data", split)
    ]:
        observed = row_site_observed(row)
        times = row["start_time"] + (np.arange(row["num_bins"]) + 0.5) * row["bin_size"]
        np.testing.assert_array_equal(observed[:, 1], (times < 8) | (times > 12))
        assert observed[:, [0, 2, 3]].all()
        assert not row_counts(row)[~observed[:, 1], 2].any()
        for site in seen:
            seen[site] += int(observed[:, site].sum())
    assert seen == {0: 400, 1: 320}


def test_days_are_paired_by_the_command(tmp_path):
    simulated = simulate_sites(
        num_sites=3, num_controls=0, num_units=3, num_trials=40, simultaneous=False, seed=0
    )
    simulated.write(tmp_path / "nwb")
    options = [
        "--pair-days",
        "--align",
        "move_onset",
        "--before",
        "0.2",
        "--after",
        "0.5",
        "--pairing-seed",
        "3",
    ]
    assert build(tmp_path / "nwb", tmp_path / "data", *options) == 0
    row = rows_of(tmp_path / "data")[0]
    assert row["session_id"] == "sub-N_task-center_out_paired-move_onset"
    assert row["site_ids"] == ["S00", "S01", "S02"] and row["num_bins"] == 14
    np.testing.assert_allclose(row["site_positions"], [one.site_positions[0] for one in simulated.recordings])
    assert row["trials"][0]["move_onset_bin"] == 4
    card = (tmp_path / "data" / "README.md").read_text()
    assert "aligned on move_onset" in card and "seed 3" in card
    assert build(tmp_path / "nwb", tmp_path / "odd", "--pair-days", "--before", "0.22") == 2


def test_the_split_of_a_day_is_the_one_that_it_has_alone(tmp_path):
    simulated = simulate_sites(
        num_sites=2, num_controls=0, num_units=3, num_trials=30, simultaneous=False, seed=1
    )
    simulated.write(tmp_path / "nwb")
    assert build(tmp_path / "nwb", tmp_path / "alone") == 0
    assert build(tmp_path / "nwb", tmp_path / "paired", "--pair-days") == 0
    for split in ("train", "validation", "test"):
        for day, recording in enumerate(simulated.recordings):
            alone = {
                trial["trial_index"]
                for row in rows_of(tmp_path / "alone", split)
                if row["session_id"] == recording.session_id
                for trial in row["trials"]
            }
            pairs = [
                json.loads(row["trials"][0]["trial_columns"]) for row in rows_of(tmp_path / "paired", split)
            ]
            assert {pair["paired_trials"][day] for pair in pairs} - {-1} == alone


def test_real_probes_become_rows_of_many_areas(shared_data, tmp_path):
    source = shared_data / "multisite" / "sub-Forssmann_ses-20171102_ecephys.nwb"
    options = ["--allow-no-behavior", "--sites", "areas", "--label-column", "feedback"]
    assert (
        main(
            [
                "build",
                "neuropixel",
                "--nwb-dir",
                str(source),
                "--out",
                str(tmp_path / "data"),
                "--bin-size",
                "0.01",
                *options,
            ]
        )
        == 0
    )
    row = rows_of(tmp_path / "data")[0]
    assert len(row["site_ids"]) == 9 and np.isnan(row["site_positions"]).all()
    assert row["num_bins"] == 40 and len(row["unit_ids"]) == 553
