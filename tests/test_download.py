"""`rpnt download`: what is whole, what is resumed, what is refused, against an archive on this machine."""

import hashlib
import json
import os

import numpy as np
import pytest
from file_server import DandiServer
from filelock import FileLock

pytest.importorskip("dandi", reason="needs the extra `dandi`")

from rpnt_hf.cli import main
from rpnt_hf.data import download
from rpnt_hf.data.card import read_dandiset
from rpnt_hf.data.download import download_dandiset
from rpnt_hf.errors import DownloadError

NAMES = [
    "sub-C/sub-C_ses-CO-20131003_behavior+ecephys.nwb",
    "sub-C/sub-C_ses-RT-20131009_behavior+ecephys.nwb",
    "sub-M/sub-M_ses-CO-20140203_behavior+ecephys.nwb",
]
SIZE = 300_000
HALF = SIZE // 2 // download.CHUNK * download.CHUNK  # what is kept of half a file


@pytest.fixture
def archive(tmp_path, monkeypatch):
    for i, name in enumerate(NAMES):
        path = tmp_path / "archive" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(np.random.default_rng(i).bytes(SIZE + i))
    monkeypatch.setattr(download, "_sleep", lambda seconds: None)
    with DandiServer(tmp_path / "archive") as server:
        monkeypatch.setenv("DANDI_INSTANCE", f"{server.url}/api")
        yield server


def bring(tmp_path, **options):
    return download_dandiset("000688", tmp_path / "out", **options)


def is_whole(tmp_path, names=NAMES):
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert found == {*names, "dandiset.yaml", "rpnt_download.json"}
    return all((tmp_path / "out" / n).read_bytes() == (tmp_path / "archive" / n).read_bytes() for n in names)


def test_files_come_with_a_manifest_and_what_the_card_needs(tmp_path, archive):
    found = bring(tmp_path)
    assert found.fetched == NAMES and is_whole(tmp_path) and archive.sent == 3 * SIZE + 3
    entries = json.loads((tmp_path / "out" / "rpnt_download.json").read_text())["assets"]
    for entry, name in zip(entries, NAMES, strict=True):
        content = (tmp_path / "archive" / name).read_bytes()
        assert entry["path"] == name and entry["version"] == archive.version
        assert entry["bytes"] == len(content) and entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["asset"] and entry["dandiset"] == "000688"
    stated = read_dandiset(tmp_path / "out")
    assert stated["license"] == "CC-BY-4.0" and stated["version"] == archive.version


def test_what_is_whole_is_not_fetched_again(tmp_path, archive):
    bring(tmp_path)
    archive.requests.clear()
    assert bring(tmp_path).fetched == [] and archive.requests == []
    (tmp_path / "out" / "rpnt_download.json").unlink()  # files are looked at where nothing is known of them
    assert bring(tmp_path).fetched == [] and archive.requests == [] and is_whole(tmp_path)
    (tmp_path / "out" / NAMES[1]).unlink()
    assert bring(tmp_path).fetched == [NAMES[1]] and is_whole(tmp_path)


def test_a_torn_manifest_is_written_anew_and_nothing_fetched(tmp_path, archive, caplog):
    bring(tmp_path)
    manifest = tmp_path / "out" / "rpnt_download.json"
    whole = manifest.read_text()
    for torn in ("", whole[:-30], "[]"):
        manifest.write_text(torn)
        archive.requests.clear()
        assert bring(tmp_path).fetched == [] and archive.requests == []
        assert manifest.read_text() == whole and "every file is verified again" in caplog.text
    with (tmp_path / "out" / NAMES[0]).open("r+b") as file:
        file.write(b"damaged")
    manifest.write_text("")
    with pytest.raises(DownloadError, match="must not be replaced"):
        bring(tmp_path)


def test_a_changed_file_is_fetched_again_where_it_came_from_the_archive(tmp_path, archive):
    bring(tmp_path)
    (tmp_path / "archive" / NAMES[0]).write_bytes(b"a later version")
    assert bring(tmp_path).fetched == [NAMES[0]] and is_whole(tmp_path)
    (tmp_path / "out" / NAMES[0]).write_bytes(b"of the user")
    with pytest.raises(
        DownloadError, match=r"that is not of a download must not be replaced, got .*20131003"
    ):
        bring(tmp_path)
    assert (tmp_path / "out" / NAMES[0]).read_bytes() == b"of the user"


@pytest.mark.parametrize(
    ("faults", "requests"),
    [
        (["cut"], 4),
        (["cut", "cut", "cut"], 6),
        (["status", "status"], 5),
        (["wrong"], 4),
        (["more"], 4),
        (["cut", "whole"], 4),
        (["cut", "status", "cut", "wrong"], 7),
        (["cut", "wrong", "status"], 6),
    ],
)
def test_faults_on_the_way_are_survived(tmp_path, archive, tally, faults, requests):
    archive.faults = list(faults)
    bring(tmp_path)
    survived = is_whole(tmp_path)
    for fault in faults:
        tally.add(f"download: {fault}", 1, int(survived))
    assert survived and archive.faults == [] and len(archive.requests) == requests


def test_a_cut_connection_goes_on_where_it_ended(tmp_path, archive):
    archive.faults = ["cut"]
    bring(tmp_path)
    assert [wanted for _, wanted in archive.requests[:2]] == [None, f"bytes={HALF}-"]
    assert archive.sent == 3 * SIZE + 3 - HALF


def test_a_download_that_was_interrupted_goes_on(tmp_path, archive, monkeypatch):
    archive.faults = [None, "cut"]

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "_sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bring(tmp_path)
    assert not (tmp_path / "out" / NAMES[1]).exists()
    archive.requests.clear()
    assert bring(tmp_path).fetched == NAMES[1:] and is_whole(tmp_path)
    assert archive.requests[0][1] == f"bytes={HALF}-"


def test_a_part_of_another_content_is_no_part(tmp_path, archive, monkeypatch):
    archive.faults = ["cut"] * 20

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "_sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bring(tmp_path)
    (tmp_path / "archive" / NAMES[0]).write_bytes(b"b" * SIZE)
    archive.faults = []
    bring(tmp_path)
    assert (tmp_path / "out" / NAMES[0]).read_bytes() == b"b" * SIZE


def test_wrong_bytes_are_refused_and_leave_nothing(tmp_path, archive, tally):
    archive.faults = ["wrong"] * 5
    with pytest.raises(DownloadError, match="its bytes are not those that the archive states"):
        bring(tmp_path)
    left = [path.name for path in (tmp_path / "out").rglob("*.*")]
    tally.add("download: wrong bytes again and again", 1, int(left == ["dandiset.yaml"]))
    assert left == ["dandiset.yaml"]


def test_a_server_that_stays_down_is_said(tmp_path, archive, tally):
    archive.faults = ["status"] * 50
    with pytest.raises(
        DownloadError, match=r"must come as the archive states it .*: 503 .* same command again"
    ):
        bring(tmp_path)
    tally.add("download: server stays down", 1, 1)
    archive.faults = []
    bring(tmp_path)
    assert is_whole(tmp_path)


def test_the_api_may_fail_for_a_while(tmp_path, archive, monkeypatch):
    import tenacity.nap

    monkeypatch.setattr(tenacity.nap.time, "sleep", lambda seconds: None)
    archive.refuse = [503, 500]
    bring(tmp_path)
    assert is_whole(tmp_path)


def test_subjects_and_sessions_are_chosen_by_pattern(tmp_path, archive):
    assert bring(tmp_path, subjects=["C"], sessions=["CO-*"]).fetched == NAMES[:1]
    assert is_whole(tmp_path, NAMES[:1])
    bring(tmp_path, subjects=["[MX]", "J"])
    assert is_whole(tmp_path, [NAMES[0], NAMES[2]])
    entries = json.loads((tmp_path / "out" / "rpnt_download.json").read_text())["assets"]
    assert [entry["path"] for entry in entries] == [NAMES[0], NAMES[2]]
    with pytest.raises(DownloadError, match="must match at least one file, got none of 3 in 000688"):
        bring(tmp_path, subjects=["Q"])


def test_a_dry_run_lists_and_fetches_nothing(tmp_path, archive, capsys):
    arguments = ["download", "perich_miller", "--out", str(tmp_path / "out"), "--dry-run"]
    assert main([*arguments, "--sessions", "CO-*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[:2]] == [NAMES[0], NAMES[2]]
    expected = {"dandiset": "000688", "version": archive.version, "files": 2, "bytes": 2 * SIZE + 2}
    assert json.loads(lines[-1]) == {**expected, "fetched": 0}
    assert archive.requests == [] and not (tmp_path / "out").exists()


def test_a_version_that_is_not_there_is_refused(tmp_path, archive):
    with pytest.raises(DownloadError, match=r"must be in the archive, got 000688 in version 9\.9"):
        bring(tmp_path, version="9.9")


def test_an_archive_out_of_reach_is_said(tmp_path, monkeypatch):
    with pytest.raises(DownloadError, match="must be within reach, but 'http://127"):
        bring(tmp_path, instance="http://127.0.0.1:9/api")
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_any_digest_is_refused(tmp_path, archive):
    archive.sha256_is_known = False
    with pytest.raises(DownloadError, match="must have a digest to be verified by"):
        bring(tmp_path)


def test_two_downloads_into_one_folder_are_refused(tmp_path, archive, tally):
    (tmp_path / "out").mkdir()
    with (
        FileLock(tmp_path / "out" / ".rpnt_download.lock"),
        pytest.raises(DownloadError, match="One download at a time"),
    ):
        bring(tmp_path)
    tally.add("second download into one folder", 1, 1)
    bring(tmp_path)
    assert is_whole(tmp_path)


def test_a_corpus_that_is_not_on_dandi_is_refused(tmp_path, capsys):
    assert main(["download", "synthetic", "--out", str(tmp_path / "out")]) == 2
    assert "must be one that DANDI has, such as perich_miller" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
