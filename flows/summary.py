"""The summary of a run, for a person at a terminal: the verdict first, and what to do next."""

import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from textgen.config import StorageConfig, root_option
from textgen.terminal import bytes_in_words, columns, counted, printable, say, seconds_in_words

PROMPT_WORDS = 4
NARROWEST = 40  # columns of a terminal that text is wrapped to


def summarize(result: dict[str, Any]) -> None:
    """Print a run's summary: the verdict, the metrics, samples, how it went, and what to do next."""
    from textgen.evaluation.scoring import figure_in_words  # loads torch, as the flow has by now
    from textgen.publishing.verdict import decision_of, headline, in_lines, nothing_new
    from textgen.publishing.version import PublishedManifest

    published = PublishedManifest.model_validate(result["published"])
    decision = decision_of(published)
    did_nothing = {stage["cached"] for stage in result["stages"].values()} == {True}
    if did_nothing:
        reason = nothing_new(published, result["champion"], result["config"]["storage"]["root"])
        _show(f"Nothing to do: {reason}.\n", bold=True)
    _show(f"{published.name} {published.version}: {headline(decision)}; {_place(result)}", bold=True)
    beside = [*in_lines(decision, published.version)]
    for line in beside or ["", *_figure_lines(result)]:
        _show(line)
    if beside and _is_by_words(result):
        figures = {name: split["word_perplexity"] for name, split in result["metrics"].items()}
        words = ", ".join(f"{figure_in_words('word_perplexity', one)} on {name}" for name, one in figures.items())
        _show(f"\nWord perplexity: {words}")
    _show("\nSamples (the first words of a document ▸ what the model wrote)", bold=True)
    for sample in published.samples:
        _show(f"  {sample.prompt.strip()} ▸ {sample.continuation.strip()}".replace("\n", "\n    "))
    _show("")
    for line in () if did_nothing else _course_lines(result):
        _show(line)
    stages = (
        f"{name} {'cached' if stage['cached'] else seconds_in_words(stage['seconds'])}"
        for name, stage in result["stages"].items()
    )
    _show(f"Stages: {', '.join(stages)}\n")
    print(f"Model: {printable(published.path)}")
    print("\n".join(map(printable, _next_lines(result, published.version))))


def _show(text: str, bold: bool = False) -> None:
    """Print a text, on a terminal with whole words in its lines.

    Names and samples are foreign: no character of them acts, in a pipe neither.
    """
    text = printable(text)
    if sys.stdout.isatty():
        width = max(NARROWEST, shutil.get_terminal_size().columns)
        text = "\n".join(wrapped for line in text.split("\n") for wrapped in _wrapped(line, width))
    say(text, bold)


def _wrapped(line: str, width: int) -> list[str]:
    indent = " " * (4 if line.startswith(" ") else 2)
    return textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False) or [""]


def _place(result: dict[str, Any]) -> str:
    """Return who is the champion now, as a version's line ends."""
    champion, published = result["champion"], result["published"]
    if champion is None:
        return "there is no champion"
    if champion == published["version"]:
        return "the champion"
    return f"the champion is {champion}{' now' if published['promoted'] else ''}"  # as after a rollback


def _figure_lines(result: dict[str, Any]) -> Iterator[str]:
    """Yield a table of the metrics of a version that was compared with no other."""
    from textgen.evaluation.scoring import FIGURES, figure_in_words

    names = [name for name in FIGURES if name != "word_perplexity" or _is_by_words(result)]
    rows = [("split", *(FIGURES[name] for name in names))]
    for split, figures in result["metrics"].items():
        rows.append((split, *(figure_in_words(name, figures[name]) for name in names)))
    yield from columns(rows, right=range(1, len(rows[0])))


def _is_by_words(result: dict[str, Any]) -> bool:
    """Return whether words are the measure: those of the word tokenizer, or of WikiText as others publish it."""
    tokenizer = result["checkpoint"]["config"]["tokenizer"]
    return tokenizer["kind"] == "word" or "wikitext" in result["raw"]["name"].lower()


def _course_lines(result: dict[str, Any]) -> Iterator[str]:
    """Yield how a run went: its text beside the champion's, its training."""
    from textgen.publishing.drift import VERDICTS, Drift, changes_in_words
    from textgen.publishing.tokenizer_fit import TokenizerFit, fit_lines

    if (drift := result["drift"]) is not None:
        changes = changes_in_words(Drift.model_validate(drift))
        yield f"Text: {VERDICTS[drift['verdict']]} {drift['champion']}{changes}"
        yield from (f"  {reason}" for reason in drift["reasons"])
    if (fit := result["tokenizer"]) is not None:
        first, *rest = fit_lines(TokenizerFit.model_validate(fit))
        yield f"Tokenizer: {first}"
        yield from (f"  {line}" for line in rest)
    checkpoint = result["checkpoint"]
    speed = checkpoint["speed"]
    phases = ", ".join(f"{phase} {seconds_in_words(seconds)}" for phase, seconds in speed["seconds"].items())
    yield (
        f"Training: {counted(checkpoint['steps'], 'step')} ({phases}), {speed['tokens_per_second']:,.0f} tokens/s, "
        f"{speed['mfu']:.0%} of the matrix peak, {bytes_in_words(speed['memory_peak_bytes'])} of memory"
    )


def _next_lines(result: dict[str, Any], version: str) -> Iterator[str]:
    """Yield the commands that write with the champion and with this version, as they can be pasted here."""
    published, champion = result["published"], result["champion"]
    storage = StorageConfig.model_validate(result["config"]["storage"])
    root = storage.root if storage.is_remote else str(Path(published["path"]).parent.parent.parent)
    where = root_option(root)
    prompt = " ".join(published["samples"][0]["prompt"].split()[:PROMPT_WORDS]) or "The"
    between = "=" if prompt.startswith("-") else " "  # else it would be another option
    option = f"--prompt{between}{shlex.quote(prompt)}"

    def command(place: str) -> str:
        name = shlex.quote(f"{published['name']}@{place}")
        return f"{_python()} -m textgen generate {name}{where} {option}"

    if champion == version:
        yield f"Next:  {command('champion')}"
        return
    if champion is not None:
        yield f"Next:  {command('champion')}  # {champion}"
    yield f"{'Next:' if champion is None else '     '}  {command(version)}  # this version"


def _python() -> str:
    """Return how a shell calls this Python: by its name where it is the first on the path, else by its own path."""
    found, ours = shutil.which("python"), Path(sys.executable)
    if found is not None and Path(found).absolute() == ours:
        return "python"
    return shlex.quote(str(ours.relative_to(Path.cwd()) if ours.is_relative_to(Path.cwd()) else ours))
