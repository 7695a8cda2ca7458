"""Token ids become text as they come, in whole characters, up to a stop string."""

import codecs
import json
from collections.abc import Sequence
from typing import Protocol

from tokenizers import Tokenizer

REPLACEMENT = "\ufffd"


def byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level token stands for (Radford et al. 2019)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + number): byte for number, byte in enumerate(hidden)}


class Vocabulary:
    """What each id of a tokenizer is in text."""

    ALPHABET = byte_alphabet()

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.added = {id: token.content for id, token in tokenizer.get_added_tokens_decoder().items()}
        decoder = json.loads(tokenizer.to_str())["decoder"]
        self.is_bytes = decoder is not None and decoder["type"] == "ByteLevel"  # tokens are bytes, as GPT-2's

    def bytes_of(self, id: int) -> bytes:
        """Return the bytes of a token of a byte-level tokenizer; an id that it lacks has none."""
        if id in self.added:
            return self.added[id].encode()
        token = self.tokenizer.id_to_token(id) or ""
        if all(character in self.ALPHABET for character in token):
            return bytes(self.ALPHABET[character] for character in token)
        return token.encode()

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def name(self, id: int) -> str:
        """Return the text of a token on its own; where it is no whole characters, its bytes as OpenAI spells them."""
        if not self.is_bytes:
            return self.text([id])
        try:
            return self.bytes_of(id).decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.bytes_of(id))

    def stream(self, prompt_ids: Sequence[int]) -> "TextStream":
        """Return what turns the ids after a prompt into text."""
        return ByteStream(self, prompt_ids) if self.is_bytes else WordStream(self, prompt_ids)


class TextStream(Protocol):
    """The text of the ids that follow a prompt, as they come: all of it together is what they are decoded to."""

    def add(self, id: int) -> str:
        """Return the whole characters that a token ends."""

    def end(self) -> str:
        """Return what is left of a character that no token ended."""


class ByteStream:
    """Of a byte-level tokenizer. The first new token may end a character that the prompt began."""

    def __init__(self, vocabulary: Vocabulary, prompt_ids: Sequence[int]) -> None:
        self.vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for id in prompt_ids:
            self.add(id)

    def add(self, id: int) -> str:
        return self._decoder.decode(self.vocabulary.bytes_of(id))

    def end(self) -> str:
        return self._decoder.decode(b"", True)


class WordStream:
    """Of any other tokenizer: the last ids are decoded with each new one, and what is added to them is its text.

    The first new token may end a character that the prompt began.
    """

    CONTEXT = 5  # ids before the new ones, on which their text may depend

    def __init__(self, vocabulary: Vocabulary, prompt_ids: Sequence[int]) -> None:
        self.vocabulary = vocabulary
        self._before = list(prompt_ids[-2 * self.CONTEXT : -self.CONTEXT])
        self._new: list[int] = []
        for id in prompt_ids[-self.CONTEXT :]:
            self.add(id)

    def add(self, id: int) -> str:
        self._new.append(id)
        text = self._text()
        if text.endswith(REPLACEMENT) and len(self._new) < self.CONTEXT:  # perhaps the beginning of a character
            return ""
        self._before, self._new = [*self._before, *self._new][-self.CONTEXT :], []
        return text

    def end(self) -> str:
        text, self._new = self._text(), []
        return text

    def _text(self) -> str:
        before = self.vocabulary.text(self._before)
        whole = self.vocabulary.text([*self._before, *self._new])
        return whole[len(before) :] if whole.startswith(before) else self.vocabulary.text(self._new)


class StopFinder:
    """Finds the first of some strings in a text that comes in pieces, and holds back what may be its beginning."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self._held, self.found = stops, "", False

    def add(self, text: str) -> str:
        """Return the text that can be shown. After the first stop string, in which it ends, there is none."""
        if self.found or not self.stops:
            return "" if self.found else text
        text, self._held = self._held + text, ""
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if places:
            self.found = True
            return text[: min(places)]
        if longest := max(self._overhang(text, stop) for stop in self.stops):
            text, self._held = text[:-longest], text[-longest:]
        return text

    def end(self) -> str:
        """Return what was held back."""
        text, self._held = self._held, ""
        return text

    @staticmethod
    def _overhang(text: str, stop: str) -> int:
        """Return how many characters at the end of the text are the beginning of a stop string."""
        most = min(len(stop) - 1, len(text))
        return next((size for size in range(most, 0, -1) if text.endswith(stop[:size])), 0)
