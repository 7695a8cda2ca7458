"""The form of requests and replies: what is asked for, what is refused and why, and OpenAI's arrays of a choice."""

import json
import math
from itertools import chain
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from textgen.inference.engine import Completion, Engine, Token, complete
from textgen.inference.protocol import (
    MOST_CHOICES,
    MOST_LOG_PROBS,
    MOST_STOPS,
    BadRequest,
    ChoiceText,
    CompletionRequest,
    answer,
    choose,
    engine_requests,
)
from textgen.inference.sampling import LogProbs, SamplingConfig

WRONG = [
    ("model", 3),
    *(("prompt", prompt) for prompt in (3, {}, True, [True], ["a", 1], [1, [2]], [[1], "a"], [-1], [2**31], [1.0])),
    *(("max_tokens", number) for number in (-1, 1.0, "7", True, [])),
    *(("temperature", number) for number in (-0.1, math.nan, math.inf, 101, 10**400, True, "1")),
    *(("top_p", number) for number in (0, 1.1, math.nan, -math.inf, True)),
    *(("top_k", number) for number in (-1, 2.5, False)),
    *(("min_p", number) for number in (-0.1, 1.1, math.nan)),
    *(("repetition_penalty", number) for number in (0, 101, math.nan)),
    *(("presence_penalty", number) for number in (-2.1, 2.1, math.inf)),
    *(("frequency_penalty", number) for number in (-2.1, 2.1, math.nan)),
    *(("stop", stop) for stop in (3, "", ["a", ""], ["a", None], ["a"] * (MOST_STOPS + 1), {"a": 1})),
    *(("seed", seed) for seed in (-1, 2**63, 10**400, 1.0, True)),
    *(("n", number) for number in (0, MOST_CHOICES + 1, 10**400, True, 1.0)),
    *(("best_of", number) for number in (0, MOST_CHOICES + 1, "2")),
    *(("echo", flag) for flag in (1, "true", [])),
    *(("logprobs", number) for number in (-1, MOST_LOG_PROBS + 1, True, 1.5)),
    *(("stream", flag) for flag in (1, "false")),
    *(("stream_options", options) for options in (3, [], "usage")),
    ("user", 3),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_field_that_is_wrong_is_named(field, value):
    with pytest.raises(BadRequest) as refused:
        CompletionRequest.parse({"prompt": "a", field: value})
    message = str(refused.value)
    assert refused.value.param == field and message.startswith(field)
    assert len(message) < 500 and "\n" not in message


def test_every_field_is_tried():
    assert {field for field, _ in WRONG} == CompletionRequest.model_fields.keys()


@pytest.mark.parametrize("value", [1, [], False, "logit_bias"])
def test_a_field_that_is_not_known_is_refused(value):
    with pytest.raises(BadRequest, match="'suffix' is no field") as refused:
        CompletionRequest.parse({"suffix": value})
    assert (refused.value.param, refused.value.code) == ("suffix", "unknown_field")
    with pytest.raises(BadRequest, match="'' is no field"):
        CompletionRequest.parse({"": value})


def test_a_field_within_the_options_of_a_stream_is_named_with_them():
    with pytest.raises(BadRequest, match=r"'stream_options\.usage' is no field"):
        CompletionRequest.parse({"stream": True, "stream_options": {"usage": True}})
    with pytest.raises(BadRequest, match=r"^stream_options\.include_usage=1: "):
        CompletionRequest.parse({"stream": True, "stream_options": {"include_usage": 1}})
    found = CompletionRequest.parse({"stream": True, "stream_options": {"include_usage": None}})
    assert found.stream_options is not None and not found.stream_options.include_usage


@pytest.mark.parametrize("body", [None, 3, "a", [], [{"prompt": "a"}], True])
def test_what_is_no_object_is_refused(body):
    with pytest.raises(BadRequest, match="the body is no JSON object"):
        CompletionRequest.parse(body)


@pytest.mark.parametrize("prompt", ["\ud800", "a\udcffb", ["a", "\ud83d"]])
def test_half_of_a_character_is_refused(prompt):
    with pytest.raises(BadRequest, match=r"prompt: .* surrogate"):
        CompletionRequest.parse(json.loads(json.dumps({"prompt": prompt})))
    with pytest.raises(BadRequest, match=r"stop.* surrogate"):
        CompletionRequest.parse({"stop": prompt})
    with pytest.raises(BadRequest, match="field"):
        CompletionRequest.parse({"\ud800": 1})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields, param):
    with pytest.raises(BadRequest) as refused:
        CompletionRequest.parse(fields)
    assert refused.value.param == param and str(refused.value).startswith(param)


def test_null_is_not_given():
    nulls = dict.fromkeys(CompletionRequest.model_fields)
    assert CompletionRequest.parse(nulls) == CompletionRequest.parse({}) == CompletionRequest()
    assert CompletionRequest.parse({"suffix": None}) == CompletionRequest()  # as clients send what they do not set


def test_the_engine_draws_as_the_request_says():
    fields: dict[str, Any] = {
        "max_tokens": 10**400, "temperature": 0, "top_p": 1, "top_k": 10**30, "min_p": 0.1, "repetition_penalty": 2,
        "presence_penalty": -2, "frequency_penalty": 2, "stop": "x", "seed": 2**63 - 1,
    }  # fmt: skip
    assert fields.keys() == SamplingConfig.model_fields.keys()
    found = CompletionRequest.parse(fields)
    assert found.sampling() == SamplingConfig(**{**fields, "stop": ("x",)})
    assert found.sampling(most_tokens=9).max_tokens == 9
    assert CompletionRequest.parse({"max_tokens": 3}).sampling(most_tokens=9).max_tokens == 3


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a", ""], ["a", ""]),
        ([], [""]),
        ([5, 6], [[5, 6]]),
        ([[5], [6, 7]], [[5], [6, 7]]),
        ([[5], []], [[5], []]),
    ],
)
def test_a_prompt_is_a_text_or_ids_or_several_of_one_kind(prompt, prompts):
    assert CompletionRequest.parse({"prompt": prompt}).prompts == prompts


numbers = st.integers() | st.integers(10**300, 10**310) | st.floats()
simple = st.none() | st.booleans() | numbers | st.text(st.characters(), max_size=5) | st.sampled_from(["\udc80", 1])
anything = st.recursive(
    simple, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner), max_leaves=8
)
names = st.sampled_from([*CompletionRequest.model_fields]) | st.text(st.characters(), max_size=5)


@settings(max_examples=150, derandomize=True, deadline=None)
@example(fields={"prompt": "\udc80"})
@given(fields=anything | st.dictionaries(names, simple, max_size=2) | st.dictionaries(names, anything, max_size=4))
def test_any_json_is_a_request_or_is_refused(opinionated, fields):
    try:
        found = CompletionRequest.parse(fields)
    except BadRequest as error:
        assert str(error).isprintable() and len(str(error)) < 600
        return
    found.sampling(most_tokens=5)
    for prompt in found.prompts:
        if isinstance(prompt, str):
            opinionated[1].tokenizer.encode(prompt)


# Choices


def scored(id: int, nats: float) -> Token:
    return Token(id, "x", LogProbs(id, nats, []))


def test_choices_are_in_the_order_of_their_prompts():
    asked = CompletionRequest.parse({"prompt": [[5], [6]], "n": 3, "seed": 1})
    requests = engine_requests(asked, [[5], [6]])
    assert [(request.prompt_ids, request.choice) for request in requests] == [
        (ids, choice) for ids in ([5], [6]) for choice in range(3)
    ]


@pytest.fixture(scope="module")
def engine(opinionated) -> Engine:
    return Engine(opinionated[1])


def ask(engine: Engine, **fields: Any) -> dict[str, Any]:
    """Return the answer to a request, as it is after a way as JSON."""
    asked = CompletionRequest.parse(fields)
    prompts = [engine.encode(prompt) for prompt in asked.prompts]
    completions = list(complete(engine, engine_requests(asked, prompts)))
    return json.loads(json.dumps(answer(asked, prompts, completions, engine.vocabulary), allow_nan=False))


def test_each_choice_has_the_text_of_its_prompt_and_number(engine):
    prompts, n = ["the old", "a", "winds"], 2
    choices = ask(engine, prompt=prompts, n=n, seed=1, max_tokens=8, echo=True)["choices"]
    assert [choice["index"] for choice in choices] == list(range(6))
    for index, choice in enumerate(choices):
        assert choice["text"].startswith(prompts[index // n]) and choice["logprobs"] is None
    alone = ask(engine, prompt="a", n=n, seed=1, max_tokens=8, echo=True)["choices"]
    assert [choice["text"] for choice in alone] == [choice["text"] for choice in choices[2:4]]
    assert alone[0]["text"] != alone[1]["text"]


def test_the_best_are_those_of_the_highest_mean():
    asked = CompletionRequest.parse({"n": 2, "best_of": 4})
    means = [-1.0, -0.5, -3.0, -0.4]
    first = [
        Completion(str(mean), [scored(1, mean - 0.1), scored(2, mean + 0.1)] * (1 + number), [], "length")
        for number, mean in enumerate(means)
    ]
    second = [completion._replace(text=f"second {completion.text}") for completion in reversed(first)]
    assert [one.text for one in choose(asked, first + second)] == ["-0.4", "-0.5", "second -0.4", "second -0.5"]
    all_of_them = CompletionRequest.parse({"n": 4})
    assert choose(all_of_them, first) == first


def test_the_best_of_a_request_are_found_though_no_log_probabilities_are_asked_for(engine):
    fields = {"prompt": ["the", "a"], "seed": 4, "max_tokens": 6}
    found = ask(engine, **fields, n=1, best_of=5)
    every = ask(engine, **fields, n=5, logprobs=0)["choices"]
    for index, choice in enumerate(found["choices"]):
        of_prompt = every[5 * index : 5 * index + 5]
        means = [sum(one["logprobs"]["token_logprobs"]) / len(one["logprobs"]["tokens"]) for one in of_prompt]
        assert choice["text"] == of_prompt[means.index(max(means))]["text"]
        assert choice["index"] == index and choice["logprobs"] is None
    assert found["usage"]["completion_tokens"] == sum(len(one["logprobs"]["tokens"]) for one in every)


def test_usage_counts_each_prompt_once_and_every_text(engine):
    prompts = ["the old river", ""]
    found = ask(engine, prompt=prompts, n=3, max_tokens=4, temperature=0, logprobs=0)
    size = sum(len(engine.encode(prompt)) for prompt in prompts)
    written = sum(len(choice["logprobs"]["tokens"]) for choice in found["choices"])
    assert found["usage"] == {
        "prompt_tokens": size, "completion_tokens": written, "total_tokens": size + written
    }  # fmt: skip


ARRAYS = {"tokens", "token_logprobs", "top_logprobs", "text_offset", "token_ids"}


@pytest.mark.parametrize("size", [1, 7, 32, 45])  # the last two fill the context
def test_an_echo_has_an_entry_a_token_of_the_prompt_and_what_follows(engine, size):
    ids = (engine.encode("the old river, under a tower and small winds") * 9)[:size]
    (choice,) = ask(engine, prompt=[ids], max_tokens=1, echo=True, logprobs=1, temperature=0)["choices"]
    found = choice["logprobs"]
    assert found.keys() == ARRAYS and {len(array) for array in found.values()} == {size + 1}
    assert found["token_ids"][:-1] == ids and "".join(found["tokens"]).startswith(choice["text"])
    unseen = max(1, size - engine.length + 1)  # the first, and those before the context
    for name in ("token_logprobs", "top_logprobs"):
        assert [entry is None for entry in found[name]] == [True] * unseen + [False] * (size + 1 - unseen)
    last = found["top_logprobs"][-1]
    assert found["token_logprobs"][-1] == max(last.values()) == last[found["tokens"][-1]]  # lm-eval's `is_greedy`


def test_a_prompt_is_scored_without_a_text(engine):
    (choice,) = ask(engine, prompt="the old", max_tokens=0, echo=True, logprobs=0)["choices"]
    size = len(engine.encode("the old"))
    assert choice["text"] == "the old" and choice["finish_reason"] == "length"
    assert {len(array) for array in choice["logprobs"].values()} == {size}
    assert choice["logprobs"]["top_logprobs"] == [None, *[{}] * (size - 1)]


def test_the_token_that_was_taken_is_among_the_likeliest(engine):
    found = ask(engine, prompt="a", max_tokens=9, seed=2, temperature=3, logprobs=2)["choices"][0]["logprobs"]
    for token, nats, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        assert top[token] == nats and len(top) in (2, 3)
    assert any(len(top) == 3 for top in found["top_logprobs"])
    greedy = ask(engine, prompt="a", max_tokens=9, temperature=0, logprobs=2)["choices"][0]["logprobs"]
    for token, top in zip(greedy["tokens"], greedy["top_logprobs"], strict=True):
        assert next(iter(top)) == token and len(top) == 2


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("prompt", ["naïve 塔 the", "", "黒"])
def test_offsets_are_where_the_tokens_begin_in_the_text(engine, echo, prompt):
    (choice,) = ask(engine, prompt=prompt, max_tokens=15, seed=3, echo=echo, logprobs=0)["choices"]
    found, text = choice["logprobs"], choice["text"]
    assert len(found["text_offset"]) == len(found["tokens"]) and found["text_offset"][0] == 0
    ends = [*found["text_offset"][1:], len(text)]
    for token, start, end in zip(found["tokens"], found["text_offset"], ends, strict=True):
        if not token.startswith("bytes:") and "\ufffd" not in text[start:end] and start < end < len(text):
            assert text[start:end] == token


@pytest.mark.parametrize("taken", [1, 2])
def test_an_echo_of_a_prompt_that_ends_within_a_character_goes_on_with_it(engine, taken):
    ids = engine.encode("a黒")
    asked = CompletionRequest.parse({"prompt": [ids[:taken]], "echo": True, "logprobs": 0})
    stream = engine.vocabulary.stream(ids[:taken])
    tokens = [Token(id, stream.add(id), LogProbs(id, -1.0, [])) for id in ids[taken:]]
    completion = Completion("黒", tokens, [LogProbs(id, -1.0, []) for id in ids[1:taken]], "length")
    choice = ChoiceText(asked, 0, ids[:taken], engine.vocabulary).whole(completion)
    assert choice["text"] == "a黒"
    assert choice["logprobs"]["token_ids"] == ids
    assert choice["logprobs"]["text_offset"] == [0, *[1] * (len(ids) - 1)]
    assert choice["logprobs"]["tokens"][0] == "a"
    assert all(token.startswith("bytes:\\x") for token in choice["logprobs"]["tokens"][1:])


def test_a_choice_in_pieces_has_the_arrays_of_the_whole_one(engine):
    asked = CompletionRequest.parse({"prompt": "the old", "echo": True, "logprobs": 2, "seed": 5, "max_tokens": 9})
    ids = engine.encode("the old")
    (completion,) = complete(engine, engine_requests(asked, [ids]))
    whole = ChoiceText(asked, 3, ids, engine.vocabulary).whole(completion)
    parts = ChoiceText(asked, 3, ids, engine.vocabulary)
    pieces = [parts.begin(completion.prompt_scores)]
    pieces += [parts.piece(token.text, [token], None) for token in completion.tokens]
    pieces.append(parts.piece("", [], completion.finish))
    for name in ARRAYS:
        assert list(chain(*(piece["logprobs"][name] for piece in pieces))) == whole["logprobs"][name]
    rest = "".join(piece["text"] for piece in pieces)
    assert whole["text"].startswith(rest) and {piece["index"] for piece in pieces} == {3}
    assert [piece["finish_reason"] for piece in pieces[-2:]] == [None, whole["finish_reason"]]
