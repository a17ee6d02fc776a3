"""Tests of `feature_repo`, imported here so that Feast's import is cheap in all of them."""

import feature_repo  # noqa: F401
