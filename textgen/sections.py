"""The sections that shape the weights, data, model and training, and what every section of the configuration shares."""

import difflib
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from textgen.files import is_utf8
from textgen.terminal import brief

Fraction = Annotated[float, Field(ge=0, lt=1)]


def rule(message: str) -> PydanticCustomError:
    """Return the error of a rule that ties several keys together."""
    return PydanticCustomError("rule", "{message}", {"message": message})


class Section(BaseModel):
    """A section of the configuration: frozen, typed strictly, no unknown keys.

    ALWAYS_IN_KEYS names the fields that were in content keys before a field could be added without changing them,
    NULL_IN_KEYS those of them whose null is in a key as null. NEVER_IN_KEYS names the fields that do not say what is
    computed. A field that is added belongs in none of them, or in the last.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=(),
        use_attribute_docstrings=True,
    )  # fmt: skip
    ALWAYS_IN_KEYS: ClassVar[frozenset[str]] = frozenset()
    NULL_IN_KEYS: ClassVar[frozenset[str]] = frozenset()
    NEVER_IN_KEYS: ClassVar[frozenset[str]] = frozenset()

    @field_validator("*")
    @classmethod
    def usable(cls, value: Any) -> Any:
        """Refuse what no file name and no machine number holds, wherever it stands in the field."""
        if isinstance(value, str) and "\0" in value:
            raise PydanticCustomError("nul", "a NUL character may not be in it")
        if isinstance(value, str) and not is_utf8(value):
            raise PydanticCustomError("surrogate", "it has bytes that are not UTF-8")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise PydanticCustomError("bits", "64 bits do not hold it")
        if isinstance(value, dict | list | tuple):
            for part in value.values() if isinstance(value, dict) else value:
                cls.usable(part)
        return value

    def key_part(self) -> dict[str, Any]:
        """Return the section's part of a content key: the values that say what is computed.

        The fields of ALWAYS_IN_KEYS are there whatever their values. Any other field was added later and is there only
        if it differs from its default, so that adding it changed no key. A null counts as what it stands for, the
        property `resolved_<field>`, except for the fields of NULL_IN_KEYS.
        """
        part = {}
        for name, value in self._resolved().items():
            if name in self.NEVER_IN_KEYS:
                continue
            default = type(self).model_fields[name].get_default(call_default_factory=True)
            if name in self.ALWAYS_IN_KEYS or value != self.model_copy(update={name: default})._resolved()[name]:
                part[name] = value
        return part

    def _resolved(self) -> dict[str, Any]:
        """Return the values; in place of a null, what it stands for."""
        values = self.model_dump(mode="json")
        nulls = [name for name, value in values.items() if value is None and name not in self.NULL_IN_KEYS]
        return {**values, **{name: getattr(self, f"resolved_{name}", None) for name in nulls}}


class ModelConfig(Section):
    """The Transformer's shape, in `Qwen3Config`'s names, and its dropout while training."""

    ALWAYS_IN_KEYS = frozenset({
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "tie_word_embeddings", "rope_theta", "rms_norm_eps", "initializer_range", "dropout",
        "attention_dropout", "embedding_dropout", "input_dropout", "output_dropout",
    })  # fmt: skip
    NULL_IN_KEYS = frozenset({"num_key_value_heads", "head_dim"})

    # The upper bounds are far above what anybody trains; a model of somebody else's may say anything.
    hidden_size: int = Field(256, ge=1, le=65_536)
    """The width of the residual stream."""
    intermediate_size: int = Field(768, ge=1, le=1_048_576)
    """The width of the hidden layer in each block's MLP."""
    num_hidden_layers: int = Field(4, ge=1, le=1_000)
    """How many blocks of attention and MLP the model has."""
    num_attention_heads: int = Field(4, ge=1, le=65_536)
    """How many attention heads each block has."""
    num_key_value_heads: int | None = Field(None, ge=1, le=65_536)
    """How many heads the keys and values have; the attention heads share them. null: one for each."""
    head_dim: int | None = Field(None, ge=2, le=65_536)
    """The width of an attention head, which is even. null: hidden_size / num_attention_heads."""
    tie_word_embeddings: bool = True
    """Whether the output layer uses the weights of the embedding."""
    rope_theta: float = Field(10000.0, gt=0)
    """The base of the rotary position embedding: the larger, the longer its slowest wave."""
    rms_norm_eps: float = Field(1e-6, gt=0)
    """What is added to the mean square in each norm, so that nothing is divided by zero."""
    initializer_range: float = Field(0.02, gt=0)
    """The standard deviation of a new matrix's entries."""
    dropout: Fraction = 0.0
    """The share that is dropped, while training, of what each sublayer adds to the residual stream."""
    attention_dropout: Fraction = 0.0
    """The share of the attention weights that is dropped while training."""
    embedding_dropout: Fraction = 0.0
    """The share of the vocabulary whose rows of the embedding are dropped at the input while training."""
    input_dropout: Fraction = 0.0
    """The share of the embedded tokens' entries that is dropped while training."""
    output_dropout: Fraction = 0.0
    """The share that is dropped, while training, of what the output layer reads."""

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


class Pace(NamedTuple):
    """The warm-up, and how often a training logs, validates and saves: in steps."""

    warmup_steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int


class TrainingConfig(Section):
    """The optimisation. A step is one optimizer step over batch_size * gradient_accumulation_steps sequences."""

    ALWAYS_IN_KEYS = frozenset({
        "max_steps", "epochs", "learning_rate", "min_learning_rate", "schedule", "decay_fraction",
        "warmup_steps", "optimizer", "muon_momentum", "weight_decay", "final_weight_decay", "adam_beta1",
        "adam_beta2", "adam_epsilon", "max_grad_norm", "ema_decay", "random_offset", "early_stopping_patience",
        "eval_every", "eval_blocks", "precision",
    })  # fmt: skip
    # They say how a training is run, and may change while it is interrupted. Only the number of sequences in a step is
    # in the key, not how they are split; weights to start from are there by their sha256.
    NEVER_IN_KEYS = frozenset({
        "batch_size", "gradient_accumulation_steps", "init_from", "max_bad_steps", "log_every", "checkpoint_every",
        "checkpoint_every_minutes", "keep_checkpoints", "compile", "device", "devices",
    })  # fmt: skip

    batch_size: int = Field(32, ge=1)
    """How many sequences one forward pass has; the processes share them."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """How many forward passes one optimizer step has."""
    max_steps: int | None = Field(1000, ge=1)
    """How many optimizer steps the training has. null: as many as training.epochs needs."""
    epochs: float | None = Field(None, gt=0)
    """How often the training reads the train split. null: as often as training.max_steps needs."""
    learning_rate: float = Field(1e-3, gt=0)
    """The highest learning rate, at the end of the warm-up."""
    min_learning_rate: float = Field(1e-4, ge=0)
    """The learning rate that the schedule would reach after the last step."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """How the learning rate falls after the warm-up: on a cosine from there on, or with wsd on a line at the end."""
    decay_fraction: float = Field(0.2, gt=0, le=1)
    """The share of the steps, the last ones, in which wsd lowers the learning rate. A cosine does not use it."""
    warmup_steps: int | None = Field(None, ge=0)
    """Over how many steps the learning rate rises. null: a tenth of the steps, at most 100 (0 from a kept state)."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """How a step moves the weights: by AdamW, or by Muon those of the blocks' matrices and by AdamW the rest."""
    muon_momentum: Fraction = 0.95
    """The share of its average gradient that Muon keeps at each step."""
    weight_decay: float = Field(0.1, ge=0)
    """The share that matrices lose at each step is this times the learning rate."""
    final_weight_decay: float | None = Field(None, ge=0)
    """The weight decay after the last step; a cosine leads there. null: it stays as it is."""
    adam_beta1: Fraction = 0.9
    """The share of its average gradient that AdamW keeps at each step."""
    adam_beta2: Fraction = 0.95
    """The share of its average squared gradient that AdamW keeps at each step."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """What AdamW adds to the root of the squared gradient, so that nothing is divided by zero."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The largest norm of the gradient of a step; a larger gradient is scaled down to it."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """The share of the averaged weights that a step keeps; they are validated and saved. null: there is no average."""
    random_offset: bool = False
    """Whether the blocks of each epoch are cut at another place of the text."""
    init_from: str | None = None
    """The model to start from: NAME@champion, NAME@v3 or a folder. null: random weights."""
    max_bad_steps: int = Field(10, ge=1)
    """How many steps in a row may have a loss or a gradient that is not finite before the training ends."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """How many validations in a row may bring no new best before the training ends. null: any number."""
    log_every: int | None = Field(None, ge=1)
    """The number of steps from one logged training loss to the next. null: a twentieth of the steps, at most 10."""
    eval_every: int | None = Field(None, ge=1)
    """The number of steps from one validation to the next. null: a tenth of the steps, at most 100."""
    eval_blocks: int | None = Field(512, ge=1)
    """How many sequences of the validation split are scored at each validation. null: all of them."""
    checkpoint_every: int | None = Field(None, ge=1)
    """The number of steps from one saved training state to the next. null: a tenth of the steps, at most 100."""
    checkpoint_every_minutes: float | None = Field(None, gt=0)
    """The number of minutes after which the training state is saved too. null: steps alone decide."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many of the newest training states are kept."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What matrices are multiplied in. auto: bf16 where the GPU has it."""
    compile: bool | Literal["auto"] = "auto"
    """Whether to use torch.compile: slow to start, then faster steps. A CPU needs a C++ compiler. auto: on a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the training runs. auto: on a GPU if there is one, else on the CPU."""
    devices: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """How many processes share the training. auto: one for each GPU."""

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
        if self.max_steps is not None and self.pace(self.max_steps).warmup_steps >= self.max_steps:
            raise rule(f"training.warmup_steps={self.warmup_steps} is not below training.max_steps={self.max_steps}")
        return self

    @property
    def sequences_per_step(self) -> int:
        return self.batch_size * self.gradient_accumulation_steps

    def pace(self, steps: int) -> Pace:
        """Return the pace of a training of so many steps: as it is set, or where that is null by its length."""
        tenth = min(100, steps // 10)
        by_length = Pace(tenth, max(1, min(10, steps // 20)), max(1, tenth), max(1, tenth))
        set_to = {name: getattr(self, name) for name in Pace._fields}
        return by_length._replace(**{name: value for name, value in set_to.items() if value is not None})

    @property
    def resolved_warmup_steps(self) -> int | None:
        """None where `epochs` is set: the number of steps then depends on the text."""
        return None if self.max_steps is None else self.pace(self.max_steps).warmup_steps

    @property
    def resolved_eval_every(self) -> int | None:
        """None where `epochs` is set, as above."""
        return None if self.max_steps is None else self.pace(self.max_steps).eval_every


EMBEDDED_CORPUS = "python-docs"
TEXT_COLUMN = "text"
RENAMED_DATASETS = {"wikitext": "Salesforce/wikitext"}  # old names that the Hub has moved
Split: TypeAlias = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
HELD_OUT = ("validation", "test")


class DataConfig(Section):
    """Where the text comes from (`files`, else `path`, else `dataset_name`) and how long a training sequence is."""

    dataset_name: str = Field("Salesforce/wikitext", min_length=1)
    """The dataset on the Hugging Face Hub, or python-docs for the documentation in your Python."""
    dataset_config: str | None = None
    """The configuration of a Hub dataset, or of the folder data.path. null: the default one."""
    revision: str | None = None
    """The commit, branch or tag on the Hub; its commit at the first fetch is kept. null: the main branch."""
    path: str | None = None
    """A local folder in the layout of a Hub dataset, in place of the Hub."""
    files: str | list[str] | dict[Split, str | list[str]] | None = None
    """Your own files: a folder, a file, a glob, a list of these, or {train, validation, test} of these."""
    text_column: str = Field(TEXT_COLUMN, min_length=1)
    """The column that holds the text in tables: JSONL, CSV and parquet."""
    document: str = Field("file", min_length=1)
    """What one document of plain text is: file, paragraphs, line, or a text of your own that separates documents."""
    end_of_document: bool = True
    """Whether an end-of-text id follows each document."""
    validation_fraction: float = Field(0.05, ge=1e-6, lt=1)
    """The share of the documents that becomes the validation split where one set of files is split."""
    test_fraction: float = Field(0.05, ge=1e-6, lt=1)
    """The share of the documents that becomes the test split where one set of files is split."""
    max_overlap: float = Field(0.05, ge=0, le=1)
    """The largest share of the words of a held-out split that may stand in train, as `textgen data` measures it."""
    seq_length: int = Field(128, ge=1)
    """How many tokens a training sequence has, which is how many the model can look at."""

    @field_validator("dataset_name")
    @classmethod
    def present_name(cls, name: str) -> str:
        return RENAMED_DATASETS.get(name, name)

    @field_validator("files", mode="before")
    @classmethod
    def files_are_named(cls, files: Any) -> Any:
        values = list(files.values()) if isinstance(files, dict) else [files]
        named = [value for some in values for value in (some if isinstance(some, list) else [some])]
        known = not isinstance(files, dict) or set(files) <= set(SPLITS)
        if files is not None and not (named and known and all(isinstance(value, str) and value for value in named)):
            unknown = next((name for name in files if name not in SPLITS), None) if isinstance(files, dict) else None
            close = difflib.get_close_matches(str(unknown), SPLITS, n=1, cutoff=0.4) if unknown is not None else []
            hint = f"; {brief(unknown)} is no split" if unknown is not None else ""
            hint += f"; did you mean {close[0]}?" if close else ""
            raise rule(
                f"data.files={brief(files)}: a folder, a file or a glob was expected, a list of these, or "
                f"{{train, validation, test}} of these{hint}"
            )
        return files

    @model_validator(mode="after")
    def one_source(self) -> Self:
        if self.files is not None and self.path is not None:
            raise rule("data.files and data.path are both set; give one source")
        if isinstance(self.files, dict) and (missing := [split for split in SPLITS if split not in self.files]):
            raise rule(f"data.files has nothing for {', '.join(missing)}; it needs {', '.join(SPLITS)}")
        if self.validation_fraction + self.test_fraction >= 1:
            raise rule("data.validation_fraction and data.test_fraction leave nothing to train on")
        return self
