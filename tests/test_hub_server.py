"""The test Hub answers the real client as the Hub does: what other tests conclude from it rests on this."""

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.url, token=hub.token)


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_what_is_pushed_comes_back_byte_for_byte(hub, api, tmp_path, repo_type):
    folder = tmp_path / "mine"
    (folder / "data").mkdir(parents=True)
    files = {
        "README.md": b"---\nlicense: mit\n---\nHello",
        "data/x.parquet": bytes(range(256)) * 50,
        "a.json": b"{}",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    repo_id = f"org/bytes-{repo_type}"
    assert api.create_repo(repo_id, repo_type=repo_type).repo_id == repo_id
    commit = api.upload_folder(folder_path=folder, repo_id=repo_id, repo_type=repo_type)
    information = api.repo_info(repo_id, repo_type=repo_type, files_metadata=True)
    assert information.sha == commit.oid and information.card_data.license == "mit"
    assert {s.rfilename: s.size for s in information.siblings if s.rfilename in files} == {
        name: len(content) for name, content in files.items()
    }
    assert next(s for s in information.siblings if s.rfilename == "data/x.parquet").lfs.size == 256 * 50
    back = snapshot_download(
        repo_id, repo_type=repo_type, endpoint=hub.url, token=hub.token, cache_dir=tmp_path / "cache"
    )
    for name, content in files.items():
        assert (tmp_path / back / name).read_bytes() == content
    listed = api.list_repo_tree(repo_id, repo_type=repo_type, recursive=True, expand=True)
    assert {entry.path for entry in listed} == {*files, "data", ".gitattributes"}
    assert [entry.path for entry in api.get_paths_info(repo_id, ["data", "no"], repo_type=repo_type)] == [
        "data"
    ]


def test_branches_tags_commits_and_deletions(hub, api):
    api.create_repo("org/history")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("org/history")
    api.create_repo("org/history", exist_ok=True)
    first = api.upload_file(path_or_fileobj=b"1", path_in_repo="x/y.txt", repo_id="org/history")
    api.create_tag("org/history", tag="v1")
    api.create_branch("org/history", branch="try/this")
    api.upload_file(path_or_fileobj=b"2", path_in_repo="x/y.txt", repo_id="org/history", revision="try/this")
    operations = [CommitOperationDelete("x/"), CommitOperationAdd("z.txt", b"3")]
    second = api.create_commit("org/history", operations, commit_message="replace", parent_commit=first.oid)
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit(
            "org/history", [CommitOperationAdd("late", b"")], commit_message="late", parent_commit=first.oid
        )
    pull = api.create_commit(
        "org/history", [CommitOperationAdd("p", b"4")], commit_message="propose", create_pr=True
    )
    refs = api.list_repo_refs("org/history", include_pull_requests=True)
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": first.oid}
    assert {ref.name for ref in refs.branches} == {"main", "try/this"}
    assert [ref.ref for ref in refs.pull_requests] == [pull.pr_revision]
    assert [commit.commit_id for commit in api.list_repo_commits("org/history")][:2] == [
        second.oid,
        first.oid,
    ]
    assert hub.repository("org/history").at("try/this").files["x/y.txt"].content == b"2"
    assert set(hub.repository("org/history").files) == {".gitattributes", "z.txt"}
    with pytest.raises(RevisionNotFoundError):
        api.model_info("org/history", revision="v2")
    api.delete_branch("org/history", branch="try/this")
    api.delete_tag("org/history", tag="v1")
    refs = api.list_repo_refs("org/history")
    assert [ref.name for ref in refs.branches] == ["main"] and not refs.tags
    same = api.upload_file(path_or_fileobj=b"3", path_in_repo="z.txt", repo_id="org/history")
    assert same.oid == second.oid  # the client saw that nothing changed
    api.delete_repo("org/history")
    assert not api.repo_exists("org/history")


def test_who_may_read_and_write(hub, api):
    api.create_repo("org/secret", private=True)
    reader, stranger, nobody, liar = (
        HfApi(endpoint=hub.url, token=token)
        for token in ("hf_reader", "hf_stranger", False, "hf_no_such_token")
    )
    assert reader.model_info("org/secret").private
    assert api.whoami()["name"] == "lab"
    for other in (stranger, nobody):
        with pytest.raises(RepositoryNotFoundError):
            other.model_info("org/secret")
        with pytest.raises(RepositoryNotFoundError):
            other.model_info("org/no-such-model")
    with pytest.raises(HfHubHTTPError, match="401"):
        liar.model_info("org/secret")
    for other, status in ((reader, "403"), (stranger, "403"), (nobody, "401")):
        with pytest.raises(HfHubHTTPError, match=status):
            other.create_repo("org/theirs")
    hub.add_repository("org/public", files={"a.txt": b"a"})
    assert nobody.file_exists("org/public", "a.txt")
    with pytest.raises(HfHubHTTPError, match="403"):
        stranger.upload_file(path_or_fileobj=b"b", path_in_repo="b.txt", repo_id="org/public")
    hub.add_repository("org/gated", files={"a.txt": b"a"}).gated = True
    with pytest.raises(GatedRepoError):
        stranger.model_info("org/gated")
    api.update_repo_settings("org/secret", private=False)
    assert not nobody.model_info("org/secret").private


def test_missing_files_are_told_from_missing_repositories(hub, api, tmp_path):
    hub.add_repository("org/few", files={"a.txt": b"a"})
    arguments = {"endpoint": hub.url, "cache_dir": tmp_path, "token": hub.token}
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("org/few", "b.txt", **arguments)
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("org/few", "a.txt", revision="v9", **arguments)
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("org/none", "a.txt", **arguments)
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("org/few", path_in_repo="no/folder"))


def test_faults_break_a_download_and_a_cut_one_is_resumed(hub, tmp_path):
    content = bytes(range(256)) * 100
    hub.add_repository("org/faulty", files={"w.safetensors": content, "small.json": b"{}"})
    arguments = {"endpoint": hub.url, "token": hub.token}

    def download(name, folder):
        return hf_hub_download("org/faulty", name, cache_dir=tmp_path / folder, **arguments)

    try:
        hub.break_requests("*/faulty/*/w.safetensors", "error")
        with pytest.raises(HfHubHTTPError, match="503"):
            api = HfApi(endpoint=hub.url)
            api.get_hf_file_metadata(url=f"{hub.url}/org/faulty/resolve/main/w.safetensors")
        hub.mend()
        hub.break_requests("*/faulty/w.safetensors", "truncate")
        with pytest.raises(OSError, match="Consistency check failed"):
            download("w.safetensors", "truncated")
        hub.mend()
        hub.break_requests("*/faulty/w.safetensors", "cut", times=1)
        with open(download("w.safetensors", "cut"), "rb") as file:
            assert file.read() == content
        assert hub.faults[0].times == 0
        hub.break_requests("*/faulty/w.safetensors", "corrupt")
        with open(download("w.safetensors", "corrupt"), "rb") as file:
            wrong = file.read()
        assert wrong != content and len(wrong) == len(content)
    finally:
        hub.mend()
