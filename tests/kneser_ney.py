"""An interpolated Kneser-Ney trigram model of a token stream, and its perplexity on another.

Kneser & Ney 1995, in the interpolated form of Chen & Goodman 1999 (section 3), one discount n1 / (n1 + 2 n2) an order.
"""

import math
from collections import Counter
from collections.abc import Sequence

DISCOUNT_WITHOUT_SINGLETONS = 0.5  # the estimate is undefined there; any in (0, 1) leaves unseen tokens some mass


class Order:
    """The counts of one order: n-grams, and for each context its total and its number of distinct continuations."""

    def __init__(self, counts: Counter[tuple[int, ...]]) -> None:
        self.counts = counts
        self.totals: Counter[tuple[int, ...]] = Counter()
        self.continuations: Counter[tuple[int, ...]] = Counter()
        for ngram, count in counts.items():
            self.totals[ngram[:-1]] += count
            self.continuations[ngram[:-1]] += 1
        once = sum(count == 1 for count in counts.values())
        twice = sum(count == 2 for count in counts.values())
        self.discount = once / (once + 2 * twice) if once else DISCOUNT_WITHOUT_SINGLETONS


class KneserNeyTrigram:
    """P(token | the two before it), trained on one stream of ids below `vocab_size`."""

    def __init__(self, stream: Sequence[int], vocab_size: int) -> None:
        self.vocab_size = vocab_size
        trigrams = Counter(zip(stream, stream[1:], stream[2:], strict=False))
        bigrams_followed = Counter(trigram[1:] for trigram in trigrams)  # in how many contexts, not how often
        unigrams_followed = Counter(bigram[1:] for bigram in bigrams_followed)
        self.orders = [Order(unigrams_followed), Order(bigrams_followed), Order(trigrams)]

    def probability(self, token: int, context: tuple[int, ...]) -> float:
        """Return P(token | context), of at most two tokens of context."""
        p = 1 / self.vocab_size
        for n, order in enumerate(self.orders[: len(context) + 1]):
            recent = context[len(context) - n :]
            if total := order.totals[recent]:
                discounted = max(order.counts[(*recent, token)] - order.discount, 0.0)
                p = (discounted + order.discount * order.continuations[recent] * p) / total
        return p

    def perplexity(self, stream: Sequence[int]) -> float:
        """Return the perplexity of every token of `stream` but the first."""
        nats = 0.0
        for position in range(1, len(stream)):
            nats -= math.log(self.probability(stream[position], tuple(stream[max(0, position - 2) : position])))
        return math.exp(nats / (len(stream) - 1))
