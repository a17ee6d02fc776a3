import pytest

from ray_jobs.personas.claims import split_claims
from ray_jobs.personas.prompts import Interest, compose

FILMS = Interest(cluster=1, label="crime", titles=["Dr. No", "Heat. Again", "Se7en; uncut"])
SONGS = Interest(cluster=2, label="music", titles=["Fame"])


@pytest.mark.parametrize(
    "sentences",
    [
        [(FILMS, "Likes slow crime stories")],
        [(FILMS, "Likes crime. And secrets"), (SONGS, "Enjoys songs, for example loud ones")],
        [(SONGS, "Loves songs such as fame"), (FILMS, "Likes crime")],
        [(FILMS, "Likes Dr. No and Heat. Again"), (SONGS, "Enjoys songs")],
    ],
)
@pytest.mark.parametrize("explored", [[], ["film noir (Laura)", "western"]])
def test_claims_come_out_of_the_text_as_they_went_in(sentences, explored):
    text = compose(sentences, explored)
    assert split_claims(text, [i.titles for i, _ in sentences]) == [said for _, said in sentences]


def test_a_text_that_ends_before_leaves_empty_claims():
    assert split_claims("Likes crime", [FILMS.titles, SONGS.titles]) == ["Likes crime", ""]
