"""The protocols: their windows and their texts, against lm-eval's own functions and a loop over tokens."""

import random
from pathlib import Path

import pyarrow.parquet
import pytest
import torch

from textgen.config import EvaluationConfig
from textgen.evaluation.evaluate import evaluate_rows
from textgen.evaluation.protocols import (
    DEFINITIONS,
    blocks,
    detokenize,
    read_as_lm_eval,
    sliding_windows,
    wikitext_pages,
)
from textgen.evaluation.scoring import scored_positions
from textgen.model.pretrained import LoadedModel
from textgen.text import documents
from textgen.text.tokenizer import collect_words, train_bpe

SHARED = Path(__file__).parents[3] / "shared"
HUB_ROWS = [
    "", " = A = \n", "", " The dogs ' \" tail \" , ( a ) [ b ] { c } 1 @,@ 000 @.@ 5 ; x @-@ y : z ! \n",
    " = = B = = \n", "", " 20 ° C . It 's ' so ' N times ? \n", "", " = D = \n", "", " = = = = E = = = = \n", "",
]  # fmt: skip
ARTICLES = [
    ' = A = \n \n The dogs \' " tail " , ( a ) [ b ] { c } 1 @,@ 000 @.@ 5 ; x @-@ y : z ! \n'
    " = = B = = \n \n 20 ° C . It 's ' so ' N times ? \n ",
    " = D = \n \n = = = = E = = = = \n \n",
]
TOKENIZER = train_bpe(ARTICLES, 270)


def lm_eval_windows(ids: list[int], prefix: int, seq_length: int) -> list[tuple[list[int], list[int]]]:
    """Return for each window of lm-eval's what its `hf` backend feeds the model and what it scores."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # with it `datasets`, on every worker

    windows = map(make_disjoint_window, get_rolling_token_windows(ids, prefix, seq_length, context_len=1))
    return [((context + scored)[-(seq_length + 1) :][:-1], scored) for context, scored in windows]


def lm_eval_text(page: str) -> str:
    """Return what lm-eval has a model read of a page."""
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    return wikitext_detokenizer({"page": page})


def lm_eval_counts(page: str) -> dict[str, tuple[float, int]]:
    """Return the likelihood, here 0, and the count of a page by lm-eval's figures."""
    from lm_eval.tasks.wikitext.preprocess_wikitext import process_results

    return process_results({"page": page}, (0.0,))


@pytest.mark.parametrize("seq_length", [1, 2, 5, 8, 40, 1000])
def test_a_documents_windows_are_those_of_lm_eval(seq_length):
    text, end = read_as_lm_eval(TOKENIZER, HUB_ROWS, seq_length), TOKENIZER.token_to_id("<|endoftext|>")
    stream, ours = text.ids_N.tolist(), []
    for start, inputs, scored in text.windows:
        last = start + inputs
        ours.append((stream[start:last], stream[last + 1 - scored : last + 1]))
    pages = [TOKENIZER.encode(lm_eval_text(page)).ids for page in ARTICLES]
    assert ours == [window for ids in pages for window in lm_eval_windows(ids, end, seq_length)]


def test_a_documents_words_and_bytes_are_those_that_lm_eval_counts():
    text = read_as_lm_eval(TOKENIZER, HUB_ROWS, 8)
    results = [lm_eval_counts(page) for page in ARTICLES]
    assert text.documents["words"].tolist() == [result["word_perplexity"][1] for result in results]
    assert text.documents["bytes"].tolist() == [result["byte_perplexity"][1] for result in results]
    assert (text.counts.words, text.counts.rows) == (sum(text.documents["words"]), 0)
    assert text.counts.text_bytes == sum(text.documents["bytes"])
    assert text.counts.tokens == sum(text.documents["tokens"]) - 2  # an end of text before each


def test_articles_are_those_of_the_original_file_whether_its_lines_or_the_hubs_rows_are_read():
    original = [row or " \n" for row in HUB_ROWS]
    assert wikitext_pages(HUB_ROWS) == wikitext_pages(original) == ARTICLES


def test_a_text_may_end_without_a_line_feed():
    assert wikitext_pages([" = A = \n", " = = B = = \n", " end"]) == [" = A = \n = = B = = \n end"]


@pytest.mark.parametrize("page", ARTICLES)
def test_a_page_is_detokenized_as_lm_eval_does(page):
    assert detokenize(page) == lm_eval_text(page) != page


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not on this machine")
def test_wikitext_2_is_cut_counted_and_detokenized_as_lm_eval_does():
    file = SHARED / "wikitext" / "wikitext-2-v1" / "test-00000-of-00001.parquet"
    rows = pyarrow.parquet.read_table(file).column("text").to_pylist()
    pages = wikitext_pages(rows)
    results = [lm_eval_counts(page) for page in pages]
    assert len(pages) == len(documents.cut(rows)) == 62
    assert sum(result["word_perplexity"][1] for result in results) == 241_335
    assert all(detokenize(page) == lm_eval_text(page) for page in pages)


def test_of_a_text_that_is_no_wikitext_each_row_with_text_is_a_document_as_it_is():
    rows = ["It 's here , \n", "", " \n", "N \n"]
    text = read_as_lm_eval(TOKENIZER, rows, 1000)
    end = TOKENIZER.token_to_id("<|endoftext|>")
    assert text.ids_N.tolist() == [end, *TOKENIZER.encode(rows[0]).ids, end, *TOKENIZER.encode(rows[3]).ids]
    assert text.documents["words"].tolist() == [5, 2]  # as re.split counts: a white space at the end begins one more
    assert text.documents["bytes"].tolist() == [14, 3]


def test_words_that_the_text_itself_has_as_unknown_are_not_unknown():
    tokenizer = collect_words([" <unk> a \n"])
    assert read_as_lm_eval(tokenizer, ["a <unk> b\n", "c\n"], 8).counts.unknown == 2


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_documents_of_any_length_are_scored_together_as_each_alone(batch_size, opinionated):
    _, loaded = opinionated
    draw = random.Random(0)
    rows = [" ".join(draw.choices(["river", "塔", "old", "42"], k=draw.randint(1, 30))) + "\n" for _ in range(9)]
    rows.append("42\n")  # the stream ends before the windows that it is batched with
    measured = evaluate_rows(loaded, rows, EvaluationConfig(protocol="lm-eval", batch_size=batch_size))
    end = loaded.tokenizer.token_to_id("<|endoftext|>")
    expected = [score_alone(loaded, lm_eval_windows(loaded.tokenizer.encode(row).ids, end, 32)) for row in rows]
    assert any(len(nats) > 32 for nats in expected) and any(len(nats) < 32 for nats in expected)
    assert measured.token_nats.tolist() == pytest.approx([nats for row in expected for nats in row], abs=1e-4)
    assert measured.documents.nats.tolist() == pytest.approx([sum(nats) for nats in expected], abs=1e-3)
    assert measured.documents.tokens.tolist() == [len(nats) for nats in expected]
    assert measured.metrics.loss_nats == pytest.approx(measured.documents.nats.sum() / len(measured.token_nats))


def score_alone(loaded: LoadedModel, windows: list[tuple[list[int], list[int]]]) -> list[float]:
    nats = []
    for inputs, scored in windows:
        logits_TV = loaded.model(torch.tensor([inputs]))[0, -len(scored) :].double()
        nats += (-logits_TV.log_softmax(-1)[torch.arange(len(scored)), scored]).tolist()
    return nats


@pytest.mark.parametrize(
    ("windows", "positions"),
    [([], []), (list(blocks(10, 3)), [1, 2, 3, 4, 5, 6, 7, 8, 9]), (list(sliding_windows(8, 4, 2)), list(range(1, 8))),
     ([(5, 3, 3), (0, 2, 1)], [6, 7, 8, 2])],
)  # fmt: skip
def test_the_scored_positions_are_the_last_targets_of_each_window(windows, positions):
    assert scored_positions(windows).tolist() == positions


def test_every_protocol_is_defined():
    assert set(EvaluationConfig.model_fields["protocol"].annotation.__args__) == set(DEFINITIONS)
