"""Recordings from the DANDI archive: resumed, verified, and never fetched twice.

The client of the archive (extra `dandi`) lists what there is; its own downloads are not used, since they take
no notice of a server that ignores a range, nor of bytes that differ. Not for building: that is `builder.py`.
"""

import fnmatch
import hashlib
import json
import logging
import os
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock, Timeout

from rpnt_hf.data.card import DANDISET_FILE
from rpnt_hf.disk import explain_disk_errors, flush
from rpnt_hf.errors import DownloadError, closest_names
from rpnt_hf.progress import progress_bar

if TYPE_CHECKING:
    from dandi.dandiapi import RemoteDandiset

logger = logging.getLogger(__name__)

__all__ = ["Asset", "Download", "download_dandiset"]

MANIFEST_FILE = "rpnt_download.json"
TRIES = 6  # without a new byte
LONGEST_PAUSE = 30.0  # s
TIMEOUT = (10.0, 60.0)  # s to connect, and between bytes
CHUNK = 2**16
STATUSES_TO_RETRY = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Asset:
    """A file of a dandiset.

    Args:
        path (`str`): Where it lies, with forward slashes.
        asset_id (`str`): What the archive calls it; another content has another one.
        bytes (`int`): Its size.
        sha256 (`str` or `None`): Its digest, where the archive states it.
        etag (`str` or `None`): The archive's own digest.
        url (`str`): Where it is fetched from.
    """

    path: str
    asset_id: str
    bytes: int
    sha256: str | None
    etag: str | None
    url: str


@dataclass(frozen=True)
class Download:
    """What a download found and did.

    Args:
        dandiset (`str`): Number of the dandiset.
        version (`str`): Its version.
        assets (`list[Asset]`): Files that were asked for.
        fetched (`list[str]`): Paths of those that were not there yet.
    """

    dandiset: str
    version: str
    assets: list[Asset]
    fetched: list[str]


def download_dandiset(
    dandiset: str,
    output_dir: str | Path,
    *,
    version: str | None = None,
    subjects: Sequence[str] = (),
    sessions: Sequence[str] = (),
    instance: str | None = None,
    dry_run: bool = False,
) -> Download:
    """Brings recordings of a dandiset into a folder, and goes on where an earlier call stopped.

    What was fetched is written to `rpnt_download.json` with asset, version, bytes and SHA-256, and the
    dandiset's own description to `dandiset.yaml`, which cards of built datasets quote. A file appears under
    its name when its bytes are those that the archive states.

    Args:
        dandiset (`str`): Its number, such as "000688".
        output_dir (`str` or `Path`): Folder for the files, as they lie in the dandiset.
        version (`str`, *optional*): Version; the last published one where left out.
        subjects (`Sequence[str]`, *optional*): Patterns of subjects to take, such as "C" or "[CM]".
        sessions (`Sequence[str]`, *optional*): Patterns of sessions to take, such as "CO-2013*".
        instance (`str`, *optional*): URL or name of the archive, as for the `dandi` client; DANDI_INSTANCE or
            "dandi" where left out.
        dry_run (`bool`, *optional*, defaults to `False`): List files, fetch and write nothing.

    Returns:
        [`Download`]: The files.

    Raises:
        DownloadError: The archive cannot be reached or has no such thing, sends other bytes than it states,
            or the folder cannot be written.
        ImportError: The `dandi` extra is not installed.
    """
    output_dir = Path(output_dir)
    remote = _open_dandiset(dandiset, version, instance)
    assets = _list_assets(remote, subjects, sessions)
    found = Download(remote.identifier, remote.version_id, assets, [])
    if dry_run:
        return found
    goes_on = "What was fetched stays, and the same command goes on from there."
    with explain_disk_errors(output_dir, DownloadError, goes_on):
        output_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output_dir / ".rpnt_download.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise DownloadError(
                f"One download at a time must write '{output_dir}', but another one is at it. Wait for it, "
                "or choose another folder."
            ) from error
        try:
            _write(output_dir / DANDISET_FILE, yaml.safe_dump(_description(remote), sort_keys=False))
            _fetch_all(remote, assets, output_dir, found)
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
    return found


def _open_dandiset(dandiset: str, version: str | None, instance: str | None) -> "RemoteDandiset":
    os.environ.setdefault("DANDI_NO_ET", "1")  # the client would ask another server for its own updates
    try:
        import requests
        from dandi.dandiapi import DandiAPIClient
        from dandi.exceptions import NotFoundError
    except ImportError as error:
        raise ImportError(
            "Downloading needs the package `dandi`, which is not installed. Run `pip install rpnt_hf[dandi]`."
        ) from error
    logging.getLogger("dandi").setLevel(logging.CRITICAL)  # what it logs is said here, once
    name = instance or os.environ.get("DANDI_INSTANCE", "dandi")
    try:
        client = DandiAPIClient.for_dandi_instance(name)
        client.session.get(client.get_url("/info/"), timeout=TIMEOUT).raise_for_status()
    except (requests.RequestException, RuntimeError, KeyError) as error:
        raise DownloadError(
            f"The DANDI archive must be within reach, but '{name}' cannot be asked. Check the connection and "
            f"`--dandi-instance` (or DANDI_INSTANCE). ({_first_line(error)})"
        ) from error
    try:
        remote = client.get_dandiset(dandiset, version, lazy=False)
        remote.version  # noqa: B018  # is asked for here, so that a wrong one is refused here
    except NotFoundError as error:
        raise DownloadError(
            f"The dandiset must be in the archive, got {dandiset} in version {version or '(last)'}, which "
            f"'{name}' does not have. Check `--version`. ({_first_line(error)})"
        ) from error
    except requests.RequestException as error:
        raise DownloadError(
            f"The DANDI archive must describe dandiset {dandiset}, but '{name}' refused. Try again later. "
            f"({_first_line(error)})"
        ) from error
    return remote


def _description(remote: "RemoteDandiset") -> dict[str, Any]:
    description = dict(remote.get_raw_metadata())
    return {"identifier": f"DANDI:{remote.identifier}", **description, "version": remote.version_id}


def _list_assets(remote: "RemoteDandiset", subjects: Sequence[str], sessions: Sequence[str]) -> list[Asset]:
    import requests

    try:
        listed = [asset for asset in remote.get_assets("path") if asset.path.endswith(".nwb")]
        chosen = [
            asset
            for asset in listed
            if _matches(asset.path, r"sub-([^_/]+)", subjects)
            and _matches(asset.path, r"_ses-([^_/.]+)", sessions)
        ]
        if not chosen:
            names = sorted({Path(asset.path).stem for asset in listed})
            wanted = " ".join([*subjects, *sessions])
            raise DownloadError(
                f"`--subjects` and `--sessions` must match at least one file, got none of {len(listed)} in "
                f"{remote.identifier} {remote.version_id} for {wanted!r}. There are: "
                f"{', '.join(names[:5])}...{closest_names(wanted, names)}"
            )
        assets = []
        for asset in chosen:
            digests = asset.get_raw_metadata().get("digest", {})
            assets.append(
                Asset(
                    asset.path,
                    asset.identifier,
                    asset.size,
                    digests.get("dandi:sha2-256"),
                    digests.get("dandi:dandi-etag"),
                    asset.base_download_url,
                )
            )
    except requests.RequestException as error:
        raise DownloadError(
            f"The DANDI archive must list dandiset {remote.identifier}, but it refused. Try again later. "
            f"({_first_line(error)})"
        ) from error
    for asset in assets:
        if asset.path.startswith("/") or ".." in Path(asset.path).parts:
            raise DownloadError(
                f"A file of a dandiset must lie inside its folder, got '{asset.path}'. Use another archive."
            )
        if not (asset.sha256 or asset.etag):
            raise DownloadError(
                f"A file must have a digest to be verified by, got none for '{asset.path}' in version "
                f"{remote.version_id}: a draft may lack it for a while. Choose a published `--version`."
            )
    return sorted(assets, key=lambda asset: asset.path)


def _matches(path: str, pattern: str, wanted: Sequence[str]) -> bool:
    found = re.search(pattern, Path(path).name)
    return not wanted or (
        found is not None and any(fnmatch.fnmatchcase(found.group(1), one) for one in wanted)
    )


def _fetch_all(remote: "RemoteDandiset", assets: list[Asset], output_dir: Path, found: Download) -> None:
    manifest_path = output_dir / MANIFEST_FILE
    known = _read_manifest(manifest_path)
    with progress_bar(
        total=sum(asset.bytes for asset in assets),
        unit="B",
        unit_scale=True,
        desc="Downloading",
    ) as bar:
        for asset in assets:
            path = output_dir / asset.path
            digest = _whole(path, asset, known.get(asset.path))
            if digest is None:
                digest = _fetch(remote.client.session, asset, path, bar)
                found.fetched.append(asset.path)
            else:
                bar.update(asset.bytes)
            status = path.stat()
            known[asset.path] = {
                "path": asset.path,
                "asset": asset.asset_id,
                "dandiset": found.dandiset,
                "version": found.version,
                "bytes": asset.bytes,
                "sha256": digest,
                "mtime_ns": status.st_mtime_ns,
                "url": asset.url,
            }
            entries = [known[name] for name in sorted(known)]
            _write(manifest_path, json.dumps({"assets": entries}, indent=1) + "\n")


def _read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """What earlier downloads wrote, by path; without it files are known again by their digests."""
    if not path.is_file():
        return {}
    try:
        return {entry["path"]: entry for entry in json.loads(path.read_text("utf-8"))["assets"]}
    except (ValueError, KeyError, TypeError):
        logger.warning("'%s' cannot be read and is written anew: every file is verified again.", path)
        return {}


def _whole(path: Path, asset: Asset, entry: dict[str, Any] | None) -> str | None:
    """Digest of a file that is there and is what the archive has; None where it has to be fetched."""
    if not path.is_file():
        return None
    status = path.stat()
    is_ours = entry is not None and (status.st_size, status.st_mtime_ns) == (
        entry["bytes"],
        entry["mtime_ns"],
    )
    if entry is not None and is_ours and entry["asset"] == asset.asset_id:
        return str(entry["sha256"])
    if status.st_size == asset.bytes:
        digest = _sha256(path)
        if _is_right(path, digest, asset):
            return digest
    if not is_ours:
        raise DownloadError(
            f"A file that is not of a download must not be replaced, got '{path}', whose content the archive "
            "does not have. Move it away, or choose another folder."
        )
    return None  # another version of it


def _fetch(session: Any, asset: Asset, path: Path, bar: Any) -> str:
    """Fetches a file to its end, in as many pieces as it takes."""
    import requests

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{asset.asset_id}.part")
    failures, wrong, reason = 0, 0, ""
    start = bar.n
    while True:
        before = part.stat().st_size if part.exists() else 0
        pause = 0.0
        bar.update(start + before - bar.n)
        try:
            if before < asset.bytes:
                pause = _fetch_piece(session, asset, part, bar)
            else:
                part.touch()
        except requests.RequestException as error:
            reason = _first_line(error)
        size = part.stat().st_size if part.exists() else 0
        if size == asset.bytes:
            digest = _sha256(part)
            if _is_right(part, digest, asset):
                flush(part)
                part.replace(path)
                return digest
        if size >= asset.bytes:
            part.unlink()
            wrong += 1
            reason = "its bytes are not those that the archive states"
        failures = 0 if before < size < asset.bytes else failures + 1
        if failures >= TRIES or wrong >= 2:
            if wrong >= 2:
                bar.update(start - bar.n)
            raise DownloadError(
                f"'{asset.path}' must come as the archive states it ({asset.bytes} bytes), but it did not: "
                f"{reason or 'the connection was cut'}. Run the same command again; what is whole stays."
            )
        backoff = min(0.5 * 2**failures, LONGEST_PAUSE) * random.uniform(0.5, 1.0)
        _sleep(max(pause, backoff))


def _fetch_piece(session: Any, asset: Asset, part: Path, bar: Any) -> float:
    """Appends what a server sends; seconds that it asks to wait before the next try."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with session.get(asset.url, stream=True, headers=headers, timeout=TIMEOUT) as response:
        if response.status_code == 416:
            part.unlink(missing_ok=True)
            return 0.0
        if response.status_code in STATUSES_TO_RETRY:
            wait = response.headers.get("Retry-After", "")
            if not wait.isdigit():
                response.raise_for_status()
            return min(float(wait), LONGEST_PAUSE)
        if response.status_code >= 400:
            raise DownloadError(
                f"'{asset.path}' must be there to fetch, but the archive refused (status "
                f"{response.status_code}). Check the version, or try again later."
            )
        continues = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        )
        if not continues and have:
            bar.update(-have)  # the server sends all of it again
        with part.open("ab" if continues else "wb") as file:
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
                if file.tell() > asset.bytes:
                    break
    return 0.0


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_right(path: Path, digest: str, asset: Asset) -> bool:
    if asset.sha256 is not None:
        return digest == asset.sha256
    from dandi.support.digests import get_digest

    return bool(get_digest(path, "dandi-etag") == asset.etag)


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    flush(unfinished)
    unfinished.replace(path)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
