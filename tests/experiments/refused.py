"""The written list: what must be refused, whatever else is asked for. By hand, not from the bounds of the settings."""

from __future__ import annotations

from typing import Any

from simclr.augment import AUGMENTATIONS

TABLE = {"a": 1}
NOT_TEXT = [1, 0.5, True, ["a"], TABLE]
NOT_SWITCH = [0, 1, 1.0, "true", "", [True], TABLE]
NOT_NUMBER = [True, "1", "0.5", "", [1], TABLE]
NOT_WHOLE = [*NOT_NUMBER, 2.0, 1e300, 10**20]
NOT_COUNT = [*NOT_WHOLE, -1, 10**18]
NOT_PROBABILITY = [*NOT_NUMBER, -0.1, 1.1, 10**9]
NOT_PAIR = [0.5, "0.5", [], [0.5], [0.1, 0.2, 0.3], [0.5, "1"], [True, True], [0.9, 0.1], TABLE]
NOT_CHOICE = [*NOT_TEXT, "", "nonsense", "../x", "a" * 10_000]
NOT_LIST = [*NOT_TEXT, "[1]", []]

# Values that each setting of a config refuses. Those of `augment` are refused in `augment2` too.
SETTINGS: dict[str, list[Any]] = {
    "name": [*NOT_TEXT, "", " ", "a\nb", "a\x1b[2J", "\x7f", "../x", "a/b", "a\\b", "a" * 2000],
    "method": NOT_CHOICE,
    "seed": [*NOT_WHOLE, -1, 2**63],
    "init": [*NOT_TEXT, ""],
    "device": NOT_TEXT,
    "threads": [*NOT_COUNT, 0, 1025, "many"],
    "memory": [*NOT_TEXT, "", "8", "8GB", "-1GiB", "0GiB", "nanGiB", "9" * 400 + "GiB"],
    "data.dataset": NOT_CHOICE,
    "data.dir": [*NOT_TEXT, "a\0b"],
    "data.side": [*NOT_COUNT, 0, 7, 1025],
    "data.val_fraction": [*NOT_PROBABILITY, 1],
    "data.limit": [*NOT_COUNT, 0, 1],
    "data.split_seed": [*NOT_WHOLE, -1, 2**63],
    "data.normalize": NOT_CHOICE,
    "data.on_bad_image": [True, ["a"], TABLE, "", "nonsense", 0, -0.1, 1.5, 2],
    "data.labels": [*NOT_TEXT, "a\0b"],
    "data.image_column": NOT_TEXT,
    "data.label_column": NOT_TEXT,
    "data.split_column": NOT_TEXT,
    "data.unlabelled": NOT_SWITCH,
    "data.group": [*NOT_TEXT, "(", "[", "*"],
    "data.test_from": NOT_CHOICE,
    "data.background": NOT_CHOICE,
    "data.range": [*NOT_TEXT, "nonsense", [], [0.0], [1.0, 0.0], [1, 1], [True, 2], ["0", "1"], [0, 1, 2], TABLE],
    "data.check": NOT_CHOICE,
    "model.backbone": NOT_CHOICE,
    "model.stem": NOT_CHOICE,
    "model.width": [*NOT_NUMBER, 0, -1.0, 0.1, 8.5, 1e12],
    "model.head": NOT_CHOICE,
    "model.hidden_dim": [*NOT_COUNT, 0, 10**6],
    "model.out_dim": [*NOT_COUNT, 0, 1e12, 10**6],
    "model.head_batch_norm": NOT_SWITCH,
    "loss.temperature": [*NOT_NUMBER, 0, -1, 1e9],
    "loss.normalize": NOT_SWITCH,
    "loss.include_self": NOT_SWITCH,
    "nt_logistic.temperature": [*NOT_NUMBER, 0, -1, 1e9],
    "nt_logistic.semi_hard": NOT_SWITCH,
    "margin.margin": [*NOT_NUMBER, 0, -1, 2.5],
    "margin.semi_hard": NOT_SWITCH,
    "dcl.temperature": [*NOT_NUMBER, 0, -1, 1e9],
    "distill.teacher": [*NOT_TEXT, ""],
    "distill.temperature": [*NOT_NUMBER, 0, -1, 1e9],
    "distill.weight": NOT_PROBABILITY,
    "supcon.temperature": [*NOT_NUMBER, 0, -1, 1e9],
    "supervised.smoothing": [*NOT_PROBABILITY, 1],
    "byol.hidden_dim": [*NOT_COUNT, 0, 10**6],
    "byol.momentum": [*NOT_PROBABILITY, 1],
    "simsiam.hidden_dim": [*NOT_COUNT, 0, 10**6],
    "barlow.redundancy": [*NOT_NUMBER, -1, 1e100],
    "vicreg.invariance": [*NOT_NUMBER, -1, 1e100],
    "vicreg.variance": [*NOT_NUMBER, -1, 1e100],
    "vicreg.covariance": [*NOT_NUMBER, -1, 1e100],
    "emp.invariance": [*NOT_NUMBER, -1, 1e100],
    "emp.distortion": [*NOT_NUMBER, 0, -1, 1e100],
    "imix.temperature": [*NOT_NUMBER, 0, -1, 1e9],
    "imix.kind": NOT_CHOICE,
    "moco.temperature": [*NOT_NUMBER, 0, -1, 1e9],
    "moco.momentum": [*NOT_PROBABILITY, 1],
    "moco.queue": [*NOT_COUNT, 0],
    "optim.name": NOT_CHOICE,
    "optim.lr": [*NOT_NUMBER, 0, -0.1, 1e100],
    "optim.lr_scaling": NOT_CHOICE,
    "optim.weight_decay": [*NOT_NUMBER, -0.1, 1e100],
    "optim.decay_bias_and_norm": NOT_SWITCH,
    "optim.decay_in_norm": NOT_SWITCH,
    "optim.momentum": [*NOT_NUMBER, -0.1, 1, 2],
    "optim.trust": [*NOT_NUMBER, 0, -1, 1e100],
    "optim.betas": [0.9, [], [0.9], [0.9, 1.0], [-0.1, 0.9], ["0.9", "0.9"], [0.1, 0.2, 0.3], TABLE],
    "optim.schedule": NOT_CHOICE,
    "optim.warmup_epochs": [*NOT_NUMBER, -1, 1e20],
    "optim.plateau_factor": [*NOT_PROBABILITY, 0, 1],
    "optim.plateau_patience": NOT_COUNT,
    "train.epochs": [*NOT_COUNT, 0],
    "train.batch_size": [*NOT_COUNT, 0, 1, 10**7, 99999999999999999999],
    "train.micro_batch": [*[value for value in NOT_COUNT if value != TABLE], 0, "many", TABLE],
    "train.norm_batch": [*NOT_COUNT, 0],
    "train.views": NOT_CHOICE,
    "train.precision": NOT_CHOICE,
    "train.knn_every": NOT_COUNT,
    "train.ema": [*NOT_NUMBER, 1, -0.1, 2],
    "train.checkpoint_minutes": [*NOT_NUMBER, 0, -1, 1e20],
    "train.keep_every": NOT_COUNT,
    "train.compile": NOT_SWITCH,
    **{f"augment.{name}.p": NOT_PROBABILITY for name in AUGMENTATIONS},
    "augment.views": [*NOT_COUNT, 0, 1, 65],
    "augment.local.count": [*NOT_COUNT, 0, 65],
    "augment.local.size": [*NOT_COUNT, 0, 3, 10**5],
    "augment.local.scale": [*NOT_PAIR, [0, 1], [0.5, 1.5]],
    "augment.crop.scale": [*NOT_PAIR, [0, 1], [0.5, 1.5]],
    "augment.crop.ratio": [*NOT_PAIR, [0, 1], [1e-9, 1], [1, 1e9]],
    "augment.crop.size": [*NOT_COUNT, 0, 3, 10**5],
    "augment.shared_crop.scale": [*NOT_PAIR, [0, 1], [0.5, 1.5]],
    "augment.shared_crop.ratio": [*NOT_PAIR, [0, 1], [1e-9, 1], [1, 1e9]],
    "augment.rotation.degrees": [*NOT_NUMBER, -1, 181],
    "augment.auto_augment.policy": NOT_CHOICE,
    "augment.color_jitter.strength": [*NOT_NUMBER, -0.1, 1e300],
    "augment.color_jitter.brightness": [*NOT_NUMBER, -0.1, 1e300],
    "augment.color_jitter.contrast": [*NOT_NUMBER, -0.1, 1e300],
    "augment.color_jitter.saturation": [*NOT_NUMBER, -0.1, 1e300],
    "augment.color_jitter.hue": [*NOT_NUMBER, -0.1, 1e300],
    "augment.blur.kernel": [*NOT_PROBABILITY, 0],
    "augment.blur.sigma": [*NOT_PAIR, [0, 1], [1e-50, 1], [1, 1e9]],
    "augment.solarize.threshold": NOT_PROBABILITY,
    "augment.noise.sigma": [*NOT_NUMBER, 0, -1, 1e300],
    "augment.cutout.scale": [*NOT_PAIR, [0, 1], [0.5, 1.5]],
    "augment.cutout.ratio": [*NOT_PAIR, [0, 1], [1e-9, 1], [1, 1e9]],
}

NOT_RATES = [*NOT_LIST, [0], [-1.0], [True], ["0.1"], [0.1, 0.1], [1e100], [n / 1000 for n in range(1, 102)]]

# Values that each setting of an evaluation protocol refuses.
PROTOCOL: dict[str, list[Any]] = {
    "version": [*NOT_NUMBER, 2, 4],
    "layer": NOT_TEXT,
    "on": NOT_CHOICE,
    "crops.count": [*NOT_COUNT, 0, 101],
    "crops.scale": [*NOT_PAIR, [0, 1], [0.5, 1.5]],
    "features": NOT_CHOICE,
    "knn.k": [*NOT_LIST, [0], [-1], [1.0], [True], ["1"], [20, 20], [10**18], list(range(1, 102))],
    "knn.temperature": [*NOT_NUMBER, 0, -1, 1e-300, 1e9],
    "linear.standardise": NOT_SWITCH,
    "linear.l2_max": [*NOT_NUMBER, 0, -1, 1e-7, 1e100],
    "linear.l2_min": [*NOT_NUMBER, 0, -1, 1e6],
    "linear.l2_values": [*NOT_COUNT, 0],
    **{
        f"{section}.{name}": values
        for section in ("linear_sgd", "finetune")
        for name, values in {
            "lr": NOT_RATES,
            "epochs": [*NOT_COUNT, 0],
            "min_steps": [*NOT_COUNT, 0],
            "batch_size": [*NOT_COUNT, 0, 1],
            "crop": [*NOT_PAIR, [0, 1], [0.5, 1.5]],
            "head": NOT_CHOICE,
        }.items()
    },
    "finetune.few_epochs": [*NOT_COUNT, 0],
    "finetune.seeds": [*NOT_COUNT, 0, 10**6],
    "finetune.fractions": [*NOT_LIST, [0], [1.5], [0.1, 0.1], ["0.1"], [True]],
    "few_shot.shots": [*NOT_LIST, [0], [-1], [1.0], [True], ["1"], [5, 5], [10**18]],
    "few_shot.draws": [*NOT_COUNT, 0, 2],
    "retrieval.queries": [*NOT_COUNT, 0],
    "robustness.classifier": NOT_CHOICE,
    "robustness.images": [*NOT_COUNT, 0],
    "spectrum.ranks": [*NOT_PAIR, [0, 10], [5, 5], [100, 6], [1.0, 10.0]],
    "lidar.views": [*NOT_COUNT, 0, 1],
    "lidar.delta": [*NOT_NUMBER, 0, -1, 2],
    **{f"{section}.images": [*NOT_COUNT, 0, 1] for section in ("views", "spectrum", "lidar")},
    **{
        f"{section}.seed": [*NOT_WHOLE, -1]
        for section in ("few_shot", "retrieval", "robustness", "views", "spectrum", "lidar")
    },
    "transformations.images": [*NOT_COUNT, 0, 1],
    "transformations.hidden": [*NOT_COUNT, 0],
    "transformations.epochs": [*NOT_COUNT, 0],
    "transformations.lr": [*NOT_NUMBER, 0, -1, 1e100],
    "transformations.seed": [*NOT_WHOLE, -1],
}

DIGITS = "1" * 5000
TEXTS = (DIGITS, "9" * 20, "-1", "1.5", "nan", "inf", "true", "", "many", "0x10")
COUNTS = ("0", *TEXTS)

# Values that each option refuses, by command.
OPTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "pretrain": {
        "--epochs": COUNTS,
        "--batch-size": ("1", *COUNTS),
        "--seed": TEXTS,
        "--micro-batch": COUNTS,
        "--memory": TEXTS,
        "--threads": COUNTS[:-1],  # its last one is a number of TOML
        "--hours": ("0", "-1", "nan", "inf", "1e300", "many"),
        "--temperature": ("0", "-1", "nan", "inf", "1e300", "many"),
        "--lr": ("0", "-1", "nan", "inf", "1e300", "many"),
        "--name": ("", " ", "../x", "a/b", "a\nb", "a\x1b[2J", "a" * 251),
        "--set": ("", "seed", "=1", "seed=1\nname='b'", f"seed={DIGITS}", "seed=" + "[" * 3000 + "]" * 3000, "loss=3"),
        **dict.fromkeys(("--preset", "--dataset", "--backbone", "--head", "--drop"), ("nonsense", "", "../x")),
        "--config": ("/dev/zero", "/", "absent.toml", ""),
    },
    "ablate": {
        "--seeds": ("101", *COUNTS),
        "--max-seeds": ("101", "2", "9", *COUNTS),  # without --until
        **dict.fromkeys(("--until", "--margin"), ("0", "-1", "101", "nan", "inf", "many")),
        "--axis": ("nonsense", "", "absent.toml"),
        "--vary": ("", "seed=1,2", "optim.lr=", "optim.lr=true,false", "optim.lr=0.1,inf", f"optim.lr={DIGITS},1"),
        "--only": ("nonsense", ""),
        "--name": ("", "../x", "a\nb"),
    },
    "paper": {"--name": ("", "../x", "a\nb")},
    "search": {
        "--trials": ("1000000", *COUNTS),
        "--max-hours": ("-1", "nan", "inf", "1e300", "many"),
        "--top": ("101", *COUNTS),
        "--seeds": ("101", *TEXTS),
        "--space": ("/dev/zero", "/", "absent.toml"),
        "--proxy": ("", "seed", "optim.lr=true", "optim.lr=nan"),
        "--objectives": ("nonsense", ""),
        "--pruner": ("nonsense", ""),
        "--name": ("", "../x", "a\nb"),
    },
    "budget": {"--images": ("10000000000", *TEXTS), "--batch-size": COUNTS, "--memory": TEXTS, "--precision": TEXTS},
    "embed": {"--batch-size": ("10000000", *COUNTS), "--on-bad-image": ("nonsense", "")},
    "import": {"--side": ("7", "1025", *COUNTS), "--name": ("", "../x", "a\nb"), "--normalize": ("nonsense", "")},
    "eval": {
        "--finetune": ("", "0", "2", "nan", "0.1,0.1", "many", DIGITS),
        "--set": ("", "knn.k=0", "knn.k=[0]", "linear.l2_min=1e6", "layer=3", "knn.k=[1\n]", "optim.lr=1"),
        "--on-bad-image": ("nonsense", ""),
    },
    "tsne": {"--images": ("3", *COUNTS), "--perplexity": ("0", "-1", "nan", "inf", "many"), "--seed": TEXTS},
    "explore": {
        "--images": ("3", "50001", *COUNTS),
        "--clusters": ("1", "1001", *TEXTS),
        "--seed": TEXTS,
        "--out": ("a.png", ""),
    },
    "neighbours": {"--count": ("51", *COUNTS), "--out": ("a.txt", "")},
    "plot": {"--smooth": ("10000000", *TEXTS)},
    "compare": {"--format": ("nonsense", "")},
    "report": {"--format": ("nonsense", "")},
    "views": {"--seed": TEXTS, "--drop": ("nonsense", ""), "--out": ("a.txt", "")},
    "ui": {"--port": ("65536", *COUNTS)},
}
