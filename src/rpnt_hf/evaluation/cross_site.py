"""Decoding at a site that pretraining has not seen, told where it is, told wrongly, or not told.

For `rpnt evaluate cross-site` (DESIGN section 5). One site at a time is left out: what is left is pretrained
on, and the site alone is decoded, from scratch and from what was pretrained. Runs are those of `runner.py`.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rpnt_hf.analysis.plots import plot_sessions, save_figure
from rpnt_hf.data.loading import load_rows, view_rows
from rpnt_hf.data.rows import row_counts, row_site_observed
from rpnt_hf.data.schema import FEATURES
from rpnt_hf.errors import ConfigurationError, DatasetError, closest_names
from rpnt_hf.evaluation.protocols import MODES, Base, Run, list_amounts
from rpnt_hf.evaluation.report import write_report
from rpnt_hf.evaluation.runner import Recipe, execute_runs, list_sessions, read_predictions, run_folder
from rpnt_hf.evaluation.statistics import compare_sessions
from rpnt_hf.metrics import r2_conventions

__all__ = ["COORDINATES", "METHODS", "compare_arms", "evaluate_cross_site", "leave_sites_out", "list_sites"]

SPLITS = ("train", "validation", "test")
COORDINATES = ("true", "shuffled", "unknown")
METHODS = ("scratch", "full", "full from decoder")
NAMES = {"scratch": "from scratch", "full": "pretrained", "full from decoder": "pretrained to decode"}
# First minus second: what coordinates are worth, and what pretraining is worth.
COMPARISONS = (
    (("full", "true"), ("full", "shuffled")),
    (("full", "true"), ("full", "unknown")),
    (("full", "true"), ("scratch", "true")),
    (("full from decoder", "true"), ("full from decoder", "shuffled")),
    (("full from decoder", "true"), ("full from decoder", "unknown")),
    (("full from decoder", "true"), ("scratch", "true")),
)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """A site that is left out.

    Args:
        session_id (`str`): Its session.
        site_id (`str`): Its name there.
    """

    session_id: str
    site_id: str

    @property
    def name(self) -> str:
        """`str`: "SESSION/SITE"."""
        return f"{self.session_id}/{self.site_id}"

    def arm(self, coordinates: str) -> str:
        """Names the session that is the site alone, with coordinates of a kind."""
        return f"{self.name} {coordinates}"


def evaluate_cross_site(
    data: str | Path,
    out: str | Path,
    *,
    dataset_config: str | None = None,
    recipe: str | Recipe = "neuropixel_slots",
    targets: Sequence[str] = (),
    methods: Sequence[str] = METHODS,
    amounts: Sequence[str] = ("10%", "100%"),
    seeds: Sequence[int] = (0,),
    num_proc: int = 1,
    min_steps: int = 400,
    together: bool = False,
) -> dict[str, Any]:
    """Leaves sites out one at a time, and decodes each from scratch and from what was pretrained.

    From what was pretrained a site is decoded with its true coordinates, with those of another site, and with
    none; weights before finetuning, trials and seeds are the same in the three.

    Args:
        data (`str` or `Path`): Folder that `rpnt build` wrote, or a dataset on the Hub; with behaviour.
        out (`str` or `Path`): Folder to write. What is finished there is not done again.
        dataset_config (`str`, *optional*): Part of the corpus.
        recipe (`str` or `Recipe`, *optional*, defaults to `"neuropixel_slots"`): As for `rpnt evaluate`.
        targets (`Sequence[str]`, *optional*): Sites to leave out, as "SESSION/SITE"; all where empty.
        methods (`Sequence[str]`, *optional*): Out of `METHODS`: trained from scratch, pretrained without
            labels, or pretrained and then taught to decode the other sites.
        amounts (`Sequence[str]`, *optional*, defaults to `("10%", "100%")`): Training trials of the site.
        seeds (`Sequence[int]`, *optional*, defaults to `(0,)`): Seeds.
        num_proc (`int`, *optional*, defaults to 1): Runs at a time, each on one thread.
        min_steps (`int`, *optional*, defaults to 400): Steps that a training on few trials takes at least.
        together (`bool`, *optional*, defaults to `False`): Whether all targets are left out of one and the
            same pretraining, which costs about as much as one target does, in place of one at a time.

    Returns:
        `dict[str, Any]`: The content of `results.json`: `table` (one row per decoder), `comparisons`, and
        `failed`.

    Raises:
        ConfigurationError: A name or a number is not what it must be.
        DatasetError: There are not two sites whose coordinates are known, or every run failed.
        CheckpointError: The folder holds something else.
    """
    out = Path(out)
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods or not seeds:
        raise ConfigurationError(
            f"`methods` must be among {', '.join(METHODS)} and `seeds` at least one, got "
            f"{', '.join(unknown) or list(methods)} and {list(seeds)}."
        )
    chosen = Recipe.named(recipe) if isinstance(recipe, str) else recipe
    sites = list_sites(data, dataset_config)
    known = {target.name: target for target in sites}
    for name in targets:
        if name not in known:
            raise ConfigurationError(
                f"`targets` must be sites of the dataset, as SESSION/SITE, got '{name}'."
                f"{closest_names(name, known)}"
            )
    table: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    left_out = [known[name] for name in dict.fromkeys(targets)] or list(sites)
    for group in [left_out] if together else [[target] for target in left_out]:
        name = " ".join(target.name for target in group)
        folder = out / (_safe(name) if len(group) == 1 else f"together_{_digest(name).hex()[:12]}")
        derived = folder / "data"
        if not derived.is_dir():
            leave_sites_out(data, dataset_config, group, sites, derived)
        runs = _plan(derived, group, methods, amounts, seeds)
        settings = {"protocol": "cross-site", "target": name, "dataset_config": dataset_config}
        facts = execute_runs(
            runs,
            folder / "evaluation",
            data=str(derived),
            recipe=chosen,
            num_proc=num_proc,
            min_steps=min_steps,
            settings=settings,
        )
        for run, fact in zip(runs, facts, strict=True):
            target_name, _, coordinates = run.session_id.rpartition(" ")
            if "error" in fact:
                failed.append({"target": target_name, "decoder": run.name, "error": fact["error"]})
                continue
            found = read_predictions(run_folder(folder / "evaluation", run))
            table.append(
                {
                    "target": target_name,
                    "method": run.method,
                    "decoder": NAMES[run.method],
                    "coordinates": coordinates,
                    "amount": run.amount.name,
                    "trials": fact["num_trials"],
                    "seed": run.seed,
                    **r2_conventions(found["targets"], found["predictions"], found["reach"]),
                }
            )
    if not table:
        raise DatasetError(
            f"At least one run must finish, got none of {len(failed)}; the first failed with: "
            f"{failed[0]['error'] if failed else 'no run'}."
        )
    results = {
        "title": "Decoding at a site never seen",
        "summary": (
            "One site at a time is left out of pretraining and decoded alone, with its true coordinates, "
            "those of another site (shuffled), or none (unknown)."
        ),
        "seeds": list(seeds),
        "table": table,
        "tables": {"Comparisons over targets": compare_arms(table)},
        "failed": failed,
        "figures": _draw(table, out),
    }
    return write_report(results, out, "results")


def _draw(table: Sequence[Mapping[str, Any]], out: Path) -> list[str]:
    """Draws the score of every arm at every site, one picture for each amount, and lists their names."""
    names = []
    for amount in dict.fromkeys(row["amount"] for row in table):
        scores: dict[str, dict[str, list[float]]] = {}
        for row in table:
            if row["amount"] == amount:
                arm = f"{row['decoder']}, {row['coordinates']}"
                scores.setdefault(arm, {}).setdefault(row["target"], []).append(row["r2"])
        means = {
            arm: {target: float(np.mean(values)) for target, values in by_target.items()}
            for arm, by_target in scores.items()
        }
        figure = plot_sessions(means, f"Sites never seen, training data: {amount}")
        names.append(save_figure(figure, out / f"sites_{_safe(amount.replace('%', ' percent'))}.png").name)
    return names


def compare_arms(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compares coordinates, and pretraining with none, over targets (or corpora): paired, seeds averaged.

    Args:
        table (`Sequence[Mapping]`): Rows with `target`, `method`, `coordinates`, `amount` and `r2`.

    Returns:
        `list[dict[str, Any]]`: One row for each comparison and amount that at least two targets have.
    """
    scores: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for row in table:
        key = (row["amount"], row["method"], row["coordinates"])
        scores.setdefault(key, {}).setdefault(row["target"], []).append(row["r2"])
    rows = []
    for amount in dict.fromkeys(row["amount"] for row in table):
        for first, second in COMPARISONS:
            one, two = scores.get((amount, *first), {}), scores.get((amount, *second), {})
            shared = sorted(one.keys() & two.keys())
            if len(shared) < 2:
                continue
            one, two = {name: one[name] for name in shared}, {name: two[name] for name in shared}
            found = compare_sessions(one, two)
            rows.append(
                {
                    "amount": amount,
                    "first": f"{NAMES[first[0]]}, {first[1]}",
                    "second": f"{NAMES[second[0]]}, {second[1]}",
                    "targets": found.num_sessions,
                    "mean r2 of the first": float(np.mean([np.mean(one[name]) for name in shared])),
                    "mean r2 of the second": float(np.mean([np.mean(two[name]) for name in shared])),
                    "difference": found.difference,
                    "from": found.interval[0],
                    "to": found.interval[1],
                    "p (paired t)": found.p_t_test,
                    "p (Wilcoxon)": found.p_wilcoxon,
                    "verdict": found.verdict,
                }
            )
    return rows


def list_sites(data: str | Path, dataset_config: str | None = None) -> dict[Target, NDArray[np.float64]]:
    """Lists the sites of a dataset.

    Args:
        data (`str` or `Path`): Folder that `rpnt build` wrote, or a dataset on the Hub.
        dataset_config (`str`, *optional*): Part of the corpus.

    Returns:
        `dict[Target, np.ndarray]`: Position in mm of each, shape `(3,)`, NaN where unknown; sorted by name.
    """
    sites: dict[Target, NDArray[np.float64]] = {}
    for row in view_rows(load_rows(data, dataset_config, "train")):
        for site_id, place in zip(row["site_ids"], row["site_positions"], strict=True):
            sites.setdefault(Target(row["session_id"], site_id), np.asarray(place, dtype=np.float64))
    return dict(sorted(sites.items(), key=lambda item: item[0].name))


def leave_sites_out(
    data: str | Path,
    dataset_config: str | None,
    targets: Sequence[Target],
    sites: Mapping[Target, NDArray[np.float64]],
    out: Path,
) -> None:
    """Writes a dataset in which each target stands alone, three times, and is nowhere else.

    Args:
        data (`str` or `Path`): Folder that `rpnt build` wrote, or a dataset on the Hub.
        dataset_config (`str`, *optional*): Part of the corpus.
        targets (`Sequence[Target]`): The sites, at least one.
        sites (`Mapping[Target, np.ndarray]`): All sites with their positions; "shuffled" coordinates are
            those of one that is no target, drawn by the name of the target.
        out (`Path`): Folder to make.

    Raises:
        DatasetError: The position of a target, or of every site that is none, is unknown, or there is none.
    """
    others = [place for other, place in sites.items() if other not in targets and np.isfinite(place).all()]
    places: dict[Target, dict[str, NDArray[np.float64]]] = {}
    for target in targets:
        if not others or not np.isfinite(sites[target]).all():
            raise DatasetError(
                f"To shuffle coordinates the positions of '{target.name}' and of a site that is not left out "
                f"must be known, got {sites[target].tolist()} and {len(others)} others. Give them when the "
                "dataset is built (`--sites-csv`), or leave fewer out."
            )
        seed = int.from_bytes(_digest(target.name)[:8], "little")
        drawn = np.random.default_rng(seed).integers(len(others))
        places[target] = {"true": sites[target], "shuffled": others[drawn], "unknown": np.full(3, np.nan)}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".writing-") as temporary:
        folder = Path(temporary) / "data"
        folder.mkdir()
        for split in SPLITS:
            rows = []
            for row in view_rows(load_rows(data, dataset_config, split)):
                present = {site: Target(row["session_id"], site) for site in row["site_ids"]}
                rest = [site for site, target in present.items() if target not in places]
                if rest:
                    rows.append(_with_sites(row, rest))
                for site, target in present.items():
                    for name, place in places.get(target, {}).items():
                        alone = {"session_id": target.arm(name), "site_positions": [place.tolist()]}
                        rows.append({**_with_sites(row, [site]), **alone})
            table = pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema)
            pq.write_table(table, folder / f"{split}.parquet", compression="zstd", row_group_size=64)
        files = [{"split": split, "path": f"{split}.parquet"} for split in SPLITS]
        content = hashlib.sha256()
        for split in SPLITS:
            content.update((folder / f"{split}.parquet").read_bytes())
        # `datasets` caches by the name of the folder and this head, not by the content of the files.
        description = f"content {content.hexdigest()[:16]}"
        head = json.dumps([{"config_name": "default", "data_files": files, "description": description}])
        names = ", ".join(target.name for target in targets)
        (folder / "README.md").write_text(f"---\nconfigs: {head}\n---\n# Without {names}\n")
        shutil.move(folder, out)


def _with_sites(row: Row, site_ids: Sequence[str]) -> dict[str, Any]:
    """Cuts a row down to some of its sites."""
    indices = [row["site_ids"].index(site) for site in site_ids]
    unit_sites = np.asarray(row["unit_sites"], dtype=np.int64)
    units = np.flatnonzero(np.isin(unit_sites, indices))
    renumbered = {old: new for new, old in enumerate(indices)}
    return {
        **row,
        "site_ids": list(site_ids),
        "site_positions": [row["site_positions"][index] for index in indices],
        "unit_ids": [row["unit_ids"][unit] for unit in units],
        "unit_sites": [renumbered[site] for site in unit_sites[units].tolist()],
        "counts": np.ascontiguousarray(row_counts(row)[:, units]).tobytes(),
        "observed": row_site_observed(row)[:, indices].astype(np.uint8).tobytes(),
        "behavior": bytes(row["behavior"] or b""),
    }


def _plan(
    derived: Path,
    targets: Sequence[Target],
    methods: Sequence[str],
    amounts: Sequence[str],
    seeds: Sequence[int],
) -> list[Run]:
    """Lists the runs of targets; from scratch, where coordinates are constant, with the true ones."""
    sessions = {session.session_id: session for session in list_sessions(str(derived))}
    alone = {target.arm(name) for target in targets for name in COORDINATES}
    sources = tuple(sorted(sessions.keys() - alone))
    if not sources:
        raise DatasetError(
            f"There must be another site to pretrain on, got {len(targets)} left out and none that is not."
        )
    runs = []
    for target in targets:
        for amount in list_amounts("cross-site", sessions[target.arm("true")], amounts):
            for method in methods:
                kind = MODES[method]
                for coordinates in COORDINATES if kind else ("true",):
                    for seed in seeds:
                        base = None if kind is None else Base(kind, sources, seed)
                        runs.append(Run(method, target.arm(coordinates), amount, seed, base=base))
    return runs


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)
