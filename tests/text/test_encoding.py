"""Documents of any length become ids as in one call of the tokenizer, whatever the parts they come in."""

import random
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from textgen.text.documents import Part
from textgen.text.encoding import BATCH_BYTES, END_OF_ROW, END_OF_TEXT, WINDOW, Cutter, encode_documents
from textgen.text.tokenizer import collect_words, load_tokenizer, train_bpe

GPT2_FILE = Path(__file__).parents[3] / "shared" / "gpt2-tokenizer" / "tokenizer.json"
TEXT = (
    "The cat's mat isn't here; they'll say 12 345 x_y.\n\n"
    "Übung naïve 日本語。中文 🙂👩\u200d👩\u200d👧 e\u0301 <b>\r\n\tif x == 1:\n"
)
SMALL = {"window": 200, "context": 32}
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def gpt2() -> Tokenizer:
    if not GPT2_FILE.is_file():
        pytest.skip("needs ../shared")
    return load_tokenizer(GPT2_FILE)


def own_bpe() -> Tokenizer:
    return train_bpe([TEXT] * 20, 400)


def words() -> Tokenizer:
    return collect_words([TEXT])


def like_llama3() -> Tokenizer:
    """Return a byte-level BPE with groups of three digits, after NFC, and a token that begins each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(pattern=Regex(LLAMA3), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, 0)]
    )
    return tokenizer


def like_gemma() -> Tokenizer:
    """Return a BPE that takes a text as one pre-token and whose tokens begin with the space before a word."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()],
    )
    special = [END_OF_TEXT, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 20, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    return tokenizer


TOKENIZERS = [gpt2, own_bpe, words, like_llama3, like_gemma]


@cache
def made(make) -> Tokenizer:
    return make()


def lines_of(document: str) -> list[str]:
    lines = document.split("\n")
    return [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] or len(lines) == 1 else [])


def in_one_call(tokenizer: Tokenizer, document: str) -> list[int]:
    units = lines_of(document) if isinstance(tokenizer.model, models.WordLevel) else [document]
    return [id for unit in units for id in tokenizer.encode(unit).ids]


def encode_all(tokenizer: Tokenizer, parts: list[Part], **settings: int) -> tuple[list[list[int]], int]:
    """Return the ids of each document, and the number of forced cuts."""
    by_line = isinstance(tokenizer.model, models.WordLevel)
    found, rest, forced = [], [], 0
    for ids_N, ends_D, cuts, _ in encode_documents(tokenizer, iter(parts), by_line, **settings):
        starts = [0, *ends_D.tolist()]
        for start, end in pairwise(starts):
            found.append([*rest, *ids_N[start:end].tolist()])
            rest = []
        rest += ids_N[starts[-1] :].tolist()
        forced += cuts
    assert not rest
    return found, forced


def pre_tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    """Return the pre-tokens of a text, each with what follows it and has no token."""
    found = tokenizer.encode(text, add_special_tokens=False)
    ends = [i for i, (a, b) in enumerate(pairwise(found.word_ids), 1) if a != b]
    starts = [found.offsets[i][0] for i in [0, *ends] if i < len(found.offsets)]
    return [text[a:b] for a, b in pairwise([0, *starts, len(text)])]


CHARACTERS = "abz XYé '\"!?.,;-_=<|>/\\\t\n\r\u00a0\u2028\x1c\x85 019日本。🙂\u0301\u200d"
STRINGS = [END_OF_TEXT, END_OF_ROW, "<unk>", "'s", "'ll", "n't", "\r\n", "   \n", "12345678", "hello world "]
CHUNKS = st.one_of(
    st.text(st.sampled_from(CHARACTERS), max_size=12),
    st.sampled_from(STRINGS),
    st.integers(1, 40).map(lambda count: " " * count),
    st.integers(1, 40).map(lambda count: "7" * count),
    st.integers(1, 40).map(lambda count: "中" * count),
    st.text(max_size=10),
)


@st.composite
def documents(draw) -> list[list[str]]:
    """Return documents, each as the parts that it comes in."""
    found = []
    for chunks in draw(st.lists(st.lists(CHUNKS, max_size=40), min_size=1, max_size=3)):
        text = "".join(chunks) * draw(st.integers(1, 9))
        cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
        found.append([text[a:b] for a, b in pairwise([0, *cuts, len(text)])])
    return found


@pytest.mark.parametrize("make", TOKENIZERS)
@given(documents())
@settings(derandomize=True, deadline=None, max_examples=40)
def test_ids_are_those_of_one_call(make, texts):
    tokenizer = made(make)
    parts = [Part(text, number == 0) for document in texts for number, text in enumerate(document)]
    found, forced = encode_all(tokenizer, parts, **SMALL)
    whole = ["".join(document) for document in texts]
    longest = max(map(len, pre_tokens(tokenizer, "\n".join(whole))), default=0)
    assert forced == 0 or longest > SMALL["window"] // 4
    assert forced > 0 or found == [in_one_call(tokenizer, document) for document in whole]


@pytest.mark.parametrize("make", TOKENIZERS)
def test_a_document_over_the_window_has_the_ids_of_one_call(make):
    tokenizer, draw = made(make), random.Random(0)
    window = WINDOW // 8
    document = "".join(draw.choices([*TEXT.split(" "), " ", "  ", "\n"], k=18_000))
    assert len(document) > 2 * window
    parts = [Part(document[:1000], True), Part(document[1000:], False), Part("", True), Part("after", True)]
    found, forced = encode_all(tokenizer, parts, window=window)
    assert found == [in_one_call(tokenizer, text) for text in (document, "", "after")]
    assert forced == 0


def test_only_a_pre_token_over_the_longest_is_cut_and_that_is_counted():
    tokenizer = made(own_bpe)
    text = "x" * (WINDOW * 3) + " and then words" * 20_000
    ((ids,), forced) = encode_all(tokenizer, [Part(text, True)])
    assert tokenizer.decode(ids) == text
    assert forced == 2
    assert encode_all(tokenizer, [Part("x" * WINDOW, True)])[1] == 0


@pytest.mark.parametrize(
    "text", ["7" * 900, "中" * 900, "1234567。" * 90, END_OF_TEXT * 90, " " * 900, "a\u0301" * 450]
)
@pytest.mark.parametrize("make", TOKENIZERS)
def test_text_without_spaces_is_cut_where_the_pre_tokenizer_does(make, text):
    tokenizer = made(make)
    found, forced = encode_all(tokenizer, [Part(text, True)], **SMALL)
    assert found == [in_one_call(tokenizer, text)] or forced == len(text) // SMALL["window"]
    if len(max(pre_tokens(tokenizer, text), key=len, default="")) < SMALL["window"] // 4:
        assert forced == 0


def test_lines_end_in_a_vocabulary_of_words():
    tokenizer = collect_words(["a b c"])
    end, a, b, c = (tokenizer.token_to_id(word) for word in (END_OF_ROW, "a", "b", "c"))
    parts = [
        *(Part("a b\nc\n", True), Part("a b\n", True), Part("c", False), Part("", True), Part("\n", True)),
        *(Part("a\u2028b \r", True), Part("\n\n", False)),
    ]
    found, _ = encode_all(tokenizer, parts)
    assert found == [[a, b, end, c, end], [a, b, end, c, end], [end], [end], [a, b, end, end]]


@pytest.mark.parametrize("make", TOKENIZERS)
def test_rows_of_one_line_have_the_ids_of_a_call_each(make):
    tokenizer = made(make)
    rows = [" = Title = \n", "", " \n", " The cat <unk> @-@ mat . \n", " a"]
    found, _ = encode_all(tokenizer, [Part(row, True) for row in rows])
    assert found == [tokenizer.encode(row).ids for row in rows]


@pytest.mark.parametrize("size", [10, 10_000_000])
def test_text_is_read_as_it_is_tokenized(size):
    read = 0

    def parts():
        nonlocal read
        for number in range(40_000_000 // size):
            text = ("a b\n" * (size // 4 + 1))[:size]
            read += len(text)
            yield Part(text, number % 2 == 0)

    next(encode_documents(made(words) if size < 100 else made(own_bpe), parts(), by_line=size < 100))
    assert read <= 3 * BATCH_BYTES + 2 * size + 2 * WINDOW


def test_a_place_within_a_pre_token_or_before_one_that_may_go_on_is_no_boundary():
    text, cutter = "a 7777 b", Cutter(made(own_bpe))
    encode = cutter.encode
    assert encode("a 77").ids + encode("77 b").ids == encode(text).ids
    assert not cutter.is_boundary(text, 0, end=4, right=8)
    assert not cutter.is_boundary(text, 0, end=1, right=6)
    assert cutter.is_boundary(text, 0, end=1, right=8)
