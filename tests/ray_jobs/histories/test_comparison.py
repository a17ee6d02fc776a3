"""The comparison of history models on small tables: tuned on validation, tested once, nothing trained twice."""

import numpy as np
import pytest

from ray_jobs.histories import comparison as history_comparison
from ray_jobs.histories.comparison import Config, Trial, _judged
from ray_jobs.histories.data import Inputs
from ray_jobs.tables.interactions import RAW_INTERACTIONS, SPLITS
from tests.factories import seed_interactions

pytestmark = pytest.mark.usefixtures("ray_cluster")


def config_of(tables, **changes):
    return Config(
        **(
            {
                "warehouse": tables.warehouse(),
                "artifacts": tables.artifacts(),
                "inputs": Inputs(
                    raw_interactions=tables.version(RAW_INTERACTIONS), splits=tables.version(SPLITS), semantic_ids=None
                ),
                "families": ("vista",),
                "seeds": (0, 1),
                "grid": (Trial(learning_rate=1e-2, dropout=0.0), Trial(learning_rate=1e-4, dropout=0.0)),
                "width": 8,
                "layers": 1,
                "history_events": 16,
                "epochs": {"click": 2, "next_item": 2},
                "resamples": 50,
            }
            | changes
        )
    )


@pytest.fixture
def seeded(tables):
    seed_interactions(tables, num_users=40, events_per_user=20)
    return tables


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"families": ("vista", "vista")}, "vista is there twice"),
        ({"families": ()}, "at least 1 item"),
        ({"families": ("vsta",)}, "There is no model 'vsta'"),
        ({"families": ("sim_hard",)}, "let items have them"),
        ({"seeds": (0, 0)}, "0 is there twice"),
        ({"grid": (Trial(learning_rate=1e-2, dropout=0.0),) * 2}, "is there twice"),
        ({"objectives": ("click", "click")}, "click is there twice"),
        ({"epochs": {"click": 2}}, "epochs has no number for next_item"),
        ({"arguments": {"click/vsta": {}}}, "There is no model 'vsta'"),
        ({"arguments": {"clik/vista": {}}}, "begin it with click/ or next_item/"),
        ({"arguments": {"vista": {"attention": "soft"}}}, "should be 'quasi_linear' or 'softmax'"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(seeded, changes, said):
    with pytest.raises(ValueError, match=said):
        config_of(seeded, **changes)


def test_a_trial_that_came_to_no_number_is_not_the_best():
    with pytest.raises(ValueError, match="trial of vista for click came to nan on valid"):
        _judged([("click", "vista", Trial(learning_rate=1.0, dropout=0.0), float("nan"))])


def test_variants_stand_beside_their_family(seeded):
    config = config_of(seeded, families=("vista", "vista_softmax"), seeds=(0,), objectives=("click",))
    found = history_comparison.run(config)
    assert found.num_trained == 4
    values = {x.model: x.value for x in found.lines if (x.metric, x.baseline) == ("auc", "")}
    assert values["vista"] != values["vista_softmax"]


def test_every_family_is_tuned_alike_and_tested_with_a_placebo_beside_floors(seeded):
    first = history_comparison.run(config_of(seeded))
    # Two trials and one more seed, of two objectives.
    assert (first.num_trained, first.num_found) == (6, 0)
    for objective in ("click", "next_item"):
        tuned = [t for t in first.tuned if t.objective == objective]
        assert [t.chosen for t in tuned].count(True) == 1 and max(tuned, key=lambda t: t.valid).chosen
    key = {(x.objective, x.model, x.metric, x.baseline): x for x in first.lines}
    assert len(key) == len(first.lines)
    for model in ("vista", "vista_shuffled", "popularity", "item_knn", "markov_chain"):
        assert ("next_item", model, "hr_at_200", "") in key
    assert key["next_item", "vista", "ndcg_at_10", "markov_chain"].verdict.startswith("next_item: vista against")
    assert key["click", "vista", "group_auc", "popularity"].num_seeds == 2
    assert ("click", "vista_shuffled", "auc", "popularity") in key
    # Floors and models are asked for the same pairs.
    requests = {(x.num_examples, x.num_users) for x in first.lines if x.metric == "request_auc"}
    assert len(requests) == 1 and key["click", "vista", "request_auc", "popularity"].baseline == "popularity"
    for x in first.lines:
        assert x.low <= x.value <= x.high or x.baseline or x.num_seeds > 1
        assert np.isfinite([x.value, x.low, x.high]).all()
    again = history_comparison.run(config_of(seeded))
    assert (again.num_trained, again.num_found) == (0, 6) and again.lines == first.lines
    more = history_comparison.run(config_of(seeded, seeds=(0, 1, 2), objectives=("click",)))
    assert (more.num_trained, more.num_found) == (1, 3)
