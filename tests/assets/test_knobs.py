"""A knob that cannot be is told in one sentence, once."""

import dagster as dg
import pydantic
import pytest

from assets.failures import sentence
from assets.knobs import Knobs


class Sized(Knobs):
    size: int = pydantic.Field(1, ge=1)


@dg.asset(retry_policy=dg.RetryPolicy(max_retries=2))
def sized(config: Sized) -> dg.MaterializeResult:
    return dg.MaterializeResult(metadata={"size": config.size})


@pytest.mark.parametrize("size", [0, -3])
def test_a_refused_knob_is_named_and_not_tried_again(instance, size):
    asked = {"ops": {"sized": {"config": {"size": size}}}}
    result = dg.materialize([sized], instance=instance, run_config=asked, raise_on_error=False)
    (failed,) = result.get_step_failure_events()
    assert failed.step_failure_data.user_failure_data.description == (
        f"size is {size}, but Input should be greater than or equal to 1: correct the run's configuration."
    )
    assert not [event for event in result.all_events if event.is_step_up_for_retry]


def test_what_can_be_is_taken():
    result = dg.materialize([sized], run_config={"ops": {"sized": {"config": {"size": 7}}}})
    assert result.success


def test_an_error_of_several_values_names_all():
    class Pair(pydantic.BaseModel):
        a: int
        b: int

    with pytest.raises(pydantic.ValidationError) as caught:
        Pair(a="secret", b="secret")
    said = sentence(caught.value)
    assert said.startswith("a: Input should be") and "; b: Input should be" in said
    assert "secret" not in said, "a value may be an address with its password"
