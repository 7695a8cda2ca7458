"""The model card: other tools read it, its figures are those of metrics.json, its bytes are the same each time."""

import json
import re
import struct

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from textgen.model.device import device_name
from textgen.publishing import plots
from textgen.publishing.card import (
    CARD_FILE,
    DATA_PLOT,
    FOLDED,
    TRAINING_PLOT,
    figures_of,
    losses,
    quote,
    training_in_words,
    without_folded,
    write_card,
)
from textgen.publishing.version import LINEAGE_FILE, METRICS_FILE, Decision, Guard
from textgen.storage import Storage
from textgen.text.report import report_on
from textgen.training.figures import read_log

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def folder(publication):
    return publication.published.folder


@pytest.fixture(scope="module")
def metrics(folder):
    return json.loads((folder / METRICS_FILE).read_text())


def write(publication, folder):
    """Write a card once more, into `folder`, from the same things."""
    folder.mkdir()
    lineage = json.loads((publication.published.folder / LINEAGE_FILE).read_text())
    decision = Decision.model_validate(lineage["decision"])
    report = report_on(publication.raw, Storage(publication.config.storage))
    write_card(
        folder, publication.published.version, publication.candidate, report, publication.published.samples, decision,
        lineage,
    )  # fmt: skip


def rows_of(card: str, heading: str) -> list[dict[str, str]]:
    """Return the rows of all tables under a heading of the card, those of one split joined."""
    section = card.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found: dict[str, dict[str, str]] = {}
    for block in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE):
        titles, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        for row in rows:
            found.setdefault(row[0], {}).update(zip(titles, row, strict=True))
    return list(found.values())


def chunks(png: bytes) -> dict[bytes, bytes]:
    """Return the chunks of a PNG by type, the parts of one type joined."""
    assert png.startswith(PNG_SIGNATURE)
    found: dict[bytes, bytes] = {}
    position = len(PNG_SIGNATURE)
    while position < len(png):
        (length,) = struct.unpack(">I", png[position : position + 4])
        kind = png[position + 4 : position + 8]
        found[kind] = found.get(kind, b"") + png[position + 8 : position + 8 + length]
        position += 12 + length
    return found


def test_the_hub_reads_the_card_and_every_result_in_it_is_in_the_metrics(folder, metrics):
    card = ModelCard.load(folder / CARD_FILE)
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    results = {(result.dataset_split, result.metric_type): result for result in card.data.eval_results}
    kinds = ("token_perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")
    assert set(results) == {(split, kind) for split in metrics["splits"] for kind in kinds}
    for (split, kind), result in results.items():
        assert result.metric_value == metrics["splits"][split][kind]
        assert result.metric_args == {name: metrics[name] for name in ("protocol", "seq_length", "stride")}


def test_every_number_of_the_evaluation_is_the_number_in_the_metrics(folder, metrics):
    columns = {
        "loss (nats a token)": "loss_nats", "token perplexity": "token_perplexity",
        "word perplexity": "word_perplexity", "byte perplexity": "byte_perplexity",
        "bits a byte": "bits_per_byte", "tokens scored": "tokens_scored", "tokens": "tokens", "words": "words",
        "rows": "rows", "bytes": "bytes",
    }  # fmt: skip
    rows = rows_of((folder / CARD_FILE).read_text("utf-8"), "Evaluation")
    assert [row["split"] for row in rows] == list(metrics["splits"])
    for row in rows:
        assert set(row) == {"split", *columns}
        for title, name in columns.items():
            shown, value = row[title].replace(",", ""), metrics["splits"][row["split"]][name]
            decimals = len(shown.partition(".")[2])
            assert decimals == 0 or decimals >= 2
            assert float(shown) == round(value, decimals), title


def test_the_data_table_counts_what_the_corpus_and_the_tokens_hold(publication, folder):
    rows = rows_of((folder / CARD_FILE).read_text("utf-8"), "Data")
    assert [row["split"] for row in rows] == list(publication.raw.splits)
    for row in rows:
        text, tokens = publication.raw.splits[row["split"]], publication.tokens.splits[row["split"]]
        counts = [int(row[name].replace(",", "")) for name in ("rows", "words", "bytes", "tokens", "unknown tokens")]
        assert counts == [text.rows, text.words, text.text_bytes, tokens.tokens, tokens.unknown]
        assert float(row["bytes a token"]) == round(text.text_bytes / tokens.tokens, 3)


def test_the_card_has_what_readers_look_for_and_its_pictures_exist(publication, folder):
    card = (folder / CARD_FILE).read_text("utf-8")
    headings = re.findall(r"^## (.*)$", card, re.MULTILINE)
    assert headings == [
        "Samples", "How to use it", "Uses and limits", "Data", "Training", "Evaluation", "Decision",
        "Environment and lineage",
    ]  # fmt: skip
    pictures = re.findall(r"!\[.*\]\((.*)\)", card)
    assert pictures == [DATA_PLOT, TRAINING_PLOT]
    for name in pictures:
        assert (folder / name).is_file()
    assert f"{publication.checkpoint.speed.tokens_per_second:,.0f} tokens a second" in card
    assert publication.checkpoint.key in card
    assert "run-1" in card


def test_a_paragraph_of_the_card_is_one_line(folder):
    _, _, body = (folder / CARD_FILE).read_text("utf-8").partition("\n---\n")
    body = re.sub(r"^```.*?^```$", "", body, flags=re.MULTILINE | re.DOTALL)
    paragraphs = [part.strip("\n") for part in re.split(r"\n\s*\n", body)]
    wrapped = [part for part in paragraphs if "\n" in part and not part.startswith(("|", "- ", ">", "<details>"))]
    assert wrapped == []


def test_writing_the_card_twice_gives_the_same_bytes(publication, folder, tmp_path):
    write(publication, tmp_path / "again")
    for name in (CARD_FILE, TRAINING_PLOT, DATA_PLOT):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name


@pytest.mark.parametrize(
    ("words", "labels"),
    [((4, 13), {"4", "6", "10"}), ((20_000, 60_000), {"20,000", "40,000", "60,000"}), ((1, 900), {"1", "10", "100"})],
)
def test_the_numbers_on_a_logarithmic_axis_are_written_in_full(words, labels, publication, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "load_documents", lambda tokens, split: {"words": torch.tensor(words)})
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    plots.plot_data(publication.tokens, None)
    figures[0].canvas.draw()
    lengths, ranks = figures[0].axes
    assert labels <= {label.get_text() for label in lengths.get_xticklabels(which="both")}
    for axis in (lengths.xaxis, ranks.xaxis, ranks.yaxis):
        shown = [label.get_text() for label in axis.get_ticklabels(which="both")]
        assert all(re.fullmatch(r"(0\.)?[\d,]*", label) for label in shown)


@pytest.mark.parametrize("name", [TRAINING_PLOT, DATA_PLOT])
def test_a_picture_is_opaque_and_its_ink_stands_out_from_its_own_background(folder, name):
    parts = chunks((folder / name).read_bytes())
    assert b"tEXt" not in parts or b"Software" not in parts[b"tEXt"]
    width, height, depth, color = struct.unpack(">IIBB", parts[b"IHDR"][:10])
    assert (depth, color) == (8, 6)  # 8 bits, with alpha
    from matplotlib.image import imread

    pixels = imread(folder / name)
    assert pixels.shape == (height, width, 4)
    assert pixels[..., 3].min() == 1.0
    brightness = pixels[..., :3].mean(axis=2)
    assert np.median(brightness) > 0.9
    assert brightness.min() < 0.4


def test_the_speed_of_a_training_is_that_of_the_seconds_it_names(publication):
    checkpoint = publication.checkpoint
    assert checkpoint.device == device_name(torch.device("cpu")) and checkpoint.precision == "fp32"
    speed = checkpoint.speed.model_copy(
        update={"seconds": {"train": 0.5, "validation": 5.5}, "tokens_per_second": 5120}
    )
    update = {"speed": speed, "steps": 20, "tokens_trained": 2560, "train_seconds": 6.0, "device": "AMD EPYC 7B13"}
    assert training_in_words(checkpoint.model_copy(update=update)).startswith(
        "20 steps, 2,560 tokens, 6.0 seconds on AMD EPYC 7B13 in fp32, 0.5 of them in steps: "
        "5,120 tokens a second in these, "
    )
    assert "7B13, 0.5 of" in training_in_words(checkpoint.model_copy(update={**update, "precision": None}))


def test_a_decision_is_shown_with_all_its_figures():
    decision = Decision(
        promoted=False, reason="worse; not better by enough", opponent="v3", protocol="sliding", unit="nats a token",
        documents=60, challenger=3.25, champion=3.125, difference=0.125, low=-0.0625, high=0.3125, confidence=0.0625,
        min_improvement=0.01, required_confidence=0.95,
        guards=[
            Guard(name="finite", passed=True, value=1.0, bound=1.0),
            Guard(name="repetition", passed=False, value=None, bound=0.5),
        ],
    )  # fmt: skip
    shown = figures_of(decision)
    for figure in ("v3", "0.1250", "-0.0625", "0.3125", "0.0625", "0.0100", "0.9500"):
        assert f"| {figure} |" in shown
    assert "| guard: finite | passed: 1, bound 1 |" in shown
    assert "| guard: repetition | failed: -, bound 0.5 |" in shown


def test_the_verdict_comes_first_and_long_tables_are_folded(folder):
    _, _, body = (folder / CARD_FILE).read_text("utf-8").partition("\n---\n")
    head, *_ = body.split("\n## ")
    assert head.startswith("\n# textgen v1\n\n**Better by ") and "| test | 20 | loss (nats a token) |" in head
    shown, hidden = without_folded(body), "".join(FOLDED.findall(body))
    for setting in ("`training.adam_beta2`", "byte perplexity", "confidence required", "bytes a token"):
        assert setting in hidden and setting not in shown
    assert "`training.learning_rate` | `0.01` |" in shown
    assert "<details>" not in shown and "\n\n\n" not in body


def test_without_a_comparison_the_figures_of_the_model_stand_alone(publication, folder, tmp_path):
    (tmp_path / "again").mkdir()
    decision = Decision(promoted=True, reason="publish.policy=always")
    lineage = json.loads((folder / LINEAGE_FILE).read_text())
    report = report_on(publication.raw, Storage(publication.config.storage))
    write_card(tmp_path / "again", "v2", publication.candidate, report, [], decision, lineage)
    body = (tmp_path / "again" / CARD_FILE).read_text("utf-8")
    head = f"**Promoted (publish.policy=always).**\n\n{losses(publication.metrics, publication.tokens)}\n"
    assert head in body and "Nothing was compared." in body


def test_the_loss_is_drawn_at_every_logged_step(publication, monkeypatch):
    """It was drawn at validations alone: a training with one had a legend and no line."""
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    plots.plot_training(publication.checkpoint, None)
    logged = [line for line in read_log(publication.checkpoint.folder) if "train/loss_nats" in line]
    train, validation, *_ = figures[0].axes[0].get_lines()
    assert train.get_xydata().tolist() == [[line["train/tokens"], line["train/loss_nats"]] for line in logged]
    assert validation.get_marker() != "None"
    gone = publication.checkpoint.model_copy(update={"path": "/nowhere"})
    plots.plot_training(gone, None)
    curve = [[point.tokens, point.train_loss_nats] for point in gone.curve if point.train_loss_nats is not None]
    assert figures[1].axes[0].get_lines()[0].get_xydata().tolist() == curve


def test_what_the_model_wrote_is_quoted_as_it_is_and_is_no_markup():
    assert quote("a *b*\n<i>\x00# |") == "a \\*b\\*\n> \\<i\\>�\\# \\|"
