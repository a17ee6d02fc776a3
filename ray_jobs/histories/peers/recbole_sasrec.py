"""Trains RecBole's SASRec and keeps its scores. Run by the Python of the peer's environment, not by ours.

``python recbole_sasrec.py FOLDER``: FOLDER holds ``peer/peer.inter`` (user_id, item_id, timestamp) and
``options.json``; what comes out is ``valid.npy`` and ``test.npy`` (users x items, the items and users in the order of
``items.json`` and ``users.json``) and ``told.json``. Metrics are made by the caller, from scores, by the rules of all
other models.

RecBole 1.2.1 needs numpy < 2 (it says ``np.float_``). Its trainer loads its best checkpoint by `torch.load` without
``weights_only=False``, which torch since 2.6 refuses: the best weights are kept here instead.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any


def main(folder: Path) -> None:
    """Trains, scores, and writes both."""
    import numpy as np
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.sequential_recommender import SASRec
    from recbole.trainer import Trainer
    from recbole.utils import init_seed

    options = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    torch.set_num_threads(options["threads"])
    given = {
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "use_gpu": False,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": options["history_events"],
        "eval_args": {
            "split": {"LS": "valid_and_test"},
            "order": "TO",
            "group_by": "user",
            "mode": {"valid": "full", "test": "full"},
        },
        "metrics": ["NDCG", "Hit"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "train_neg_sample_args": None,
        "loss_type": "CE",
        "n_layers": options["layers"],
        "n_heads": options["heads"],
        "hidden_size": options["width"],
        "inner_size": 4 * options["width"],
        "hidden_dropout_prob": options["dropout"],
        "attn_dropout_prob": options["dropout"],
        "learning_rate": options["learning_rate"],
        "epochs": options["epochs"],
        "stopping_step": options["patience"],
        "train_batch_size": options["batch"],
        "eval_batch_size": 256,
        "seed": options["seed"],
        "reproducibility": True,
        "show_progress": False,
        "state": "WARNING",
    }
    # Its own parser of the command line would read our arguments.
    sys.argv = sys.argv[:1]
    config = Config(model="SASRec", dataset="peer", config_dict=given)
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train, valid, test = data_preparation(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    model = SASRec(config, train.dataset)
    trainer = Trainer(config, model)
    kept: dict[str, Any] = {"score": -1.0, "epoch": 0, "weights": model.state_dict()}
    curve: list[dict[str, float]] = []
    started, computed = time.monotonic(), time.process_time()

    def after(epoch: int, score: float) -> None:
        curve.append({"epoch": epoch + 1, "ndcg_at_10": float(score), "seconds": time.monotonic() - started})
        print(f"recbole: epoch {epoch + 1}, valid NDCG@10 {score:.4f}, {curve[-1]['seconds']:.0f} s", flush=True)
        if score > kept["score"]:
            weights = {name: value.clone() for name, value in model.state_dict().items()}
            kept.update(score=float(score), epoch=epoch + 1, weights=weights)

    trainer.fit(train, valid, verbose=False, saved=False, show_progress=False, callback_fn=after)
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - computed
    model.load_state_dict(kept["weights"])
    model.eval()
    users = [str(x) for x in dataset.field2id_token["user_id"][1:]]
    items = [str(x) for x in dataset.field2id_token["item_id"][1:]]
    with torch.inference_mode():
        for name, data in (("valid", valid), ("test", test)):
            scores = np.full((len(users), len(items)), -np.inf, np.float32)
            for batch in data:
                interaction = batch[0]
                rows = interaction["user_id"].numpy() - 1
                scores[rows] = model.full_sort_predict(interaction).numpy()[:, 1:]
            np.save(folder / f"{name}.npy", scores)
    told = {
        "curve": curve,
        "best_epoch": kept["epoch"],
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "num_examples": len(train.dataset),
    }
    for name, value in (("users", users), ("items", items), ("told", told)):
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
