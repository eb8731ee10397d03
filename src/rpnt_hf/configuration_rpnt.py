"""Configuration of the RPNT network: its shape, its metadata axes and its context-attention kernels.

Not here: the bin size (saved with the processor) and how a run is trained (the files in `training/configs`).
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .errors import ConfigurationError, closest_names
from .sharing_rpnt import CONFIG_AUTO_MAP, save_code

AXIS_UNITS = {
    "time": "bins",
    "site_x": "mm",
    "site_y": "mm",
    "site_z": "mm",
    "subject": "index",
    "day": "days",
    "task": "index",
}
SITE_AXES = ("site_x", "site_y", "site_z")

# Version of what a checkpoint consists of: names and meaning of weights, configuration and processor fields.
FORMAT_VERSION = 1

# Keys that transformers itself puts into a configuration without declaring them as fields.
_TRANSFORMERS_KEYS = {
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "quantization_config",
    "torch_dtype",
}


def _refuse_unknown_keys(keys: Any, owner: type) -> None:
    known = [field.name for field in dataclasses.fields(owner)]
    for key in keys:
        if key not in known:
            raise ConfigurationError(
                f"Every key of {owner.__name__} must be one of its fields, got "
                f"`{key}`.{closest_names(key, known)} Fields are: {', '.join(owner.__annotations__)}."
            )


def _check_format_version(version: Any) -> None:
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ConfigurationError(f"`format_version` must be a whole number from 1, got {version!r}.")
    if version > FORMAT_VERSION:
        raise ConfigurationError(
            f"`format_version` must be at most {FORMAT_VERSION}, the newest that this rpnt_hf reads, got "
            f"{version}: a newer one wrote this checkpoint. Upgrade: pip install --upgrade rpnt_hf"
        )


def _parse(value: Any, owner: type) -> Any:
    """Turns a plain dictionary (read from JSON or YAML) into the dataclass `owner`."""
    if isinstance(value, owner):
        return value
    if not isinstance(value, dict):
        raise ConfigurationError(
            f"{owner.__name__} must be given as an object or a dictionary, got {type(value).__name__}."
        )
    _refuse_unknown_keys(value, owner)
    return owner(**value)


@dataclass
class MRoPEAxisConfig:
    """One axis of the multi-dimensional rotary embedding (DESIGN 2.2; MRoPE of arXiv:2601.17641).

    Pair `i` of the axis turns by `coordinate * scale * theta ** (-i / num_pairs)` radians, `i = 0 ..
    num_pairs - 1`.

    Args:
        name (`str`):
            One of "time" (bins), "site_x", "site_y", "site_z" (mm), "subject", "task" (index), "day" (days).
        num_pairs (`int`):
            Rotation pairs of every head given to this axis, 0 or more. With 0 the axis has no effect.
        theta (`float`, *optional*, defaults to 10000.0):
            Base of the geometric series of frequencies, above 0.
        scale (`float`, *optional*, defaults to 1.0):
            Radians per unit of the coordinate for the fastest pair.

    Raises:
        ConfigurationError: The name is unknown, or a number is out of range.

    Example:
        ```python
        >>> MRoPEAxisConfig("day", num_pairs=2, theta=100.0).unit
        'days'
        ```
    """

    name: str
    num_pairs: int
    theta: float = 10_000.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in AXIS_UNITS:
            raise ConfigurationError(
                f"`name` of MRoPEAxisConfig must be one of {', '.join(AXIS_UNITS)}, got "
                f"'{self.name}'.{closest_names(self.name, AXIS_UNITS)}"
            )
        if self.num_pairs < 0 or self.theta <= 0:
            raise ConfigurationError(
                f"MRoPE axis '{self.name}' needs `num_pairs` >= 0 and `theta` > 0, got "
                f"num_pairs={self.num_pairs}, theta={self.theta}."
            )

    @property
    def unit(self) -> str:
        """Unit of the coordinate: "bins", "mm", "index" or "days"."""
        return AXIS_UNITS[self.name]


@dataclass
class ContextAttentionConfig:
    """Kernels that context generates and that smooth the attention scores (DESIGN 2.3; arXiv:2601.17641).

    Args:
        kernel_size (`tuple[int, int]`, *optional*, defaults to `(3, 3)`):
            Taps over query bins and over key bins, `(Kq, Kk)`, each 1 or more; both look back only.
        context_size (`int`, *optional*, defaults to 64):
            Width of the running context from which the kernels are made.
        enabled (`bool`, *optional*, defaults to `True`):
            False gives ordinary causal attention.

    Raises:
        ConfigurationError: A size is below 1.
    """

    kernel_size: tuple[int, int] = (3, 3)
    context_size: int = 64
    enabled: bool = True

    def __post_init__(self) -> None:
        self.kernel_size = tuple(self.kernel_size)  # type: ignore[assignment]  # JSON and YAML give lists
        if len(self.kernel_size) != 2 or min(self.kernel_size) < 1 or self.context_size < 1:
            raise ConfigurationError(
                "ContextAttentionConfig needs `kernel_size` of two numbers >= 1 and `context_size` >= 1, "
                f"got kernel_size={self.kernel_size}, context_size={self.context_size}."
            )

    @property
    def taps(self) -> tuple[int, int]:
        """Kernel taps in use: `kernel_size`, or `(1, 1)` where the kernels are off."""
        return self.kernel_size if self.enabled else (1, 1)


def _axes(time: int, site: int, subject: int, day: int, task: int) -> list[MRoPEAxisConfig]:
    """Standard axes; bases and scales make the slowest pair turn by less than a circle over a corpus."""
    return [
        MRoPEAxisConfig("time", time, theta=1_000.0),
        MRoPEAxisConfig("site_x", site, theta=10.0),
        MRoPEAxisConfig("site_y", site, theta=10.0),
        MRoPEAxisConfig("site_z", site, theta=10.0),
        MRoPEAxisConfig("subject", subject, theta=100.0),
        MRoPEAxisConfig("day", day, theta=100.0, scale=0.1),
        MRoPEAxisConfig("task", task, theta=100.0),
    ]


@strict
class RPNTConfig(PreTrainedConfig):
    r"""Shape of an RPNT network (DESIGN section 2; Fang et al. 2026, arXiv:2601.17641).

    Keys that are not fields are refused, with the closest field named.

    Args:
        num_units (`int`, *optional*, defaults to 96):
            Rows of the unit embedding: units in the vocabulary of all sessions, or slots.
        unit_embedding (`str`, *optional*, defaults to `"vocabulary"`):
            "vocabulary": one row per unit of each session. "slots" (paper): units are sampled or padded.
        unit_readout (`str`, *optional*, defaults to `"embedding"`):
            Where the weights of a unit's rate in pretraining come from, with a vocabulary. "embedding": a
            small network makes them of its embedding. "own": they are its own, and begin at its mean count;
            they are learned in fewer steps.
        hidden_size (`int`, *optional*, defaults to 256):
            Width of a token.
        intermediate_size (`int`, *optional*, defaults to 1024):
            Width of the feed-forward layers.
        num_hidden_layers (`int`, *optional*, defaults to 4):
            Temporal layers.
        num_spatial_layers (`int`, *optional*, defaults to 0):
            Layers over sites, after the temporal ones; 0 for single-site models.
        num_attention_heads (`int`, *optional*, defaults to 8):
            Heads; `hidden_size` must be an even multiple of it.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the feed-forward layers.
        dropout (`float`, *optional*, defaults to 0.1):
            Dropout of attention and feed-forward outputs, in [0, 1).
        layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of layer normalisation.
        initializer_range (`float`, *optional*, defaults to 0.05):
            Standard deviation of initial weights.
        stem_kernel (`int`, *optional*, defaults to 7):
            Bins seen by the causal depthwise convolution before the first layer; 1 switches it off.
        recurrent_stem (`bool`, *optional*, defaults to `False`):
            Whether an LSTM runs over the bins of each site before the first layer. It passes over bins that
            were not recorded. The decoder then reads out its states too, and gives the mean of both readouts.
        layer_scale (`float`, *optional*):
            Initial value, above 0, of a learned scale for each channel of what a layer adds; None for none.
        position_encoding (`str`, *optional*, defaults to `"mrope"`):
            "mrope", or for ablation "rope" (time only), "learned", "sinusoidal", "none".
        mrope_axes (`list[MRoPEAxisConfig]`, *optional*):
            Rotary axes, one of them "time". The others, in this order, are the columns of `metadata`.
            None divides the head size: half to time, the rest evenly to sites, subject, day and task.
        num_anchors (`int`, *optional*, defaults to 4):
            Learned key/value pairs per head through which metadata act, 0 or more.
        max_bins (`int`, *optional*, defaults to 512):
            Longest window of "learned" positions, in bins; other encodings have no limit.
        attention_window (`int`, *optional*):
            Bins that a query attends to, its own included; None for all earlier ones.
        context_attention (`ContextAttentionConfig`, *optional*):
            Kernels of the temporal layers; None for the defaults of that class.
        num_targets (`int`, *optional*, defaults to 2):
            Behaviour values decoded per bin.
        target_names (`list[str]`, *optional*):
            Their names, such as "cursor_vel_x".
        target_units (`list[str]`, *optional*):
            Their units, such as "cm/s".
        label_mean (`list[float]`, *optional*):
            Mean of each target on the training bins, in its unit; None means 0.
        label_std (`list[float]`, *optional*):
            Standard deviation likewise, above 0; None means 1.
        label_lag (`int`, *optional*, defaults to 0):
            Bins by which labels come later than the counts they are decoded from.
        predict_variance (`bool`, *optional*, defaults to `False`):
            Whether the decoding head also gives a log variance per target.
        variance_dof (`list[float]`, *optional*):
            Degrees of freedom, above 2, of the Student t distribution in which each target lies about its
            prediction, found on validation trials with `predict_variance`; None means normal.
        token_map_step (`int`, *optional*):
            Bins between the moments at which the token map of a decoder reads behaviour (`token_map.py`);
            None where a model has none.
        contrastive_weight (`float`, *optional*, defaults to 0.0):
            Weight of the site-contrastive term in pretraining, 0 or more. The paper has 0.1, which
            stalls reconstruction with one site (`docs/decisions.md`).
        contrastive_temperature (`float`, *optional*, defaults to 0.1):
            Temperature of that term, above 0.
        projection_size (`int`, *optional*, defaults to 64):
            Width of the projection that it compares.
        format_version (`int`, *optional*, defaults to 1):
            Version of the format of the checkpoint; a file without one is of the first. An older one is read,
            and saved as the newest; a newer one is refused.

    Raises:
        ConfigurationError: A key is unknown, a field is out of range or contradicts another, or a newer
            version of this package wrote the checkpoint.

    Example:
        ```python
        >>> config = RPNTConfig(hidden_size=64, num_attention_heads=2, num_hidden_layers=2)
        >>> config.metadata_axes
        ['site_x', 'site_y', 'site_z', 'subject', 'day', 'task']
        ```
    """

    model_type = "rpnt"

    num_units: int = 96
    unit_embedding: Literal["vocabulary", "slots"] = "vocabulary"
    unit_readout: Literal["embedding", "own"] = "embedding"
    hidden_size: int = 256
    intermediate_size: int = 1024
    num_hidden_layers: int = 4
    num_spatial_layers: int = 0
    num_attention_heads: int = 8
    hidden_act: str = "gelu"
    dropout: float | int = 0.1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.05
    stem_kernel: int = 7
    recurrent_stem: bool = False
    layer_scale: float | int | None = None
    position_encoding: Literal["mrope", "rope", "learned", "sinusoidal", "none"] = "mrope"
    mrope_axes: Any = None  # parsed, and checked, by `__post_init__`, as are the kernels below
    num_anchors: int = 4
    max_bins: int = 512
    attention_window: int | None = None
    context_attention: Any = None
    num_targets: int = 2
    target_names: list[str] | None = None
    target_units: list[str] | None = None
    label_mean: list[float] | None = None
    label_std: list[float] | None = None
    label_lag: int = 0
    predict_variance: bool = False
    variance_dof: list[float] | None = None
    token_map_step: int | None = None
    contrastive_weight: float | int = 0.0
    contrastive_temperature: float | int = 0.1
    projection_size: int = 64
    format_version: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        _check_format_version(self.format_version)
        self.format_version = FORMAT_VERSION
        _refuse_unknown_keys(
            [key for key in kwargs if not key.startswith("_") and key not in _TRANSFORMERS_KEYS], type(self)
        )
        self.context_attention = _parse(self.context_attention or {}, ContextAttentionConfig)
        self._validate_sizes()
        if self.mrope_axes is None:
            pairs = self.head_size // 2
            rest = (pairs - (pairs + 1) // 2) // 6
            self.mrope_axes = _axes(time=(pairs + 1) // 2, site=rest, subject=rest, day=rest, task=rest)
        self.mrope_axes = [_parse(axis, MRoPEAxisConfig) for axis in self.mrope_axes]
        super().__post_init__(**kwargs)
        self.validate_architecture()  # before `@strict` does, which would wrap the error in one of its own

    @property
    def head_size(self) -> int:
        """Width of one attention head, `d` in the paper."""
        return self.hidden_size // self.num_attention_heads

    @property
    def metadata_axes(self) -> list[str]:
        """Names of the columns of `metadata`, in order: every rotary axis but time."""
        return [axis.name for axis in self.mrope_axes if axis.name != "time"]

    @property
    def reach(self) -> int | None:
        """Bins before the current one that can change its output; None without a limit (DESIGN 2.3)."""
        if self.attention_window is None or self.recurrent_stem:
            return None
        query_taps, key_taps = self.context_attention.taps
        per_layer = max(self.attention_window - 1 + key_taps - 1, query_taps - 1)
        return self.stem_kernel - 1 + self.num_hidden_layers * per_layer

    @property
    def token_map_moments(self) -> list[int]:
        """Moments about a bin, in bins from it, at which the token map reads behaviour."""
        return [self.token_map_step * moment for moment in range(-8, 9)] if self.token_map_step else []

    def validate_architecture(self) -> None:
        """Checks the fields against each other, when a configuration is made and when it is saved.

        Raises:
            ConfigurationError: A field is out of range or contradicts another.
        """
        super().validate_architecture()
        self._validate_sizes()
        self._validate_axes()
        self._validate_targets()

    def _validate_sizes(self) -> None:
        at_least = {
            "num_units": 1, "hidden_size": 2, "intermediate_size": 1, "num_hidden_layers": 1,
            "num_spatial_layers": 0, "num_attention_heads": 1, "stem_kernel": 1,
            "num_anchors": 0, "max_bins": 1, "num_targets": 1,
            "label_lag": 0, "projection_size": 1, "contrastive_weight": 0,
        }  # fmt: skip
        for name, minimum in at_least.items():
            if getattr(self, name) < minimum:
                raise ConfigurationError(f"`{name}` must be at least {minimum}, got {getattr(self, name)}.")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ConfigurationError(
                "`hidden_size` must be an even multiple of `num_attention_heads` so that head channels form "
                f"pairs, got {self.hidden_size} and {self.num_attention_heads}."
            )
        if not 0 <= self.dropout < 1:
            raise ConfigurationError(f"`dropout` must lie in [0, 1), got {self.dropout}.")
        if self.layer_scale is not None and self.layer_scale <= 0:
            raise ConfigurationError(f"`layer_scale` must be None or above 0, got {self.layer_scale}.")
        if self.token_map_step is not None and self.token_map_step < 1:
            raise ConfigurationError(
                f"`token_map_step` must be None or at least 1 bin, got {self.token_map_step}."
            )
        if self.contrastive_temperature <= 0:
            raise ConfigurationError(
                f"`contrastive_temperature` must be above 0, got {self.contrastive_temperature}."
            )
        if self.unit_readout == "own" and self.unit_embedding == "slots":
            raise ConfigurationError(
                "`unit_readout`='own' needs `unit_embedding`='vocabulary', got 'slots', where units have no "
                "rows of their own. Leave `unit_readout` at 'embedding'."
            )
        if self.attention_window is not None and self.attention_window < 1:
            raise ConfigurationError(
                f"`attention_window` must be None or at least 1 bin, got {self.attention_window}."
            )
        width = self.context_attention.taps[1] * self.head_size
        if width > 256:
            raise ConfigurationError(
                "Kernel taps over keys times the head size must be at most 256, the widest that fused "
                f"attention takes, got {self.context_attention.taps[1]} * {self.head_size} = {width}. Use "
                "more heads or fewer taps."
            )

    def _validate_axes(self) -> None:
        names = [axis.name for axis in self.mrope_axes]
        if names.count("time") != 1 or len(set(names)) != len(names):
            raise ConfigurationError(f"`mrope_axes` must name 'time' once and no axis twice, got {names}.")
        pairs = {axis.name: axis.num_pairs for axis in self.mrope_axes}
        available = self.head_size // 2
        if sum(pairs.values()) > available or 2 * pairs["time"] < available:
            raise ConfigurationError(
                f"`mrope_axes` must share the {available} pairs of a head (half the head size) and give at "
                f"least half of them to 'time', got {pairs}."
            )
        metadata_pairs = sum(pairs.values()) - pairs["time"]
        if (
            self.position_encoding == "mrope"
            and metadata_pairs
            and not (self.num_anchors or self.num_spatial_layers)
        ):
            raise ConfigurationError(
                f"{metadata_pairs} pairs of metadata axes could do nothing with `num_anchors`=0 and "
                "`num_spatial_layers`=0: metadata are constant in a window. Use anchors, or set "
                "`position_encoding`='rope'."
            )

    def _validate_targets(self) -> None:
        for name in ("target_names", "target_units", "label_mean", "label_std", "variance_dof"):
            value = getattr(self, name)
            if value is not None and len(value) != self.num_targets:
                raise ConfigurationError(
                    f"`{name}` must have {self.num_targets} entries (`num_targets`), got {len(value)}."
                )
        if self.label_std is not None and min(self.label_std) <= 0:
            raise ConfigurationError(
                f"`label_std` must be above 0 for every target, got {self.label_std}. A target that never "
                "changes cannot be decoded: leave it out."
            )

        if self.variance_dof is not None and min(self.variance_dof) <= 2:
            raise ConfigurationError(
                f"`variance_dof` must be above 2 for every target, got {self.variance_dof}: with less there "
                "is no variance."
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "RPNTConfig":
        """Makes a configuration of plain values, such as those of `config.json`.

        Args:
            config_dict (`dict[str, Any]`): Fields; a newer `format_version` is refused first of all.
            **kwargs: Fields to change, as in transformers.

        Returns:
            `RPNTConfig`: The configuration.

        Raises:
            ConfigurationError: As the class.
        """
        _check_format_version(config_dict.get("format_version", 1))
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Turns the configuration into plain dictionaries and lists, ready for JSON.

        Returns:
            `dict[str, Any]`: All fields; axes and kernels as dictionaries.
        """
        output = super().to_dict()
        output["mrope_axes"] = [dataclasses.asdict(axis) for axis in self.mrope_axes]
        output["context_attention"] = dataclasses.asdict(self.context_attention)
        output["context_attention"]["kernel_size"] = list(self.context_attention.kernel_size)
        return output

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Saves `config.json` with the code of all models, so that it loads without this package too.

        Args:
            save_directory (`str` or `Path`): Folder; made where it is missing.
            push_to_hub (`bool`, *optional*, defaults to `False`): Whether to push it to the Hub as well.
            **kwargs: Passed to `push_to_hub`.
        """
        save_code(save_directory, CONFIG_AUTO_MAP)
        self.auto_map = dict(CONFIG_AUTO_MAP)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "RPNTConfig":
        """Makes one of the named configurations.

        Pairs per axis of each head:

        | preset | hidden, layers, heads | pairs | time | site x, y, z | subject | day | task | unrotated |
        |---|---|---|---|---|---|---|---|---|
        | "rpnt-microelectrode" | 256, 4, 8 | 16 | 8 | 0, 0, 0 | 2 | 2 | 2 | 2 |
        | "rpnt-neuropixel" | 384, 4 + 2 spatial, 12 | 16 | 8 | 1, 1, 1 | 1 | 1 | 1 | 2 |
        | "tiny" | 64, 2, 2 | 16 | 8 | 1, 1, 1 | 1 | 1 | 1 | 2 |

        The first two follow the small models of the paper; the stem and the window are ours.

        Args:
            name (`str`): One of the names above.
            **overrides: Fields to change.

        Returns:
            `RPNTConfig`: The configuration.

        Raises:
            ConfigurationError: The preset or a field is unknown, or a value is out of range.

        Example:
            ```python
            >>> RPNTConfig.preset("tiny", num_units=10).hidden_size
            64
            ```
        """
        presets: dict[str, dict[str, Any]] = {
            "rpnt-microelectrode": {
                "mrope_axes": _axes(time=8, site=0, subject=2, day=2, task=2),
                "attention_window": 50,
            },
            "rpnt-neuropixel": {
                "hidden_size": 384,
                "intermediate_size": 1536,
                "num_spatial_layers": 2,
                "num_attention_heads": 12,
                "mrope_axes": _axes(time=8, site=1, subject=1, day=1, task=1),
                "attention_window": 50,
            },
            "tiny": {
                "hidden_size": 64,
                "intermediate_size": 256,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "mrope_axes": _axes(time=8, site=1, subject=1, day=1, task=1),
                "attention_window": 50,
                "context_attention": ContextAttentionConfig(context_size=16),
            },
        }
        if name not in presets:
            raise ConfigurationError(
                f"`name` must be a preset, one of {', '.join(presets)}, got "
                f"'{name}'.{closest_names(name, presets)}"
            )
        return cls(**{**presets[name], **overrides})


__all__ = ["ContextAttentionConfig", "MRoPEAxisConfig", "RPNTConfig"]
