"""A storage folder that commit 0e278cf made is used as it is: no key has changed, and nothing is made anew."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import tasks.publish
from tests.flow_runs import run_flow
from tests.publications import make
from tests.trainings import refuse
from textgen.__main__ import main
from textgen.config import Config, EvaluationConfig, load_config
from textgen.evaluation.evaluate import evaluate, evaluation_key
from textgen.evaluation.scoring import Metrics
from textgen.files import content_key
from textgen.publishing.drift import DRIFT_VERSION
from textgen.publishing.version import PublishedManifest
from textgen.sections import SPLITS, ModelConfig, Section, TrainingConfig
from textgen.storage import Storage
from textgen.text.corpus import RawManifest
from textgen.text.tokens import TokensManifest, tokenize
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.plan import train_key
from textgen.training.train import train

OLD = Path(__file__).parent / "old_data"
RAW, TOKENS, TRAINING, EVALUATION = "29e5a0e9a9335d30", "3bbb76fca8125fa2", "e567c3dff8e52e30", "840e8521f5351e10"
PUBLICATION, DRIFT = "6f7e43aa07db6e43", "c5c776c9183e2072"


@pytest.fixture
def old_config(tmp_path) -> Callable[..., Config]:
    """Return a function from overrides to the old storage's configuration, of a copy of it."""
    folder = Path(shutil.copytree(OLD, tmp_path / "old"))
    files = [f"data.files.{split}={folder / 'text' / split}.txt" for split in SPLITS]
    as_before = ["data.document=line", "data.end_of_document=false"]
    return lambda *changes: load_config(
        OLD / "config.yaml", [*files, *as_before, f"storage.root={folder / 'data'}", *changes]
    )


def old_raw(config: Config) -> RawManifest:
    """Return the text as 0e278cf froze it; local files have had other keys since they are split into documents."""
    return RawManifest.read(config.root / "raw" / "files" / RAW)


def old_tokens(config: Config) -> TokensManifest:
    return tokenize(old_raw(config), config.tokenizer, Storage(config.storage), config.data.end_of_document)


def content(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, but for locks and cached records."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.parent.name != "cache"}


def test_the_content_keys_are_those_of_0e278cf(old_config):
    config = old_config()
    raw, tokens = old_raw(config), old_tokens(config)
    assert (raw.key, tokens.key, train_key(tokens, config)) == (RAW, TOKENS, TRAINING)
    checkpoint = CheckpointManifest.read(config.root / "checkpoints" / TRAINING)
    assert evaluation_key(checkpoint.weights_sha256, tokens, config) == EVALUATION
    metrics = Metrics.read(checkpoint.folder / "evaluations" / EVALUATION)
    assert tasks.publish.key(config, checkpoint, metrics, tokens, raw) == PUBLICATION
    assert content_key(DRIFT_VERSION, checkpoint.weights_sha256, raw.key) == DRIFT


def test_a_run_adds_to_it_and_changes_nothing_in_it(old_config, prefect_server):
    config = old_config()
    before = content(config.root)
    result = run_flow(config)
    assert result["published"]["version"] == "v1", "the same text and settings give the same weights"
    assert content(config.root).items() >= before.items()


def test_each_stage_finds_what_is_there(old_config):
    config = old_config()
    raw, tokens = old_raw(config), old_tokens(config)
    checkpoint = train(tokens, config, config.root / "checkpoints" / TRAINING, refuse)
    metrics = evaluate(checkpoint.folder, tokens, config)
    assert [made.built for made in (raw, tokens, checkpoint, metrics)] == [False] * 4


def test_its_champion_is_compared_on_the_same_documents(old_config, caplog):
    caplog.set_level(logging.INFO)
    published = make(old_config("publish.policy=gate", "seed=5")).published
    assert published.version == "v2"
    assert published.decision is not None
    assert published.decision.opponent == "v1"
    old = Metrics.read(old_config().root / "checkpoints" / TRAINING / "evaluations" / EVALUATION)
    assert published.decision.champion == pytest.approx(old.splits["test"].loss_nats, rel=1e-5)


def test_its_versions_are_listed(old_config, capsys):
    config = old_config()
    assert main(["models", "list", "--name", "old", "--root", str(config.root), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    manifest = PublishedManifest.read(config.root / "models" / "old" / "v1")
    assert row == {
        "version": "v1", "champion": True, "bits_per_byte": manifest.bits_per_byte, "reason": "publish.policy=always",
    }  # fmt: skip


class LongerTraining(TrainingConfig):
    warmer: float = 0.0
    coolest: int | None = None

    @property
    def resolved_coolest(self) -> int:
        return 7


class RicherModel(ModelConfig):
    richer: bool = False


class StricterEvaluation(EvaluationConfig):
    stricter: str = "no"


def test_a_field_that_is_added_changes_a_key_only_where_it_differs_from_its_default(old_config):
    config = old_config()
    tokens = old_tokens(config)
    training, model, evaluation = (
        config.training.model_dump(),
        config.model.model_dump(),
        config.evaluation.model_dump(),
    )

    def keys(**sections: Section) -> tuple[str, str]:
        changed = config.model_copy(update=sections)
        return train_key(tokens, changed), evaluation_key("sha256", tokens, changed)

    now = keys()
    assert now[0] == TRAINING
    assert keys(model=RicherModel(**model), evaluation=StricterEvaluation(**evaluation)) == now
    assert keys(model=RicherModel(**model, richer=True))[0] != TRAINING
    assert keys(evaluation=StricterEvaluation(**evaluation, stricter="yes"))[1] != now[1]
    assert keys(training=LongerTraining(**training)) == now
    assert keys(training=LongerTraining(**training, coolest=7)) == now, "what null stands for"
    assert keys(training=LongerTraining(**training, coolest=8))[0] != TRAINING
    assert keys(training=LongerTraining(**training, warmer=1.0))[0] != TRAINING


class RelativeWarmup(TrainingConfig):
    """A field of the keys whose default becomes null, and stands for the default that it had."""

    warmup_steps: int | None = None

    @property
    def resolved_warmup_steps(self) -> int:
        return 100


def test_a_null_that_is_resolved_is_in_a_key_as_its_value():
    training = RelativeWarmup.model_construct(**TrainingConfig().model_dump() | {"warmup_steps": None})
    assert training.key_part() == TrainingConfig().key_part()
    assert TrainingConfig().key_part()["warmup_steps"] == 100
    assert ModelConfig().key_part()["head_dim"] is None, "as it was before"


def test_every_field_of_0e278cf_is_in_the_keys_at_any_value():
    for section in (ModelConfig(), EvaluationConfig()):
        assert section.key_part() == section.model_dump(mode="json")
