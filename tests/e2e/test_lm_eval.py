"""lm-eval itself, on models trained and exported here: our `lm-eval` protocol gives what its `wikitext` task does."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet
import pytest

from tests.inference.serving import Shelf, serve
from textgen.config import Config, TokenizerConfig
from textgen.evaluation.evaluate import evaluate
from textgen.evaluation.scoring import read_documents
from textgen.model.pretrained import load_model
from textgen.sections import DataConfig
from textgen.storage import Storage
from textgen.text import corpus
from textgen.text.tokens import tokenize
from textgen.training.train import train

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
FIGURES = ("word_perplexity", "byte_perplexity", "bits_per_byte")
RELATIVE = 1e-4
SERVED_RELATIVE = 1e-3
SHORTEST = 12  # documents of the smaller texts
# Context, tokenizer, whether of the shortest documents alone: within each of the three some windows are cut off
CASES = {
    "shorter than the documents": (128, TokenizerConfig(kind="bpe", vocab_size=1024), False),
    "longer than the documents": (4096, TokenizerConfig(kind="bpe", vocab_size=1024), True),
    "GPT-2's tokenizer": (64, TokenizerConfig(kind="gpt2", path=str(SHARED / "gpt2-tokenizer")), True),
}

pytestmark = [
    pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared"),
    pytest.mark.slow,  # three models are trained, and lm-eval scores 62 articles with one
]


class Case(NamedTuple):
    model: str
    ours: dict[str, Any]  # figures, and the nats of each document, of the corpus's test split
    theirs: dict[str, Any]
    text: Path  # the same test split in WikiText's original form


def cut_pages(text: str) -> list[str]:
    """Return the pages of a WikiText file as the Hub's wikitext_document_level was made of it."""
    pages, page = [], []
    for line in text.split("\n"):
        folded = line.replace("= = =", "===").replace("= =", "==").strip()
        if folded.startswith("= ") and folded.endswith(" ="):
            pages.append("\n".join(page))
            page = []
        page.append(line)
    return [page for page in [*pages, "\n".join(page)] if page.strip()]


def read_hub_rows(split: str) -> list[str]:
    (file,) = (SHARED / "wikitext" / "wikitext-2-v1").glob(f"{split}-*.parquet")
    return pyarrow.parquet.read_table(file).column("text").to_pylist()


def original(rows: list[str]) -> str:
    return "".join(row or " \n" for row in rows)


def hub_rows(pages: list[str]) -> list[str]:
    lines = ("".join(page.removesuffix("\n") + "\n" for page in pages)).splitlines(keepends=True)
    return ["" if line == " \n" else line for line in lines]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, make_config: Callable[..., Config]) -> dict[str, Case]:
    """Return our figures and lm-eval's, of a model trained for each of CASES."""
    folder, test_rows, other_rows = (
        tmp_path_factory.mktemp("lm-eval"),
        read_hub_rows("test"),
        read_hub_rows("validation"),
    )
    shortest = sorted(cut_pages(original(test_rows)), key=len)[:SHORTEST]
    ours, asked = {}, []
    for number, (name, (context, tokenizer, is_short)) in enumerate(CASES.items()):
        home = folder / str(number)
        home.mkdir()
        rows = {"train": other_rows, "validation": other_rows[:200], "test": test_rows}
        if is_short:
            rows["test"] = hub_rows(shortest)
        for split, texts in rows.items():
            pyarrow.parquet.write_table(pyarrow.table({"text": texts}), home / f"{split}.parquet")
        raw = corpus.fetch(
            DataConfig(files={split: str(home / f"{split}.parquet") for split in rows}), Storage.at(home)
        )
        tokens = tokenize(raw, tokenizer, Storage.at(home))
        config = make_config(
            data={"seq_length": context},
            training={"batch_size": max(1, 512 // context), "max_steps": 40, "eval_every": 40, "eval_blocks": 2},
            evaluation={"protocol": "lm-eval", "batch_size": 8},
        )
        checkpoint = train(tokens, config, home / "model", lambda step, figures: None)
        metrics = evaluate(checkpoint.folder, tokens, config)
        nats = read_documents(metrics, "test").nats.tolist()
        ours[name] = {**metrics.splits["test"].model_dump(), "documents": nats}
        (home / "text.txt").write_text(original(rows["test"]), "utf-8")
        pages = cut_pages(original(rows["test"]))
        (home / "pages.jsonl").write_text("".join(json.dumps({"page": page}) + "\n" for page in pages))
        asked.append([str(checkpoint.folder), str(home / "pages.jsonl")])
    theirs = ask_lm_eval([by_hf(*one) for one in asked], folder)
    return {
        name: Case(model, ours[name], figures, Path(pages).with_name("text.txt"))
        for name, (model, pages), figures in zip(CASES, asked, theirs, strict=True)
    }


def by_hf(model: str, pages: str, **arguments: int) -> list[Any]:
    """Return what lm-eval is asked to do with transformers."""
    return ["hf", {"pretrained": model, "dtype": "float32", **arguments}, pages]


def ask_lm_eval(asked: list[list[Any]], home: Path) -> list[dict[str, Any]]:
    offline = {**os.environ, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    script = Path(__file__).with_name("run_lm_eval.py")
    done = subprocess.run(
        [sys.executable, script], input=json.dumps(asked), env=offline, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CASES)
def test_a_corpus_has_the_figures_that_lm_eval_gives_it(name, cases, record_property):
    case = cases[name]
    for figure in FIGURES:
        record_property(figure, (case.ours[figure], case.theirs[figure]))
        assert case.ours[figure] == pytest.approx(case.theirs[figure], rel=RELATIVE)
    assert case.ours["words"] == sum(words for _, words in case.theirs["documents"])


@pytest.mark.parametrize("name", CASES)
def test_each_document_has_the_likelihood_that_lm_eval_gives_it(name, cases):
    theirs = [-log_likelihood for log_likelihood, _ in cases[name].theirs["documents"]]
    assert len(theirs) == (SHORTEST if CASES[name][2] else 62)
    assert cases[name].ours["documents"] == pytest.approx(theirs, rel=RELATIVE)


@pytest.mark.parametrize("name", list(CASES)[1:])
def test_the_command_gives_a_text_file_the_figures_that_lm_eval_gives_it(name, cases):
    case = cases[name]
    command = ["-m", "textgen", "evaluate", case.model, "--protocol", "lm-eval", "--text", str(case.text), "--json"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)["text"]
    assert {figure: figures[figure] for figure in FIGURES} == pytest.approx(
        {figure: case.theirs[figure] for figure in FIGURES}, rel=RELATIVE
    )


def test_the_server_gives_lm_eval_what_transformers_gives_it(cases, tmp_path):
    case = cases["GPT-2's tokenizer"]
    context, pages = CASES["GPT-2's tokenizer"][0], str(case.text.with_name("pages.jsonl"))
    with serve(Shelf(v1=load_model(Path(case.model)))) as running:
        arguments = {
            "base_url": f"{running.url}/v1/completions", "model": "tiny", "tokenizer": case.model,
            "tokenizer_backend": "huggingface", "max_length": context, "num_concurrent": 4,
        }  # fmt: skip
        asked = [["local-completions", arguments, pages], by_hf(case.model, pages, max_length=context - 2)]
        served, stock = ask_lm_eval(asked, tmp_path)
    for figure in FIGURES:
        assert served[figure] == pytest.approx(stock[figure], rel=SERVED_RELATIVE), figure
    assert served["word_perplexity"] != pytest.approx(case.theirs["word_perplexity"], rel=SERVED_RELATIVE)
