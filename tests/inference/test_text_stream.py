"""Text as it comes: together it is what the ids are decoded to, in whole characters, and it ends at a stop string."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textgen.inference.text_stream import REPLACEMENT, StopFinder, Vocabulary
from textgen.text.encoding import END_OF_ROW, END_OF_TEXT
from textgen.text.tokens import load_manifest_tokenizer

OF_SEVERAL_TOKENS = "黒"  # the corpus lacks it
KINDS = ["bpe", "word"]
quickly = settings(max_examples=60, derandomize=True, deadline=None)


@pytest.fixture(scope="module")
def vocabulary(make_tokens) -> Callable[[str], Vocabulary]:
    """Return a function from the kind of a tokenizer to its vocabulary."""
    found: dict[str, Vocabulary] = {}

    def of(kind: str) -> Vocabulary:
        if kind not in found:
            found[kind] = Vocabulary(load_manifest_tokenizer(make_tokens(kind)))
        return found[kind]

    return of


def pieces(vocabulary: Vocabulary, ids: list[int], prompt_ids: list[int] | None = None) -> list[str]:
    stream = vocabulary.stream(prompt_ids or [])
    return [*(stream.add(id) for id in ids), stream.end()]


ids_of_any = st.lists(st.integers(0, 2**16), max_size=40)


@pytest.mark.parametrize("kind", KINDS)
@quickly
@given(data=ids_of_any)
def test_the_pieces_of_any_ids_are_what_they_are_decoded_to(kind, vocabulary, data):
    found = vocabulary(kind)
    ids = [number % (found.tokenizer.get_vocab_size() + 2) for number in data]  # two are no tokens
    assert "".join(pieces(found, ids)) == found.tokenizer.decode(ids, skip_special_tokens=False)


@quickly
@given(st.binary(max_size=30))
def test_bytes_that_are_no_characters_are_replaced_as_the_tokenizer_does(vocabulary, data):
    found = vocabulary("bpe")
    of_byte = {found.bytes_of(id): id for id in range(found.tokenizer.get_vocab_size())}
    ids = [of_byte[bytes([byte])] for byte in data]
    written = "".join(pieces(found, ids))
    assert written == found.tokenizer.decode(ids, skip_special_tokens=False) == data.decode(errors="replace")


@pytest.mark.parametrize("kind", KINDS)
@quickly
@given(data=ids_of_any, at=st.integers(0, 40))
def test_a_prompt_and_what_follows_it_are_one_text(kind, vocabulary, data, at):
    found = vocabulary(kind)
    ids = [number % found.tokenizer.get_vocab_size() for number in data]
    begun = found.stream([])
    shown = "".join(begun.add(id) for id in ids[:at])
    assert shown + "".join(pieces(found, ids[at:], ids[:at])) == found.text(ids)


@quickly
@given(st.text(max_size=20))
def test_characters_come_whole_and_as_soon_as_they_are(vocabulary, text):
    found = vocabulary("bpe")
    ids, so_far = found.tokenizer.encode(text).ids, b""
    stream, shown = found.stream([]), ""
    for id in ids:
        shown += stream.add(id)
        so_far += found.bytes_of(id)
        assert shown == so_far.decode(errors="ignore")
    assert shown == text and stream.end() == ""


def test_a_character_that_the_prompt_began_is_ended(vocabulary):
    found = vocabulary("bpe")
    ids = found.tokenizer.encode(OF_SEVERAL_TOKENS).ids
    assert pieces(found, ids[1:], ids[:1]) == [*[""] * (len(ids) - 2), OF_SEVERAL_TOKENS, ""]


def test_what_no_token_ends_is_replaced_at_the_end(vocabulary):
    found = vocabulary("bpe")
    ids = found.tokenizer.encode(f"a{OF_SEVERAL_TOKENS}").ids
    assert pieces(found, ids[:-1]) == ["a", *[""] * (len(ids) - 2), REPLACEMENT]


def test_words_that_follow_a_prompt_begin_with_a_space(vocabulary):
    found = vocabulary("word")
    ids = found.tokenizer.encode("the old river", add_special_tokens=False).ids
    assert pieces(found, ids[1:], ids[:1]) == [" old", " river", ""]
    assert pieces(found, ids) == ["the", " old", " river", ""]


def test_a_word_that_is_the_replacement_character_is_not_lost():
    from tokenizers import Tokenizer, models

    words = ["<unk>", END_OF_ROW, "a", REPLACEMENT]
    found = Vocabulary(Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="<unk>")))
    assert "".join(pieces(found, [2, 3, 2, 3])) == f"a {REPLACEMENT} a {REPLACEMENT}"
    begun = found.stream([])
    shown = "".join(begun.add(id) for id in [2, 3])
    assert shown + "".join(pieces(found, [2], [2, 3])) == f"a {REPLACEMENT} a"


@pytest.mark.parametrize(("kind", "end"), [("bpe", END_OF_TEXT), ("word", END_OF_ROW)])
def test_a_special_token_is_spelled_in_the_text(kind, end, vocabulary):
    found = vocabulary(kind)
    id = found.tokenizer.token_to_id(end)
    assert found.name(id) == "".join(pieces(found, [id])) == end


def test_the_name_of_a_token_is_its_text_or_its_bytes_as_openai_spells_them(vocabulary):
    found = vocabulary("bpe")
    names = [found.name(id) for id in found.tokenizer.encode(OF_SEVERAL_TOKENS).ids]
    assert all(name.startswith("bytes:\\x") for name in names)
    spelled = "".join(name.removeprefix("bytes:").replace("\\x", "") for name in names)
    assert bytes.fromhex(spelled).decode() == OF_SEVERAL_TOKENS
    assert [found.name(id) for id in found.tokenizer.encode("x y").ids] == ["x", " ", "y"]


def test_tokens_of_a_byte_level_vocabulary_have_names_of_their_own(vocabulary):
    found = vocabulary("bpe")
    size = found.tokenizer.get_vocab_size()
    assert len({found.name(id) for id in range(size)}) == size


# Stop strings


def cut(text: str, sizes: list[int]) -> list[str]:
    """Return a text in pieces of the sizes, over and over."""
    found, place = [], 0
    while place < len(text):
        size = sizes[len(found) % len(sizes)]
        found.append(text[place : place + size])
        place += size
    return found


def show(stops: list[str], parts: list[str]) -> list[str]:
    finder = StopFinder(stops)
    return [*(finder.add(part) for part in parts), finder.end()]


few = st.text("ab塔", max_size=30)
sizes = st.lists(st.integers(1, 4), min_size=1, max_size=5)
stop_strings = st.lists(st.text("ab塔", min_size=1, max_size=4), min_size=1, max_size=3)


@quickly
@given(few, st.text("ab塔", min_size=1, max_size=4), sizes)
def test_a_text_ends_before_the_stop_string(text, stop, sizes):
    assert "".join(show([stop], cut(text, sizes))) == text.split(stop)[0]


@quickly
@given(few, stop_strings, sizes)
def test_nothing_that_can_begin_a_stop_string_is_shown_early_and_nothing_else_is_held_back(text, stops, sizes):
    finder, so_far, shown = StopFinder(stops), "", ""
    for part in cut(text, sizes):
        so_far += part
        shown += finder.add(part)
        if any(stop in so_far for stop in stops):
            assert finder.found and shown == min((so_far.split(stop)[0] for stop in stops), key=len)
            break
        held = so_far[len(shown) :]
        begins = [size for stop in stops for size in range(len(stop)) if so_far.endswith(stop[:size])]
        assert so_far.startswith(shown) and len(held) == max(begins)
    else:
        assert not finder.found and shown + finder.end() == text


def test_a_stop_string_is_found_across_pieces():
    assert show(["\n\n"], ["one\n", "\ntwo"]) == ["one", "", ""]
    assert show(["stop here"], ["a s", "top ", "her", "e, and on", "more"]) == ["a ", "", "", "", "", ""]


def test_a_beginning_that_is_no_stop_string_after_all_is_shown():
    assert show(["stop"], ["a st", "ep"]) == ["a ", "step", ""]
    assert show(["stop"], ["a st"]) == ["a ", "st"]
    assert show(["aab"], ["aaa", "b!"]) == ["a", "", ""]


def test_the_first_of_several_stop_strings_ends_the_text():
    assert show(["river", "old"], ["the old river"]) == ["the ", ""]


def test_without_stop_strings_all_is_shown_at_once():
    assert show([], ["a", "b"]) == ["a", "b", ""]
