"""Reading benchmarks/results: which file is a run of what, and which runs belong together."""

import csv
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
RESULTS = BENCHMARKS / "results"
# files that are not runs
OTHERS = (
    "throughput",
    "training",
    "commits",
    "transfer",
    "scaling",
    "critic_step",
    "matmul",
    "robustness",
    "memory",
    "hand_successes",
    "action_gradients",
    "registers",
    "torch_calls",
)
# the order of tables and legends; hopper.xml and ant.xml are Gymnasium's files
TASKS = ("hopper", "ant", "anymal", "humanoid", "hand_reorient", "cheetah", "cartpole", "go1", "hopper.xml", "ant.xml")
ONE_MILLION_TASKS = ("hopper", "ant", "anymal", "humanoid", "hand_reorient")
SCRIPTS = {
    "rpo": "RPO",
    "shac": "SHAC",
    "sapo": "SAPO",
    "ahac": "AHAC",
    "reppo": "REPPO",
    "ppo": "PPO",
    "gippo": "GI-PPO",
    "sac": "SAC",
    "fasttd3": "FastTD3",
}
# runs of Benchmark-1M whose wall clocks are upper bounds: they shared their core with other work, or their machine was
# for its own reasons much slower than otherwise
UPPER_BOUNDS = {
    "ahac_continuous__anymal__1",
    "ahac_continuous__hand_reorient__1",
    "ahac_continuous__humanoid__1",
    "fasttd3_continuous__ant__1",
    "fasttd3_continuous__ant__2",
    "fasttd3_continuous__hopper__2",
    "ppo_continuous__hand_reorient__1",
    "ppo_continuous__hand_reorient__2",
    "ppo_continuous__humanoid__2",
    "reppo_continuous__hand_reorient__1",
    "reppo_continuous__humanoid__2",
    "rpo_continuous__ant__2",
    "rpo_continuous__hand_reorient__1",
    "rpo_continuous__hopper__2",
    "rpo_continuous__humanoid__2",
    "sac_continuous__ant__2",
    "sac_continuous__hand_reorient__1",
    "sac_continuous__humanoid__2",
    "sapo_continuous__ant__2",
    "shac_continuous__anymal__2",
    "shac_continuous__hopper__2",
}
# results/ablations/<name>__<env_id>__<seed>.csv, see ablations.sh
ABLATIONS = {
    "rpo": "RPO",
    "rpo_no_kl": "RPO without the KL term",
    "rpo_no_clip": "RPO without clipping",
    "rpo_no_kl_clip_0.1": "RPO without the KL term, clipped at 0.1",
    "rpo_no_kl_clip_0.2": "RPO without the KL term, clipped at 0.2",
    "rpo_one_epoch": "RPO, one epoch",
    "rpo_no_ratio": "RPO without ratio and clipping",
    "rpo_naive": "RPO without ratio, clipping and KL term",
    "sapo": "SAPO",
    "sapo_exponential": "SAPO with RPO's schedule",
    "sapo_exponential_5e-4": "SAPO with RPO's schedule and learning rate",
    "sapo_policy_steps": "SAPO, as many policy steps as RPO",
    "shac": "SHAC",
    "shac_policy_steps": "SHAC, as many policy steps as RPO",
}
HEADER = re.compile(
    r"# command: python (?P<script>\w+)_continuous\.py --env-id (?P<env_id>\S+)(?P<flags>.*), commit: (?P<commit>.*), "
    r"device: (?P<device>.*), cores: (?P<cores>\d+), torch: .*, warp: .*, date: (?P<date>\S+)"
)


@dataclass(frozen=True)
class Run:
    """A results file: what its header says, and its lines, the last of which is the final evaluation."""

    path: Path
    script: str
    env_id: str
    flags: str
    commit: str
    device: str
    cores: str
    date: str
    rows: tuple

    @property
    def name(self):
        """What tells runs with other flags from the plain ones, which are called <script>_continuous."""
        return self.path.stem.split("__")[0]

    @property
    def seed(self):
        found = re.search(r" --seed (\d+)", self.flags)
        return int(found[1]) if found else 1

    @property
    def command(self):
        return f"python {self.script}_continuous.py --env-id {self.env_id}{self.flags}"

    @property
    def settings(self):
        """The task and the flags that do more than to choose a seed or a name."""
        return self.env_id + re.sub(r" --(seed|exp-name) \S+", "", self.flags)

    @property
    def steps(self):
        return int(self.rows[-1]["global_step"])

    @property
    def minutes(self):
        """Wall clock of the training, without the final evaluation."""
        return max(self.logged("wall_s").values()) / 60

    def logged(self, column):
        """A column of the training's log: steps -> value, where it is a number; nothing if there is no such column."""
        rows = [row for row in self.rows if row["SPS"] and row.get(column, "") not in ("", "nan")]
        return {int(row["global_step"]): float(row[column]) for row in rows}

    def evaluation(self, quantity):
        """A number of the final evaluation; older files say length where newer ones say episodic_length."""
        last = self.rows[-1]
        return float(last.get(f"eval_{quantity}") or last[f"eval_{quantity.replace('episodic_length', 'length')}"])


def read(path):
    with open(path, newline="") as file:
        header, *lines = file.read().splitlines()
    found = HEADER.fullmatch(header)
    if found is None:
        raise ValueError(f"{path}: expected a first line as collect.py writes it, got {header!r}")
    return Run(path=path, rows=tuple(csv.DictReader(lines)), **found.groupdict())


def made_by(path):
    """The command in the first line of a results file, "?" where there is none."""
    found = re.match(r"# command: (.*?), commit: ", path.read_text())
    return found[1] if found else "?"


def is_run(path):
    """Whether a results file is of a run and not of something else: <name>__<env_id>__<seed>, or of a quick start."""
    return "__" in path.stem or not path.stem.startswith(OTHERS)


def read_all(*folders):
    """The runs of some folders, in the order of the tables."""
    runs = [read(path) for folder in folders for path in folder.glob("*.csv") if is_run(path)]
    tasks, scripts = list(TASKS), list(SCRIPTS)
    return sorted(runs, key=lambda run: (tasks.index(run.env_id), scripts.index(run.script), run.steps, run.path.name))


def read_ablations(results):
    """The runs of ablations; one that has no place in the tables is an error."""
    runs = read_all(results / "ablations")
    for run in runs:
        if run.name not in ABLATIONS:
            raise ValueError(f"{run.path}: expected the name of an ablation, {', '.join(ABLATIONS)}, got {run.name}")
    return runs


def read_one_million(results):
    """The runs of Benchmark-1M, see one_million.sh."""
    return read_all(results / "1m")


def read_longer(results):
    """The plain runs of the scripts' own lengths: those of full_length.sh, and older ones that they do not repeat."""
    runs = [run for run in read_all(results, results / "full") if is_standard(run)]
    return list({(run.path.name, run.settings, run.steps): run for run in runs}.values())  # the last one counts


def read_paper():
    """The RPO paper's returns by task and script."""
    with open(BENCHMARKS / "paper.csv", newline="") as file:
        return {(row["env_id"], row["script"]): row for row in csv.DictReader(file.read().splitlines()[1:])}


def lines_of(path):
    """The lines of a results file that is no run, as dictionaries; none where there is no such file."""
    return list(csv.DictReader(path.read_text().splitlines()[1:])) if path.exists() else []


def is_standard(run):
    """Whether a file is <script>_continuous__<env_id>__<seed>.csv and not a quick start or a trial of a setting."""
    return run.path.stem == f"{run.script}_continuous__{run.env_id}__{run.seed}"


def groups(runs):
    """Lists of runs that differ in their seed only."""
    found = defaultdict(list)
    for run in runs:
        found[run.script, run.settings, run.steps].append(run)
    return [sorted(group, key=lambda run: run.seed) for group in found.values()]


def groups_of(runs, env_id, script):
    return groups(run for run in runs if (run.env_id, run.script) == (env_id, script))


def groups_of_ablation(runs, env_id, name):
    """The unchanged algorithm, `rpo`, may come from the plain runs, which are called rpo_continuous."""
    return groups(run for run in runs if (run.env_id, run.name.removesuffix("_continuous")) == (env_id, name))


def machine_of(run):
    """The processor by its name and, where the header has them, family and model: virtual machines share names."""
    return run.device


def is_upper_bound(run):
    return run.path.stem in UPPER_BOUNDS


def timed(group):
    """The runs whose wall clocks count.

    These are the runs with a core of their own on the machine that most of them were on, of equally many the first:
    wall clocks of several do not compare.  Without such runs it is the fastest, whose wall clock is an upper bound.
    """
    alone = [run for run in group if not is_upper_bound(run)]
    if not alone:
        return [min(group, key=lambda run: run.minutes)]
    (machine, _), *_ = Counter(machine_of(run) for run in alone).most_common(1)
    return [run for run in alone if machine_of(run) == machine]


def tasks_of(runs):
    """The tasks that were run, in the order of the tables."""
    found = {run.env_id for run in runs}
    return [env_id for env_id in TASKS if env_id in found]


def final_returns(group, kind=""):
    """One number per seed: the mean return of its evaluation; kind is "" or "deterministic_"."""
    return [run.evaluation(f"{kind}episodic_return") for run in group]
