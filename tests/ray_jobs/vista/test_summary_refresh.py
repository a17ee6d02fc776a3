"""Refresh of summaries: streamed = whole, incremental = full, killed and resumed, for models with and without memory.

Shards are made one after the other in this process, as an actor makes them; `run` finds them and publishes.
"""

import dataclasses

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from models.long_history.families import FAMILIES
from models.long_history.vocabulary import fit_vocabulary
from models.vista.cache import dequantise
from models.vista.states import pack, unpack
from ray_jobs.checkpoints import write_model
from ray_jobs.histories.intake import sync
from ray_jobs.tables.vista import USER_STATES, USER_SUMMARIES
from ray_jobs.vista import export as vista_export
from ray_jobs.vista.export import read_statistics
from ray_jobs.vista.summary_shards import Config, Summarise, shard_name
from tests.ray_jobs.histories.test_store import events, write

EVERY, LIMIT = 4, 24
SHARDS = 2
SIZES = {"width": 8, "heads": 2, "layers": 2, "num_seeds": 2}


@pytest.fixture(params=["vista", "vista_causal"])
def export(request, tables):
    """Config of an export by a small model with random weights; its tokens are stored as they are."""
    words = fit_vocabulary(pa.array([f"i{i}" for i in range(50)]), pa.array(["click"]), np.arange(1.0, 6.0), [])
    torch.manual_seed(0)
    family = FAMILIES[request.param]
    config = family.config(
        num_items=len(words.items) + 1,
        num_codes=words.num_codes,
        num_actions=len(words.actions) + 1,
        num_values=words.num_values,
        **SIZES,
    )
    model = family.model(config)
    write_model(
        tables.artifacts(),
        "m",
        model,
        constructor=dataclasses.asdict(config),
        preprocessing={
            "family": request.param,
            "vocabulary": words.to_json(),
            "history_events": LIMIT,
            "block_examples": EVERY,
            "semantic_ids": None,
        },
        summary={},
    )
    return Config(
        warehouse=tables.warehouse(),
        artifacts=tables.artifacts(),
        version="s1",
        model="m",
        raw_interactions="r1",
        precision="fp32",
        shards=SHARDS,
        batch_snapshots=5,
    )


def make(config, shards=range(SHARDS)):
    """Makes shards as an actor does. Returns how many snapshots they computed."""
    sync(config.warehouse, config.artifacts, config.raw_interactions)
    base = vista_export._base(config)
    actor = Summarise(config, base)
    return sum(actor(pa.table({"shard": [s]}))["snapshots"][0].as_py() for s in shards)


def summaries(config):
    """Everything that readers get, in order."""
    rows = config.warehouse.read(USER_SUMMARIES).sort_by([("user_id", "ascending"), ("num_events", "ascending")])
    tokens = dequantise(rows["summary"], rows["scales"], form=config.format).tokens_NKD
    return pl.from_arrow(
        rows.select(["user_id", "num_events", "is_latest", "event_timestamp", "summary_version"])
    ), tokens


def export_of(config, **changes):
    """The whole export, in shards of this process."""
    config = config.model_copy(update=changes)
    computed = make(config)
    done = vista_export.run(config)
    assert done.shards_kept == SHARDS and read_statistics(config.artifacts, config.version) == done
    return done, computed, *summaries(config)


def same(one, other):
    assert one[0].equals(other[0]), "rows, moments and which is the latest"
    np.testing.assert_allclose(one[1], other[1], rtol=1e-4, atol=1e-5)
    return True


def test_streamed_is_whole(tables, export):
    """Histories of any length in parts of seven events give what they give at once, ties at the borders and all."""
    write(tables, events([70, 9, 1, 33]), "r1")
    *_, rows, tokens = export_of(export)
    assert rows.filter("is_latest")["num_events"].to_list() == [70, 9, 1, 33]
    again = export_of(export, version="s2", part_events=7, batch_snapshots=3)
    assert same((rows, tokens), again[2:]) and len(rows) == again[0].snapshots == again[1]


def test_a_refresh_gives_what_a_full_export_gives(tables, export):
    """New events, a new user, a user who is unchanged, one whose past changed, and one who left."""
    frame = events([40, 9, 21, 6, 5], days=12)
    late = frame["day"] >= "2025-01-09"
    before = frame.filter(~late & (pl.col("user_id") != "u4") | (pl.col("user_id") == "u1"))
    before = pl.concat([before, frame.filter(pl.col("user_id") == "u3").with_columns(pl.lit("gone").alias("user_id"))])
    write(tables, before, "r1")
    export_of(export)
    # A late event of u2's third day, and the users' last days.
    past = frame.filter(pl.col("user_id") == "u2")[2:3].with_columns(
        item_id=pl.lit("i7"), sequence=pl.lit(10_000, pl.Int64)
    )
    after = pl.concat([frame, past])
    write(tables, after, "r2")
    done, computed, rows, tokens = export_of(export, version="s2", raw_interactions="r2", incremental=True)
    assert done.started_from == "s1" and rows["user_id"].unique().sort().to_list() == ["u0", "u1", "u2", "u3", "u4"]
    states = pl.from_arrow(tables.read(USER_STATES, ["user_id", "num_events"]))
    assert dict(states.iter_rows()) == dict(after.group_by("user_id").len().iter_rows())

    *_, full_rows, full_tokens = export_of(export, version="s3", raw_interactions="r2")
    assert same((rows, tokens), (full_rows, full_tokens)) and done.snapshots == len(full_rows)
    # u1 is untouched; of u0 only the newest snapshots are made, of u2 all.
    num_new = {u: len(full_rows.filter(pl.col("user_id") == u)) for u in ("u2", "u3", "u4")}
    assert computed < len(full_rows) - 3 and computed > sum(num_new.values()) and done.users_changed == 5

    # A second refresh goes on from the first one's states, and one without news computes nothing.
    newest = (
        after.sort("timestamp", "sequence")
        .tail(1)
        .with_columns(
            pl.col("timestamp") + pl.duration(days=1),
            item_id=pl.lit("i9"),
            sequence=pl.lit(20_000, pl.Int64),
            day=pl.lit("2025-01-14"),
        )
    )
    last = pl.concat([after, newest])
    write(tables, last, "r3")
    more = {"raw_interactions": "r3"}
    done, computed, rows, tokens = export_of(export, version="s4", incremental=True, **more)
    assert (done.users_changed, computed) == (1, 1)
    assert same((rows, tokens), export_of(export, version="s5", **more)[2:])
    done, computed, *_ = export_of(export, version="s6", incremental=True, **more)
    assert (done.users_changed, computed, done.snapshots) == (0, 0, len(rows))


def test_a_killed_refresh_resumes_and_no_reader_sees_a_mixture(tables, export, monkeypatch):
    frame = events([30, 22, 14, 8], days=6)
    write(tables, frame.filter(pl.col("day") < "2025-01-05"), "r1")
    *_, old_rows, old_tokens = export_of(export)
    write(tables, frame, "r2", since="2025-01-05")
    refresh = export.model_copy(update={"version": "s2", "raw_interactions": "r2", "incremental": True})
    make(refresh, shards=[1])
    assert same(summaries(export), (old_rows, old_tokens)), "half of the shards: readers have the former version"
    assert not refresh.artifacts.exists(shard_name(refresh, 0, "s1"))

    make(refresh, shards=[0])
    whole = type(refresh.warehouse).write_batches

    def killed(self, table, *rest, **options):
        if table is USER_STATES:
            raise KeyboardInterrupt
        return whole(self, table, *rest, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(type(refresh.warehouse), "write_batches", killed)
        vista_export.run(refresh)
    new_rows, new_tokens = summaries(refresh)
    assert tables.version(USER_STATES) == "s1" and len(new_rows) > len(old_rows)
    done = vista_export.run(refresh)
    assert done.shards_kept == SHARDS and tables.version(USER_STATES) == "s2" and not done.committed
    assert same(summaries(refresh), (new_rows, new_tokens))
    assert same((new_rows, new_tokens), export_of(export, version="s3", raw_interactions="r2")[2:])


def test_states_of_another_model_or_table_are_not_gone_on_with(tables, export):
    write(tables, events([12, 6]), "r1")
    export_of(export)
    assert export_of(export, version="s2", incremental=True, precision="fp16")[0].started_from == ""
    tables.write(USER_SUMMARIES, tables.read(USER_SUMMARIES), "by-hand")
    assert export_of(export, version="s3", incremental=True)[0].started_from == ""


def test_states_come_back_bit_by_bit():
    family = FAMILIES["vista_causal"]
    model = family.build(num_items=9, num_codes=1, num_actions=2, num_values=2, **SIZES)
    state = torch.utils._pytree.tree_map(
        lambda x: torch.arange(x.numel()).reshape(x.shape).to(x.dtype) / 7 if x.is_floating_point() else x + 3,
        model.empty_state(3),
    )
    packed = pack(state).to_pylist()
    back = unpack(model, [packed[1], None, packed[2]])
    leaves = [torch.utils._pytree.tree_leaves(tree) for tree in (state, back, model.empty_state(3))]
    for stored, read, empty in zip(*leaves, strict=True):
        assert torch.equal(read[0], stored[1]) and torch.equal(read[2], stored[2]) and torch.equal(read[1], empty[1])
    with pytest.raises(ValueError, match="is not of this model, whose states have"):
        unpack(model, [packed[0] + b"\0"])
