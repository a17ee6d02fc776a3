"""The budget of a run is hard: reserved before anything is asked, given back where it was not spent."""

import threading

import pytest

from ray_jobs.captions.budget import Budget


def test_reserves_as_many_as_fit_in_their_order():
    budget = Budget(tokens=100, usd=0.0, usd_per_token=0.0)
    assert budget.reserve([40, 40, 40]) == 2
    assert budget.left == 20
    assert budget.reserve([30, 10]) == 0, "a later, cheaper request does not overtake"
    budget.settle(reserved=80, spent=30, usd=0.0)
    assert budget.left == 70
    assert budget.reserve([30, 40, 1]) == 2


def test_money_limits_tokens_at_the_highest_price():
    budget = Budget(tokens=0, usd=1.0, usd_per_token=0.01)
    assert budget.reserve([60, 60]) == 1
    assert Budget(tokens=50, usd=1.0, usd_per_token=0.01).reserve([60]) == 0, "the tighter limit holds"


def test_money_that_was_spent_counts_at_its_own_price():
    """A thousand cheap tokens of a prompt and fifty dear ones of an answer, as it is with every endpoint."""
    budget = Budget(tokens=0, usd=10.0, usd_per_token=0.004)
    assert budget.reserve([2000]) == 1 and budget.left == 500
    budget.settle(reserved=2000, spent=1050, usd=1000 * 0.001 + 50 * 0.004)
    assert budget.left == pytest.approx((10.0 - 1.2) / 0.004)
    assert budget.reserve([2000]) == 1, "8.80 of 10 USD are left"


def test_without_a_limit_everything_fits():
    assert Budget(tokens=0, usd=0.0, usd_per_token=0.01).reserve([10**9] * 3) == 3


def test_actors_that_reserve_at_once_never_overspend():
    budget = Budget(tokens=1000, usd=0.0, usd_per_token=0.0)
    got = []
    threads = [threading.Thread(target=lambda: got.append(budget.reserve([7] * 50))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(got) == 142 and budget.left == 1000 - 142 * 7
