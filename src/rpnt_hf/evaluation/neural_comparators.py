"""Neural networks to compare with: an MLP on lagged counts, a GRU and an LSTM. All are causal.

Trained on the same windows, with the same augmentation and weight averaging as our own decoder. Linear ones
are in `comparators.py`.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rpnt_hf.data.loading import label_statistics
from rpnt_hf.data.rows import row_behavior, row_counts, scored_bins
from rpnt_hf.data.windows import WindowCollator, WindowDataset, WindowSampler
from rpnt_hf.errors import ConfigurationError, InputError, closest_names
from rpnt_hf.metrics import r2_scores
from rpnt_hf.optimization import OptimizerConfig, average_weights, make_optimizer, make_schedule
from rpnt_hf.processing_rpnt import RPNTProcessor

__all__ = ["NeuralDecoder", "NeuralSettings", "read_settings"]

Row = Mapping[str, Any]


@dataclass(frozen=True)
class NeuralSettings:
    """What a neural comparator is and how it is trained.

    Args:
        kind: "mlp" (lagged counts), "gru" or "lstm".
        hidden_size: Width, at least 1.
        num_layers: Hidden layers, at least 1.
        num_lags: Bins that an MLP sees, the current one included.
        dropout: Probability in [0, 1) of dropping a hidden value.
        unit_dropout: Mean share of units that a training window loses, in [0, 0.5].
        spike_dropout: Largest share of its spikes that a unit loses in a training window, in [0, 1).
        time_warp: Training windows are played faster or slower by up to 1 + this, 0 or more.
        window_bins: Length of training windows, in bins.
        lead_bins: Bins before the first that it learns from that a training window keeps; None for all.
        batch_size: Windows per step.
        epochs: Passes over the training rows.
        validate_every: Epochs between validations.
        optimizer: Optimiser, schedule and weight averaging.
    """

    kind: Literal["mlp", "gru", "lstm"]
    hidden_size: int = 128
    num_layers: int = 1
    num_lags: int = 10
    dropout: float = 0.2
    unit_dropout: float = 0.1
    spike_dropout: float = 0.3
    time_warp: float = 0.0
    window_bins: int = 128
    lead_bins: int | None = None
    batch_size: int = 16
    epochs: int = 100
    validate_every: int = 5
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


def read_settings(path: str | Path) -> dict[str, NeuralSettings]:
    """Reads the settings of the neural comparators.

    Args:
        path (`str` or `Path`): YAML file with a mapping for each kind, "mlp", "gru" and "lstm".

    Returns:
        `dict[str, NeuralSettings]`: Kind to settings, in the order of the file.

    Raises:
        ConfigurationError: A kind or a field is unknown.
    """
    known = [field.name for field in dataclasses.fields(NeuralSettings) if field.name != "kind"]
    settings = {}
    for kind, fields in (yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}).items():
        if kind not in ("mlp", "gru", "lstm"):
            raise ConfigurationError(
                f"A comparator must be 'mlp', 'gru' or 'lstm', got '{kind}' in '{path}'. Correct its name."
            )
        for name in fields:
            if name not in known:
                raise ConfigurationError(
                    f"A comparator's settings must be fields of NeuralSettings, got `{name}` for '{kind}' in "
                    f"'{path}'.{closest_names(name, known)}"
                )
        optimizer = OptimizerConfig(**fields.get("optimizer", {}))
        settings[kind] = NeuralSettings(**{**fields, "kind": kind, "optimizer": optimizer})
    return settings


class _CausalNetwork(nn.Module):
    """Square-rooted counts of one bin and earlier ones in, standardised behaviour out.

    Counts are not centred and scaled by unit, and a recurrent network sees them through a linear map: on
    held-out trials LSTM and GRU were better for both (docs/research_log.md).
    """

    def __init__(self, settings: NeuralSettings, num_units: int, num_targets: int) -> None:
        super().__init__()
        width = settings.hidden_size
        self.num_lags = settings.num_lags
        self.dropout = nn.Dropout(settings.dropout)
        self.recurrent: nn.Module | None = None
        if settings.kind == "mlp":
            sizes = [num_units * settings.num_lags, *[width] * settings.num_layers]
            self.hidden = nn.ModuleList(
                nn.Linear(before, after) for before, after in itertools.pairwise(sizes)
            )
        else:
            network = {"gru": nn.GRU, "lstm": nn.LSTM}[settings.kind]
            deep = settings.num_layers > 1
            self.embedding = nn.Linear(num_units, width)
            nn.init.normal_(self.embedding.weight, std=0.05)
            nn.init.zeros_(self.embedding.bias)
            self.recurrent = network(
                width, width, settings.num_layers, batch_first=True,
                dropout=settings.dropout if deep else 0.0,
            )  # fmt: skip
        self.head = nn.Linear(width, num_targets)

    def forward(self, counts: Tensor, kept: Tensor | None = None) -> Tensor:
        """Counts (B, T, N), kept units (B, N) -> (B, T, K)."""
        inputs = counts.float().sqrt()
        if kept is not None:
            scale = (kept.shape[-1] / kept.sum(dim=-1, keepdim=True)).sqrt()
            inputs = inputs * (kept * scale)[:, None]
        if self.recurrent is not None:
            states, _ = self.recurrent(self.embedding(inputs))
            return self.head(self.dropout(states))
        padded = F.pad(inputs, (0, 0, self.num_lags - 1, 0))
        states = padded.unfold(1, self.num_lags, 1).flatten(-2)
        for layer in self.hidden:
            states = self.dropout(F.gelu(layer(states)))
        return self.head(states)


class NeuralDecoder:
    """A small causal network for one session; the weights that are best on validation are kept.

    Args:
        settings (`NeuralSettings`): What it is and how it is trained.
        seed (`int`, *optional*, defaults to 0): Seed of weights, order and augmentation.

    Attributes:
        num_parameters (`int`): Weights of the network, after `fit`.
        validation_r2 (`float`): Best R2 on validation, after `fit`.
    """

    def __init__(self, settings: NeuralSettings, seed: int = 0) -> None:
        self.settings = settings
        self.seed = seed
        self._network: _CausalNetwork | None = None

    def fit(self, train_rows: Iterable[Row], validation_rows: Iterable[Row]) -> "NeuralDecoder":
        """Trains the network.

        Args:
            train_rows (`Iterable[Row]`): Rows of one session; their scored bins are learned from.
            validation_rows (`Iterable[Row]`): Rows of the same session, to choose the weights by.

        Returns:
            `NeuralDecoder`: Itself.

        Raises:
            InputError: There are several sessions, or every validation gave values that are not finite.
        """
        train, validation = list(train_rows), list(validation_rows)
        sessions = sorted({row["session_id"] for row in (*train, *validation)})
        if len(sessions) != 1:
            raise InputError(
                f"A comparator must be fitted to one session, got {', '.join(sessions) or 'no rows'}. Fit "
                "one for each."
            )
        settings = self.settings
        processor = RPNTProcessor.from_rows([*train, *validation])
        sampler = WindowSampler(
            train, settings.window_bins, settings.batch_size, seed=self.seed, lead_bins=settings.lead_bins
        )
        dataset = WindowDataset(train)
        collator = WindowCollator(
            train,
            processor,
            unit_dropout=settings.unit_dropout,
            spike_dropout=settings.spike_dropout,
            time_warp=settings.time_warp,
        )
        label_mean, label_std = (torch.tensor(values) for values in label_statistics(train))
        self._unit_ids = list(train[0]["unit_ids"])
        self._order = _flat_order(processor, sessions[0])
        self._label_mean, self._label_std = label_mean.numpy(), label_std.numpy()
        best = -np.inf
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = _CausalNetwork(settings, len(self._order), len(label_mean))
            self.num_parameters = sum(parameter.numel() for parameter in network.parameters())
            optimizer = make_optimizer(network, settings.optimizer)
            steps = sum(len(sampler.batches(epoch)) for epoch in range(settings.epochs))
            schedule = make_schedule(optimizer, settings.optimizer, steps)
            averaged = average_weights(network, settings.optimizer)
            for epoch in range(settings.epochs):
                network.train()
                for windows in sampler.batches(epoch):
                    batch = collator(dataset.__getitems__(windows))
                    real = collator.processor.session_inputs(sessions[0])[2]
                    counts = batch["spike_counts"].movedim(2, 1).flatten(2)[..., real.reshape(-1)]
                    kept = batch["unit_mask"].flatten(1)[:, real.reshape(-1)]
                    labels = (batch["labels"] - label_mean) / label_std
                    mask = batch["label_mask"]
                    error = (network(counts, kept) - labels)[mask].square().mean()
                    optimizer.zero_grad()
                    error.backward()
                    nn.utils.clip_grad_norm_(network.parameters(), settings.optimizer.max_grad_norm)
                    optimizer.step()
                    schedule.step()
                    averaged.update_parameters(network)
                is_last = epoch + 1 == settings.epochs
                if (epoch + 1) % settings.validate_every == 0 or is_last:
                    candidate: Any = averaged.module
                    score = self._score(candidate, validation)
                    if score > best:
                        best = score
                        kept_weights = {name: value.clone() for name, value in candidate.state_dict().items()}
        if not np.isfinite(best):
            raise InputError(
                f"At least one validation must give finite values, got none in {settings.epochs} epochs of "
                f"'{settings.kind}' on session '{sessions[0]}'. Lower its learning rate."
            )
        network.load_state_dict(kept_weights)
        self._network, self.validation_r2 = network.eval(), float(best)
        return self

    def predict(self, row: Row) -> NDArray[np.float32]:
        """Decodes every bin of a row from itself and the bins before it.

        Args:
            row (`Row`): Row with the units that were fitted.

        Returns:
            `np.ndarray` of shape `(num_bins, num_targets)`, float32, in the units of the behaviour.

        Raises:
            InputError: If nothing was fitted or the units differ.
        """
        if self._network is None:
            raise InputError("NeuralDecoder must be fitted before it predicts. Call `fit` first.")
        if list(row["unit_ids"]) != self._unit_ids:
            raise InputError(
                f"A row must have the {len(self._unit_ids)} units that were fitted, got "
                f"{len(row['unit_ids'])} units in session '{row['session_id']}' that are not the same. Fit "
                "one decoder per session."
            )
        return self._run(self._network, row)

    @torch.inference_mode()
    def _run(self, network: nn.Module, row: Row) -> NDArray[np.float32]:
        counts = torch.from_numpy(row_counts(row)[:, self._order])[None]
        decoded = network.eval()(counts)[0].numpy()
        return decoded * self._label_std.astype(np.float32) + self._label_mean.astype(np.float32)

    def _score(self, network: nn.Module, rows: Sequence[Row]) -> float:
        masks = [scored_bins(row) for row in rows]
        decoded = [self._run(network, row)[mask] for row, mask in zip(rows, masks, strict=True)]
        targets = [row_behavior(row)[mask] for row, mask in zip(rows, masks, strict=True)]
        if not all(np.isfinite(part).all() for part in decoded):
            return -np.inf
        return r2_scores(np.concatenate(targets), np.concatenate(decoded))["r2"] or 0.0


def _flat_order(processor: RPNTProcessor, session_id: str) -> NDArray[np.int64]:
    """Columns of `row_counts` in the order of the collator's sites and units, padding left out."""
    index, _, unit_mask, _ = processor.session_inputs(session_id)
    return index[unit_mask]
