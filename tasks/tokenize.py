"""The task that turns text into token streams."""

from pathlib import Path

from tasks.stage import NETWORK_RETRY_SECONDS, is_transient, stage
from textgen.config import Config
from textgen.hub import PIN_FILE, pinned
from textgen.storage import Storage
from textgen.text import tokens
from textgen.text.corpus import RawManifest
from textgen.text.tokenizer import GPT2Manifest, fetch_gpt2_file, find_gpt2_file, gpt2_home
from textgen.text.tokens import TokensManifest


def key(config: Config, raw: RawManifest) -> str | None:
    gpt2_file = find_gpt2_file(config.tokenizer, config.root)
    if config.tokenizer.kind == "gpt2" and gpt2_file is None:
        return None  # not fetched yet
    return tokens.tokens_key(raw, config.tokenizer, gpt2_file)


@stage(TokensManifest, key, retry_if=is_transient, retry_seconds=NETWORK_RETRY_SECONDS)
def tokenize(config: Config, raw: RawManifest) -> TokensManifest:
    """Tokenize the corpus into data/processed and return the manifest of its tokens."""
    storage = Storage(config.storage)
    storage.bring(raw.folder, RawManifest)
    gpt2_file = share_gpt2_file(config, storage)
    storage.bring(config.root / "processed" / tokens.tokens_key(raw, config.tokenizer, gpt2_file), TokensManifest)
    made = tokens.tokenize(raw, config.tokenizer, config.root)
    storage.push(made.folder, made)
    return made


def share_gpt2_file(config: Config, storage: Storage) -> Path | None:
    """Return GPT-2's tokenizer.json, that of the remote root if it has one, if the configuration wants it."""
    home = gpt2_home(config.root)
    storage.bring_file(home / PIN_FILE)
    if (commit := pinned(home, None)) is not None:
        storage.bring(home / commit, GPT2Manifest)
    file = fetch_gpt2_file(config.tokenizer, config.root)
    if file is not None and file.parent.parent == home:
        storage.push(file.parent, GPT2Manifest.read(file.parent))
        storage.push_file(home / PIN_FILE)
    return file
