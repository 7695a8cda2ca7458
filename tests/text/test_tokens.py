"""Tokenizers, token streams and the blocks cut from them."""

import json
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from tokenizers import normalizers, processors

from textgen.config import TokenizerConfig
from textgen.errors import InputError
from textgen.sections import SPLITS, DataConfig
from textgen.storage import Storage
from textgen.text import tokens
from textgen.text.corpus import RawManifest, fetch, read_rows, read_units
from textgen.text.documents import Part
from textgen.text.encoding import END_OF_ROW, END_OF_TEXT, encode_units
from textgen.text.stream import block_count, encode_stream, take_sequences
from textgen.text.tokenizer import collect_words, save_tokenizer, train_bpe
from textgen.text.tokens import (
    check_length,
    dtype_for,
    load_documents,
    load_manifest_tokenizer,
    load_stream,
    special_tokens_in_words,
    tokenize,
)

SHARED = Path(__file__).parents[3] / "shared"
WORDS = ["the", "cat", "sat", "on", "a", "mat", "Übung", "naïve", "12", "x_y"]
BPE = TokenizerConfig(kind="bpe", vocab_size=300)


def write_corpus(folder: Path, seed: int = 0) -> DataConfig:
    draw = random.Random(seed)
    for split in SPLITS:
        rows = [" ".join(draw.choices(WORDS, k=12)) for _ in range(40)]
        (folder / f"{split}.txt").write_text("\n\n".join(rows) + "\n")
    return DataConfig(files={split: str(folder / f"{split}.txt") for split in SPLITS}, document="paragraphs")


@pytest.fixture
def raw(tmp_path) -> RawManifest:
    return fetch(write_corpus(tmp_path), Storage.at(tmp_path))


@pytest.mark.parametrize("seq_length", [1, 2, 7])
@pytest.mark.parametrize("blocks", [0, 1, 3])
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_blocks_and_targets_are_those_of_the_definition(seq_length, blocks, extra):
    count = max(0, blocks * seq_length + 1 + extra)
    stream = torch.arange(100, 100 + count).to(torch.uint16)
    expected = max(0, (count - 1) // seq_length)
    assert block_count(count, seq_length) == expected
    for i in range(expected):
        x, y = take_sequences(stream, seq_length, torch.tensor([i * seq_length]))
        ids = stream.long()
        assert x[0].tolist() == ids[i * seq_length : (i + 1) * seq_length].tolist()
        assert y[0].tolist() == ids[i * seq_length + 1 : (i + 1) * seq_length + 1].tolist()
        assert len(x[0]) == len(y[0]) == seq_length


def test_blocks_are_taken_in_the_order_asked():
    x, _ = take_sequences(torch.arange(10), 3, torch.tensor([6, 0]))
    assert x.tolist() == [[6, 7, 8], [0, 1, 2]]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, torch.uint16), (2**16 + 1, torch.int32)])
def test_ids_are_stored_in_the_narrowest_type_that_holds_them(vocab_size, dtype):
    assert dtype_for(vocab_size) == dtype


def test_a_vocabulary_over_int32_is_refused():
    with pytest.raises(InputError, match="int32"):
        dtype_for(2**31 + 1)


def test_the_highest_id_survives_the_stream(tmp_path):
    stream = torch.tensor([0, 2**16 - 1, 1], dtype=torch.int32).to(torch.uint16)
    tokens.save_tensor(stream, tmp_path / "ids.pt")
    loaded = torch.load(tmp_path / "ids.pt", mmap=True, weights_only=True)
    assert take_sequences(loaded, 2, torch.tensor([0]))[0].tolist() == [[0, 2**16 - 1]]


@pytest.mark.parametrize("end_of_document", [True, False])
def test_a_stream_is_its_documents_each_tokenized_on_its_own(raw, tmp_path, end_of_document):
    manifest = tokenize(raw, BPE, Storage.at(tmp_path), end_of_document)
    tokenizer = load_manifest_tokenizer(manifest)
    documents = list(read_units(raw, "test"))
    assert len(documents) == 40
    stream = load_stream(manifest, "test")
    assert stream.dim() == 1
    ends = [tokenizer.token_to_id(END_OF_TEXT)] * end_of_document
    assert stream.tolist() == [id for text in documents for id in [*tokenizer.encode(text).ids, *ends]]
    assert tokenizer.decode(stream.tolist(), skip_special_tokens=True) == "".join(documents)
    assert manifest.splits["test"].tokens == len(stream)


def test_the_rows_of_a_table_are_tokenized_each_on_its_own_and_an_end_follows_each_article(tmp_path):
    rows = ["", " = A = \n", " one \n", " = B = \n", " two \n"]
    for split in SPLITS:
        pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / f"{split}.parquet")
    raw = fetch(DataConfig(files={split: str(tmp_path / f"{split}.parquet") for split in SPLITS}), Storage.at(tmp_path))
    manifest = tokenize(raw, BPE, Storage.at(tmp_path))
    tokenizer = load_manifest_tokenizer(manifest)
    ids, end = [tokenizer.encode(row).ids for row in rows], [tokenizer.token_to_id(END_OF_TEXT)]
    assert load_stream(manifest, "test").tolist() == [*ids[0], *ids[1], *ids[2], *end, *ids[3], *ids[4], *end]
    assert load_documents(manifest, "test")["tokens"].tolist() == [
        len(ids[0] + ids[1] + ids[2]) + 1, len(ids[3] + ids[4]) + 1,
    ]  # fmt: skip


def test_the_word_tokenizer_ends_each_line_of_a_document_and_nothing_more(tmp_path):
    for split in SPLITS:
        (tmp_path / f"{split}.txt").write_text("b a\n\nb")
    raw = fetch(DataConfig(files={split: str(tmp_path / f"{split}.txt") for split in SPLITS}), Storage.at(tmp_path))
    manifest = tokenize(raw, TokenizerConfig(kind="word"), Storage.at(tmp_path))
    b, a = (load_manifest_tokenizer(manifest).token_to_id(word) for word in "ba")
    assert load_stream(manifest, "test").tolist() == [b, a, 1, 1, b, 1]
    assert not manifest.end_of_document


def test_the_documents_of_a_split_are_the_whole_of_its_stream(raw, tmp_path):
    manifest = tokenize(raw, BPE, Storage.at(tmp_path))
    for name, split in manifest.splits.items():
        found = load_documents(manifest, name)
        assert found["tokens"].sum() == split.tokens
        assert found["words"].sum() == split.words
        assert found["bytes"].sum() == split.text_bytes
        documents = list(read_units(raw, name))
        assert len(found["tokens"]) == len(documents) == split.rows
        assert found["tokens"][1] == len(load_manifest_tokenizer(manifest).encode(documents[1]).ids) + 1


def test_the_same_text_gives_the_same_bytes(raw, tmp_path):
    first = tokenize(raw, BPE, Storage.at(tmp_path / "a"))
    second = tokenize(raw, BPE, Storage.at(tmp_path / "b"))
    assert first.folder != second.folder
    assert first.sha256_by_file() == second.sha256_by_file()


def test_bpe_learns_from_the_train_split_alone(raw, tmp_path):
    tokenizer = load_manifest_tokenizer(tokenize(raw, BPE, Storage.at(tmp_path)))
    assert tokenizer.to_str() == train_bpe(read_rows(raw, "train"), BPE.vocab_size).to_str()


def test_bpe_writes_any_text_in_at_most_its_vocabulary():
    tokenizer = train_bpe(["the cat sat on the mat\n"] * 50, 300)
    text = "日本語 \x00\t🙂 the  cat\r\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.get_vocab_size() <= 300
    assert tokenizer.token_to_id(END_OF_TEXT) is not None


def test_words_are_ranked_by_frequency_and_each_row_ends():
    tokenizer = collect_words(["b a b\n", "", "c <unk>\n"])
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary, key=vocabulary.get) == ["<unk>", END_OF_ROW, "b", "a", "c"]
    ids = list(encode_units(tokenizer, ["a d\n", "", "<unk> c"]))
    assert ids == [[3, 0, 1], [1], [0, 4, 1]]


def test_only_words_outside_the_vocabulary_count_as_unknown(tmp_path):
    for split, text in {"train": "a b <unk>\n", "validation": "a <unk>\n", "test": "a <unk> new newer\n"}.items():
        (tmp_path / f"{split}.txt").write_text(text)
    raw = fetch(DataConfig(files={split: str(tmp_path / f"{split}.txt") for split in SPLITS}), Storage.at(tmp_path))
    manifest = tokenize(raw, TokenizerConfig(kind="word"), Storage.at(tmp_path))
    assert {name: split.unknown for name, split in manifest.splits.items()} == {"train": 0, "validation": 0, "test": 2}


def test_nothing_changed_nothing_is_built(raw, tmp_path, monkeypatch):
    first = tokenize(raw, BPE, Storage.at(tmp_path))
    monkeypatch.setattr(tokens, "build_tokenizer", None)
    assert tokenize(raw, BPE, Storage.at(tmp_path)) == first


def test_a_change_of_the_text_the_tokenizer_or_the_algorithm_alone_is_a_miss(raw, tmp_path, monkeypatch):
    keys = [tokenize(raw, BPE, Storage.at(tmp_path)).key]
    (tmp_path / "other").mkdir()
    keys.append(
        tokenize(fetch(write_corpus(tmp_path / "other", seed=1), Storage.at(tmp_path)), BPE, Storage.at(tmp_path)).key
    )
    keys.append(tokenize(raw, TokenizerConfig(kind="bpe", vocab_size=301), Storage.at(tmp_path)).key)
    keys.append(tokenize(raw, TokenizerConfig(kind="word"), Storage.at(tmp_path)).key)
    monkeypatch.setattr(tokens, "TOKENS_VERSION", tokens.TOKENS_VERSION + 1)
    keys.append(tokenize(raw, BPE, Storage.at(tmp_path)).key)
    assert len(set(keys)) == len(keys)


def test_a_setting_that_does_not_change_the_tokens_is_no_miss(raw, tmp_path):
    a, b = (TokenizerConfig(kind="word", vocab_size=size) for size in (300, 400))
    assert tokenize(raw, a, Storage.at(tmp_path)) == tokenize(raw, b, Storage.at(tmp_path))


@pytest.mark.parametrize("file", ["train.pt", "test.pt", "tokenizer.json"])
def test_a_flipped_byte_is_named_set_aside_and_rebuilt(raw, tmp_path, caplog, file):
    manifest = tokenize(raw, BPE, Storage.at(tmp_path))
    path = manifest.folder / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert tokenize(raw, BPE, Storage.at(tmp_path)) == manifest
    assert str(path) in caplog.text
    assert (manifest.folder.with_name(f"{manifest.key}.damaged-1") / file).read_bytes() == bytes(data)


def test_a_sequence_longer_than_a_split_is_refused(raw, tmp_path):
    manifest = tokenize(raw, BPE, Storage.at(tmp_path))
    shortest = min(split.tokens for split in manifest.splits.values())
    check_length(manifest, shortest - 1)
    with pytest.raises(InputError, match=f"data.seq_length={shortest}"):
        check_length(manifest, shortest)


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test_a_tokenizer_file_that_is_none_is_refused(raw, tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        tokenize(raw, TokenizerConfig(kind="gpt2", path=str(tmp_path)), Storage.at(tmp_path / "data"))


@pytest.mark.parametrize(
    ("kind", "named", "said"),
    [
        ("bpe", {END_OF_TEXT: 3}, f"the text has `{END_OF_TEXT}` 9 times;"),
        ("word", {END_OF_ROW: 2}, f"the text has `{END_OF_ROW}` 6 times;"),
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "txt"])
def test_special_tokens_that_the_text_names_are_counted_and_said(tmp_path, caplog, kind, named, said, ending):
    texts = [f"a{END_OF_TEXT}b {END_OF_ROW}\n<unk> {END_OF_TEXT}", "c\n\nd", f"{END_OF_ROW}{END_OF_TEXT} e\nf"]
    for split in SPLITS:
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{split}.{ending}").write_text(rows if ending == "jsonl" else "---".join(texts))
    files = {split: str(tmp_path / f"{split}.{ending}") for split in SPLITS}
    raw = fetch(DataConfig(files=files, document="---"), Storage.at(tmp_path))
    manifest = tokenize(raw, TokenizerConfig(kind=kind, vocab_size=300), Storage.at(tmp_path))
    assert all(split.special_tokens == named for split in manifest.splits.values())
    assert [record.message for record in caplog.records if said in record.message]
    assert len(caplog.records) == 1 and "unk" not in caplog.text
    assert special_tokens_in_words(manifest.splits.values()) == [caplog.records[0].message]


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_a_text_without_the_names_of_special_tokens_has_no_warning(raw, tmp_path, caplog, kind):
    manifest = tokenize(raw, TokenizerConfig(kind=kind, vocab_size=300), Storage.at(tmp_path))
    assert not any(split.special_tokens for split in manifest.splits.values())
    assert special_tokens_in_words(manifest.splits.values()) == [] and not caplog.records


def test_what_a_tokenizer_puts_around_each_text_is_not_named_by_it(tmp_path):
    tokenizer = train_bpe(["the cat sat"], 257)
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<s> $A {END_OF_TEXT}",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("<s>", END_OF_TEXT)],
    )
    parts = [Part("a <s> b", True), Part("c" * 2**19, True), Part(f"{END_OF_TEXT}", True), Part("<s>", False)]
    stream = encode_stream(tokenizer, parts, torch.int32, has_units=True, ends=True)
    assert stream.special_tokens == {"<s>": 2, END_OF_TEXT: 1}


def lossy_tokenizer(folder: Path) -> TokenizerConfig:
    tokenizer = train_bpe(["the cat sat"], 257)
    tokenizer.normalizer = normalizers.Lowercase()
    save_tokenizer(tokenizer, folder)
    return TokenizerConfig(kind="gpt2", path=str(folder))


@pytest.mark.parametrize(("split", "place"), [("train", 0.4), ("train", 0.8), ("validation", 0.0), ("test", 0.8)])
@pytest.mark.parametrize("documents", [1, 1500])
def test_a_tokenizer_that_loses_text_anywhere_in_any_split_is_refused(tmp_path, split, place, documents):
    for name in SPLITS:
        texts = [" ".join(["the cat sat on a mat"] * (6000 // documents)) for _ in range(documents)]
        if name == split:
            start, end = int(place * documents), int((place + 0.2) * documents)
            if documents > 1:
                texts[start:end] = [text.upper() for text in texts[start:end]]
            else:
                start, end = (int(part * len(texts[0])) for part in (place, place + 0.2))
                texts[0] = texts[0][:start] + texts[0][start:end].upper() + texts[0][end:]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    raw = fetch(DataConfig(files={name: f"{tmp_path}/{name}.jsonl" for name in SPLITS}), Storage.at(tmp_path))
    with pytest.raises(InputError, match="does not give the text back"):
        tokenize(raw, lossy_tokenizer(tmp_path), Storage.at(tmp_path))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_wikitext_2_has_the_published_counts_of_words(tmp_path):
    raw = fetch(DataConfig(path=str(SHARED / "wikitext"), dataset_config="wikitext-2-v1"), Storage.at(tmp_path))
    word = tokenize(raw, TokenizerConfig(kind="word"), Storage.at(tmp_path))
    assert word.vocab_size == 33_278
    counts = {name: (split.tokens, split.unknown) for name, split in word.splits.items()}
    assert counts == {"train": (2_088_628, 0), "validation": (217_646, 0), "test": (245_569, 0)}


def fetch_thrice(folder: Path, text: str) -> RawManifest:
    """Return a corpus of which each split is the same file of text."""
    (folder / "text.txt").write_text(text)
    return fetch(DataConfig(files={split: str(folder / "text.txt") for split in SPLITS}), Storage.at(folder))


def test_a_row_of_words_is_a_line_as_evaluate_reads_a_file(tmp_path):
    """A document was one row, though each of its lines ends with `<eos>`: word perplexity was too high."""
    raw = fetch_thrice(tmp_path, "the cat\nsat\n\non a mat\n")
    manifest = tokenize(raw, TokenizerConfig(kind="word"), Storage.at(tmp_path))
    found = manifest.splits["test"]
    assert (found.rows, found.words, found.tokens) == (4, 6, 10)
    assert tokenize(raw, BPE, Storage.at(tmp_path)).splits["test"].rows == 1


def test_no_word_of_train_is_unknown_whatever_python_takes_for_white_space(tmp_path):
    raw = fetch_thrice(tmp_path, "the\x1ccat sat\x1f on\x85a mat")
    manifest = tokenize(raw, TokenizerConfig(kind="word"), Storage.at(tmp_path))
    assert [split.unknown for split in manifest.splits.values()] == [0, 0, 0]


def test_an_unknown_word_of_the_text_itself_may_be_in_two_parts_of_it():
    tokenizer = collect_words(["the cat\x1c<unk>s"])
    text = "the <unk> cat\x1c<unk>s <unk>"
    for size in range(1, len(text)):
        parts = [Part(text[start : start + size], start == 0) for start in range(0, len(text), size)]
        stream = encode_stream(tokenizer, parts, torch.int32, has_units=True)
        assert (stream.counts.unknown, stream.counts.tokens) == (0, 5), size
