"""Perplexity: every token scored once, in the context that is promised, over the right denominators."""

import json
import math
import shutil
from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import textgen.evaluation.scoring
from textgen.__main__ import main
from textgen.config import EvaluationConfig, StorageConfig
from textgen.errors import Damaged, InputError
from textgen.evaluation.evaluate import evaluate, evaluate_text
from textgen.evaluation.protocols import DEFINITIONS, blocks, sliding_windows
from textgen.evaluation.scoring import Metrics, read_documents, score, summarize
from textgen.files import sha256_file
from textgen.model.pretrained import LoadedModel, load_model
from textgen.publishing.version import METRICS_FILE
from textgen.storage import Storage
from textgen.text.corpus import read_rows
from textgen.text.stream import TextCounts
from textgen.text.tokens import load_stream, tokenize

# length of the stream, of a sequence, stride
STREAMS = [(2, 16, 8), (10, 16, 4), (16, 16, 8), (17, 16, 8), (18, 16, 8), (50, 16, 8), (45, 16, 5), (49, 16, 16),
           (34, 16, 16), (30, 8, 1), (9, 1, 1)]  # fmt: skip


def random_stream(loaded: LoadedModel, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(loaded.model.vocab_size, (length,), generator=generator).to(torch.uint16)


@torch.no_grad()
def brute_force_nats(
    loaded: LoadedModel, ids: list[int], protocol: str, seq_length: int, stride: int
) -> Iterator[float]:
    """Score one token at a time, each after a context of its own."""
    last = len(ids) - 1
    for target in range(1, len(ids)):
        if protocol == "blocks":
            start = (target - 1) // seq_length * seq_length
            if start + seq_length > last:
                break
        else:
            end = min(seq_length, last)
            while end < target:
                end = min(end + stride, last)
            start = max(0, end - seq_length)
        logits_V = loaded.model(torch.tensor([ids[start:target]]))[0, -1].double()
        yield -logits_V.log_softmax(-1)[ids[target]].item()


def brute_force(loaded: LoadedModel, ids: list[int], protocol: str, seq_length: int, stride: int) -> tuple[float, int]:
    nats = list(brute_force_nats(loaded, ids, protocol, seq_length, stride))
    return sum(nats), len(nats)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(("length", "seq_length", "stride"), STREAMS)
def test_sliding_windows_score_as_a_loop_over_tokens_does(length, seq_length, stride, batch_size, opinionated):
    _, loaded = opinionated
    stream_N = random_stream(loaded, length)
    nats, scored = score(loaded.model, stream_N, list(sliding_windows(length, seq_length, stride)), batch_size)
    expected, count = brute_force(loaded, stream_N.tolist(), "sliding", seq_length, stride)
    assert scored == count == length - 1
    assert nats / scored == pytest.approx(expected / count, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(("length", "seq_length", "stride"), [stream for stream in STREAMS if stream[0] > stream[1]])
def test_blocks_score_as_a_loop_over_tokens_does(length, seq_length, stride, batch_size, opinionated):
    _, loaded = opinionated
    stream_N = random_stream(loaded, length)
    nats, scored = score(loaded.model, stream_N, list(blocks(length, seq_length)), batch_size)
    expected, count = brute_force(loaded, stream_N.tolist(), "blocks", seq_length, stride)
    assert scored == count == (length - 1) // seq_length * seq_length
    assert nats / scored == pytest.approx(expected / count, abs=1e-6)


def test_no_windows_are_no_nats(opinionated):
    """The share of a process where there are fewer windows than processes."""
    _, loaded = opinionated
    assert score(loaded.model, torch.arange(9), [], batch_size=4) == (0.0, 0)


@pytest.mark.parametrize(("length", "seq_length", "stride"), STREAMS)
def test_sliding_windows_score_every_token_but_the_first_once_in_the_promised_context(length, seq_length, stride):
    targets = []
    for start, inputs, scored in sliding_windows(length, seq_length, stride):
        assert start >= 0 and start + inputs < length and inputs == min(seq_length, length - 1)
        for target in range(start + inputs - scored + 1, start + inputs + 1):
            assert target - start >= min(target, seq_length - stride)
            targets.append(target)
    assert targets == list(range(1, length))


def test_limited_blocks_are_whole_and_spread_over_the_stream():
    assert list(blocks(1001, 10, limit=4)) == [(0, 10, 10), (250, 10, 10), (500, 10, 10), (750, 10, 10)]
    assert list(blocks(1001, 10, limit=500)) == list(blocks(1001, 10))


def counts(**changed: int) -> TextCounts:
    return TextCounts(**{"tokens": 11, "unknown": 0, "rows": 2, "words": 3, "text_bytes": 20, **changed})


def test_a_splits_nats_are_spread_over_tokens_words_with_rows_and_bytes():
    expected = {
        "loss_nats": 3.0,
        "token_perplexity": math.e**3,
        "word_perplexity": math.e ** (3 * 11 / (3 + 2)),
        "byte_perplexity": math.e ** (3 * 11 / 20),
        "bits_per_byte": 3 * 11 / (20 * math.log(2)),
        "tokens_scored": 10,
        "tokens": 11,
        "words": 3,
        "rows": 2,
        "bytes": 20,
    }
    assert summarize(30.0, 10, counts()).model_dump() == pytest.approx(expected)


def test_unknown_words_leave_no_bits_per_byte():
    metrics = summarize(30.0, 10, counts(unknown=1))
    assert metrics.bits_per_byte is None and metrics.byte_perplexity is None and metrics.word_perplexity is not None


@pytest.mark.parametrize(("tokens", "has_one"), [(470, True), (480, False)])  # exp(705) is a float, exp(720) is not
def test_a_word_whose_perplexity_no_float_holds_has_none(tokens, has_one):
    metrics = summarize(3.0, 1, counts(tokens=tokens, words=1, rows=1))
    assert (metrics.word_perplexity is not None) == has_one
    assert metrics.bits_per_byte is not None


def test_no_perplexity_overflows():
    metrics = summarize(720.0, 1, counts(tokens=1, words=1, rows=1, text_bytes=1))
    assert metrics.model_dump(include={"token_perplexity", "word_perplexity", "byte_perplexity"}) == {
        "token_perplexity": None, "word_perplexity": math.exp(360), "byte_perplexity": None,
    }  # fmt: skip
    assert metrics.bits_per_byte == pytest.approx(720 / math.log(2))


@pytest.mark.parametrize("protocol", ["sliding", "blocks"])
def test_an_evaluation_summarizes_validation_and_test(protocol, checkpoint, tokens, make_config):
    config = make_config(evaluation={"protocol": protocol, "stride": 5})
    metrics = evaluate(checkpoint.folder, tokens, config)
    assert (metrics.protocol, metrics.stride) == (protocol, {"sliding": 5, "blocks": 16}[protocol])
    assert metrics.splits.keys() == {"validation", "test"}
    loaded = load_model(checkpoint.folder)
    for name, split in metrics.splits.items():
        nats, scored = brute_force(loaded, load_stream(tokens, name).tolist(), protocol, 16, 5)
        assert split.loss_nats == pytest.approx(nats / scored, abs=1e-6)
        assert split == summarize(split.loss_nats * scored, scored, tokens.splits[name])


@pytest.mark.parametrize("protocol", ["sliding", "blocks"])
def test_an_evaluation_keeps_the_nats_of_every_token_and_document(protocol, checkpoint, tokens, raw, make_config):
    metrics = evaluate(checkpoint.folder, tokens, make_config(evaluation={"protocol": protocol, "stride": 5}))
    loaded = load_model(checkpoint.folder)
    tokenizer = loaded.tokenizer
    for name, split in metrics.splits.items():
        token_nats = load_file(metrics.folder / f"{name}.safetensors")["token_nats"]
        assert token_nats.dtype == torch.float32
        assert token_nats.tolist() == pytest.approx(
            list(brute_force_nats(loaded, load_stream(tokens, name).tolist(), protocol, 16, 5)), abs=1e-5
        )
        documents = read_documents(metrics, name)
        assert documents.nats.dtype == torch.float64
        assert documents.nats.sum().item() / split.tokens_scored == split.loss_nats
        assert documents.tokens.sum() == split.tokens_scored == len(token_nats)
        rows = list(read_rows(raw, name))
        lengths = [len(tokenizer.encode(row).ids) + 1 for row in rows]  # an end of text follows each
        ends = torch.tensor(lengths).cumsum(0) - 1  # the first is not scored
        for row, nats in enumerate(token_nats.double().tensor_split(ends[:-1])):
            assert documents.nats[row].item() == pytest.approx(nats.sum().item())
            assert documents.tokens[row] == len(nats)
        assert documents.bytes.tolist() == [len(row.encode()) for row in rows]
        assert documents.words.tolist() == [len(row.split()) for row in rows]


def test_an_evaluation_whose_arrays_are_damaged_is_made_again(checkpoint, tokens, make_config, flip_bit):
    config = make_config(evaluation={"stride": 9})
    first = evaluate(checkpoint.folder, tokens, config)
    flip_bit(first.folder / "test.safetensors")
    with pytest.raises(Damaged, match=r"test\.safetensors"):
        Metrics.read(first.folder)
    second = evaluate(checkpoint.folder, tokens, config)
    assert second.built and second == first


def test_an_evaluation_is_measured_once(checkpoint, tokens, make_config, monkeypatch):
    config = make_config(evaluation={"stride": 7})
    metrics = evaluate(checkpoint.folder, tokens, config)

    def refuse(*arguments: object) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr(textgen.evaluation.scoring, "score_tokens", refuse)
    assert evaluate(checkpoint.folder, tokens, config) == metrics
    with pytest.raises(AssertionError, match="scored again"):
        evaluate(checkpoint.folder, tokens, make_config(evaluation={"stride": 6}))


def test_a_text_file_is_measured_as_the_split_of_its_rows(checkpoint, tokens, raw, make_config, tmp_path):
    (tmp_path / "text.txt").write_text("".join(read_rows(raw, "validation")), "utf-8")
    measured = evaluate_text(load_model(checkpoint.folder), tmp_path / "text.txt", EvaluationConfig())
    without_ends = tokenize(raw, tokens.tokenizer, Storage.at(tokens.root), end_of_document=False)
    metrics = evaluate(checkpoint.folder, without_ends, make_config())
    assert measured.metrics.model_dump() == pytest.approx(metrics.splits["validation"].model_dump(), rel=1e-12)
    for array, expected in zip(measured.documents, read_documents(metrics, "validation"), strict=True):
        torch.testing.assert_close(array, expected)


def test_a_text_file_is_cut_into_rows_where_the_corpus_is(checkpoint, tmp_path):
    (tmp_path / "text.txt").write_text(
        "a form feed\f, a next line\x85,\nand a line separator\u2028 end no row\n", "utf-8"
    )
    assert evaluate_text(load_model(checkpoint.folder), tmp_path / "text.txt", EvaluationConfig()).metrics.rows == 2


def test_the_line_ends_of_a_text_file_are_scored_as_they_are(checkpoint, tmp_path):
    content = b"the old\r\nriver\rwinds\n"
    (tmp_path / "text.txt").write_bytes(content)
    metrics = evaluate_text(load_model(checkpoint.folder), tmp_path / "text.txt", EvaluationConfig()).metrics
    assert (metrics.rows, metrics.bytes) == (2, len(content))


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"", "0 tokens"), (b"a", "1 tokens"), (b"caf\xe9", "byte 3 is not UTF-8")],
)
def test_a_text_file_that_cannot_be_measured_is_refused(content, message, checkpoint, tmp_path):
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        evaluate_text(load_model(checkpoint.folder), tmp_path / "text.txt", EvaluationConfig())


def score_rows(loaded: LoadedModel, rows: list[str]) -> list[float]:
    """Return the nats of each row of a text that is no WikiText, as lm-eval's windows have them."""
    end, nats = loaded.tokenizer.token_to_id("<|endoftext|>"), []
    for row in rows:
        ids = [end, *loaded.tokenizer.encode(row).ids]
        nats.append(sum(brute_force_nats(loaded, ids, "sliding", loaded.seq_length, loaded.seq_length)))
    return nats


def test_a_corpus_is_measured_as_lm_eval_does_from_its_raw_text(checkpoint, tokens, raw, make_config):
    metrics = evaluate(checkpoint.folder, tokens, make_config(evaluation={"protocol": "lm-eval"}))
    assert metrics.definition == DEFINITIONS["lm-eval"]
    loaded = load_model(checkpoint.folder)
    for name, split in metrics.splits.items():
        rows = list(read_rows(raw, name))
        nats, words = score_rows(loaded, rows), sum(len(row.split()) + 1 for row in rows)  # a line feed ends each
        assert read_documents(metrics, name).nats.tolist() == pytest.approx(nats, rel=1e-5)
        assert split.word_perplexity == pytest.approx(math.exp(sum(nats) / words), rel=1e-5)
        assert split.bits_per_byte == pytest.approx(sum(nats) / split.bytes / math.log(2), rel=1e-5)
        assert split.byte_perplexity == pytest.approx(2**split.bits_per_byte)


@pytest.mark.parametrize("protocol", ["sliding", "blocks", "lm-eval"])
def test_the_command_measures_as_the_evaluation_of_a_run_does(protocol, checkpoint, tokens, make_config, capsys):
    arguments = ["evaluate", str(checkpoint.folder), "--root", str(tokens.root), "--protocol", protocol]
    assert main([*arguments, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    metrics = evaluate(checkpoint.folder, tokens, make_config(evaluation={"protocol": protocol}))
    assert measured == {
        "protocol": protocol, "seq_length": 16, "stride": metrics.stride,
        **{name: split.model_dump() for name, split in metrics.splits.items()},
    }  # fmt: skip
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{protocol}: context 16, stride {metrics.stride}\n")
    assert DEFINITIONS[protocol].denominators in printed and DEFINITIONS[protocol].context in printed


def test_the_command_measures_a_published_model_with_the_stride_it_was_published_with(publication, tmp_path, capsys):
    root, folder = publication.config.root, tmp_path / "published"
    config = publication.config.model_copy(update={"evaluation": EvaluationConfig(stride=5)})
    metrics = evaluate(publication.checkpoint.folder, publication.tokens, config)
    shutil.copytree(publication.published.folder, folder)
    (folder / METRICS_FILE).write_text(json.dumps(metrics.content()))
    sha256 = {**publication.published.sha256, METRICS_FILE: sha256_file(folder / METRICS_FILE)}
    publication.published.model_copy(update={"sha256": sha256}).write(folder)

    def run(*arguments: str) -> dict:
        assert main(["evaluate", str(folder), "--root", str(root), "--json", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    assert run() == {
        "protocol": "sliding", "seq_length": 16, "stride": 5,
        **{name: split.model_dump() for name, split in metrics.splits.items()},
    }  # fmt: skip
    (tmp_path / "text.txt").write_text("".join(read_rows(publication.raw, "test")), "utf-8")
    measured = run("--text", str(tmp_path / "text.txt"))
    assert measured["stride"] == 5
    marked = tmp_path / "marked.txt"
    marked.write_text((tmp_path / "text.txt").read_text("utf-8"), "utf-8-sig")
    assert run("--text", str(marked)) == measured
    storage = Storage.at(tmp_path / "data")
    without_ends = tokenize(publication.raw, publication.tokens.tokenizer, storage, end_of_document=False)
    there = evaluate(publication.checkpoint.folder, without_ends, config)
    assert measured["text"] == pytest.approx(there.splits["test"].model_dump())
    assert run("--protocol", "blocks")["stride"] == 16
    whole, eight = (run("--weights", kind)["test"]["loss_nats"] for kind in ("fp32", "int8"))
    assert whole != eight == pytest.approx(whole, abs=0.01)


def test_the_command_says_that_the_raw_text_is_not_there(checkpoint, tokens, tmp_path, capsys):
    shutil.copytree(tokens.root / "processed", tmp_path / "processed")
    arguments = ["evaluate", str(checkpoint.folder), "--root", str(tmp_path), "--protocol", "lm-eval"]
    assert main(arguments) == 2
    assert f"{tmp_path / 'raw'}: the raw text of the tokens is not there" in capsys.readouterr().err


def test_on_another_machine_the_task_brings_the_raw_text(checkpoint, tokens, raw, make_config, tmp_path):
    from tasks.evaluate import evaluate as task

    root = f"memory://{tmp_path.name}"
    here, there = (Storage(StorageConfig(root=root, cache=str(tmp_path / name))) for name in ("here", "there"))
    shutil.copytree(tokens.root, here.local)
    manifests = [manifest.model_copy(update={"path": str(here.local / manifest.folder.relative_to(tokens.root))})
                 for manifest in (tokens, raw)]  # fmt: skip
    for manifest in manifests:
        here.push(manifest.folder, manifest)
    arrived = [manifest.model_copy(update={"path": manifest.path.replace(str(here.local), str(there.local))})
               for manifest in manifests]  # fmt: skip
    trained = there.local / "checkpoints" / checkpoint.key
    shutil.copytree(checkpoint.folder, trained, ignore=shutil.ignore_patterns("evaluations"))
    config = make_config(
        evaluation={"protocol": "lm-eval"},
        storage={"root": root, "cache": str(tmp_path / "there")},
        tracking={"mode": "disabled"},
    )
    metrics = task.fn(config, checkpoint.model_copy(update={"path": str(trained)}), *arrived)
    assert metrics.folder.is_relative_to(there.local)
    here_config = make_config(evaluation={"protocol": "lm-eval"})
    assert metrics.splits == evaluate(checkpoint.folder, tokens, here_config).splits
