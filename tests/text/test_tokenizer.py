"""Tokenizers: trained on any text in little memory, and other people's files taken or refused."""

import json
import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from textgen.errors import InputError
from textgen.text import tokenizer as ours
from textgen.text.documents import Part
from textgen.text.encoding import END_OF_TEXT, UNKNOWN
from textgen.text.tokenizer import (
    LONGEST_TAUGHT,
    TRAINING_WINDOW,
    check_round_trip,
    collect_words,
    load_tokenizer,
    save_tokenizer,
    train_bpe,
    training_texts,
    vocab_size,
)

ROWS = ["The cat's mat isn't here; they'll say 12 345.\n", "\n", " Übung  naïve 日本語。中文 🙂 <b>\r\n\tif x == 1:\n"]


def train_as_tokenizers_does(rows: list[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        rows,
        trainers.BpeTrainer(
            vocab_size=size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return tokenizer


def long_document() -> str:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdeé日 .'", k=draw.randint(1, 9))) for _ in range(2000)]
    return "".join(draw.choices([*words, " ", "  \n", "\n"], k=30_000))


def test_a_bpe_is_that_of_the_tokenizers_library():
    rows = [*ROWS, long_document()]
    assert len(rows[-1]) > 2 * TRAINING_WINDOW
    assert train_bpe(iter(rows), 600).to_str() == train_as_tokenizers_does(rows, 600).to_str()


def test_a_document_in_parts_trains_the_same_tokenizers():
    document = long_document()
    cuts = sorted(random.Random(1).choices(range(len(document)), k=50))
    parts = [Part(document[a:b], a == 0) for a, b in zip([0, *cuts], [*cuts, len(document)], strict=True)]
    assert train_bpe(iter(parts), 600).to_str() == train_bpe([document], 600).to_str()
    assert collect_words(iter(parts)).to_str() == collect_words([document]).to_str()
    assert collect_words([document]).get_vocab_size() == len({*document.split(), UNKNOWN, ours.END_OF_ROW})


@pytest.mark.parametrize("unbroken", ["ab" * 100_000, "中" * 3000, " " * 3000, "=" * 1025, "a" * 1024 + "1" * 1025])
def test_text_without_breaks_is_cut_for_the_training_and_that_is_said(unbroken, caplog):
    text = f"and then {unbroken} he's gone"
    given = list(training_texts([text], byte_tokenizer(), []))
    pre_tokens = [word for piece in given for word, _ in byte_tokenizer().pre_tokenizer.pre_tokenize_str(piece)]
    assert "".join(given) == text
    assert max(len(byte_tokenizer().decoder.decode([word])) for word in pre_tokens) <= len(" ") + LONGEST_TAUGHT
    assert pre_tokens[-1] == "Ġgone"
    train_bpe([text], 300)
    assert "no break" in caplog.text
    assert len(caplog.records) == 1


def test_a_text_with_breaks_is_given_to_the_trainer_as_it_is(caplog):
    text = "日本語。" * 1000 + "a-b" * 1000 + " cat" * 1000
    assert list(training_texts([text], byte_tokenizer(), [])) == [text]
    train_bpe([text], 300)
    assert not caplog.records


def byte_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: id for id, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def test_text_is_read_as_it_is_trained_on():
    alive = most = 0

    class Text(str):
        def __init__(self, _: str) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    train_bpe((Part(Text("a cat " * 20_000), True) for _ in range(20)), 300)
    collect_words(Part(Text("a cat " * 20_000), True) for _ in range(20))
    assert most <= 3


def test_what_a_file_says_of_truncation_padding_and_dropout_does_not_act(tmp_path):
    made = train_bpe(ROWS, 300)
    made.enable_truncation(4)
    made.enable_padding(length=64)
    stored = json.loads(made.to_str())
    stored["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.encode(ROWS[0]).ids == train_bpe(ROWS, 300).encode(ROWS[0]).ids
    save_tokenizer(loaded, tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert (saved["truncation"], saved["padding"], saved["model"]["dropout"]) == (None, None, None)


def test_the_vocabulary_is_as_large_as_its_largest_id():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 7}, unk_token="a"))
    assert vocab_size(tokenizer) == 8
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer.add_special_tokens([END_OF_TEXT, "<x>"])
    assert vocab_size(tokenizer) == 4
    assert vocab_size(Tokenizer(models.BPE())) == 0


BPE = '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not\njson", "not a tokenizer.json"),
        (b"\xff\xfe\x00", "not a tokenizer.json"),
        (b"", "not a tokenizer.json"),
        (b"[" * 100_000, "not a tokenizer.json"),
        (b'{"normalizer": ' + b'{"type": "Sequence", "normalizers": [' * 5000, "not a tokenizer.json"),
        (b'{"model": {"type": "BPE", "vocab": {"' + b"a\\n" * 5000 + b'": 0}, "merges": [["b", "c"]]}}', "vocabulary"),
        (b'{"architectures": ["GPT2"]}', "not a tokenizer.json"),
        (b"[1]", "not a tokenizer.json"),
        (BPE.encode(), r"<\|endoftext\|>"),
    ],
    ids=["text", "bytes", "empty", "deep", "deep-parts", "merges", "other", "list", "endless"],
)
def test_a_malformed_file_is_refused_in_a_line(tmp_path, content, said):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as refused:
        load_tokenizer(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300 + len(str(path))


@pytest.mark.parametrize(
    ("largest", "said"),
    [
        (4_000_000_000, "int32 holds"),
        (2**31, "int32 holds"),
        (2_000_000_000, "have no token"),
        (2**20 + 3, "1,048,577"),
    ],
)
@pytest.mark.parametrize("place", ["vocab", "added"])
def test_ids_that_no_model_has_rows_for_are_refused_at_once(tmp_path, largest, said, place):
    stored = json.loads(BPE)
    stored["model"]["vocab"][END_OF_TEXT] = 1
    stored["model"]["vocab"]["b"] = largest
    if place == "added":
        stored["added_tokens"] = [
            {"id": largest, "content": "b", "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
        ]  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match=said) as refused:
        load_tokenizer(tmp_path / "tokenizer.json")
    assert f"{largest:,}" in str(refused.value) and "\n" not in str(refused.value)


def test_some_ids_may_be_missing(tmp_path):
    stored = json.loads(BPE)
    stored["model"]["vocab"] |= {END_OF_TEXT: 1, "b": 2**20 + 2}
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    assert vocab_size(load_tokenizer(tmp_path / "tokenizer.json")) == 2**20 + 3


def metaspace(**settings: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram([(UNKNOWN, 0.0), *((c, -1.0) for c in "▁Hello,wrd\n\x1b")], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(**settings)
    tokenizer.decoder = decoders.Metaspace(**settings)
    return tokenizer


def changed(normalizer: normalizers.Normalizer | None = None, add_prefix_space: bool = False) -> Tokenizer:
    tokenizer = train_bpe(ROWS, 300)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    return tokenizer


def test_tokenizers_that_give_a_text_back_are_accepted():
    texts = ["Hello, world", "", f"Hello{END_OF_TEXT}", "日本\x1b語\n"]
    check_round_trip(changed(), texts)
    check_round_trip(changed(normalizers.NFC()), texts)
    check_round_trip(metaspace(), ["Hello, world\n", "He"])


@pytest.mark.parametrize(
    ("tokenizer", "text", "said"),
    [
        (changed(normalizers.Lowercase()), "\n\x1b[1mHello World" + "x" * 999, r"'Hello World"),
        (changed(normalizers.NFC()), "cafe\u0301", r"'e\\u0301' becomes '\\xe9'"),
        (changed(normalizers.NFKC()), "\ufb01n", r"'\\ufb01n' becomes 'fin'"),
        (changed(add_prefix_space=True), "Hello", r"'Hello' becomes ' Hello'"),
        (metaspace(), " Hello", r"' Hello' becomes 'Hello'"),
        (metaspace(), "Hello \x1b\u202exyz", r"'\\u202exyz'"),
        (collect_words(["a b"]), "a  b", r"' b' becomes 'b'"),
        (Tokenizer(models.WordLevel({"a": 0}, unk_token="x")), "b", "does not take"),
    ],
    ids=["lowercase", "nfc", "nfkc", "prefix", "metaspace", "unknown", "words", "error"],
)
def test_a_tokenizer_that_changes_the_text_is_refused_with_what_is_lost(tokenizer, text, said):
    with pytest.raises(InputError, match=said) as refused:
        check_round_trip(tokenizer, ["", text])
    assert str(refused.value).isprintable()
    assert str(refused.value).isascii()
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("tokenizer", [changed(add_prefix_space=True), metaspace()], ids=["prefix", "metaspace"])
def test_white_space_at_a_cut_within_a_text_is_no_loss(tokenizer):
    check_round_trip(tokenizer, [Part("Hello", False), Part(" Hello", False)])
    with pytest.raises(InputError):
        check_round_trip(tokenizer, [Part("Hello", True), Part(" Hello", True)])


def test_a_special_token_of_the_text_is_no_loss():
    tokenizer = train_bpe(ROWS, 300)
    tokenizer.add_special_tokens([AddedToken("<pad>", special=True)])
    check_round_trip(tokenizer, ["a <pad> b"])
