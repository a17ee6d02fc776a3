"""A reader refuses content of another version."""

import pyarrow as pa
import pytest

from feature_repo.versions import ContentVersionError, require_rows_of


@pytest.mark.parametrize("carried", [["v1", None, "v1"], [None, None], []])
def test_rows_of_the_expected_version_and_rows_without_pass_and_any_other_row_does_not(carried):
    assert require_rows_of("v1", pa.array(carried, pa.string()), "view.token_version") is None
    with pytest.raises(ContentVersionError):
        require_rows_of("v1", pa.array([*carried, "v0"], pa.string()), "view.token_version")


def test_rows_of_another_version_are_refused():
    with pytest.raises(ContentVersionError, match=r"view.token_version carries v0 in some rows, not v1"):
        require_rows_of("v1", pa.chunked_array([["v1"], ["v0", None]]), "view.token_version")
