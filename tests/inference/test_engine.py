"""The engine: what transformers would write, whatever else is written at the same time."""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from textgen.errors import Damaged
from textgen.inference import engine as engine_module
from textgen.inference.engine import Completion, Engine, Generation, Mode, Piece, Request, complete, join, run
from textgen.inference.sampling import SamplingConfig, uniform
from textgen.model.pretrained import WEIGHTS_FILE, LoadedModel, load_model, write_description, write_weights
from textgen.model.transformer import LanguageModel
from textgen.sections import ModelConfig
from textgen.text.encoding import END_OF_ROW, END_OF_TEXT
from textgen.text.tokens import load_manifest_tokenizer

CONTEXT = 32
NEAR_TIE, NEAR_BORDER = 1e-3, 1e-5  # of logits and of a draw: where a batch may differ from its members
SHAPE = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPES = {
    "grouped": {**SHAPE, "num_key_value_heads": 2, "initializer_range": 0.5, "tie_word_embeddings": False},
    "wide heads": {
        **SHAPE, "num_key_value_heads": 1, "head_dim": 10, "initializer_range": 0.5, "rms_norm_eps": 1e-3,
        "rope_theta": 500.0, "tie_word_embeddings": False,
    },
    "tied": {**SHAPE, "initializer_range": 0.3},
}  # fmt: skip


class Models(NamedTuple):
    """One model, here and in transformers."""

    loaded: LoadedModel
    stock: nn.Module

    def next_logits(self, window: list[int]) -> Tensor:
        """Return transformers' logits [V] of the token after a text."""
        with torch.inference_mode():
            return self.stock(torch.tensor([window]), use_cache=False).logits[0, -1]


def open_both(folder: Path) -> Models:
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    return Models(load_model(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())


@pytest.fixture(scope="module")
def models(opinionated) -> Models:
    return open_both(opinionated[0])


@pytest.fixture(scope="module", params=["opinionated", *SHAPES])
def any_models(request, opinionated, tokens, tmp_path_factory) -> Models:
    """Return models of several shapes, one after the other."""
    if request.param == "opinionated":
        return open_both(opinionated[0])
    folder, config = tmp_path_factory.mktemp("model"), ModelConfig(**SHAPES[request.param])
    torch.manual_seed(1)
    model = LanguageModel(config, tokens.vocab_size)
    with torch.no_grad():
        model.model.embed_tokens.weight *= 10  # the norm undoes it at the end of a tied model, but not within
    write_weights(model, folder / WEIGHTS_FILE)
    write_description(folder, config, load_manifest_tokenizer(tokens), tokens.vocab_size, CONTEXT)
    return open_both(folder)


def random_prompts(models: Models, lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    source = random.Random(seed)
    return [source.choices(range(models.loaded.model.vocab_size), k=length) for length in lengths]


def greedy(prompt_ids: Sequence[int], max_tokens: int = 12, **fields) -> Request:
    return Request(prompt_ids, SamplingConfig(max_tokens=max_tokens, temperature=0, **fields))


def drawn(prompt_ids: Sequence[int], seed: int | None, max_tokens: int = 20, choice: int = 0, **fields) -> Request:
    return Request(prompt_ids, SamplingConfig(max_tokens=max_tokens, seed=seed, **fields), choice)


def ids_of(completion: Completion) -> list[int]:
    return [token.id for token in completion.tokens]


def windows(prompt_ids: Sequence[int], ids: Sequence[int], length: int) -> Iterator[list[int]]:
    """Yield what the model sees before each of `ids`: as much as the context takes, then its last half anew."""
    window = list(prompt_ids[-length:])
    for id in ids:
        yield window
        window = [*window, id]
        if len(window) > length:
            window = window[-max(1, length // 2) :]


def check_same(models: Models, request: Request, found: list[int], expected: list[int]) -> None:
    """Check that two texts are the same, up to a place where rounding decides between two tokens."""
    if found == expected:
        return
    place = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), None)
    assert place is not None, (found, expected)
    window = list(windows(request.prompt_ids, found, models.loaded.seq_length))[place]
    logits_V, sampling = models.next_logits(window), request.sampling
    if sampling.temperature == 0:
        first, second = logits_V.topk(2).values.tolist()
        assert first - second < NEAR_TIE, (place, found, expected)
    else:
        assert sampling.seed is not None
        ends_V = (logits_V / sampling.temperature).softmax(-1).cumsum(-1, dtype=torch.float64)
        number = uniform(sampling.seed, request.choice, place)
        assert (ends_V - number).abs().min() < NEAR_BORDER, (place, found, expected)
    print(f"token {place} of {len(expected)} was decided by rounding")


# What transformers writes


@pytest.mark.parametrize("penalty", [1.0, 1.7])
def test_greedy_texts_are_those_of_transformers(any_models, penalty):
    max_tokens = 12
    prompts = random_prompts(any_models, [length for length in (1, 2, 7, 20) for _ in range(10)])
    requests = [greedy(prompt, max_tokens, repetition_penalty=penalty) for prompt in prompts]
    engine = Engine(any_models.loaded, rows=len(prompts))
    found = [ids_of(completion) for completion in complete(engine, requests)]
    for start in range(0, len(prompts), 10):
        ids_BT = torch.tensor(prompts[start : start + 10])
        written_BT = any_models.stock.generate(
            ids_BT, attention_mask=torch.ones_like(ids_BT), do_sample=False, max_new_tokens=max_tokens,
            repetition_penalty=penalty, pad_token_id=engine.end,
        )  # fmt: skip
        for request, ids, (*expected,) in zip(
            requests[start:], found[start:], written_BT[:, ids_BT.shape[1] :].tolist(), strict=False
        ):
            if engine.end in expected:
                expected = expected[: expected.index(engine.end) + 1]
            if penalty == 1:
                check_same(any_models, request, ids, expected)
            else:
                assert ids == expected


def test_the_text_of_a_prompt_is_that_of_transformers(models, opinionated):
    from transformers import AutoTokenizer

    tokenizer, engine = AutoTokenizer.from_pretrained(opinionated[0]), Engine(models.loaded)
    for prompt in ("the old river", "naïve 塔", "", "a" * 15):
        ids = tokenizer(prompt)["input_ids"] or [tokenizer.bos_token_id]
        assert engine.encode(prompt) == ids
        (found,) = complete(engine, [greedy(ids)])
        written_1T = models.stock.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False, max_new_tokens=12
        )
        assert found.text == tokenizer.decode(written_1T[0, len(ids) :], skip_special_tokens=True) != ""


@pytest.mark.parametrize("length", [1, 2, 7, CONTEXT])
def test_past_the_context_the_last_half_of_it_is_read_anew(models, length):
    models = models._replace(loaded=replace(models.loaded, seq_length=length))
    prompts = random_prompts(models, [1, max(1, length - 1), length, length + 1, 3 * length])
    requests = [greedy(prompt, 2 * length + 9) for prompt in prompts]
    for request, completion in zip(requests, complete(Engine(models.loaded), requests), strict=True):
        ids = ids_of(completion)
        assert len(ids) == 2 * length + 9 or ids[-1] == Engine(models.loaded).end
        seen = windows(request.prompt_ids, ids, length)
        check_same(models, request, ids, [int(models.next_logits(window).argmax()) for window in seen])


def test_past_the_context_a_text_can_end(models):
    prompts = random_prompts(models, [1, 5, CONTEXT - 1, CONTEXT, CONTEXT + 5])
    requests = [greedy(prompt, 99) for prompt in prompts]
    going_on = list(complete(Engine(models.loaded), requests))
    for prompt, completion, other in zip(
        prompts, complete(Engine(models.loaded, mode=Mode(past="stop")), requests), going_on, strict=True
    ):
        assert completion.finish == "length"
        assert len(completion.tokens) == max(1, CONTEXT + 1 - len(prompt))
        assert ids_of(completion) == ids_of(other)[: len(completion.tokens)]


def test_log_probabilities_are_those_of_transformers(any_models):
    top = 4
    prompts = random_prompts(any_models, [1, 2, 9, 20])
    sampling = SamplingConfig(max_tokens=10, seed=3, temperature=0.7, top_k=20)
    requests = [Request(prompt, sampling, log_probs=top, echo=True) for prompt in prompts]
    for prompt, completion in zip(prompts, complete(Engine(any_models.loaded), requests), strict=True):
        found = [*completion.prompt_scores, *(token.log_probs for token in completion.tokens)]
        ids = [*prompt, *ids_of(completion)]
        assert [one.id for one in found] == ids[1:]
        with torch.inference_mode():
            nats_TV = any_models.stock(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        for place, one in enumerate(found):
            assert one.nats == pytest.approx(nats_TV[place, one.id].item(), abs=1e-5, rel=1e-5)
            expected, _ = nats_TV[place].topk(top)
            assert [nats for _, nats in one.top] == pytest.approx(expected.tolist(), abs=1e-5, rel=1e-5)
            of_top = [nats_TV[place, id].item() for id, _ in one.top]
            assert [nats for _, nats in one.top] == pytest.approx(of_top, abs=1e-5, rel=1e-5)


def test_many_places_of_a_prompt_are_scored_in_parts(models, monkeypatch):
    (prompt,) = random_prompts(models, [20])
    request = Request(prompt, SamplingConfig(max_tokens=0), log_probs=0, echo=True)
    (whole,) = complete(Engine(models.loaded), [request])
    monkeypatch.setattr(engine_module, "SCORED_AT_ONCE", 6)
    (in_parts,) = complete(Engine(models.loaded), [request])
    assert [one.id for one in in_parts.prompt_scores] == prompt[1:]
    nats = [one.nats for one in whole.prompt_scores]
    assert [one.nats for one in in_parts.prompt_scores] == pytest.approx(nats, abs=1e-5)


# Texts beside each other


def written_alone(models: Models, requests: Sequence[Request]) -> list[list[int]]:
    return [ids_of(next(complete(Engine(models.loaded, rows=1), [request]))) for request in requests]


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_texts_that_join_and_leave_are_what_they_are_alone(models, rows, monkeypatch):
    monkeypatch.setattr(engine_module, "READ_AT_ONCE", 20)
    source = random.Random(rows)
    prompts = random_prompts(models, [source.randint(1, 40) for _ in range(14)])
    requests = [
        greedy(prompt, source.randint(1, 60)) if number % 2 else drawn(prompt, number, source.randint(1, 60))
        for number, prompt in enumerate(prompts)
    ]
    engine, waiting = Engine(models.loaded, rows), list(requests)
    written: dict[Generation, list[Piece]] = {}
    most = 0
    while waiting or engine.busy:
        if waiting and source.random() < 0.4:
            written[engine.submit(waiting.pop(0))] = []
        for piece in engine.step():
            written[piece.generation].append(piece)
        most = max(most, len(engine.running))
    assert most == min(rows, most) and (most > 1 or rows == 1)
    for (generation, pieces), request, alone in zip(
        written.items(), requests, written_alone(models, requests), strict=True
    ):
        assert generation.request is request
        assert all(piece.finish is None for piece in pieces[:-1])
        check_same(models, request, ids_of(join(generation, pieces)), alone)


def test_a_deterministic_text_is_the_same_to_the_last_bit_whatever_else_is_written(models):
    mode, scored = Mode(deterministic=True), {"log_probs": 2, "echo": True}
    prompts = random_prompts(models, [3, 17, 9, 1, 30, 12])
    requests = [
        replace(greedy(prompt, 40) if number % 2 else drawn(prompt, number, 25), **scored)
        for number, prompt in enumerate(prompts)
    ]
    together = list(complete(Engine(models.loaded, 4, mode), requests))
    for request, completion in zip(requests, together, strict=True):
        assert [completion] == list(complete(Engine(models.loaded, 4, mode), [request]))


def test_more_requests_than_rows_are_answered_in_order(models):
    prompts = random_prompts(models, [3] * 7)
    requests = [greedy(prompt, 3 + 5 * (number % 3)) for number, prompt in enumerate(prompts)]
    found = list(map(ids_of, complete(Engine(models.loaded, rows=2), requests)))
    for request, ids, alone in zip(requests, found, written_alone(models, requests), strict=True):
        check_same(models, request, ids, alone)


def test_a_prompt_of_several_texts_is_read_once(models, monkeypatch):
    prompt, other = random_prompts(models, [30, 8])
    requests = [*(drawn(prompt, 5, choice=choice) for choice in range(3)), greedy(other), greedy(prompt)]
    engine, shown = Engine(models.loaded), []
    read = engine.model.read

    def watch(texts: list[list[int]], rows: list[int]) -> list[torch.Tensor]:
        shown.append(texts)
        return read(texts, rows)

    monkeypatch.setattr(engine.model, "read", watch)
    found = list(map(ids_of, complete(engine, requests)))
    assert shown[0] == [prompt, other]
    for request, ids, alone in zip(requests, found, written_alone(models, requests), strict=True):
        check_same(models, request, ids, alone)


def test_a_first_token_does_not_wait_for_the_others_next(models):
    """Nor do the others wait for a stream of prompts: they are read in every other step."""
    engine = Engine(models.loaded)
    first = engine.submit(greedy([5, 6], 30))
    assert [piece.generation for piece in engine.step()] == [first]
    for count in range(2, 6):
        second = engine.submit(greedy([7], 1))
        assert {piece.generation for piece in engine.step()} == {first}
        assert [piece.generation for piece in engine.step()] == [second]
        assert len(first.ids) == count


def test_a_text_that_is_cancelled_frees_its_row_and_leaves_the_others_alone(models):
    requests = [greedy(prompt, 25) for prompt in random_prompts(models, [4, 6, 9, 2, 5])]
    engine = Engine(models.loaded, rows=3)
    written: dict[Generation, list[Piece]] = {engine.submit(request): [] for request in requests}
    first, _, _, waiting, last = written

    def step() -> None:
        for piece in engine.step():
            written[piece.generation].append(piece)

    for _ in range(4):
        step()
    before = len(first.ids)
    first.cancelled = waiting.cancelled = True
    step()
    assert first not in engine.running and len(first.ids) == before
    assert last in engine.running and not engine.waiting  # in the row that became free
    while engine.busy:
        step()
    assert [pieces[-1].finish for pieces in written.values()] == [
        "cancelled", "length", "length", "cancelled", "length"
    ]  # fmt: skip
    for (generation, pieces), alone in zip(written.items(), written_alone(models, requests), strict=True):
        ids = ids_of(join(generation, pieces))
        check_same(models, generation.request, ids, alone[: len(ids)] if generation.cancelled else alone)
    assert not waiting.ids


def test_a_text_that_is_cancelled_after_its_end_changes_nothing(models):
    engine = Engine(models.loaded)
    generation = engine.submit(greedy([5], 1))
    (piece,) = engine.step()
    generation.cancelled = True
    assert piece.finish == generation.finish == "length" and not engine.busy and not engine.step()


def test_an_engine_that_was_cleared_writes_on(models):
    engine, request = Engine(models.loaded, rows=2), greedy([7, 8, 9])
    for prompt in random_prompts(models, [5, 6, 7]):
        engine.submit(greedy(prompt, 50))
    engine.step()
    engine.clear()
    assert not engine.busy
    (found,) = complete(engine, [request])
    assert [ids_of(found)] == written_alone(models, [request])


# Seeds


def test_a_seed_gives_the_same_text_whatever_else_is_written(models):
    request = drawn([5, 6], 11)
    others = [drawn(prompt, None, 30) for prompt in random_prompts(models, [3, 9, 20])]
    (alone,) = written_alone(models, [request])
    *_, beside = complete(Engine(models.loaded), [*others, request])
    check_same(models, request, ids_of(beside), alone)


def test_other_seeds_and_other_choices_give_other_texts(models):
    requests = [drawn([5, 6], seed, choice=choice) for seed in (1, 2) for choice in (0, 1)]
    texts = [completion.text for completion in complete(Engine(models.loaded), requests)]
    assert len(set(texts)) == 4


def test_no_seed_gives_another_text_each_time(models):
    engine = Engine(models.loaded)
    first, again = (next(complete(engine, [drawn([5, 6], None, 30)])).text for _ in range(2))
    assert first != again


def test_the_global_generator_is_left_alone(models):
    before = torch.get_rng_state()
    list(complete(Engine(models.loaded), [drawn([5], None, 3), drawn([5], 1, 3)]))
    assert torch.equal(torch.get_rng_state(), before)


# Where a text ends


class Scripted:
    """Stands for the cached model: it writes given ids, in one text, and keeps what it was shown."""

    rows = 1

    def __init__(self, ids: list[int], vocab_size: int) -> None:
        self.ids, self.vocab_size, self.shown = iter(ids), vocab_size, []

    def read(self, texts: list[list[int]], rows: list[int]) -> list[Tensor]:
        (text,) = texts
        self.shown.append(text)
        return [torch.zeros(len(text), 1)]

    def step(self, ids: Sequence[int], places: Sequence[int]) -> Tensor:
        assert places == [len(self.shown[-1])]
        self.shown.append([*self.shown[-1], *ids])
        return self.logits(torch.zeros(1, 1))

    def last_logits(self, hidden: list[Tensor]) -> Tensor:
        return self.logits(hidden[0])

    def logits(self, hidden_NC: Tensor) -> Tensor:
        return nn.functional.one_hot(torch.tensor([next(self.ids)]), self.vocab_size).float()


@pytest.fixture
def script(make_tokens, opinionated) -> Callable[..., Engine]:
    """Return a function from a text, and the kind of its tokens, to an engine whose model writes it."""

    def write(text: str, kind: str = "bpe", length: int = 100) -> Engine:
        tokens = make_tokens(kind)
        tokenizer = load_manifest_tokenizer(tokens)
        engine = Engine(LoadedModel(opinionated[1].model, tokenizer, length), rows=1)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        engine.model = Scripted(ids, tokens.vocab_size)
        return engine

    return write


def write(engine: Engine, prompt: str, max_tokens: int = 50, **fields) -> Completion:
    (completion,) = complete(engine, [greedy(engine.encode(prompt), max_tokens, **fields)])
    return completion


def test_a_text_ends_at_the_end_of_text_which_is_a_token_without_text(script):
    engine = script(f" river{END_OF_TEXT} lamp")
    found = write(engine, "the old")
    assert (found.text, found.finish) == (" river", "stop")
    assert (found.tokens[-1].id, found.tokens[-1].text) == (engine.end, "")
    assert ids_of(found)[:-1] == engine.encode(" river")


def test_an_end_of_text_in_the_prompt_ends_nothing(script):
    assert write(script(f" river{END_OF_TEXT}"), f"{END_OF_TEXT}the{END_OF_TEXT}").text == " river"


@pytest.mark.parametrize(("kind", "end", "text"), [("bpe", END_OF_TEXT, "xy"), ("word", END_OF_ROW, " the river")])
def test_an_empty_prompt_starts_after_an_end_of_text(kind, end, text, script):
    engine = script(f"{text}{end}", kind)
    assert write(engine, "").text == text
    assert engine.model.shown[0] == [engine.loaded.tokenizer.token_to_id(end)]


def test_a_text_ends_at_max_tokens(script):
    found = write(script("abcdefghijklmnop"), "the", 3)
    assert (found.text, len(found.tokens), found.finish) == ("abc", 3, "length")
    found = write(script("abcdefghijklmnop"), "the", 1)
    assert (found.text, len(found.tokens), found.finish) == ("a", 1, "length")


def test_max_tokens_0_writes_nothing(models):
    engine = Engine(models.loaded)
    request = Request([5, 6, 7], SamplingConfig(max_tokens=0), log_probs=0, echo=True)
    (found,) = complete(engine, [request])
    assert (found.text, found.tokens, found.finish) == ("", [], "length")
    assert [one.id for one in found.prompt_scores] == [6, 7] and not engine.busy


def test_a_character_of_several_tokens_is_written_whole(script):
    engine = script(f"黒ü{END_OF_TEXT}")
    pieces = list(run(engine, [greedy(engine.encode("é"))]))
    assert [piece.text for piece in pieces if piece.text] == ["黒", "ü"]


def test_a_character_that_max_tokens_cuts_is_replaced(script):
    found = write(script("a黒"), "", 2)
    assert (found.text, found.finish, len(found.tokens)) == ("a\ufffd", "length", 2)


STOPPED = "one, two; three"


@pytest.mark.parametrize("stop", ["; t", ";", "two", "wo; th", "one", "three", "o"])
def test_a_stop_string_ends_a_text_and_its_tokens_with_it(script, stop):
    engine = script(f"{STOPPED}{END_OF_TEXT}")
    pieces = list(run(engine, [greedy(engine.encode("the"), 50, stop=(stop,))]))
    ids, expected = engine.encode(STOPPED), STOPPED.split(stop)[0]
    shown, tokens = "", []
    for piece in pieces:
        shown += piece.text
        tokens += piece.tokens
        assert [token.id for token in tokens] == ids[: len(tokens)]
        if piece.finish is None:
            assert shown.startswith("".join(token.text for token in tokens))
    assert (shown, pieces[-1].finish) == (expected, "stop")
    written = "".join(token.text for token in tokens)
    assert written.startswith(expected)
    assert len(written) - len(tokens[-1].text) < len(expected) if tokens else not expected


def test_a_beginning_of_a_stop_string_is_shown_at_the_end_with_its_tokens(script):
    found = write(script(f"one, two{END_OF_TEXT}"), "the", stop=("two three",))
    assert (found.text, found.finish) == ("one, two", "stop")
    assert "".join(token.text for token in found.tokens) == "one, two"
    found = write(script("one, two, three"), "the", 6, stop=("two three", "e, twos"))
    assert "".join(token.text for token in found.tokens) == found.text
    assert (len(found.tokens), found.finish) == (6, "length")


def test_log_probabilities_stay_beside_the_token_that_is_held_back(models):
    (plain,) = complete(Engine(models.loaded), [Request([5, 6], SamplingConfig(max_tokens=12, seed=1), log_probs=2)])
    stop = plain.text[3:5] + "no"
    sampling = SamplingConfig(max_tokens=12, seed=1, stop=(stop, plain.text[-2:] + "no"))
    (found,) = complete(Engine(models.loaded), [Request([5, 6], sampling, log_probs=2)])
    assert found == plain and all(token.log_probs.id == token.id for token in found.tokens)


def test_the_model_sees_the_last_tokens_of_a_long_prompt(script):
    engine = script(f"vxyz{END_OF_TEXT}", length=6)
    assert write(engine, "0123456789").text == "vxyz"
    ids = engine.encode("0123456789vxyz")
    assert len(ids) == 14
    assert engine.model.shown == [ids[4:10], ids[8:11], ids[8:12], ids[8:13], ids[8:14]]


def test_a_model_whose_logits_are_not_finite_is_damaged(models):
    broken = copy.deepcopy(models.loaded.model)
    with torch.no_grad():
        broken.model.norm.weight.fill_(torch.finfo(torch.float32).max)
    with pytest.raises(Damaged, match="not finite"):
        list(complete(Engine(replace(models.loaded, model=broken)), [greedy([5])]))


@pytest.mark.parametrize("prompt", [[-1], [5, 300_000]])
def test_a_prompt_of_ids_that_the_model_lacks_is_refused(models, prompt):
    with pytest.raises(ValueError, match=str(prompt[-1])):
        Engine(models.loaded).encode(prompt)
    assert Engine(models.loaded).encode([5, 6]) == [5, 6]
    assert Engine(models.loaded).encode([]) == Engine(models.loaded).encode("")
