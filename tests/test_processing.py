import datetime
import logging

import numpy as np
import pytest
import torch
from small_corpus import BIN_SIZE, build_small_corpus, make_recording

from rpnt_hf.data.loading import load_rows, view_rows
from rpnt_hf.errors import ConfigurationError, InputError
from rpnt_hf.layout_rpnt import fit_slots, site_layout
from rpnt_hf.processing_rpnt import RPNTProcessor


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return view_rows(load_rows(build_small_corpus(tmp_path_factory.mktemp("corpus") / "built")))


@pytest.fixture
def processor():
    return RPNTProcessor(
        BIN_SIZE,
        sessions={"b": ["0", "1", "2"], "a": ["0", "1"]},
        subjects=["A", "B"],
        tasks=["center_out"],
        corpus_start="2020-01-01",
        behavior_names=["x"],
        behavior_units=["cm/s"],
        window_bins=40,
    )


def test_saving_keeps_everything_and_the_order_of_sessions(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = RPNTProcessor.from_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").is_file()
    assert loaded.to_dict() == processor.to_dict()
    assert list(loaded.sessions) == ["b", "a"]
    assert loaded.session_rows("a") == range(3, 5)


def test_a_new_session_is_appended(processor):
    assert processor.add_session("c", ["7", "8"]) == range(5, 7)
    assert processor.num_units == 7
    assert processor.session_rows("b") == range(0, 3)


@pytest.mark.parametrize(
    ("session_id", "unit_ids", "message"),
    [
        ("a", ["9"], "added once, got 'a' again"),
        ("c", ["1", "1"], "all different"),
        ("c", [], "at least one"),
    ],
)
def test_bad_sessions_are_refused(processor, session_id, unit_ids, message):
    with pytest.raises(InputError, match=message):
        processor.add_session(session_id, unit_ids)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bin_size": 0.0}, "`bin_size` must be"),
        ({}, "`bin_size` must be"),
        ({"bin_size": 0.05, "metadata_axes": ["time"]}, "`metadata_axes` must be"),
        ({"bin_size": 0.05, "unit_embedding": "slots"}, "`num_slots` belongs"),
        ({"bin_size": 0.05, "subject": ["A"]}, "got `subject`. Did you mean `subjects`"),
        ({"bin_size": 0.05, "behavior_names": ["x"]}, "of one length"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        RPNTProcessor(**arguments)


def test_counts_are_laid_out_by_site(processor):
    counts = np.arange(12, dtype=np.uint8).reshape(4, 3)
    inputs = processor(counts, "b", unit_sites=[1, 0, 1])
    assert inputs["spike_counts"].dtype == torch.uint8
    assert inputs["spike_counts"].shape == (1, 2, 4, 2)
    assert inputs["spike_counts"][0, 1].tolist() == counts[:, [0, 2]].tolist()
    assert inputs["spike_counts"][0, 0, :, 0].tolist() == counts[:, 1].tolist()
    assert inputs["unit_ids"][0].tolist() == [[1, 0], [0, 2]]
    assert inputs["unit_mask"][0].tolist() == [[True, False], [True, True]]
    assert inputs["spike_counts"][0, 0, :, 1].sum() == 0


def test_counts_with_a_site_axis_keep_it(processor):
    processor.add_session("two sites", [str(i) for i in range(4)])
    counts = np.arange(2 * 5 * 2).reshape(2, 5, 2)
    inputs = processor(counts, "two sites")
    assert inputs["spike_counts"][0].tolist() == counts.tolist()
    assert inputs["unit_ids"][0].tolist() == [[5, 6], [7, 8]]


@pytest.mark.parametrize(
    ("counts", "session_id", "options", "message"),
    [
        (
            np.zeros((4, 3)),
            "x",
            {},
            r"session of the vocabulary \('b', 'a'\), got 'x'.*--session-id.*training/finetune",
        ),
        (np.zeros((4, 3)), None, {}, "session of the vocabulary"),
        (np.zeros((4, 4)), "b", {}, "must have the 3 units .* got 4"),
        (np.full((4, 3), 0.5), "b", {}, "or fractions"),
        (np.full((4, 3), -1), "b", {}, "values from -1"),
        (np.full((4, 3), np.nan), "b", {}, "not NaN"),
        (np.full((4, 3), 300), "b", {}, "0 to 255"),
        (np.zeros((4, 0)), "b", {}, "none of them 0"),
        (np.zeros((4, 3)), "b", {"bin_size": 0.1}, "must be 0.05 s.*got 0.1 s"),
        (np.zeros((4, 3)), "b", {"unit_sites": [0, 1]}, "each of the 3 units"),
        (np.zeros((4, 3)), "b", {"unit_sites": [0, -1, 1]}, "site in"),
    ],
)
def test_bad_counts_are_refused(processor, counts, session_id, options, message):
    with pytest.raises(InputError, match=message):
        processor(counts, session_id, **options)


def test_a_row_binned_otherwise_is_refused(rows):
    processor = RPNTProcessor.from_rows(rows)
    with pytest.raises(InputError, match=r"`bin_size` must be 0.05 s.*got 0.1 s in a row of session"):
        processor({**rows[0], "bin_size": 0.1})


def test_metadata_are_positions_indices_and_days(processor):
    metadata = processor.metadata(
        [[1.0, 2.0, np.nan]], 1, subject_id="B", task="center_out", recording_date=datetime.date(2020, 1, 11)
    )
    np.testing.assert_array_equal(metadata, np.array([[1, 2, np.nan, 1, 10, 0]], np.float32))


def test_an_unknown_subject_is_nan_and_logged_once(processor, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            metadata = processor.metadata(None, 1, "b", subject_id="Z")
    assert np.isnan(metadata).all()
    assert len(caplog.records) == 1
    assert "subject 'Z' of session 'b'" in caplog.text


def test_a_recording_and_its_row_give_the_same_tensors(rows):
    processor = RPNTProcessor.from_rows(rows)
    recording = make_recording("a")
    whole = processor(recording)
    row = next(row for row in rows if row["session_id"] == "a" and row["start_time"] == 0.0)
    part = processor(row)
    cut = whole["spike_counts"][:, :, : row["num_bins"]]
    torch.testing.assert_close(part["spike_counts"], cut, rtol=0, atol=0)
    for name in ("unit_ids", "unit_mask", "metadata"):
        torch.testing.assert_close(part[name], whole[name], rtol=0, atol=0, equal_nan=True)


def test_a_vocabulary_is_made_from_rows(rows):
    processor = RPNTProcessor.from_rows(rows)
    assert {name: len(units) for name, units in processor.sessions.items()} == {"a": 6, "b": 5}
    assert (processor.subjects, processor.tasks, processor.corpus_start) == (
        ["A", "B"],
        ["center_out"],
        "2020-01-01",
    )
    with pytest.raises(InputError, match="the same `bin_size`"):
        RPNTProcessor.from_rows([rows[0], {**rows[-1], "bin_size": 0.1}])


@pytest.mark.parametrize("num_units", [1, 3, 7, 10])
@pytest.mark.parametrize("num_slots", [1, 2, 5, 9, 12])
@pytest.mark.parametrize("seed", [None, 0])
def test_slots_hold_as_many_units_as_fit_and_none_twice(num_units, num_slots, seed):
    generator = None if seed is None else np.random.default_rng(seed)
    index, present = site_layout(np.array([0] * num_units + [1] * 4), 2)
    slots, filled = fit_slots(index, present, num_slots, generator)
    assert slots.shape == filled.shape == (2, num_slots)
    assert filled.sum(axis=1).tolist() == [min(num_units, num_slots), min(4, num_slots)]
    assert len(set(slots[filled])) == filled.sum()
    assert set(slots[1][filled[1]]) <= set(range(num_units, num_units + 4))


def test_slots_need_no_vocabulary():
    processor = RPNTProcessor(BIN_SIZE, unit_embedding="slots", num_slots=4)
    inputs = processor(np.ones((5, 9)), "never seen")
    assert inputs["unit_ids"][0].tolist() == [[0, 1, 2, 3]]
    assert inputs["spike_counts"].shape == (1, 1, 5, 4)


def test_units_in_another_order_get_their_own_rows_and_strange_units_are_refused(rows):
    processor = RPNTProcessor.from_rows(rows)
    row = dict(rows[0])
    order = np.arange(len(row["unit_ids"]))[::-1]
    counts = np.frombuffer(row["counts"], np.uint8).reshape(row["num_bins"], -1)
    turned = row | {
        "unit_ids": [row["unit_ids"][i] for i in order],
        "unit_sites": [row["unit_sites"][i] for i in order],
        "counts": np.ascontiguousarray(counts[:, order]).tobytes(),
    }
    expected, found = processor(row), processor(turned)
    for site in range(expected["unit_ids"].shape[1]):
        pairs = [
            {
                int(unit): inputs["spike_counts"][0, site, :, n].tolist()
                for n, unit in enumerate(inputs["unit_ids"][0, site])
                if inputs["unit_mask"][0, site, n]
            }
            for inputs in (expected, found)
        ]
        assert pairs[0] == pairs[1]
    with pytest.raises(InputError, match=r"strange \(1 in all\) that were not among them"):
        processor(row | {"unit_ids": ["strange", *row["unit_ids"][1:]]})


def test_counts_by_site_and_flat_counts_of_a_session_agree_where_sites_interleave():
    processor = RPNTProcessor(bin_size=0.05)
    processor.add_session("s", ["a", "b", "c", "d", "e"], unit_sites=[0, 1, 0, 1, 1])
    flat = np.arange(10, dtype=np.uint8).reshape(2, 5)
    by_site = np.zeros((2, 2, 3), dtype=np.uint8)
    by_site[0, :, :2], by_site[1] = flat[:, [0, 2]], flat[:, [1, 3, 4]]
    for name, tensor in processor(flat, session_id="s").items():
        torch.testing.assert_close(processor(by_site, session_id="s")[name], tensor, equal_nan=True)
    with pytest.raises(InputError, match="2 sites of up to 3 units"):
        processor(by_site[:, :, :2], session_id="s")


def test_fitted_times_are_found_where_intervals_overlap_and_nest():
    processor = RPNTProcessor(bin_size=1.0)
    source = {"file_name": "f.nwb", "sha256": "1"}
    row = {"session_id": "s", "bin_size": 1.0, "source": source}
    processor.mark_fitted([row | {"start_time": 0.0, "num_bins": 100, "num_context_bins": 0}])
    processor.mark_fitted([row | {"start_time": 8.0, "num_bins": 4, "num_context_bins": 2}])
    processor.mark_fitted([row | {"start_time": 198.0, "num_bins": 12, "num_context_bins": 2}])
    times = np.array([-1.0, 5.0, 11.0, 50.0, 100.0, 150.0, 199.0, 200.0, 209.9, 210.0])
    expected = [False, True, True, True, False, False, False, True, True, False]
    assert processor.is_fitted("s", source, times).tolist() == expected
    assert processor.is_fitted("s", None, times).tolist() == expected
    assert not processor.is_fitted("other", source, times).any()
