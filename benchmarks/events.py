"""The log of a training run, read from the TensorBoard events in its folder."""

import math
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read_rows(run_dir):
    """One dictionary per step, by step: {"global_step": 4096, "charts/SPS": 2700.0, ..., "wall_s": 1.5}.

    A process that trains writes a file of its own, from the iteration after its checkpoint on.  The rows from there on
    replace those of the processes before it: what a resumed run did again counts once.  Of an evaluation that was made
    twice at the same step, at the end and by --eval-freq, the later one counts; its numbers are the same.

    wall_s: seconds of training, from the first line of a process's log to the row's.  Those of the processes add up,
    without the time between them, without their start, and without the work that was lost and done again.
    eval/wall_s: the same at the end of the evaluation, in rows that have one.

    A folder without events has no rows; a last line that was cut off, by a kill or a full disk, is left out.
    """
    rows = {}
    for path in sorted(Path(run_dir).glob("events.out.tfevents.*")):  # the names begin with the time of their start
        events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        scalars = [(tag, event) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]
        if not scalars:
            continue
        first = min((event.step for tag, event in scalars if not is_evaluation(tag)), default=math.inf)
        rows = {step: row for step, row in rows.items() if step < first}
        clock = max((row.get("wall_s", 0.0) for row in rows.values()), default=0.0) - events.FirstEventTimestamp()
        for tag, event in scalars:
            row = rows.setdefault(event.step, {"global_step": event.step})
            row[tag] = event.value
            row["eval/wall_s" if is_evaluation(tag) else "wall_s"] = clock + event.wall_time
    return [rows[step] for step in sorted(rows)]


def is_evaluation(tag):
    return tag.startswith("eval/")
