"""What several test files share: a corpus of a few thousand characters, its tokens, and tiny models."""

import gc
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import certifi
import pytest
import torch
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_SSL_CERT_FILE,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    temporary_settings,
)

import textgen.training.train
from tests.flow_runs import run_flow, tiny
from tests.pace import sitecustomize
from tests.publications import Publication, leave_out_pictures, make, write_text
from tests.waiting import PATIENCE_SECONDS, narrow
from textgen.config import Config, StorageConfig, TokenizerConfig, parse_config
from textgen.errors import InputError
from textgen.model.pretrained import WEIGHTS_FILE, LoadedModel, load_model, write_description, write_weights
from textgen.model.transformer import LanguageModel
from textgen.publishing.registry import promote
from textgen.sections import SPLITS, DataConfig
from textgen.storage import Storage
from textgen.text import corpus
from textgen.text.tokens import TokensManifest, load_manifest_tokenizer, tokenize
from textgen.training.checkpoint import CheckpointManifest
from textgen.training.train import train

SHARED = Path(__file__).parents[2] / "shared"
END_OF_CERTIFICATE = "-----END CERTIFICATE-----\n"
WORDS = (
    "the",
    "a",
    "small",
    "old",
    "river",
    "tower",
    "naïve",
    "塔",
    "lamp",
    "winds",
    "under",
    "3.14",
    "42",
    ",",
    ".",
    "and",
)
ROWS = {"train": 120, "validation": 20, "test": 20}
TINY = {
    "data": {"seq_length": 16},
    "model": {
        "hidden_size": narrow(32), "intermediate_size": narrow(64), "num_hidden_layers": 1, "num_attention_heads": 2,
    },
    "training": {
        "batch_size": 8, "max_steps": 20, "warmup_steps": 4, "learning_rate": 1e-2, "min_learning_rate": 1e-3,
        "log_every": 5, "eval_every": 5, "checkpoint_every": 5, "device": "cpu",
    },
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that need a server, which take longest: one worker of a few then has all of them."""
    items.sort(key=lambda item: "prefect_server" not in getattr(item, "fixturenames", ()))


def pytest_collection_finish() -> None:
    """Leave what was imported out of the garbage collections, which would look through all of it each time."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def no_accounts() -> None:
    """Forget the developer's own Weights & Biases and Hugging Face settings."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "HF_", "HUGGING"))]:
        del os.environ[name]


@pytest.fixture(autouse=True, scope="session")
def terminals_are_able() -> None:
    """Have the terminals of tests show bars and bold type, whatever the one is that the tests run in."""
    os.environ["TERM"] = "xterm"
    os.environ.pop("NO_COLOR", None)


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_is_heard() -> None:
    """Handle SIGINT, here and in the processes that tests start, where a shell in the background had it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Keep tiny products on one thread: several that share a busy machine's cores take a hundred times as long."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start, and of trainings in this one
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def no_wait_for_the_disk() -> None:
    """Leave out of this process what only a loss of power would show, and a quarter of a tiny training waits for."""
    os.fsync = lambda descriptor: None


@pytest.fixture(autouse=True, scope="session")
def trainings_keep_their_pace() -> None:
    """Have trainings wait where a test holds them, in this process and in those that tests start."""
    sitecustomize.set_pace(textgen.training.train)
    folder, others = str(Path(sitecustomize.__file__).parent), os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, others]))


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run flows on a Prefect server and a database of the tests' own. A server that is slow to answer is no failure.

    Runs send no heartbeats: at its end a run waits a second for the thread that sends them. The server has no TLS, and
    its clients trust one certificate authority: each client would take 30 ms to load all.
    """
    from prefect.testing.utilities import prefect_test_harness  # with all of the server: not every worker needs it

    authority = tmp_path_factory.mktemp("tls") / "ca.pem"
    first, end, _ = certifi.contents().partition(END_OF_CERTIFICATE)
    authority.write_text(first + end, "utf-8")
    settings = {
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
        PREFECT_API_REQUEST_TIMEOUT: PATIENCE_SECONDS,
        PREFECT_API_SSL_CERT_FILE: str(authority),
    }
    with temporary_settings(settings), prefect_test_harness(server_startup_timeout=int(PATIENCE_SECONDS)):
        yield


@pytest.fixture(scope="session")
def finished(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the folder of one run of the flow, with its text files and its data, and the result."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run_flow(tiny(folder))


@pytest.fixture(scope="session")
def finished_copy(finished: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path_factory.mktemp("copy") / "finished"))


@pytest.fixture
def folder(finished: tuple[Path, dict[str, Any]], finished_copy: Path) -> Iterator[Path]:
    """Yield the folder of a finished run, and make it what it was: Prefect's records hold for this place alone.

    What a test publishes beside it has placeholders for pictures.
    """
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch.setattr)
        yield finished[0]
    shutil.rmtree(finished[0])
    shutil.copytree(finished_copy, finished[0])


@pytest.fixture
def flip_bit() -> Callable[[Path], None]:
    """Return a function that damages a file: one bit of its middle byte."""

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    return flip


@pytest.fixture
def remote_root(tmp_path: Path) -> str:
    """Return the URL of a remote root of the test's own."""
    return f"memory:/{tmp_path}"


@pytest.fixture
def here(remote_root: str, tmp_path: Path) -> Storage:
    """Return the storage of that root on this machine."""
    return Storage(StorageConfig(root=remote_root, cache=str(tmp_path / "here")))


@pytest.fixture
def there(remote_root: str, tmp_path: Path) -> Storage:
    """Return the same storage on another machine."""
    return Storage(StorageConfig(root=remote_root, cache=str(tmp_path / "there")))


def tiny_config(**sections: dict) -> Config:
    """Return the configuration of a tiny training on the CPU, with other values where `sections` has them."""
    return parse_config({**TINY, **{name: {**TINY.get(name, {}), **values} for name, values in sections.items()}})


@pytest.fixture(scope="session")
def make_config() -> Callable[..., Config]:
    return tiny_config


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> corpus.RawManifest:
    """Return a frozen corpus of random sentences."""
    folder, source = tmp_path_factory.mktemp("corpus"), random.Random(0)
    for split in SPLITS:
        rows = [" ".join(source.choices(WORDS, k=source.randint(4, 12))) + "\n" for _ in range(ROWS[split])]
        (folder / f"{split}.txt").write_text("".join(rows), "utf-8")
    files = {split: str(folder / f"{split}.txt") for split in SPLITS}
    return corpus.fetch(DataConfig(files=files, document="line"), Storage.at(folder / "data"))


@pytest.fixture(scope="session")
def make_tokens(raw: corpus.RawManifest) -> Callable[[str], TokensManifest]:
    """Return a function from the kind of a tokenizer to the corpus's tokens; gpt2 skips where its file is absent."""

    def make(kind: str) -> TokensManifest:
        settings: dict = {"bpe": {"vocab_size": 300}, "word": {}, "gpt2": {"path": str(SHARED / "gpt2-tokenizer")}}
        try:
            return tokenize(raw, TokenizerConfig(kind=kind, **settings[kind]), Storage.at(raw.folder.parents[2]))
        except InputError:
            if kind == "gpt2" and not SHARED.exists():
                pytest.skip(f"{SHARED} is not on this machine")
            raise

    return make


@pytest.fixture(scope="session")
def tokens(make_tokens: Callable[[str], TokensManifest]) -> TokensManifest:
    return make_tokens("bpe")


@pytest.fixture(scope="session")
def checkpoint(tokens: TokensManifest, tmp_path_factory: pytest.TempPathFactory) -> CheckpointManifest:
    """Return a finished training; a test that changes its files copies them first."""
    return train(tokens, tiny_config(), tmp_path_factory.mktemp("training") / "out", lambda step, figures: None)


@pytest.fixture(scope="session")
def publication(raw: corpus.RawManifest, tmp_path_factory: pytest.TempPathFactory) -> Publication:
    """Return a published model and what it was made of, in a root of its own; tests change nothing in it."""
    root = tmp_path_factory.mktemp("publication")
    text = {split: "".join(corpus.read_rows(raw, split)) for split in SPLITS}
    data = {"files": write_text(root / "text", text), "document": "line", "seq_length": 16}
    tokenizer, storage = {"kind": "bpe", "vocab_size": 300}, {"root": str(root / "data")}
    return make(tiny_config(data=data, tokenizer=tokenizer, storage=storage), flow_run_id="run-1")


@pytest.fixture(scope="session")
def rivals(publication: Publication, tmp_path_factory: pytest.TempPathFactory) -> tuple[Publication, Publication]:
    """Return two versions in one root, v2 that the gate compared with v1, and v3 of another text."""
    root = tmp_path_factory.mktemp("rivals")
    shutil.copytree(publication.config.root.parent, root, dirs_exist_ok=True)
    storage = StorageConfig(root=str(root / "data"))
    promote(Storage(storage).models("textgen"), "v1", Storage(storage))
    longer = publication.config.training.model_copy(update={"max_steps": 40})
    config = publication.config.model_copy(update={"storage": storage, "training": longer})
    second = make(config, flow_run_id="run-2")
    text = {split: "".join(corpus.read_rows(publication.raw, split)).upper() for split in SPLITS}
    data = config.data.model_copy(update={"files": write_text(root / "other", text)})
    return second, make(config.model_copy(update={"data": data}))


@pytest.fixture(scope="session")
def opinionated(tokens: TokensManifest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LoadedModel]:
    """Return a model, and its folder, whose wide random weights make every token of the context matter."""
    folder = tmp_path_factory.mktemp("opinionated")
    config = tiny_config(model={"initializer_range": 0.5, "tie_word_embeddings": False}).model
    torch.manual_seed(0)
    write_weights(LanguageModel(config, tokens.vocab_size), folder / WEIGHTS_FILE)
    write_description(folder, config, load_manifest_tokenizer(tokens), tokens.vocab_size, seq_length=32)
    return folder, load_model(folder)


@pytest.fixture(scope="session")
def loaded(opinionated: tuple[Path, LoadedModel]) -> LoadedModel:
    """Return that model."""
    return opinionated[1]
