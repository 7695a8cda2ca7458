"""`textgen generate`: prompts are continued."""

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textgen.commands.arguments import MODEL_HELP, ROOT_HELP, Commands, add_mode, read_mode
from textgen.config import StorageConfig
from textgen.errors import InputError
from textgen.files import expand_home, is_utf8
from textgen.terminal import one_line, printable, say

if TYPE_CHECKING:
    from textgen.inference.engine import Engine
    from textgen.inference.protocol import CompletionRequest

log = logging.getLogger(__name__)

FIELDS = (  # of a request, that are options here: the name, what it takes, what it does
    ("max_tokens", int, "how many tokens at most"),
    ("temperature", float, "0 takes the likeliest token"),
    ("top_k", int, "draw from the K likeliest tokens; 0: from all"),
    ("top_p", float, "draw from the fewest tokens of probability P"),
    ("min_p", float, "draw from tokens at least P times as likely as the first"),
    ("repetition_penalty", float, "over 1: less of what is in the text already"),
    ("presence_penalty", float, "off the logits of tokens that were written"),
    ("frequency_penalty", float, "off the logits of tokens for each time that they were written"),
    ("seed", int, "the same seed draws the same text"),
    ("n", int, "how many texts of each prompt"),
    ("logprobs", int, "with --json: how many of the likeliest tokens beside each token"),
)
MAX_TOKENS = 100
BENCH_ROUNDS = 5
NO_TOKEN = -1
NOT_IN_A_FILE = frozenset({"model", "stream", "stream_options"})  # fields of a request that a server alone knows
DESCRIPTION = "Continue the prompt of --prompt or of stdin, each line typed in a terminal, or those of --file."


def add_generate(commands: Commands) -> None:
    """Add `generate` to the commands."""
    parser = commands.add_parser("generate", help="continue prompts", description=DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt")
    prompts.add_argument(
        "--file",
        type=expand_home,
        metavar="JSONL",
        help='of lines {"prompt": …}, with any field of a request of the server',
    )
    for name, kind, what in FIELDS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=what)
    parser.add_argument("--stop", action="append", metavar="TEXT", help="ends the text; may be given several times")
    add_mode(parser, compiled=False)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--root", default=StorageConfig().root, help=ROOT_HELP)
    parser.add_argument("--json", action="store_true", help="one document, with log-probabilities")
    parser.add_argument("--bench", action="store_true", help="measure the speed; ends in a line of JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from textgen.inference.engine import Engine
    from textgen.model.device import choose_device, prepare_cpu
    from textgen.model.find import resolve
    from textgen.model.pretrained import load_finite_model
    from textgen.storage import Storage

    given = {name: value for name, *_ in FIELDS if (value := getattr(options, name)) is not None}
    given = {"max_tokens": MAX_TOKENS, **given, **({"stop": options.stop} if options.stop else {})}
    request = _parse_options(given)
    _check_options(options)
    if options.prompt is not None:
        _check_text(options.prompt, "--prompt")
    device = choose_device(options.device, "--device")
    folder = resolve(options.model, Storage.at(options.root))
    asked = list(_read_file(options.file, given)) if options.file is not None else []
    prepare_cpu(1)
    engine = Engine(load_finite_model(folder, device), mode=read_mode(options))
    if options.bench:
        _measure(engine, options.prompt or "", request.max_tokens)
    elif options.file is not None:
        _continue_file(engine, asked)
    elif options.prompt is not None:
        _continue(engine, request, options.prompt, options.json)
    elif sys.stdin.isatty():
        _converse(engine, request)
    else:
        _continue(engine, request, _read_stdin(), options.json)


def _check_options(options: argparse.Namespace) -> None:
    """Check that no option is given that would do nothing.

    Raises:
        InputError: one is; the message says where it has a meaning.
    """
    if options.logprobs is not None and not options.json and options.file is None:
        raise InputError("--logprobs: only with --json or --file")
    if options.json and options.file is not None:
        raise InputError("--json: --file gives JSON as it is")
    if options.bench and (options.file is not None or options.json):
        raise InputError("--bench: neither with --file nor with --json")


def _parse_options(given: dict[str, Any]) -> "CompletionRequest":
    """Return the request of the options.

    Raises:
        InputError: an option is wrong; it is named as it is typed.
    """
    from textgen.inference.protocol import BadRequest, CompletionRequest

    try:
        return CompletionRequest.parse(given)
    except BadRequest as error:
        name = error.param or ""
        raise InputError(f"--{name.replace('_', '-')}{str(error).removeprefix(name)}") from None


def _check_text(text: str, where: str) -> None:
    """Check that a text came in UTF-8: what did not, Python spells with halves of characters.

    Raises:
        InputError: it did not.
    """
    if not is_utf8(text):
        raise InputError(f"{where}: it has bytes that are not UTF-8")


def _read_stdin() -> str:
    """Return what is on stdin, without the line end that ends it."""
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"stdin: byte {error.start + 1} is not UTF-8") from None


def _read_file(path: Path, given: dict[str, Any]) -> Iterator[tuple[str, "CompletionRequest"]]:
    """Yield each line's place and request; what the command line gives holds for those that do not say otherwise."""
    from textgen.inference.protocol import BadRequest, CompletionRequest

    if not path.is_file():
        raise InputError(f"--file={path}: no such file")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: no JSON: {one_line(error)}") from None
            if not isinstance(fields, dict) or "prompt" not in fields:
                raise InputError(f'{where}: a line is {{"prompt": …}}')
            if useless := fields.keys() & NOT_IN_A_FILE:
                raise InputError(f"{where}: {min(useless)} has no meaning here")
            try:
                yield where, CompletionRequest.parse({**given, **fields})
            except BadRequest as error:
                raise InputError(f"{where}: {error}") from None


def _continue(engine: "Engine", request: "CompletionRequest", prompt: str, as_json: bool) -> None:
    """Print what follows a prompt: as it comes where it is one text."""
    from textgen.inference.engine import run
    from textgen.inference.protocol import engine_requests

    request, ids = request.model_copy(update={"prompt": prompt}), [_encode(engine, prompt, "the prompt")]
    if as_json:
        if request.logprobs is None:
            request = request.model_copy(update={"logprobs": 0})
        say(json.dumps(next(_answers(engine, [request], [ids])), indent=2, ensure_ascii=False))
    elif request.n == 1:
        _show(prompt)
        for piece in run(engine, engine_requests(request, ids)):
            _show(piece.text)
        _show("\n")
    else:
        for choice in next(_answers(engine, [request], [ids]))["choices"]:
            say(f"[{choice['index'] + 1}] {prompt}{choice['text']}")


def _encode(engine: "Engine", prompt: str | list[int], where: str) -> list[int]:
    """Return the ids of a prompt, and say where the model cannot read all of it."""
    ids = engine.encode(prompt)
    if len(ids) > engine.length:
        log.warning("%s: %s tokens; the model reads the last %s", where, f"{len(ids):,}", f"{engine.length:,}")
    return ids


def _measure(engine: "Engine", prompt: str, tokens: int) -> None:
    """Print how fast one text is written, and how much of what the machine can read its weights are at that speed."""
    from textgen.inference.engine import Request, complete
    from textgen.inference.sampling import SamplingConfig
    from textgen.model.device import read_bandwidth

    request = Request(engine.encode(prompt), SamplingConfig(max_tokens=max(1, tokens), temperature=0))
    engine.end = NO_TOKEN
    seconds = []
    for _ in range(BENCH_ROUNDS):
        started = time.perf_counter()
        list(complete(engine, [request]))
        seconds.append(time.perf_counter() - started)
        print(f"{request.sampling.max_tokens / seconds[-1]:.1f} tokens/s", file=sys.stderr)
    speed, bandwidth = request.sampling.max_tokens / statistics.median(seconds), read_bandwidth(engine.model.device)
    weight_bytes = engine.model.weight_bytes
    figures = {
        "tokens_per_second": speed, "kernels": engine.kernels, "weight_bytes": weight_bytes,
        "read_bytes_per_second": bandwidth, "bandwidth_share": weight_bytes * speed / bandwidth,
    }  # fmt: skip
    say(json.dumps(figures))


def _show(text: str) -> None:
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _converse(engine: "Engine", request: "CompletionRequest") -> None:
    """Continue each line that is typed, until the end of the input."""
    print("type the beginning of a text; Ctrl-D ends", file=sys.stderr)
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            print(file=sys.stderr)
            return
        except UnicodeDecodeError:
            raise InputError("stdin: it has bytes that are not UTF-8") from None
        try:
            _continue(engine, request, prompt, as_json=False)
        except KeyboardInterrupt:
            engine.clear()
            print(file=sys.stderr)


def _continue_file(engine: "Engine", asked: Sequence[tuple[str, "CompletionRequest"]]) -> None:
    """Print a line of JSON for each request, in order, as soon as it and those before it are done."""
    prompts = []
    for where, request in asked:
        try:
            prompts.append([_encode(engine, prompt, where) for prompt in request.prompts])
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    for answer in _answers(engine, [request for _, request in asked], prompts):
        sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
        sys.stdout.flush()


def _answers(
    engine: "Engine", asked: Sequence["CompletionRequest"], prompts: Sequence[list[list[int]]]
) -> Iterator[dict[str, Any]]:
    """Yield the answer to each request, whose prompts are given as ids, in order; all are written together."""
    from textgen.inference.engine import complete
    from textgen.inference.protocol import answer, engine_requests

    completions = complete(engine, [one for pair in zip(asked, prompts, strict=True) for one in engine_requests(*pair)])
    for request, ids in zip(asked, prompts, strict=True):
        of_request = list(islice(completions, len(ids) * request.candidates))
        yield answer(request, ids, of_request, engine.vocabulary)
