"""What features describe: users and items."""

from feast import Entity, ValueType

from feature_repo.owners import FEATURE_PLATFORM

user = Entity(
    name="user",
    join_keys=["user_id"],
    value_type=ValueType.STRING,
    owner=FEATURE_PLATFORM,
    description="A person, by the id of the data contract.",
    tags={"pii": "true"},
)

item = Entity(
    name="item",
    join_keys=["item_id"],
    value_type=ValueType.STRING,
    owner=FEATURE_PLATFORM,
    description="Something of the catalogue that can be shown, by the id of the data contract.",
)
