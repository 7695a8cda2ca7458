"""Sampling: what transformers gives, the distribution that is asked for, and where a text begins and ends."""

import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from textgen.errors import Damaged
from textgen.inference.generate import SamplingConfig, generate, keep_min_p, keep_top_k, keep_top_p, sample
from textgen.model.pretrained import LoadedModel
from textgen.text.encoding import END_OF_ROW, END_OF_TEXT
from textgen.text.tokens import load_manifest_tokenizer

GREEDY = SamplingConfig(max_tokens=12, temperature=0)
PROMPTS = ["the old river", "naïve 塔", "", "a" * 15]


class Scripted(nn.Module):
    """A model that writes given ids, and keeps the contexts that it was shown."""

    def __init__(self, ids: list[int], vocab_size: int) -> None:
        super().__init__()
        self.anywhere = nn.Parameter(torch.zeros(()))
        self.ids, self.vocab_size, self.contexts = ids, vocab_size, []

    def forward(self, context_1T: Tensor) -> Tensor:
        next_id = self.ids[len(self.contexts)]
        self.contexts.append(context_1T[0].tolist())
        return nn.functional.one_hot(torch.tensor([[next_id]]), self.vocab_size).float()


@pytest.fixture
def script(make_tokens):
    """Return a function from a text, and the kind of its tokens, to a model that writes it."""

    def write(text: str, kind: str = "bpe") -> LoadedModel:
        tokens = make_tokens(kind)
        tokenizer = load_manifest_tokenizer(tokens)
        return LoadedModel(Scripted(tokenizer.encode(text).ids, tokens.vocab_size), tokenizer, seq_length=6)

    return write


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_that_of_transformers(prompt, opinionated):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, loaded = opinionated
    stock, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids_1T = torch.tensor([tokenizer(prompt)["input_ids"] or [tokenizer.bos_token_id]])
    assert ids_1T.shape[1] + GREEDY.max_tokens <= loaded.seq_length
    written_1T = stock.generate(
        ids_1T, attention_mask=torch.ones_like(ids_1T), do_sample=False, max_new_tokens=GREEDY.max_tokens
    )
    continuation = tokenizer.decode(written_1T[0, ids_1T.shape[1] :], skip_special_tokens=True)
    assert generate(loaded, prompt, GREEDY) == continuation != ""


def random_logits(seed: int) -> Tensor:
    return 3 * torch.randn(50, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("top_k", [1, 2, 10, 50, 80])
def test_top_k_keeps_what_transformers_keeps(top_k, seed):
    from transformers import TopKLogitsWarper

    logits_V = random_logits(seed)
    logits_V[:5] = logits_V[5]  # equals stay together
    assert torch.equal(keep_top_k(logits_V, top_k), TopKLogitsWarper(top_k)(None, logits_V[None])[0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("top_p", [1e-9, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_what_transformers_keeps(top_p, seed):
    from transformers import TopPLogitsWarper

    logits_V = random_logits(seed)
    assert torch.equal(keep_top_p(logits_V, top_p), TopPLogitsWarper(top_p)(None, logits_V[None])[0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("min_p", [1e-9, 0.01, 0.1, 0.5, 1.0])
def test_min_p_keeps_what_transformers_keeps(min_p, seed):
    from transformers import MinPLogitsWarper

    logits_V = random_logits(seed)
    assert torch.equal(keep_min_p(logits_V, min_p), MinPLogitsWarper(min_p)(None, logits_V[None])[0])


def test_top_k_0_top_p_1_and_min_p_0_keep_every_token():
    logits_V = random_logits(0)
    for kept_V in (keep_top_k(logits_V, 0), keep_top_p(logits_V, 1.0), keep_min_p(logits_V, 0.0)):
        assert torch.equal(kept_V, logits_V)


DRAWS, CHI_SQUARE_LIMIT = 5000, 24.3  # exceeded once in 1000 seeds, with 7 degrees of freedom


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, 8),
        ({"temperature": 0.5}, 8),
        ({"temperature": 2.0, "top_k": 3}, 3),
        ({"top_p": 0.8}, 5),
        ({"min_p": 0.31}, 4),
    ],
)
def test_tokens_are_drawn_as_often_as_their_softmax_says(settings, kept):
    sampling, probabilities_V = SamplingConfig(**settings), torch.tensor([0.2, 0.05, 0.3, 0.1, 0.15, 0.06, 0.09, 0.05])
    expected_V = probabilities_V ** (1 / sampling.temperature)
    expected_V[expected_V.argsort(descending=True)[kept:]] = 0
    expected_V *= DRAWS / expected_V.sum()

    generator = torch.Generator().manual_seed(0)
    drawn = Counter(sample(probabilities_V.log(), sampling, generator) for _ in range(DRAWS))
    assert drawn.keys() == set(expected_V.nonzero().flatten().tolist())
    assert sum((drawn[id] - expected_V[id].item()) ** 2 / expected_V[id].item() for id in drawn) < CHI_SQUARE_LIMIT


def test_temperature_0_takes_the_likeliest_token():
    assert sample(torch.tensor([0.0, 0.1, -3.0]), SamplingConfig(temperature=0), torch.Generator()) == 1


def test_a_seed_gives_the_same_text_and_another_seed_another(opinionated):
    _, loaded = opinionated
    first, again, other = (generate(loaded, "the", SamplingConfig(max_tokens=20, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_no_seed_gives_another_text_each_time(opinionated):
    _, loaded = opinionated
    assert generate(loaded, "the", SamplingConfig(max_tokens=30)) != generate(
        loaded, "the", SamplingConfig(max_tokens=30)
    )


def test_the_global_generator_is_left_alone(opinionated):
    before = torch.get_rng_state()
    generate(opinionated[1], "the", SamplingConfig(max_tokens=3))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_text_ends_at_the_end_of_text_token(script):
    assert generate(script(f" river{END_OF_TEXT} lamp"), "the old", GREEDY) == " river"


def test_a_text_ends_at_max_tokens(script):
    assert generate(script("abcdefghijklmnop"), "the", SamplingConfig(max_tokens=3, temperature=0)) == "abc"


def test_a_character_of_several_tokens_is_written_whole(script):
    assert generate(script(f"塔ï{END_OF_TEXT}"), "é", GREEDY) == "塔ï"


def test_the_model_sees_the_last_tokens_of_a_long_prompt(script):
    loaded, prompt = script(f"xy{END_OF_TEXT}"), "0123456789"
    assert generate(loaded, prompt, GREEDY) == "xy"
    ids = loaded.tokenizer.encode(prompt + "xy").ids
    assert len(ids) == 12
    assert loaded.model.contexts == [ids[4:10], ids[5:11], ids[6:12]]


@pytest.mark.parametrize(("kind", "end", "text"), [("bpe", END_OF_TEXT, "xy"), ("word", END_OF_ROW, " the river")])
def test_an_empty_prompt_starts_after_an_end_of_text(kind, end, text, script):
    loaded = script(f"{text}{end}", kind)
    assert generate(loaded, "", GREEDY) == text
    assert loaded.model.contexts[0] == [loaded.tokenizer.token_to_id(end)]


def test_a_temperature_near_0_takes_the_likeliest_token_too():
    logits_V = random_logits(0)
    assert sample(logits_V, SamplingConfig(temperature=1e-6), torch.Generator()) == logits_V.argmax()


@pytest.mark.parametrize("temperature", [1e-30, 1e-45, 1e-320])
def test_a_temperature_that_is_nearly_0_takes_the_likeliest(temperature):
    logits_V = torch.tensor([1.0, 3.0, 2.0])
    assert sample(logits_V, SamplingConfig(temperature=temperature), torch.Generator()) == 1


def test_a_model_whose_logits_are_not_finite_is_damaged(opinionated):
    _, loaded = opinionated
    broken = copy.deepcopy(loaded.model)
    with torch.no_grad():
        broken.model.norm.weight.fill_(torch.finfo(torch.float32).max)
    with pytest.raises(Damaged, match="not finite"):
        generate(replace(loaded, model=broken), "the", SamplingConfig(max_tokens=2))
