"""`textgen data`: a look at the text before training on it."""

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

from textgen.commands.arguments import Commands, add_configuration
from textgen.config import Config, find_config, load_config
from textgen.errors import Damaged, InputError
from textgen.files import expand_home
from textgen.terminal import columns, counted, printable, say

if TYPE_CHECKING:
    from textgen.storage import Storage
    from textgen.text.corpus import RawManifest
    from textgen.text.report import TextReport
    from textgen.text.tokens import TokensManifest

SHOWN_DOCUMENTS = 3  # with their tokens marked
SHOWN_PARTS = 10  # of each, as rows of WikiText
SHOWN_TOKENS = 40


def add_data(commands: Commands) -> None:
    """Add `data` to the commands."""
    parser = commands.add_parser("data", help="look at the text before training on it")
    add_configuration(parser)
    parser.add_argument("--tokens", action="store_true", help="tokenize it too, and show a few documents' tokens")
    parser.add_argument(
        "--find", type=expand_home, metavar="FILE", help="name the texts and versions that hold a document"
    )
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from textgen.retention.find_document import Asked, find_document
    from textgen.storage import Storage
    from textgen.text.corpus import fetch
    from textgen.text.local_files import NO_TEXT_YET, is_awaited
    from textgen.text.report import report_on
    from textgen.text.tokens import tokenize

    config = load_config(find_config(options.config), options.overrides)
    storage = Storage(config.storage)
    if options.find is not None:
        found = find_document(Asked(options.find, config.data), storage).places
        if options.json:
            say(json.dumps([place._asdict() for place in found], indent=2))
        for place in found if not options.json else ():
            say(f"{place.split} of {place.raw}: {place.document}; versions: {', '.join(place.versions) or 'none'}")
        if not found and not options.json:
            only_there = f"; those that are only in {storage.root} were not looked in" if storage.is_remote else ""
            say(f"no text holds it{only_there}")
        return
    if is_awaited(config.data.files):
        say(json.dumps({"message": NO_TEXT_YET}) if options.json else NO_TEXT_YET)
        return
    raw = fetch(config.data, storage)
    report = report_on(raw, storage)
    tokens = None
    if options.tokens:
        from textgen.publishing.resolution import resolve_champions

        config, _ = resolve_champions(config, raw, storage)
        tokens = tokenize(raw, config.tokenizer, storage, config.data.end_of_document)
    if options.json:
        say(json.dumps(_as_json(raw, report, tokens), indent=2))
        return
    refusals = _refusals(raw, config, storage)
    for line in [
        *_lines(config, raw, report, storage),
        *refusals,
        *(_token_lines(raw, tokens) if tokens is not None else ()),
    ]:
        say(line)


def _as_json(raw: "RawManifest", report: "TextReport", tokens: "TokensManifest | None") -> dict[str, Any]:
    made = {"raw": raw.model_dump(mode="json"), "text": report.model_dump(mode="json")}
    return made if tokens is None else {**made, "tokens": tokens.model_dump(mode="json")}


def _lines(config: Config, raw: "RawManifest", report: "TextReport", storage: "Storage") -> Iterator[str]:
    from textgen.publishing.gate import gate_warnings
    from textgen.text.corpus import left_out_now
    from textgen.text.report import text_in_words

    yield from text_in_words(raw, report, left_out_now(config.data, raw, storage))
    yield ""
    rows: list[tuple[str, ...]] = [
        ("split", "documents", "words", "bytes", "longest", "shortest", "stands in train"),
    ]
    for split, one in report.splits.items():
        overlap = "-" if one.overlap is None else f"{one.overlap:.1%}, {one.longest_overlap} words in a row"
        sizes = [f"{counted(found.words, 'word')}: {printable(found.name)}" for found in (one.longest, one.shortest)]
        rows.append((split, f"{one.documents:,}", f"{one.words:,}", f"{one.bytes:,}", *sizes, overlap))
        for ending, amount in one.kinds.items():
            rows.append((f"  {ending}", f"{amount.documents:,}", f"{amount.words:,}", f"{amount.bytes:,}", "", "", ""))
    yield from columns(rows)
    for split, one in report.splits.items():
        for found in one.worst:
            yield f"{split}: {found.share:.0%} of {found.name} stands in train, {found.longest} words in a row"
    for line in gate_warnings(report, config):
        yield f"warning: {line}"


def _refusals(raw: "RawManifest", config: Config, storage: "Storage") -> Iterator[str]:
    """Yield why a run would refuse the text before it trains on it."""
    from textgen.publishing.contenders import check_fractions

    try:
        check_fractions(raw, config, storage)
    except (InputError, Damaged) as error:
        yield f"warning: no run will train on it: {error}"


def _token_lines(raw: "RawManifest", tokens: "TokensManifest") -> Iterator[str]:
    from textgen.text.corpus import read_parts
    from textgen.text.documents import by_document
    from textgen.text.tokens import load_manifest_tokenizer, special_tokens_in_words

    yield ""
    rows = [("split", "tokens", "bytes a token", "unknown")]
    for split, counts in tokens.splits.items():
        rows.append(
            (split, f"{counts.tokens:,}", f"{counts.text_bytes / max(1, counts.tokens):.3f}", f"{counts.unknown:,}")
        )
    yield from columns(rows)
    yield from special_tokens_in_words(tokens.splits.values())
    tokenizer = load_manifest_tokenizer(tokens)
    for texts in islice(by_document(read_parts(raw, "validation")), SHOWN_DOCUMENTS):
        text = "".join(islice(texts, SHOWN_PARTS))[: SHOWN_TOKENS * 40]
        yield _marked(text, tokenizer.encode(text, add_special_tokens=False).offsets)


def _marked(text: str, offsets: Sequence[tuple[int, int]]) -> str:
    """Return the first tokens of a text with marks between; a character of several tokens is shown with the first."""
    ends = [0, *(end for _, end in offsets[:SHOWN_TOKENS])]
    shown = "|".join(text[start:end] for start, end in pairwise(ends))
    return f"{shown} …" if len(offsets) > SHOWN_TOKENS else shown
