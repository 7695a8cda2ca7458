"""The configuration: pydantic models, one per YAML section, and the errors a mistake in them gives."""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from textgen.errors import InputError

EMBEDDED_CORPUS = "python-docs"
RENAMED_DATASETS = {"wikitext": "Salesforce/wikitext"}  # old names that the Hub has moved
Split: TypeAlias = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
MAX_VOCAB_SIZE = 2**31  # ids are stored as int32 at the widest

NOT_A_KEY = re.compile(r"\[key\]|bool|int|constrained-int|literal\[.*")  # what pydantic puts into an error's location

Fraction = Annotated[float, Field(ge=0, lt=1)]


def rule(message: str) -> PydanticCustomError:
    """Return the error of a rule that ties several keys together."""
    return PydanticCustomError("rule", "{message}", {"message": message})


class Section(BaseModel):
    """A section of the configuration: frozen, typed strictly, no unknown keys.

    ALWAYS_IN_KEYS names the fields that were in content keys before a field could be added without changing them,
    NULL_IN_KEYS those of them whose null is in a key as null. A field that is added belongs in neither.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())
    ALWAYS_IN_KEYS: ClassVar[frozenset[str]] = frozenset()
    NULL_IN_KEYS: ClassVar[frozenset[str]] = frozenset()

    def key_part(self) -> dict[str, Any]:
        """Return the section's part of a content key: the values that say what is computed.

        The fields of ALWAYS_IN_KEYS are there whatever their values. Any other field was added later and is there only
        where it differs from its default, so that adding it changed no key. A field that is null and has a property
        `resolved_<field>` is there with the value of that property, but for those of NULL_IN_KEYS.
        """
        values, defaults = self.model_dump(mode="json"), type(self).model_construct().model_dump(mode="json")
        part = {}
        for name, value in values.items():
            if value is None and name not in self.NULL_IN_KEYS:
                value = getattr(self, f"resolved_{name}", None)
            if name in self.ALWAYS_IN_KEYS or value != defaults[name]:
                part[name] = value
        return part


class DataConfig(Section):
    """Where the text comes from (`files`, else `path`, else `dataset_name`) and how long a training sequence is."""

    dataset_name: str = Field("Salesforce/wikitext", min_length=1, description="a Hub dataset, or python-docs")
    dataset_config: str | None = Field(None, description="the configuration of a Hub dataset or a local folder")
    revision: str | None = Field(None, description="a Hub commit, branch or tag; pinned to a commit at the first fetch")
    path: str | None = Field(None, description="a local folder in Hub layout, in place of the Hub")
    files: dict[Split, str] | None = Field(
        None, description="a glob of text or parquet files for each split, in place of the Hub"
    )
    seq_length: int = Field(128, ge=1, description="tokens in a training sequence: the model's context")

    @field_validator("dataset_name")
    @classmethod
    def present_name(cls, name: str) -> str:
        return RENAMED_DATASETS.get(name, name)

    @model_validator(mode="after")
    def one_source(self) -> Self:
        if self.files is not None and self.path is not None:
            raise rule("data.files and data.path are both set; give one source")
        if self.files is not None and (missing := [split for split in SPLITS if split not in self.files]):
            raise rule(f"data.files has no glob for {', '.join(missing)}; it needs {', '.join(SPLITS)}")
        return self


class TokenizerConfig(Section):
    """`gpt2`: GPT-2's byte-level BPE; `bpe`: one trained on the train split; `word`: its words, closed vocabulary."""

    kind: Literal["gpt2", "bpe", "word"] = "gpt2"
    path: str | None = Field(None, description="gpt2 only: a local folder with a tokenizer.json, in place of the Hub")
    vocab_size: int = Field(8192, ge=257, le=MAX_VOCAB_SIZE, description="bpe only: 256 bytes, merges, end of text")

    @model_validator(mode="after")
    def path_is_for_gpt2(self) -> Self:
        if self.path is not None and self.kind != "gpt2":
            raise rule(f"tokenizer.path={self.path!r} goes with tokenizer.kind=gpt2, not with {self.kind!r}")
        return self


class ModelConfig(Section):
    """The Transformer's shape, in `Qwen3Config`'s names, and its dropout while training."""

    ALWAYS_IN_KEYS = frozenset({
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "tie_word_embeddings", "rope_theta", "rms_norm_eps", "initializer_range", "dropout",
        "attention_dropout", "embedding_dropout", "input_dropout", "output_dropout",
    })  # fmt: skip
    NULL_IN_KEYS = frozenset({"num_key_value_heads", "head_dim"})

    hidden_size: int = Field(256, ge=1)
    intermediate_size: int = Field(768, ge=1)
    num_hidden_layers: int = Field(4, ge=1)
    num_attention_heads: int = Field(4, ge=1)
    num_key_value_heads: int | None = Field(None, ge=1, description="null: as many as attention heads")
    head_dim: int | None = Field(None, ge=2, description="null: hidden_size / num_attention_heads")
    tie_word_embeddings: bool = True
    rope_theta: float = Field(10000.0, gt=0)
    rms_norm_eps: float = Field(1e-6, gt=0)
    initializer_range: float = Field(0.02, gt=0, description="standard deviation of a new matrix's entries")
    dropout: Fraction = Field(0.0, description="on what each sublayer adds to the residual stream")
    attention_dropout: Fraction = Field(0.0, description="on the attention weights")
    embedding_dropout: Fraction = Field(0.0, description="on whole types: rows of the embedding, at the input")
    input_dropout: Fraction = Field(0.0, description="on the embedded tokens")
    output_dropout: Fraction = Field(0.0, description="on what the head reads")

    @model_validator(mode="after")
    def heads_divide(self) -> Self:
        heads, key_value_heads = self.num_attention_heads, self.num_key_value_heads
        if self.head_dim is None and self.hidden_size % heads:
            raise rule(
                f"model.hidden_size={self.hidden_size} is not a multiple of model.num_attention_heads={heads}; "
                "change one, or set model.head_dim"
            )
        if self.resolved_head_dim % 2:
            raise rule(f"model.head_dim={self.resolved_head_dim} is odd; rotary position embedding needs it even")
        if key_value_heads is not None and heads % key_value_heads:
            raise rule(
                f"model.num_attention_heads={heads} is not a multiple of model.num_key_value_heads={key_value_heads}"
            )
        return self

    @property
    def resolved_head_dim(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def resolved_num_key_value_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads


class TrainingConfig(Section):
    """The optimisation. A step is one optimizer step over batch_size * gradient_accumulation_steps sequences."""

    ALWAYS_IN_KEYS = frozenset({
        "max_steps", "epochs", "learning_rate", "min_learning_rate", "schedule", "decay_fraction",
        "warmup_steps", "optimizer", "muon_momentum", "weight_decay", "final_weight_decay", "adam_beta1",
        "adam_beta2", "adam_epsilon", "max_grad_norm", "ema_decay", "random_offset", "early_stopping_patience",
        "eval_every", "eval_blocks", "precision",
    })  # fmt: skip

    batch_size: int = Field(32, ge=1, description="sequences in one forward pass, shared by the processes")
    gradient_accumulation_steps: int = Field(1, ge=1)
    max_steps: int | None = Field(1000, ge=1)
    epochs: float | None = Field(None, gt=0, description="passes over the train split, in place of max_steps")
    learning_rate: float = Field(1e-3, gt=0, description="the peak, at the end of the warm-up")
    min_learning_rate: float = Field(1e-4, ge=0, description="what the schedule would reach after the last step")
    schedule: Literal["cosine", "wsd"] = Field(
        "cosine", description="after the warm-up; wsd: stable, then linear decay"
    )
    decay_fraction: float = Field(0.2, gt=0, le=1, description="wsd only: the part of the steps that decays")
    warmup_steps: int = Field(100, ge=0)
    optimizer: Literal["adamw", "muon"] = Field("adamw", description="muon: on the blocks' matrices, AdamW on the rest")
    muon_momentum: Fraction = 0.95
    weight_decay: float = Field(0.1, ge=0, description="on matrices only")
    final_weight_decay: float | None = Field(None, ge=0, description="where a cosine takes it; null: it is constant")
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.95
    adam_epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)
    ema_decay: float | None = Field(None, gt=0, lt=1, description="of averaged weights, validated and kept; null: none")
    random_offset: bool = Field(False, description="cut the blocks of each epoch at another place")
    init_from: str | None = Field(None, description="a model to start from: NAME@champion, NAME@v3 or a folder")
    max_bad_steps: int = Field(10, ge=1, description="refused steps in a row (loss or gradient not finite) that end it")
    early_stopping_patience: int | None = Field(None, ge=1, description="validations without a new best that end it")
    log_every: int = Field(10, ge=1, description="steps between logged training losses")
    eval_every: int = Field(100, ge=1, description="steps between validations")
    eval_blocks: int | None = Field(512, ge=1, description="blocks of a validation while training; null: all of them")
    checkpoint_every: int = Field(100, ge=1, description="steps between saved training states")
    checkpoint_every_minutes: float | None = Field(None, gt=0, description="save after so many minutes too")
    keep_checkpoints: int = Field(2, ge=1, description="training states kept")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the GPU has it")
    compile: bool | Literal["auto"] = Field("auto", description="torch.compile; auto: on a GPU")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Annotated[int, Field(ge=1)] | Literal["auto"] = Field("auto", description="processes; auto: one a GPU")

    @model_validator(mode="before")
    @classmethod
    def epochs_replace_the_default_max_steps(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("epochs") is not None and "max_steps" not in values:
            return {**values, "max_steps": None}
        return values

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if (self.max_steps is None) == (self.epochs is None):
            raise rule(
                f"training.max_steps={self.max_steps} and training.epochs={self.epochs}: set one, the other to null"
            )
        if self.min_learning_rate > self.learning_rate:
            raise rule(
                f"training.min_learning_rate={self.min_learning_rate} is above "
                f"training.learning_rate={self.learning_rate}"
            )
        if self.max_steps is not None and self.warmup_steps >= self.max_steps:
            raise rule(f"training.warmup_steps={self.warmup_steps} is not below training.max_steps={self.max_steps}")
        return self

    @property
    def sequences_per_step(self) -> int:
        return self.batch_size * self.gradient_accumulation_steps


class EvaluationConfig(Section):
    """How perplexity is measured: `sliding` windows with a stride, disjoint `blocks`, or `lm-eval`'s wikitext task."""

    ALWAYS_IN_KEYS = frozenset({"protocol", "stride", "batch_size"})

    protocol: Literal["sliding", "blocks", "lm-eval"] = Field(
        "sliding", description="textgen/evaluation/protocols.py defines them"
    )
    stride: int | None = Field(
        None, ge=1, description="sliding only: tokens scored a window; null: half of data.seq_length"
    )
    batch_size: int = Field(32, ge=1)


class PublishConfig(Section):
    """Which checkpoints become the champion, the version in use."""

    policy: Literal["gate", "always", "never"] = Field(
        "gate", description="promote: gate, if it is better than the champion; always; never"
    )
    min_improvement_nats: float = Field(0.0, ge=0, description="gate only: nats a token that it must be better by")
    confidence: float = Field(
        0.95, ge=0.5, le=0.999, description="gate only: that it is so, over other documents like those of test"
    )
    keep_versions: int | None = Field(
        None, ge=1, description="newest versions kept, beside the champion and the one before it; null: all"
    )
    hub_repo: str | None = Field(
        None, pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name on the Hub, to push the champion to; null: none"
    )


class ComputeConfig(Section):
    """Where the training stage runs: in the flow's own process, or in a run of a deployment, on its work pool."""

    gpu_deployment: str | None = Field(
        None, pattern=r"^[^/]+/[^/]+$", description="flow/deployment that trains, as train-model/gpu; null: none"
    )
    timeout_seconds: float = Field(7 * 24 * 3600, gt=0, description="how long to wait for that run, queue included")


class TrackingConfig(Section):
    """Weights & Biases. `auto`: online with a key, offline without."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "textgen"
    entity: str | None = None
    registry: str | None = Field("model", min_length=1, description="where champions are linked; null: nowhere")


class StorageConfig(Section):
    """Where raw/, processed/, checkpoints/ and models/ are."""

    root: str = Field("data", min_length=1, description="a folder, or, for workers that share no disk, an fsspec URL")
    cache: str = Field("data", min_length=1, description="with a URL: the local folder for what is brought and made")

    @field_validator("root")
    @classmethod
    def folder_is_no_url(cls, root: str) -> str:
        if root.startswith(("file://", "local://")):
            raise rule(f"storage.root={root!r}: a folder is named by its path, as {root.partition('://')[2]!r}")
        return root

    @property
    def is_remote(self) -> bool:
        return "://" in self.root

    @property
    def local(self) -> Path:
        """The folder that the stages work in: the root itself, or a remote root's own place in `cache`."""
        if self.is_remote:
            return Path(self.cache).expanduser() / re.sub(r"[^A-Za-z0-9._-]+", "--", self.root)
        return Path(self.root).expanduser()


class Config(Section):
    """A whole run."""

    name: str = Field("textgen", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the model's registry name")
    seed: int = Field(1234, ge=0, lt=2**32)
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    publish: PublishConfig = PublishConfig()
    compute: ComputeConfig = ComputeConfig()
    tracking: TrackingConfig = TrackingConfig()
    storage: StorageConfig = StorageConfig()

    @model_validator(mode="after")
    def stride_fits(self) -> Self:
        if self.evaluation.stride is not None and self.evaluation.stride > self.data.seq_length:
            raise rule(
                f"evaluation.stride={self.evaluation.stride} is above data.seq_length={self.data.seq_length}: "
                "tokens between two windows would not be scored"
            )
        return self

    @property
    def root(self) -> Path:
        """The local folder that the stages work in."""
        return self.storage.local

    @property
    def stride(self) -> int:
        return self.evaluation.stride or max(1, self.data.seq_length // 2)


class _Loader(yaml.SafeLoader):
    """YAML as in 1.2: `1e-3` is a number (PyYAML's 1.1 wants `1.0e-3`)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def find_config(name: str) -> Path:
    """Return the file of a configuration: a path, or the name of one that is shipped, as `wikitext2`.

    Raises:
        InputError: there is none.
    """
    if name in (shipped := shipped_configs()):
        return shipped[name]
    if not (path := Path(name)).is_file():
        raise InputError(f"--config {name}: no such file, and none of those that are shipped: {', '.join(shipped)}")
    return path


def shipped_configs() -> dict[str, Path]:
    """Return the shipped configurations by name: those of the checkout, or of the installed package."""
    here = Path(__file__).parent
    folder = next(folder for folder in (here.parent / "configs", here / "configs") if folder.is_dir())
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_config(path: Path | None, overrides: list[str]) -> Config:
    """Return the defaults < the YAML file at `path` < `section.key=value` overrides.

    Raises:
        InputError: a line a mistake, each naming the key, the value and the rule.
    """
    values = _read_yaml(path) if path is not None else {}
    for override in overrides:
        _apply(values, override)
    return parse_config(values)


def parse_config(values: dict[str, Any]) -> Config:
    """Return the configuration that nested `values` describe.

    Raises:
        InputError: a line a mistake, each naming the key, the value and the rule.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines: list[str] = []
        for line in map(_explain, error.errors()):
            prefix = line.partition(": ")[0] + ": "
            if lines and lines[-1].startswith(prefix):  # the alternatives of one key
                lines[-1] += f", or {line.removeprefix(prefix)}"
            else:
                lines.append(line)
        raise InputError("\n".join(lines)) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text("utf-8"), _Loader)
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"--config {path}: byte {error.start} is not UTF-8") from None
    except yaml.YAMLError as error:
        raise InputError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict | None):
        raise InputError(f"--config {path}: a mapping of sections was expected, not a {type(values).__name__}")
    return values or {}


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"{override!r}: an override is section.key=value")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise InputError(f"{override!r}: the value is not YAML") from None
    *sections, last = key.split(".")
    for section in sections:
        inner = values.get(section)
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):
            raise InputError(f"{override!r}: {section} is not a section")
        values = inner
    values[last] = value


def _explain(details: ErrorDetails) -> str:
    """Return one line for one of pydantic's errors."""
    location = [str(part) for part in details["loc"] if not NOT_A_KEY.fullmatch(str(part))]
    key, value = ".".join(location), details["input"]
    match details["type"]:
        case "rule":
            return details["msg"]
        case "extra_forbidden":
            if close := difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.5):
                return f"{key}={value!r}: unknown key; the nearest is {close[0]}"
            return f"{key}={value!r}: unknown key"
        case "model_type":
            return f"{key or 'the configuration'}={value!r}: a mapping of keys was expected"
        case _:
            return f"{key}={value!r}: {details['msg'][0].lower()}{details['msg'][1:]}"


def known_keys() -> list[str]:
    """Return every key of the configuration: of a section `section` and each `section.key`."""
    keys = []
    for name, field in Config.model_fields.items():
        keys.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys += [f"{name}.{key}" for key in field.annotation.model_fields]
    return keys
