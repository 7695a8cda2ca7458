"""The configuration: pydantic models, one per YAML section, and the errors a mistake in them gives."""

import difflib
import logging
import re
import shlex
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from textgen.errors import InputError
from textgen.files import expand_home
from textgen.plain_yaml import MAX_CHARACTERS, NotPlain, read_yaml
from textgen.sections import DataConfig, ModelConfig, Section, TrainingConfig, rule
from textgen.terminal import brief, counted

log = logging.getLogger(__name__)

MAX_VOCAB_SIZE = 2**31  # ids are stored as int32 at the widest
BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "oss", "r2")  # kinds of URL whose first part is a bucket
MAX_MISTAKES = 20  # lines of an error
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"  # of a model
VERSION = re.compile(r"v([1-9][0-9]{0,8})")  # of a model; no more digits than a file's name may have
VERSION_NAME = re.compile(rf"({NAME})@(champion|{VERSION.pattern})")

NOT_A_KEY = re.compile(r"\[key\]|bool|int|constrained-int|literal\[.*")  # what pydantic puts into an error's location


class TokenizerConfig(Section):
    """`gpt2`: GPT-2's byte-level BPE; `bpe`: one trained on the train split; `word`: its words, closed vocabulary."""

    kind: Literal["gpt2", "bpe", "word"] = "gpt2"
    """The tokenizer: gpt2 is GPT-2's, bpe a byte-level BPE that is trained on the train split, word its words."""
    path: str | None = None
    """A version whose tokenizer to take, NAME@champion or NAME@v3; for gpt2 also a tokenizer.json, or its folder."""
    vocab_size: int = Field(8192, ge=257, le=MAX_VOCAB_SIZE)
    """How many ids a tokenizer of kind bpe has at most: the 256 bytes, the merges and the end of a text."""

    @model_validator(mode="after")
    def path_is_for_gpt2(self) -> Self:
        if self.path is not None and self.version is None and self.kind != "gpt2":
            raise rule(f"tokenizer.path={brief(self.path)} goes with tokenizer.kind=gpt2, not with {self.kind!r}")
        return self

    @property
    def version(self) -> tuple[str, str] | None:
        """The name and the version of the model whose tokenizer is taken: `champion` until a run resolves it."""
        found = VERSION_NAME.fullmatch(self.path or "")
        return (found[1], found[2]) if found is not None else None


class EvaluationConfig(Section):
    """How perplexity is measured: `sliding` windows with a stride, disjoint `blocks`, or `lm-eval`'s wikitext task."""

    ALWAYS_IN_KEYS = frozenset({"protocol", "stride", "batch_size"})

    protocol: Literal["sliding", "blocks", "lm-eval"] = "sliding"
    """How perplexity is measured: in sliding windows, in disjoint blocks, or as in lm-eval's task wikitext."""
    stride: int | None = Field(None, ge=1)
    """How many tokens each sliding window scores; those before are context. null: half of data.seq_length."""
    batch_size: int = Field(32, ge=1)
    """How many sequences are scored at once."""


class PublishConfig(Section):
    """Which checkpoints become the champion, the version in use."""

    policy: Literal["gate", "always", "never"] = "gate"
    """When a new version becomes the champion: gate, if it is better than the champion; always; or never."""
    min_improvement_nats: float = Field(0.0, ge=0)
    """By how many nats a token a version must be better than the champion to pass the gate."""
    confidence: float = Field(0.95, ge=0.5, le=0.999)
    """How sure the gate must be that a version is better, on other documents like those of test."""
    keep_versions: int | None = Field(None, ge=1)
    """How many of the newest versions are kept, beside the champion and the one before it. null: all."""
    hub_repo: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$")
    """The repository on the Hugging Face Hub, OWNER/NAME, that the champion is uploaded to. null: none."""


class ComputeConfig(Section):
    """Where the training stage runs: in the flow's own process, or in a run of a deployment, on its work pool."""

    gpu_deployment: str | None = Field(None, pattern=r"^[^/]+/[^/]+$")
    """The deployment that trains, FLOW/DEPLOYMENT, as train-model/gpu. null: the run's own process trains."""
    timeout_seconds: float = Field(7 * 24 * 3600, gt=0)
    """How many seconds the run of that deployment may take, with its time in the queue."""


class TrackingConfig(Section):
    """Weights & Biases. `auto`: online with a key, offline without."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Whether runs are recorded at Weights & Biases. auto: online with a key, else offline in storage.root."""
    project: str = "textgen"
    """The project at Weights & Biases."""
    entity: str | None = None
    """The team or the user at Weights & Biases that has the project. null: your default one."""
    registry: str | None = Field("model", min_length=1)
    """The registry at Weights & Biases in which champions are linked. null: in none."""


class StorageConfig(Section):
    """Where raw/, processed/, checkpoints/ and models/ are."""

    root: str = Field("data", min_length=1)
    """The folder that has raw, processed, checkpoints and models, or an fsspec URL for workers that share no disk."""
    cache: str = Field("data", min_length=1)
    """The local folder for what comes from a root that is a URL and for what is made for it."""

    @field_validator("root")
    @classmethod
    def folder_is_no_url(cls, root: str) -> str:
        if root.startswith(("file://", "local://")):
            path = root.partition("://")[2]
            raise rule(f"storage.root={brief(root)}: a folder is named by its path, as {brief(path)}")
        return root

    @field_validator("root")
    @classmethod
    def bucket_is_named(cls, root: str) -> str:
        kind, is_url, place = root.partition("://")
        if is_url and (not kind or not place or (kind in BUCKETS and place.startswith("/"))):
            raise rule(f"storage.root={brief(root)}: the URL names no bucket; is a variable in it empty?")
        return root

    @property
    def is_remote(self) -> bool:
        return "://" in self.root

    @property
    def local(self) -> Path:
        """The folder that the stages work in: the root itself, or a remote root's own place in `cache`."""
        if self.is_remote:
            return expand_home(self.cache) / re.sub(r"[^A-Za-z0-9._-]+", "--", self.root)
        return expand_home(self.root)


class Config(Section):
    """A whole run."""

    name: str = Field("textgen", pattern=rf"^{NAME}$", max_length=100)
    """The name under which versions of the model are published, as in NAME@champion."""
    seed: int = Field(1234, ge=0, lt=2**32)
    """The seed of all random numbers: the same seed and data give the same model."""
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


def root_option(root: str) -> str:
    """Return the option that names a storage root in a command, after a space; nothing where it is the default."""
    return "" if root == StorageConfig().root else f" --root {shlex.quote(root)}"


RECORDED = {"seed", "data", "tokenizer", "model", "training"}  # what a training and a version record of a configuration


def find_config(name: str) -> Path:
    """Return the file of a configuration: a path, or the name of one that is shipped, as `wikitext2`.

    Raises:
        InputError: there is none.
    """
    if name in (shipped := shipped_configs()):
        return shipped[name]
    path = expand_home(name)
    try:
        found = path.is_file()
    except OSError as error:  # a name that is too long, or a folder that may not be entered
        raise InputError(f"--config {brief(name)}: {error.strerror}") from None
    if not found:
        raise InputError(f"--config {name}: no such file, and none of those that are shipped: {', '.join(shipped)}")
    return path


def shipped_configs() -> dict[str, Path]:
    """Return the shipped configurations by name: those of the checkout, or of the installed package."""
    packaged = Path(__file__).with_name("configs")  # of an installed package; a checkout has them beside textgen/
    folder = packaged if packaged.is_dir() else packaged.parents[1] / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}


def load_config(path: Path | None, overrides: list[str]) -> Config:
    """Return the defaults < the YAML file at `path` < `section.key=value` overrides.

    Raises:
        InputError: a line a mistake, each naming the key, the value and the rule.
    """
    return parse_config(read_values(path, overrides))


def read_values(path: Path | None, overrides: list[str]) -> dict[str, Any]:
    """Return the nested values that the YAML file at `path` and the overrides give, before they are checked.

    The warm-up and the intervals of a file are for its own number of steps: those that do not fit a smaller one that an
    override gives are left out, and so follow it.

    Raises:
        InputError: the file or an override is none.
    """
    values = _read_yaml(path) if path is not None else {}
    of_file = dict(training) if isinstance(training := values.get("training"), dict) else {}
    for override in overrides:
        _apply(values, override)
    typed = {override.partition("=")[0] for override in overrides}
    if path is not None and "training.max_steps" in typed and "training" not in typed:
        own = {name: value for name, value in of_file.items() if f"training.{name}" not in typed}
        _follow_length(values["training"], own, of_file.get("max_steps", TrainingConfig().max_steps), path.name)
    return values


def _follow_length(training: dict[str, Any], of_file: dict[str, Any], steps_of_file: Any, file: str) -> None:
    """Leave out of `training` those of its file's values that are too long for its `max_steps`, and say so."""
    steps = training["max_steps"]
    if type(steps) is not int or steps < 1 or (type(steps_of_file) is int and steps_of_file <= steps):
        return
    half = steps // 2
    longest = {"warmup_steps": steps // 10, "log_every": half, "eval_every": half, "checkpoint_every": half}
    if training.get("schedule") == "wsd":  # a longer training goes on from this one only if these two are the same
        longest["warmup_steps"] = steps - 1
        del longest["eval_every"]
    follows, changed = TrainingConfig().pace(steps)._asdict(), []
    for name, value in of_file.items():
        if name in longest and type(value) is int and value > longest[name]:
            del training[name]
            changed.append(f"training.{name} is {follows[name]} in place of {value}")
    if changed:
        log.info("%s is for a longer training than %s: %s", file, counted(steps, "step"), ", ".join(changed))


def parse_config(values: dict[str, Any]) -> Config:
    """Return the configuration that nested `values` describe.

    Raises:
        InputError: a line a mistake, each naming the key, the value and the rule.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        lines: list[str] = []
        for line in map(_explain, mistakes[:MAX_MISTAKES]):
            prefix = line.partition(": ")[0] + ": "
            if lines and lines[-1].startswith(prefix):  # the alternatives of one key
                lines[-1] += f", or {line.removeprefix(prefix)}"
            else:
                lines.append(line)
        if len(mistakes) > MAX_MISTAKES:
            lines.append(f"and {counted(len(mistakes) - MAX_MISTAKES, 'mistake')} more")
        raise InputError("\n".join(lines)) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            values = read_yaml(file.read(MAX_CHARACTERS + 1))
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"--config {path}: byte {error.start} is not UTF-8") from None
    except NotPlain as error:
        raise InputError(f"--config {path}: not YAML of a configuration: {error}") from None
    if not isinstance(values, dict | None):
        raise InputError(f"--config {path}: a mapping of sections was expected, not a {type(values).__name__}")
    return values or {}


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"{brief(override)}: an override is section.key=value")
    try:
        value = read_yaml(text, tilde_is_null=False)
    except NotPlain as error:
        if not takes_text(key):
            raise InputError(f"{brief(override)}: the value is not YAML of a configuration: {error}") from None
        value = text
    is_yaml = text == "null" or text.startswith(("'", '"')) or (text[:1] in "[{" and isinstance(value, list | dict))
    if takes_text(key) and not is_yaml:
        value = text  # as it is typed: in YAML, *.txt is an alias, 2024-01-02 a date, and # begins a comment
    if not text or (value is None and text.strip().lower() != "null"):
        raise InputError(f"{brief(override)}: no value stands after `=`; is a variable empty? null unsets a key")
    *sections, last = key.split(".")
    for section in sections:
        inner = values.get(section)
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):
            raise InputError(f"{brief(override)}: {brief(section)} is not a section")
        values = inner
    values[last] = value


def takes_text(key: str) -> bool:
    """Return whether a key's value may be any text, as a path is."""
    section, _, name = key.partition(".")
    if (found := Config.model_fields.get(section)) is None or not name:
        return found is not None and found.annotation is str
    kind = found.annotation
    if not (isinstance(kind, type) and issubclass(kind, Section)):
        return False
    field = kind.model_fields.get(name.partition(".")[0])
    return field is not None and (field.annotation is str or str in get_args(field.annotation))


def _explain(details: ErrorDetails) -> str:
    """Return one line for one of pydantic's errors."""
    location = [_word(part) for part in details["loc"] if not NOT_A_KEY.fullmatch(str(part))]
    key, value = ".".join(location), brief(details["input"])
    match details["type"]:
        case "rule":
            return details["msg"]
        case "extra_forbidden":
            if close := difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.5):
                return f"{key}={value}: unknown key; the nearest is {close[0]}"
            return f"{key}={value}: unknown key"
        case "model_type":
            return f"{key or 'the configuration'}={value}: a mapping of keys was expected"
        case _:
            return f"{key}={value}: {details['msg'][0].lower()}{details['msg'][1:]}"


def _word(part: str | int) -> str:
    """Return a part of a key: as it is where it is a word, else as a value is shown."""
    return text if re.fullmatch(r"[\w-]{1,40}", text := str(part)) else brief(text)


def known_keys() -> list[str]:
    """Return every key of the configuration: of a section `section` and each `section.key`."""
    kinds, keys = sections(), []
    for name in Config.model_fields:
        keys.append(name)
        if name in kinds:
            keys += [f"{name}.{key}" for key in kinds[name].model_fields]
    return keys


def sections() -> dict[str, type[Section]]:
    """Return the sections of the configuration by name, in order."""
    kinds = {name: field.annotation for name, field in Config.model_fields.items()}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Section)}
