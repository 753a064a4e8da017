"""The commands, and what each does in a line."""

VERBS = {
    "train": "nominal images -> a bundle (a trained, calibrated detector)",
    "score": "a bundle + an image collection -> a committed run: scores and heatmaps in Parquet",
    "nightly": "score what is new, decide, look for drift, notify; exit codes for a scheduler",
    "calibrate": "the same weights with another calibration: fresh nominal images, or a reviewed run",
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
    "evaluate": "committed runs + labels -> AUROC",
    "reproduce": "repeat an experiment of the paper, class by class, beside the published figures",
}
