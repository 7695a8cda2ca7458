"""The protocols of perplexity: which text each reads, in which windows, and over which denominators it is spread."""

import re
from array import array
from collections.abc import Iterator, Sequence

import torch
from tokenizers import Tokenizer

from textgen.config import EvaluationConfig
from textgen.evaluation.scoring import Definition, Text, Window
from textgen.text import documents
from textgen.text.corpus import RawManifest, read_parts, read_units
from textgen.text.encoding import UNKNOWN, encode_units, end_id
from textgen.text.stream import Stream, TextCounts, block_count, encode_stream
from textgen.text.tokens import TokensManifest, load_documents, load_stream

ROWS = "the rows as they are, or the documents of local files, each tokenized on its own, in one stream"
ROW_DENOMINATORS = "words between white space and a row's end as one more; bytes of the rows in UTF-8"


DEFINITIONS = {
    "sliding": Definition(
        text=ROWS,
        context="seq_length - stride to seq_length of the tokens before it, or all; the stream's first is not scored",
        denominators=ROW_DENOMINATORS,
    ),
    "blocks": Definition(
        text=ROWS,
        context="those before it in its block of seq_length; the tail that fills no block is not scored",
        denominators=ROW_DENOMINATORS,
    ),
    "lm-eval": Definition(
        text="WikiText's articles, detokenized; of any other text the rows with text, as they are",
        context="those before it in its window of seq_length, in its document, which an end of text precedes",
        denominators='words by re.split(r"\\s+"), bytes in UTF-8: of the documents before they are detokenized',
    ),
}


def blocks(tokens: int, seq_length: int, limit: int | None = None) -> Iterator[Window]:
    """Yield the disjoint blocks of a stream, all of each scored; with a `limit`, that many spread over the stream."""
    count = block_count(tokens, seq_length)
    taken = count if limit is None else min(limit, count)
    for number in range(taken):
        yield (number * count // taken) * seq_length, seq_length, seq_length


def sliding_windows(tokens: int, seq_length: int, stride: int) -> Iterator[Window]:
    """Yield windows that move on by `stride` and score what no window before them scored, so every token but the first.

    A scored token has at least `seq_length - stride` tokens of context where the stream has them. The last window
    reaches back to its full length.
    """
    end = min(seq_length, tokens - 1)
    yield 0, end, end
    while end < tokens - 1:
        step = min(stride, tokens - 1 - end)
        end += step
        yield end - seq_length, seq_length, step


def windows_of(protocol: str, tokens: int, seq_length: int, stride: int) -> Iterator[Window]:
    """Return the windows of `sliding` or `blocks`."""
    assert protocol in ("blocks", "sliding"), protocol
    return blocks(tokens, seq_length) if protocol == "blocks" else sliding_windows(tokens, seq_length, stride)


def read_as_stream(stream: Stream, evaluation: EvaluationConfig, seq_length: int) -> Text:
    """Return a text as `sliding` and `blocks` read it, with the stride of `evaluation` or half of `seq_length`."""
    length = stream.counts.tokens
    seq_length = max(1, min(seq_length, length - 1))
    windows = windows_of(evaluation.protocol, length, seq_length, evaluation.stride or max(1, seq_length // 2))
    return Text(stream.ids_N, list(windows), stream.documents, stream.counts)


def read_tokens_split(tokens: TokensManifest, split: str, protocol: str, seq_length: int, stride: int) -> Text:
    """Return a split as `sliding` and `blocks` read it, from the stream that is on the disk."""
    counts = tokens.splits[split]
    windows = windows_of(protocol, counts.tokens, seq_length, stride)
    return Text(load_stream(tokens, split), list(windows), load_documents(tokens, split), counts)


def read_split(
    tokenizer: Tokenizer, raw: RawManifest, split: str, ends: bool, evaluation: EvaluationConfig, seq_length: int
) -> Text:
    """Return a split as the protocol reads it; `ends`: whether an end of text follows each document in a stream."""
    if evaluation.protocol == "lm-eval":
        return read_as_lm_eval(tokenizer, list(read_units(raw, split)), seq_length)
    stream = encode_stream(tokenizer, read_parts(raw, split), torch.int32, raw.has_units, ends)
    return read_as_stream(stream, evaluation, seq_length)


def read_as_lm_eval(tokenizer: Tokenizer, rows: Sequence[str], seq_length: int) -> Text:
    """Return a text as lm-eval's task `wikitext` reads it: after an end of text each document, in rolling windows.

    The windows of a document are those of lm-eval's `get_rolling_token_windows` with one token of context: disjoint, a
    shorter last one extended to the left. That is sliding by a whole window. No row's end counts as a word.

    A text that is no WikiText has no task of that name. Its rows with text are the documents, and nothing is
    detokenized: those rules undo how WikiText was tokenized.
    """
    is_wikitext = documents.is_wikitext(rows)
    pages = wikitext_pages(rows) if is_wikitext else [row for row in rows if row.strip()]
    scored = [detokenize(page) for page in pages] if is_wikitext else pages
    end = end_id(tokenizer)
    stream, windows, tokens = array("i"), [], []
    for ids in encode_units(tokenizer, scored):
        rolling = sliding_windows(len(ids) + 1, seq_length, seq_length) if ids else []
        windows += [(len(stream) + start, inputs, count) for start, inputs, count in rolling]
        stream.extend([end, *ids])
        tokens.append(len(ids) + 1)
    found = {
        "tokens": torch.tensor(tokens, dtype=torch.int64),
        "words": torch.tensor([len(re.split(r"\s+", page)) for page in pages], dtype=torch.int64),
        "bytes": torch.tensor([len(page.encode()) for page in pages], dtype=torch.int64),
    }
    ids_N = torch.frombuffer(stream, dtype=torch.int32) if stream else torch.empty(0, dtype=torch.int32)
    unknown_id = tokenizer.token_to_id(UNKNOWN)
    written = sum(page.split().count(UNKNOWN) for page in scored)
    counts = TextCounts(
        tokens=len(stream) - len(pages),
        unknown=0 if unknown_id is None else int((ids_N == unknown_id).sum()) - written,
        rows=0,
        words=int(found["words"].sum()),
        text_bytes=int(found["bytes"].sum()),
    )
    return Text(ids_N, windows, found, counts)


def wikitext_pages(rows: Sequence[str]) -> list[str]:
    """Return the articles of WikiText as they are in wikitext_document_level on the Hub, which lm-eval reads.

    That was cut from the original files, whose lines without text hold a space, which the Hub's rows have lost.
    """
    lines = [row.removesuffix("\n") if row else " " for row in rows]
    if lines[-1] != rows[-1]:
        lines.append("")  # a text that ends with its last line has nothing after it
    first = next(number for number, line in enumerate(lines) if line.strip())
    return ["\n".join(lines[first:][page]) for page in documents.cut(lines[first:])]


DETOKENIZER = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        ("s '", "s'"),
        ("/' [0-9]/", "/'[0-9]/"),  # as it is there: meant for years, and replaces none
        (" @-@ ", "-"),
        (" @,@ ", ","),
        (r" @\.@ ", "."),
        *((re.escape(f" {mark} "), f"{mark} ") for mark in ":;.!?,"),
        (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
        (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
        (r"{\s*([^}]*?)\s*}", r"{\1}"),
        (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
        (r"'\s*([^']*?)\s*'", r"'\1'"),
        ("= = = =", "===="),
        ("= = =", "==="),
        ("= =", "=="),
        (" ° ", "°"),
        (" \n", "\n"),
        ("\n ", "\n"),
        (" N ", " 1 "),
        (" 's", "'s"),
    )
]


def detokenize(page: str) -> str:
    """Return a page of WikiText as lm-eval's `wikitext_detokenizer` does: its rules, in its order."""
    for pattern, replacement in DETOKENIZER:
        page = pattern.sub(replacement, page)
    return page
