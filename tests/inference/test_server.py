"""The server, as OpenAI's own client, plain HTTP and Prometheus see it."""

import json
import logging
import math
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import httpx
import openai
import pytest

from tests.inference.serving import ENDLESS, PATIENCE, QUICK, Running, Shelf, another, serve, wait_until
from textgen.errors import Damaged
from textgen.inference import replies, worker
from textgen.inference.engine import Engine, Request, complete
from textgen.inference.figures import Figures
from textgen.inference.sampling import SamplingConfig
from textgen.inference.worker import Job, Probe, Served, Version, check_probe
from textgen.model.pretrained import LoadedModel
from textgen.text.encoding import end_id


@pytest.fixture(scope="module")
def shared(loaded) -> Iterator[Running]:
    with serve(Shelf(v1=loaded)) as running:
        yield running


@pytest.fixture
def running(shared, loaded) -> Iterator[Running]:
    """Return the server that the tests share, as it was, whatever the test before made of its engine."""
    yield shared
    for served in shared.state.worker.served.values():
        served.engine.end = end_id(loaded.tokenizer)


def client_of(running: Running, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)


@pytest.fixture
def client(running) -> openai.OpenAI:
    return client_of(running)


def offline(loaded: LoadedModel, prompt: str, sampling: SamplingConfig, choice: int = 0) -> str:
    engine = Engine(loaded)
    [completion] = complete(engine, [Request(engine.encode(prompt), sampling, choice)])
    return completion.text


def test_a_completion_is_what_the_engine_writes(client, loaded):
    reply = client.completions.create(model="tiny", prompt="the old", max_tokens=12, temperature=0)
    assert reply.choices[0].text == offline(loaded, "the old", SamplingConfig(max_tokens=12, temperature=0))
    assert (reply.model, reply.system_fingerprint, reply.object) == ("tiny@v1", "tiny@v1-fp32", "text_completion")
    prompt_tokens = len(loaded.tokenizer.encode("the old").ids)
    assert (reply.usage.prompt_tokens, reply.usage.total_tokens) == (prompt_tokens, prompt_tokens + 12)
    assert reply.choices[0].finish_reason == "length"


def test_prompts_of_every_form_are_continued_in_their_order(client, loaded):
    prompts = ["the old river", "a lamp"]
    ids = [loaded.tokenizer.encode(prompt).ids for prompt in prompts]
    asked = {"model": "tiny", "max_tokens": 6, "seed": 3}
    expected = [
        offline(loaded, prompt, SamplingConfig(max_tokens=6, seed=3), choice) for prompt in prompts for choice in (0, 1)
    ]
    for form in (prompts, ids):
        reply = client.completions.create(prompt=form, n=2, **asked)
        assert [choice.text for choice in reply.choices] == expected
        assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    for form in (prompts[0], ids[0]):
        assert client.completions.create(prompt=form, **asked).choices[0].text == expected[0]


@pytest.mark.parametrize("fields", [{}, {"n": 3}, {"stop": ["e"]}, {"logprobs": 2, "echo": True}, {"max_tokens": 0}])
def test_what_is_streamed_is_what_is_not(fields, client):
    asked = {"model": "tiny", "prompt": ["the old", "naïve 塔"], "max_tokens": 20, "seed": 5, **fields}
    whole = client.completions.create(**asked)
    texts, ends, tokens = {}, {}, {}
    stream = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    for event in stream:
        assert event.usage is None or event.choices == []
        usage = event.usage
        for choice in event.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            if choice.logprobs is not None:
                tokens.setdefault(choice.index, []).extend(choice.logprobs.token_logprobs)
            if choice.finish_reason is not None:
                ends[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage == whole.usage
    if "logprobs" in fields:
        assert tokens == {choice.index: choice.logprobs.token_logprobs for choice in whole.choices}


def test_a_text_is_scored_without_a_token_more(client, loaded):
    reply = client.completions.create(model="tiny", prompt="the old river", max_tokens=0, echo=True, logprobs=1)
    scores = reply.choices[0].logprobs.token_logprobs
    assert reply.choices[0].text == "the old river"
    assert len(scores) == len(loaded.tokenizer.encode("the old river").ids) and scores[0] is None
    assert all(score < 0 for score in scores[1:]) and reply.usage.completion_tokens == 0


def test_more_tokens_than_there_is_room_for_are_cut_to_the_limit(loaded):
    with serve(Shelf(v1=loaded), replace(QUICK, max_tokens=7)) as running:
        reply = client_of(running).completions.create(model="tiny", prompt="the", max_tokens=10**9, temperature=0)
    assert (reply.usage.completion_tokens, reply.choices[0].finish_reason) == (7, "length")


def post(running: Running, content: bytes | str, path: str = "/v1/completions") -> httpx.Response:
    return httpx.post(f"{running.url}{path}", content=content, timeout=60)


BAD = [
    (b"", 400, None), (b"{", 400, None), (b"[]", 400, None), (b'{"prompt": "\xff"}', 400, None),
    ('{"prompt": NaN}', 400, None), ("[" * 100_000, 400, None), ('{"promt": "a"}', 400, "promt"),
    ('{"prompt": 1}', 400, "prompt"), ('{"prompt": [1, "a"]}', 400, "prompt"), ('{"prompt": []}', 200, None),
    ('{"prompt": [true]}', 400, "prompt"), ('{"prompt": [[]]}', 200, None), ('{"prompt": [99999]}', 400, "prompt"),
    ('{"prompt": [-1]}', 400, "prompt"), ('{"prompt": "\\ud800"}', 400, "prompt"),
    (json.dumps({"prompt": "a " * 5000}), 400, "prompt"), ('{"temperature": -1}', 400, "temperature"),
    ('{"temperature": "hot"}', 400, "temperature"), ('{"temperature": 1e999}', 400, "temperature"),
    ('{"top_p": 0}', 400, "top_p"), ('{"max_tokens": -1}', 400, "max_tokens"),
    ('{"max_tokens": true}', 400, "max_tokens"),
    ('{"n": 0}', 400, "n"), ('{"n": 1000000000}', 400, "n"), ('{"stop": [""]}', 400, "stop"),
    ('{"stop": 5}', 400, "stop"),
    ('{"seed": 1' + "0" * 5000 + "}", 400, None), ('{"logprobs": 1000}', 400, "logprobs"),
    ('{"best_of": 1, "n": 2}', 400, "best_of"), ('{"best_of": 2, "stream": true}', 400, "best_of"),
    ('{"stream_options": {}}', 400, "stream_options"), ('{"suffix": "x"}', 400, "suffix"),
    ('{"logit_bias": {"1": 5}}', 400, "logit_bias"), ('{"model": "gpt-4"}', 404, "model"),
    ('{"model": "tiny@v99"}', 404, "model"), ('{"model": 5}', 400, "model"),
    (json.dumps({"prompt": "a" * 5_000_000}), 413, None),
]  # fmt: skip


@pytest.mark.parametrize(("content", "status", "param"), BAD, ids=lambda value: str(value)[:30])
def test_a_bad_request_is_refused_in_openais_form(content, status, param, running):
    reply = post(running, content)
    assert reply.status_code == status
    if status != 200:
        error = reply.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"} and error["message"]
        assert error["param"] == param
        assert "\n" not in error["message"] and len(error["message"]) < 500


def test_too_many_texts_are_refused_before_anything_is_made_of_them(running, monkeypatch):
    """A body of 4 MB asked for 128 million texts, which were made before they were counted."""
    monkeypatch.setattr(replies, "engine_requests", lambda *args: pytest.fail("they were made"))
    reply = post(running, json.dumps({"prompt": ["a"] * 1000, "n": 2}))
    assert reply.status_code == 400 and "2,000 texts" in reply.json()["error"]["message"]


def test_openais_client_raises_its_own_errors(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="tiny", prompt="a", temperature=-1)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="other", prompt="a")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="base model"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hello"}])


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nope", 404), ("GET", "/v1/completions", 405)])
def test_paths_that_are_not_there_are_refused_in_the_same_form(method, path, status, running):
    reply = httpx.request(method, running.url + path)
    assert reply.status_code == status and reply.json()["error"]["message"]


def test_a_key_is_asked_for_where_one_is_set(loaded):
    with serve(Shelf(v1=loaded), replace(QUICK, key="secret")) as running:
        for key in ("wrong", "secre", "secrets", "sécret"):
            headers = {"Authorization": f"Bearer {key}".encode()}
            assert httpx.get(f"{running.url}/v1/models", headers=headers).status_code == 401
        for given, status in (("bearer secret", 200), ("Basic secret", 401), ("secret", 401)):
            headers = {"Authorization": given}
            assert httpx.get(f"{running.url}/v1/models", headers=headers).status_code == status
        with pytest.raises(openai.AuthenticationError):
            client_of(running, "wrong").completions.create(model="tiny", prompt="a")
        assert client_of(running, "secret").completions.create(model="tiny", prompt="a").choices
        assert httpx.get(f"{running.url}/health").status_code == httpx.get(f"{running.url}/ready").status_code == 200


def test_the_models_are_named_as_a_request_may_name_them(client, loaded):
    names = {model.id: model for model in client.models.list()}
    assert names.keys() == {"tiny", "tiny@champion", "tiny@v1"}
    assert names["tiny"].root == "tiny@v1" and names["tiny"].max_model_len == loaded.seq_length


def test_the_description_of_the_api_refers_to_nothing_that_is_not_there(running):
    described = httpx.get(f"{running.url}/openapi.json")
    body = described.json()["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"prompt", "stream_options"} < body["properties"].keys() and not body["additionalProperties"]
    assert "$defs" not in described.text


def test_a_text_is_tokenized(running, loaded):
    reply = post(running, json.dumps({"prompt": "naïve 塔"}), "/tokenize").json()
    assert reply["tokens"] == loaded.tokenizer.encode("naïve 塔").ids
    assert (reply["count"], reply["max_model_len"]) == (len(reply["tokens"]), loaded.seq_length)
    assert post(running, '{"text": "a"}', "/tokenize").status_code == 400


def test_a_full_queue_is_429_and_nothing_else(loaded):
    with serve(Shelf(v1=loaded), replace(QUICK, rows=1, waiting=1)) as running:
        running.never_end()
        gone = threading.Event()
        threads = [threading.Thread(target=stream_until, args=(running, gone)) for _ in range(2)]
        for number, thread in enumerate(threads, 1):
            thread.start()
            wait_until(lambda number=number: running.state.worker.running + running.state.worker.waiting == number)
        refused = post(running, '{"prompt": "a"}')
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        with pytest.raises(openai.RateLimitError):
            client_of(running).completions.create(model="tiny", prompt="a")
        gone.set()
        for thread in threads:
            thread.join()
        wait_until(lambda: running.state.worker.running == 0)
        assert post(running, '{"prompt": "a"}').status_code == 200


def stream_until(running: Running, gone: threading.Event) -> None:
    """Ask for a text without an end, and leave when `gone` is set."""
    asked = {"prompt": "the", "max_tokens": ENDLESS, "stream": True}
    with httpx.stream("POST", f"{running.url}/v1/completions", json=asked, timeout=60) as stream:
        for _ in stream.iter_lines():
            if gone.is_set():
                return


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row(stream, running):
    running.never_end()
    body = json.dumps({"prompt": "the", "max_tokens": ENDLESS, "stream": stream, "n": 2})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall((head + body).encode())
        wait_until(lambda: running.state.worker.running == 2)
    wait_until(lambda: running.state.worker.running == 0)


def test_a_request_that_takes_too_long_is_ended(loaded):
    with serve(Shelf(v1=loaded), replace(QUICK, seconds=0.2)) as running:
        running.never_end()
        assert post(running, json.dumps({"prompt": "the", "max_tokens": ENDLESS, "n": 8})).status_code == 504
        asked = {"prompt": "the", "max_tokens": ENDLESS, "stream": True, "n": 8}
        with pytest.raises(openai.APIError, match=r"over 0\.2 seconds"):
            list(client_of(running).completions.create(model="tiny", **asked))
        wait_until(lambda: running.state.worker.running == 0)


def test_before_the_first_promotion_it_says_why_and_then_serves_it(loaded):
    shelf = Shelf()
    with serve(shelf) as running:
        assert httpx.get(f"{running.url}/health").status_code == 200
        wait_until(lambda: "there is no champion" in (running.state.reason or ""))
        ready = httpx.get(f"{running.url}/ready")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        for reply in (post(running, '{"prompt": "a"}'), httpx.get(f"{running.url}/v1/models")):
            assert reply.status_code == 503 and "there is no champion" in reply.json()["error"]["message"]
        shelf.versions["tiny@v1"], shelf.champion = loaded, "v1"
        running.wait_until_served("v1")
        assert post(running, '{"prompt": "a"}').json()["model"] == "tiny@v1"
        assert httpx.get(f"{running.url}/ready").json() == {
            "ready": True, "version": "tiny@v1", "reason": None, "refused": None,
        }  # fmt: skip


def test_requests_go_over_to_the_next_version_and_end_on_the_one_they_began_with(loaded):
    shelf = Shelf(v1=loaded, v2=Damaged("v2 is damaged"), v3=another(loaded, 3))
    greedy = SamplingConfig(max_tokens=8, temperature=0)
    asked = {"model": "tiny", "prompt": "the old", "max_tokens": 8, "temperature": 0}
    with serve(shelf) as running:
        client = client_of(running)
        running.never_end()
        long = client.completions.create(**{**asked, "max_tokens": ENDLESS}, stream=True)
        first = next(long)
        shelf.champion = "v2"
        wait_until(lambda: "v2 is damaged" in (running.state.follower.refused or ""))
        assert httpx.get(f"{running.url}/ready").json() == {
            "ready": True, "version": "tiny@v1", "reason": None, "refused": "v2 is damaged",
        }  # fmt: skip
        assert client.completions.create(**asked).model == "tiny@v1"
        shelf.champion = "v3"
        running.wait_until_served("v3")
        reply = client.completions.create(**asked)
        assert (reply.model, reply.choices[0].text) == (
            "tiny@v3",
            offline(shelf.versions["tiny@v3"], "the old", greedy),
        )
        assert next(long).model == first.model == "tiny@v1"
        long.close()
        wait_until(lambda: list(running.state.worker.served) == ["tiny@v3"])
        shelf.champion = "v1"  # a rollback
        running.wait_until_served("v1")
        assert client.completions.create(**asked).choices[0].text == offline(loaded, "the old", greedy)


@pytest.mark.parametrize("between", ["v1", None])
def test_a_version_that_was_refused_is_tried_again_when_it_is_the_champion_again(loaded, monkeypatch, between):
    monkeypatch.setattr(worker, "TRY_AGAIN_SECONDS", 10 * PATIENCE)
    shelf = Shelf(v1=loaded, v2=Damaged("v2 is damaged"))
    with serve(shelf) as running:
        running.wait_until_served("v1")
        for champion, reason in [("v2", "v2 is damaged"), (between, None if between else "no champion")] * 2:
            shelf.champion = champion
            wait_until(lambda reason=reason: (reason or "None") in str(running.state.follower.refused))


def test_a_request_may_begin_while_its_version_is_left(loaded, monkeypatch):
    shelf = Shelf(v1=loaded, v2=another(loaded, 2))
    with serve(shelf) as running:
        worker = running.state.worker
        engine, encode = worker.current.engine, worker.current.engine.encode

        def encode_late(prompt: str) -> list[int]:
            shelf.champion = "v2"
            wait_until(lambda: list(worker.served) == ["tiny@v2"])
            return encode(prompt)

        monkeypatch.setattr(engine, "encode", encode_late)
        assert post(running, '{"prompt": "a"}').json()["model"] == "tiny@v1"
        assert post(running, '{"prompt": "a"}').json()["model"] == "tiny@v2"
        wait_until(lambda: list(worker.served) == ["tiny@v2"])


def test_a_version_that_is_not_in_use_is_served_where_it_is_named(loaded):
    shelf = Shelf(v1=loaded, v2=another(loaded, 2))
    asked = {"prompt": "the old", "max_tokens": 8, "temperature": 0}
    with serve(shelf) as running:
        reply = client_of(running).completions.create(model="tiny@v2", **asked)
        expected = offline(shelf.versions["tiny@v2"], "the old", SamplingConfig(max_tokens=8, temperature=0))
        assert (reply.model, reply.choices[0].text) == ("tiny@v2", expected)
        assert client_of(running).completions.create(model="tiny@champion", **asked).model == "tiny@v1"


def test_an_engine_that_fails_is_an_error_of_its_requests_alone(loaded, monkeypatch):
    with serve(Shelf(v1=loaded)) as running:
        engine = running.state.worker.served["tiny@v1"].engine
        with monkeypatch.context() as patch:
            patch.setattr(engine.model, "logits", lambda hidden_NC: hidden_NC * math.nan)
            assert post(running, '{"prompt": "a"}').status_code == 500
            with pytest.raises(openai.APIError, match="not finite"):
                list(client_of(running).completions.create(model="tiny", prompt="a", stream=True))
        assert post(running, '{"prompt": "a"}').status_code == 200


def test_a_request_that_comes_while_the_engine_fails_is_answered(loaded, monkeypatch):
    """It came between the failure and the end of those who waited, was dropped, and never got an answer."""
    with serve(Shelf(v1=loaded)) as running:
        worker = running.state.worker
        engine, late = worker.served["tiny@v1"].engine, []

        def clear() -> None:
            late.append(worker.submit(worker.current, [Request([1], SamplingConfig(max_tokens=1))], stream=False))
            Engine.clear(engine)

        with monkeypatch.context() as patch:
            patch.setattr(engine, "clear", clear)
            patch.setattr(engine.model, "logits", lambda hidden_NC: hidden_NC * math.nan)
            assert post(running, '{"prompt": "a"}').status_code == 500
        wait_until(lambda: not late[0].pieces.empty())


def test_a_version_that_fails_in_an_unforeseen_way_does_not_end_the_following(loaded):
    shelf = Shelf(v1=loaded, v2=KeyError("weights"), v3=another(loaded, 3))
    with serve(shelf) as running:
        shelf.champion = "v2"
        wait_until(lambda: running.state.follower.refused == "tiny@v2: 'weights'")
        shelf.champion = "v3"
        running.wait_until_served("v3")


def test_a_probe_of_ids_that_the_model_lacks_is_damaged(loaded):
    probe = Probe([1, loaded.model.vocab_size], [1.0])
    with pytest.raises(Damaged, match=r"tiny@v1: its probe is damaged: .* is no token id"):
        check_probe(Engine(loaded), probe, "tiny@v1")


def test_each_request_has_an_id_and_no_prompt_is_in_the_log(running, caplog):
    with caplog.at_level(logging.DEBUG):
        reply = post(running, json.dumps({"prompt": "the silver lamp", "max_tokens": 3, "temperature": 0}))
    number = reply.headers["x-request-id"]
    assert reply.json()["id"] == f"cmpl-{number}"
    wait_until(lambda: number in caplog.text)
    assert "silver" not in caplog.text and reply.json()["choices"][0]["text"] not in caplog.text


def test_a_fault_of_the_server_has_the_id_by_which_the_log_names_it(running, caplog, monkeypatch):
    monkeypatch.setattr(replies, "engine_requests", lambda *arguments: 1 / 0)
    reply = post(running, '{"prompt": "a"}')
    assert reply.status_code == 500 and f"request {reply.headers['x-request-id']} failed" in caplog.text


def test_a_version_that_is_not_there_is_refused_without_a_folder_of_the_server(running):
    reply = post(running, '{"prompt": "a", "model": "tiny@v9"}')
    assert (reply.status_code, reply.json()["error"]["message"]) == (404, "'tiny@v9': no such version")


def test_a_text_that_is_cancelled_while_it_waits_has_read_and_written_nothing(loaded):
    figures, engine = Figures(), Engine(loaded)
    generation = engine.submit(Request([5, 6, 7], SamplingConfig()))
    generation.cancelled = True
    [piece] = engine.step()
    figures.note(Job(Served(Version("tiny@v1", loaded, {}, None), engine), [generation], stream=False), piece)
    read = figures.registry.get_sample_value
    assert read("textgen_request_success_total", {"finished_reason": "cancelled"}) == 1
    assert read("textgen_prompt_tokens_total") == read("textgen_time_to_first_token_seconds_count") == 0


def test_prometheus_reads_the_figures(running):
    from prometheus_client.parser import text_string_to_metric_families

    def read() -> dict[str, float]:
        text = httpx.get(f"{running.url}/metrics").text
        return {
            sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples
        }

    before = read()
    post(running, json.dumps({"prompt": [5, 6, 7], "max_tokens": 4, "temperature": 0}))
    after = read()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert (grown["textgen_prompt_tokens_total"], grown["textgen_generation_tokens_total"]) == (3, 4)
    assert grown["textgen_time_to_first_token_seconds_count"] == grown["textgen_e2e_request_latency_seconds_count"] == 1
    assert after["textgen_num_requests_running"] == after["textgen_num_requests_waiting"] == 0


@pytest.mark.parametrize("origin", [None, "https://notes.example"])
def test_other_sites_may_ask_only_where_they_are_allowed(origin, loaded):
    with serve(Shelf(v1=loaded), replace(QUICK, allow_origin=origin)) as running:
        reply = httpx.get(f"{running.url}/health", headers={"Origin": "https://notes.example"})
        assert reply.headers.get("access-control-allow-origin") == origin
