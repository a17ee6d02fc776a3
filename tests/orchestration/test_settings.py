"""What a user gets told about settings that cannot be used."""

import pydantic
import pytest

from orchestration.settings import Settings, refused, unknown_variables


@pytest.mark.parametrize(
    ("name", "value", "cause"),
    [
        ("BELVEDERE_SPLIT", "random", "'global_time' or 'leave_one_out'"),
        ("BELVEDERE_RAY_CPUS", "0", "greater than or equal to 1"),
        ("BELVEDERE_FIRST_DAY", "yesterday", "valid date"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_with_its_value_and_what_it_may_be(monkeypatch, name, value, cause):
    monkeypatch.setenv(name, value)
    with pytest.raises(pydantic.ValidationError) as caught:
        Settings()
    said = refused(caught.value)
    assert said.startswith(f"{name} is set to '{value}'") and cause in said and "\n" not in said


def test_a_line_of_the_env_file_that_is_no_setting_is_refused_by_its_name(tmp_path):
    (tmp_path / ".env").write_text("BELVEDERE_DATASETS=contract:/data/shop\n")
    with pytest.raises(pydantic.ValidationError) as caught:
        Settings(_env_file=tmp_path / ".env")
    assert refused(caught.value).startswith("BELVEDERE_DATASETS is set to 'contract:/data/shop'")


def test_a_misspelt_variable_is_found():
    assert unknown_variables({"BELVEDERE_DATSET": "x", "BELVEDERE_DATASET": "y", "HOME": "z"}) == ["BELVEDERE_DATSET"]
