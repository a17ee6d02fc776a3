"""What tests of captioning share: a config on a tiny model, the actors' work without Ray, a scripted endpoint."""

import json

import numpy as np
import polars as pl
import pyarrow as pa

from models.language.validation import Rules
from ray_jobs.captions.captioner import Captioner
from ray_jobs.captions.plan import Config, plan
from ray_jobs.interpretation.interpreter import Content, InterpretationParameters, InterpreterConfig
from ray_jobs.interpretation.loading import load_interpreter
from ray_jobs.language.engine import LanguageEngineConfig
from ray_jobs.prompts import load_prompt
from ray_jobs.tables.captions import CAPTION_STORE
from ray_jobs.tables.interactions import ITEMS
from tests.factories import CREATED
from tests.ray_jobs.language.checkpoints import tiny_config

# A random model writes no English: these bounds take whatever it writes, so that the job's own work can be seen.
ANYTHING = Rules(
    min_words=0,
    max_words=999,
    max_chars=9999,
    min_latin_share=0,
    min_letter_share=0,
    max_ngram_repeats=999,
    min_distinct_share=0,
    allow_cut=True,
)


SHORT = InterpretationParameters(max_new_tokens=8)


def evidence_of(folder, **changes):
    return InterpreterConfig(kind="evidence", engine=tiny_config(folder, **({"batch_size": 8} | changes)))


def config_for(tables, folder, **changes):
    return Config(
        **{
            "warehouse": tables.warehouse(),
            "artifacts": tables.artifacts(),
            "interpreter": evidence_of(folder),
            "rules": ANYTHING,
            "parameters": SHORT,
            "canaries": 0,
            "run_id": "r1",
            "batch_size": 4,
            "cpus_per_actor": 1.0,
        }
        | changes
    )


def write_items(tables, titles, version="1"):
    rows = [
        {
            "item_id": f"i{n}",
            "title": title,
            "description": None,
            "categories": ["Drama"],
            "image_uri": None,
            "attributes": "{}",
            "available_from": None,
            "created_timestamp": CREATED,
        }
        for n, title in enumerate(titles)
    ]
    tables.write(ITEMS, pa.Table.from_pylist(rows, ITEMS.schema), version=version)


def as_batch(part):
    batch = {name: part[name].to_numpy() for name in ("content_key", "item_id", "text")}
    batch["pixel_digest"] = np.array(part["pixel_digest"].to_list(), object)
    batch["categories"] = np.array([*part["categories"].to_list(), None], object)[:-1]
    return batch


def caption_all(config, captioner=None):
    """What the actors do, batch by batch, without Ray; returns summed counts."""
    captioner = captioner or Captioner(config)
    totals = {}
    wanted = plan(config).wanted
    for at in range(0, wanted.height, config.batch_size):
        part = wanted.slice(at, config.batch_size)
        done = captioner(as_batch(part))
        assert json.loads(str(done.pop("traces")[0]))
        totals = {name: totals.get(name, 0) + int(count[0]) for name, count in done.items()}
    return totals


def store(tables, table=CAPTION_STORE):
    return pl.from_arrow(tables.read(table))


def endpoint(server, **changes):
    engine = LanguageEngineConfig(
        kind="openai", model="m", revision="1", base_url=server.url, max_retries=0, usd_per_million_prompt_tokens=1e6
    )
    return InterpreterConfig(kind="endpoint", engine=engine.model_copy(update=changes))


RECORD = {
    "caption": "A slow drama about letters in a winter town.",
    "subjects": ["letters"],
    "style": "realistic",
    "setting": "town",
    "mood": "sad",
    "text_in_image": "",
    "tags": ["drama", "letters"],
}


def record(**changes):
    """An answer as the prompt's schema wants it."""
    known = load_prompt("item_caption")["vocabulary"]
    words = {name: known[f"{name}s"][0] for name in ("style", "setting")}
    return json.dumps(RECORD | words | changes)


def title_of(body):
    user = body["messages"][-1]["content"]
    user = user if isinstance(user, str) else " ".join(part.get("text", "") for part in user)
    return user.split("title: ")[1].split("\n")[0]


def most_tokens(config):
    """The most tokens that one attempt at any content of the plan can cost."""
    interpreter = load_interpreter(config.interpreter, config.prompt, config.parameters)
    return max(interpreter.most_tokens([Content("k", text) for text in plan(config).wanted["text"]]))
