"""The task that turns text into token streams."""

from tasks.stage import NETWORK_RETRY_SECONDS, is_transient, stage
from textgen.config import Config
from textgen.storage import Storage
from textgen.text import tokens
from textgen.text.corpus import RawManifest
from textgen.text.tokenizer import find_tokenizer_file
from textgen.text.tokens import TokensManifest


def key(config: Config, raw: RawManifest) -> str | None:
    file = find_tokenizer_file(config.tokenizer, Storage(config.storage))
    if config.tokenizer.kind == "gpt2" and file is None:
        return None  # not fetched yet
    return tokens.tokens_key(raw, config.tokenizer, file, config.data.end_of_document)


@stage(TokensManifest, key, retry_if=is_transient, retry_seconds=NETWORK_RETRY_SECONDS)
def tokenize(config: Config, raw: RawManifest) -> TokensManifest:
    """Tokenize the corpus into data/processed and return the manifest of its tokens."""
    return tokens.tokenize(raw, config.tokenizer, Storage(config.storage), config.data.end_of_document)
