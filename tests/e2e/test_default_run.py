"""The run that the README begins with: far better than a trigram model, and cached after."""

import resource
import time
from pathlib import Path

import pytest

from tests.e2e.runs import succeed
from tests.kneser_ney import KneserNeyTrigram
from textgen.text.tokens import TokensManifest, load_stream

MEMORY_LIMIT_GB = 3
OF_THE_TRIGRAM = 0.75  # the share of its perplexity that is allowed


@pytest.mark.slow  # trains for minutes: the run that the README begins with
def test_the_default_run_is_far_better_than_a_kneser_ney_trigram_and_is_cached_after(home, tmp_path, record_property):
    root = f"storage.root={tmp_path / 'data'}"
    started = time.monotonic()
    result = succeed(home, root)
    record_property("seconds", seconds := time.monotonic() - started)
    started = time.monotonic()
    again = succeed(home, root)
    record_property("cached_seconds", cached_seconds := time.monotonic() - started)
    assert cached_seconds < seconds / 4
    assert all(report["cached"] for report in again["stages"].values())
    assert again["published"] == result["published"]
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20 < MEMORY_LIMIT_GB

    phases = result["checkpoint"]["speed"]["seconds"]
    record_property("share_of_saving", share := phases["saving"] / sum(phases.values()))
    assert share > 0
    tokens = TokensManifest.read(Path(result["tokens"]["path"]))
    trigram = KneserNeyTrigram(load_stream(tokens, "train").tolist(), tokens.vocab_size)
    baseline = trigram.perplexity(load_stream(tokens, "test").tolist())
    record_property("kneser_ney", baseline)
    assert result["metrics"]["test"]["token_perplexity"] < OF_THE_TRIGRAM * baseline
