"""Units carried over to a new session without labels (stabilization.py)."""

import json

import numpy as np
import pytest
import torch

from rpnt_hf import RPNTConfig, RPNTForMotorDecoding, RPNTProcessor, load_decoder, simulate
from rpnt_hf.cli import main
from rpnt_hf.data.nwb_writer import write_nwb
from rpnt_hf.errors import CheckpointError, DatasetError
from rpnt_hf.stabilization import align_units, carry_units, find_reference

NUM_UNITS, NUM_LATENTS, NUM_BINS = 40, 4, 1500


def record(loadings, seed):
    """Counts of units whose log rates follow slow latents, and the latents."""
    random = np.random.default_rng(seed)
    latents = np.zeros((NUM_BINS, NUM_LATENTS))
    for time in range(1, NUM_BINS):
        latents[time] = 0.9 * latents[time - 1] + 0.44 * random.normal(size=NUM_LATENTS)
    rates = np.exp(0.7 + latents @ loadings.T)
    return random.poisson(rates), latents


def make(sessions):
    processor = RPNTProcessor(
        bin_size=0.05,
        sessions=sessions,
        session_facts={
            name: {"subject_id": "A", "recording_date": f"2024-01-0{day}"}
            for day, name in enumerate(sessions, start=1)
        },
    )
    config = RPNTConfig.preset("tiny", num_units=processor.num_units, num_targets=2)
    torch.manual_seed(0)
    return RPNTForMotorDecoding(config), processor


def rows_of(model, processor, session_id):
    weight = model.get_input_embeddings().weight.detach().double().numpy()
    return weight[list(processor.session_rows(session_id))]


def corpus(drift=0.0, seed=0):
    random = np.random.default_rng(seed)
    loadings = 0.5 * random.normal(size=(NUM_UNITS, NUM_LATENTS))
    later = loadings.copy()
    later[: NUM_UNITS // 4] = 0.5 * random.normal(size=(NUM_UNITS // 4, NUM_LATENTS))  # new tuning
    return loadings, (1 - drift) * loadings + drift * later


def test_tokens_follow_the_latents_again_when_tuning_has_changed():
    loadings, later = corpus(drift=1.0)
    units = [str(unit) for unit in range(NUM_UNITS)]
    model, processor = make({"monday": units, "tuesday": units})
    old_counts, old_latents = record(loadings, 1)
    counts, latents = record(later, 2)
    # Monday's embeddings read out two latents, as those of a trained decoder would.
    readout = np.linalg.lstsq(np.sqrt(old_counts), old_latents[:, :2], rcond=None)[0]
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        weight[:NUM_UNITS, :2] = torch.from_numpy(readout).float()

    def agreement():
        tokens = np.sqrt(counts) @ rows_of(model, processor, "tuesday")[:, :2]
        return np.mean([np.corrcoef(tokens[:, k], latents[:, k])[0, 1] for k in range(2)])

    carry_units(model, processor, "tuesday", "monday")
    carried = agreement()
    align_units(model, processor, "tuesday", "monday", counts, old_counts)
    assert 1 - agreement() < 0.75 * (1 - carried)


def test_units_are_found_by_their_ids_and_new_ones_get_a_place():
    loadings, _ = corpus()
    units = [str(unit) for unit in range(NUM_UNITS)]
    order = np.random.default_rng(3).permutation(NUM_UNITS)
    shuffled = [units[unit] if unit >= 4 else f"new{unit}" for unit in order]
    model, processor = make({"monday": units, "tuesday": shuffled})
    old_counts, old_latents = record(loadings, 1)
    counts, _ = record(loadings, 2)
    readout = np.linalg.lstsq(np.sqrt(old_counts), old_latents, rcond=None)[0]
    with torch.no_grad():
        model.get_input_embeddings().weight[:NUM_UNITS, :NUM_LATENTS] = torch.from_numpy(readout).float()
    before = rows_of(model, processor, "monday")

    carry_units(model, processor, "tuesday", "monday")
    carried = rows_of(model, processor, "tuesday")
    known = order >= 4
    np.testing.assert_allclose(carried[known], before[order[known]], rtol=1e-6)
    assert not carried[~known].any()

    align_units(model, processor, "tuesday", "monday", counts[:, order], old_counts)
    aligned = rows_of(model, processor, "tuesday")[:, :NUM_LATENTS]
    true = before[order][:, :NUM_LATENTS]
    assert np.corrcoef(aligned[~known].ravel(), true[~known].ravel())[0, 1] > 0.7
    np.testing.assert_array_equal(rows_of(model, processor, "monday"), before)


def test_tokens_keep_their_size_when_the_number_of_units_differs():
    units = [str(unit) for unit in range(NUM_UNITS)]
    model, processor = make({"monday": units, "tuesday": units[: NUM_UNITS // 4]})
    carry_units(model, processor, "tuesday", "monday")
    np.testing.assert_allclose(
        rows_of(model, processor, "tuesday"),
        0.5 * rows_of(model, processor, "monday")[: NUM_UNITS // 4],
        rtol=1e-6,
    )


def test_ids_that_name_other_units_are_refused():
    loadings, _ = corpus()
    units = [str(unit) for unit in range(NUM_UNITS)]
    model, processor = make({"monday": units, "tuesday": units})
    counts = record(loadings, 2)[0][:, np.random.default_rng(5).permutation(NUM_UNITS)]
    before = rows_of(model, processor, "tuesday")
    with pytest.raises(DatasetError, match="fit no better than units chosen at random"):
        align_units(model, processor, "tuesday", "monday", counts, record(loadings, 1)[0])
    np.testing.assert_array_equal(rows_of(model, processor, "tuesday"), before)


def test_too_short_a_recording_is_refused():
    units = [str(unit) for unit in range(NUM_UNITS)]
    model, processor = make({"monday": units, "tuesday": units})
    counts = record(corpus()[0], 1)[0]
    with pytest.raises(DatasetError, match=r"'tuesday' must have at least 80 bins.*got 30"):
        align_units(model, processor, "tuesday", "monday", counts[:30], counts)


def test_the_reference_is_the_latest_session_of_the_subject_with_the_same_units():
    _, processor = make(
        {"a": ["1", "2", "3"], "b": ["1", "2", "3"], "c": ["1", "2", "9"], "new": ["1", "2", "3"]}
    )
    assert find_reference(processor, "new", ["a", "b", "c"]) == "b"
    processor.session_facts["b"]["subject_id"] = "B"
    assert find_reference(processor, "new", ["a", "b", "c"]) == "a"
    with pytest.raises(CheckpointError, match="shares at least 4 `unit_ids` with 'new', got 3 at most"):
        find_reference(processor, "new", ["a", "b", "c"], minimum=4)


@pytest.fixture(scope="module")
def two_days(tmp_path_factory):
    """A decoder that knows the first day of a subject, and the files of both days."""
    folder = tmp_path_factory.mktemp("two_days")
    monday, tuesday = simulate(num_subjects=1, sessions_per_subject=2, num_units=20, num_trials=30, seed=1)
    files = [folder / "monday.nwb", folder / "tuesday.nwb"]
    for recording, path in zip((monday, tuesday), files, strict=True):
        write_nwb(recording, path)
    facts = {"subject_id": "A", "unit_sites": monday.unit_sites, "recording_date": monday.recording_date}
    processor = RPNTProcessor(
        bin_size=0.05, sessions={monday.session_id: monday.unit_ids},
        session_facts={monday.session_id: facts},
        behavior_names=["cursor_vel_x", "cursor_vel_y"], behavior_units=["cm/s", "cm/s"], window_bins=40,
    )  # fmt: skip
    torch.manual_seed(0)
    config = RPNTConfig.preset(
        "tiny", num_units=20, num_targets=2, target_names=["cursor_vel_x", "cursor_vel_y"],
        target_units=["cm/s", "cm/s"], attention_window=10,
    )  # fmt: skip
    RPNTForMotorDecoding(config).save_pretrained(folder / "decoder")
    processor.save_pretrained(folder / "decoder")
    return folder, monday, tuesday


def test_rpnt_adapt_leaves_a_decoder_of_the_new_day(two_days, tmp_path, capsys, caplog):
    folder, monday, tuesday = two_days
    arguments = [str(folder / "decoder"), str(folder / "tuesday.nwb"), "--out", str(tmp_path / "adapted")]
    arguments += ["--reference", str(folder / "monday.nwb"), "--plot", str(tmp_path / "tuesday.png")]
    assert main(["adapt", *arguments, "--json"]) == 0
    assert (tmp_path / "tuesday.png").read_bytes().startswith(b"\x89PNG")
    facts = json.loads(capsys.readouterr().out)
    assert facts["reference"] == monday.session_id
    assert facts["shared_units"] == len(set(monday.unit_ids) & set(tuesday.unit_ids))
    assert facts["misfit"] < facts["shuffled_misfit"]
    model, processor = load_decoder(str(tmp_path / "adapted"))
    assert list(processor.sessions) == [monday.session_id, tuesday.session_id]
    before, _ = load_decoder(str(folder / "decoder"))
    np.testing.assert_array_equal(
        model.get_input_embeddings().weight[:20].detach(), before.get_input_embeddings().weight.detach()
    )
    assert main(["decode", str(tmp_path / "adapted"), str(folder / "tuesday.nwb"), "--json"]) == 0
    assert not any("predictions mean little" in record.message for record in caplog.records)


def test_rpnt_adapt_refuses_another_reference_and_leaves_nothing(two_days, tmp_path, capsys):
    folder, monday, _ = two_days
    arguments = [str(folder / "decoder"), str(folder / "tuesday.nwb"), "--out", str(tmp_path / "adapted")]
    assert main(["adapt", *arguments, "--reference", str(folder / "tuesday.nwb")]) == 2
    assert f"must be the recording of session '{monday.session_id}'" in capsys.readouterr().err
    assert main(["adapt", str(folder / "decoder"), str(folder / "monday.nwb"), *arguments[2:]]) == 2
    assert "can be added once" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
