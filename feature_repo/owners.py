"""Teams that answer for features; the same names as in the Dagster UI."""

FEATURE_PLATFORM = "team:feature-platform"
CONTENT_UNDERSTANDING = "team:content-understanding"
PERSONALIZATION = "team:personalization"
RANKING = "team:ranking"
