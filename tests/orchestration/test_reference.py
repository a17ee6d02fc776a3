"""The reference pages say what the code says."""

from orchestration.reference import pages


def test_reference_pages_are_those_of_the_code():
    for path, text in pages().items():
        assert path.exists() and path.read_text() == text, (
            f"{path.name} is old: run `python -m orchestration.reference`"
        )
