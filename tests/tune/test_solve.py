import itertools

import numpy as np
import pytest

from gear_trt.tune.solve import Choice, Frontier


def random_layers(seed, count=4, choices=5):
    rng = np.random.default_rng(seed)
    return [
        [Choice(int(rng.integers(1, 40)) * 64, float(rng.random())) for _ in range(choices)]
        for _ in range(count)
    ]


def totals(layers, picks):
    chosen = [layer[pick] for layer, pick in zip(layers, picks, strict=True)]
    return sum(choice.cost for choice in chosen), sum(choice.loss for choice in chosen)


def every_outcome(layers):
    indices = itertools.product(*(range(len(layer)) for layer in layers))
    return [totals(layers, picks) for picks in indices]


@pytest.mark.parametrize("seed", range(5))
def test_no_other_choice_within_a_budget_loses_less(seed):
    layers = random_layers(seed)
    outcomes = every_outcome(layers)
    frontier = Frontier(layers)
    for budget in np.linspace(min(outcomes)[0], max(outcomes)[0], 9):
        cost, loss = totals(layers, frontier.within(budget))
        assert cost <= budget
        assert loss == pytest.approx(min(other for size, other in outcomes if size <= budget))


@pytest.mark.parametrize("seed", range(5))
def test_no_smaller_choice_loses_as_little(seed):
    layers = random_layers(seed)
    outcomes = every_outcome(layers)
    frontier = Frontier(layers)
    for limit in (0.4, 0.8, 1.6):
        possible = [size for size, loss in outcomes if loss <= limit]
        picks = frontier.below(limit)
        if not possible:
            assert picks is None
            continue
        cost, loss = totals(layers, picks)
        assert loss <= limit
        assert cost == min(possible)


def test_what_cannot_be_reached_is_none():
    frontier = Frontier([[Choice(64, 1.0), Choice(128, 0.5)]] * 2)
    assert frontier.within(127) is None
    assert frontier.within(0) is None
    assert frontier.below(0.99) is None
    assert frontier.within(128) == [0, 0]
    assert frontier.within(10_000) == [1, 1]
    assert frontier.below(1.0) == [1, 1]
