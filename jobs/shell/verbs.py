"""The commands, what each does in a line, and examples."""

VERBS = {
    "train": "nominal images -> a bundle (a trained, calibrated detector)",
    "score": "a bundle + an image collection -> a committed run: scores and heatmaps in Parquet",
    "nightly": "score what is new, decide, look for drift, notify; exit codes for a scheduler",
    "calibrate": "the same weights with another calibration: fresh nominal images, or a reviewed run",
    "predict": "a few images now: score, p-value, regions, pictures; nothing is stored",
    "query": "ask committed runs: ready questions, or SQL of your own; tables, CSV, JSON, Parquet, Arrow",
    "heatmap": "pictures with heatmaps over the originals: the worst images, or those you name",
    "report": "a run as one HTML file: verdict, worst images, history, drift, quarantine, model card",
    "review": "a local page to label alarms fast, for calibration, training and evaluation",
    "export": "a run for other tools: FiftyOne, COCO; a bundle as ONNX",
    "runs": "every run of a results location: state, counts, rate",
    "retry-quarantine": "try the unreadable images of a night again; the new run takes its place",
    "verify": "check a committed run: whole parts, each image once, a sample scored again",
    "gc": "remove what dead runs left behind",
    "compare": "two runs on the same images: rank correlation, alarms that flip, the top movers, cost of each",
    "doctor": "is this place fit for a job: packages, cluster, token, stores, GPU, disk, clock; what to do",
    "metrics": "what became of the latest runs, as a page for Prometheus",
    "submit": "run any of these on a Ray cluster, with `ray job submit`; its exit code is the job's",
    "audit": "where on the image the evidence of a model lies: borders, background, one fixed spot",
    "evaluate": "committed runs + labels -> AUROC, curves, what was found by group and kind of defect, pixels",
    "reproduce": "repeat an experiment of the paper, class by class, beside the published figures",
    "completion": "verbs, options and choices completed by bash, zsh or fish",
}

# Two for each where one is not enough.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "train": (
        "fcdd train --images data/good --bundle data/bundle",
        "fcdd train --images s3://factory/line-4/good --bundle s3://factory/bundles/line-4-v1 --workers 4 --gpu",
    ),
    "score": (
        "fcdd score --bundle data/bundle --images data/new --results data/results --collection new --date 2026-11-24",
        "fcdd score --config factory.toml --date 2026-11-24 --since-last",
    ),
    "nightly": (
        "fcdd nightly --bundle data/bundle --images 'data/nights/{date}' --results data/results --collection line-4",
        "fcdd nightly --config factory.toml --catch-up",
    ),
    "predict": (
        "fcdd predict photo.png --bundle data/bundle",
        "fcdd predict a.png b.png --bundle data/bundle --pictures looked-at --format json",
    ),
    "calibrate": (
        "fcdd calibrate --bundle data/bundle --images data/new-lamp --output data/bundle-2",
        "fcdd calibrate --bundle B --reviewed labels.parquet --results R --collection line-4 --output B2",
    ),
    "query": (
        "fcdd query --results data/results --alarms",
        "fcdd query --results data/results --sql 'SELECT date, count(*) FROM scores GROUP BY ALL' --format csv",
    ),
    "heatmap": (
        "fcdd heatmap --results data/results --top 20 --output pictures",
        "fcdd heatmap --results data/results --uri s3://factory/line-4/0042.png --style overlay",
    ),
    "report": ("fcdd report --results data/results --collection line-4 --date 2026-11-24",),
    "review": ("fcdd review --results data/results --collection line-4",),
    "export": (
        "fcdd export fiftyone --results data/results --date 2026-11-24 --output alarms",
        "fcdd export onnx --bundle data/bundle --output detector.onnx",
    ),
    "runs": ("fcdd runs --results data/results",),
    "retry-quarantine": ("fcdd retry-quarantine --results data/results --collection line-4 --date 2026-11-24",),
    "verify": ("fcdd verify --results data/results --collection line-4 --date 2026-11-24",),
    "gc": ("fcdd gc --results data/results --dry-run",),
    "compare": ("fcdd compare 20261124-0a1b2c3d4e5f 20261124-0a1b2c3d4e5f-r2 --results data/results",),
    "doctor": ("fcdd doctor --images data/new --results data/results --bundle data/bundle",),
    "metrics": ("fcdd metrics --results data/results --once",),
    "submit": (
        "fcdd submit nightly --config /etc/fcdd/factory.toml",
        "fcdd submit --working-dir . --no-wait score --config factory.toml --date 2026-11-24",
    ),
    "audit": ("fcdd audit --results data/results --collection line-4 --pictures audit",),
    "evaluate": (
        "fcdd evaluate --results data/results --collection line-4 --labels labels.csv",
        "fcdd evaluate --results data/results --collection line-4 --labels sorted --masks masks --output page.html",
    ),
    "reproduce": ("fcdd reproduce mvtec --data data/mvtec --classes bottle",),
    "completion": (
        "fcdd completion bash > ~/.local/share/bash-completion/completions/fcdd",
        "fcdd completion fish > ~/.config/fish/completions/fcdd.fish",
    ),
}
