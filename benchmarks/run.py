"""Run scripts x tasks x seeds, several at once, and collect their results.

    python -m benchmarks.run --scripts rpo sapo shac --env-ids hopper ant --seeds 1 2 3 --jobs 2
    python -m benchmarks.run --scripts rpo --env-ids hopper --seeds 1 2 --name rpo_no_kl --flags="--kl-coef 0"

    python -m benchmarks.run ... --list > runs.txt        # one command per run, for GNU parallel or a Slurm array job

The same command after an interruption goes on: runs whose results file exists are skipped, those with a checkpoint are
resumed, on a CPU to the very bit.  Ctrl-C and SIGTERM end the running ones as well; each loses the iteration that it is
in (SAC: what it did since the last checkpoint).  What a run prints goes to runs/<name>__<env_id>__<seed>.log.  On a CPU
the jobs share the cores evenly, those that `taskset` leaves them, unless OMP_NUM_THREADS is set; with one thread each,
as many jobs as there are cores make the most steps per second in total.
"""

import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import envs
from benchmarks.collect import collect, is_finished
from benchmarks.provenance import available_cores, current_commit, read_flags
from benchmarks.records import RESULTS, ROOT, made_by
from envs.command_line import wrong_name

OWN_FLAGS = ("--env-id", "--seed", "--exp-name", "--checkpoint")  # which this module gives, and names files by
SCRIPTS = tuple(sorted(path.name.removesuffix("_continuous.py") for path in ROOT.glob("*_continuous.py")))


@dataclass
class Args:
    scripts: tuple[Literal[SCRIPTS], ...]
    """the algorithms"""
    env_ids: tuple[Literal[envs.ENV_IDS], ...]
    """the tasks"""
    seeds: tuple[int, ...] = (1,)
    """the seeds"""
    flags: str = ""
    """further flags of the scripts, as one string"""
    name: str | None = None
    """name in the files, to tell a script with other flags from the plain one; default: <script>_continuous"""
    jobs: int = 1
    """runs at once"""
    folder: Path = Path(".")
    """where the folder runs/ is or will be"""
    results: Path = RESULTS
    """where the results files go"""
    list: bool = False
    """print one command per run, each of which does that run alone, and start nothing"""


@dataclass(frozen=True)
class Run:
    """One script on one task with one seed."""

    name: str
    script: str
    env_id: str
    seed: int
    command: str
    folder: Path
    results: Path

    @property
    def label(self):
        return f"{self.name}__{self.env_id}__{self.seed}"

    @property
    def output(self):
        return self.results / f"{self.label}.csv"

    @property
    def log(self):
        return self.folder / "runs" / f"{self.label}.log"

    def logged(self, pattern):
        return re.findall(pattern, self.log.read_text(), re.MULTILINE) if self.log.exists() else []

    def run_dir(self):
        """The run folder that the log names last, None where it names none."""
        folders = self.logged(r"^run folder (.*?); --checkpoint ")
        return self.folder / "runs" / Path(folders[-1]).name if folders else None  # also where it has been moved to

    def foreign_result(self):
        """A line that says so where the results file is of another command, else nothing."""
        if self.output.exists() and (other := made_by(self.output)) != self.command:
            yield f"{self.label}: expected a result of `{self.command}`, got one of `{other}` in {self.output}"

    def attempts(self):
        """Command and commit of every start that came as far as to make or to find the run's folder."""
        for text in "".join(self.logged(r"(?s).+")).split("# command: ")[1:]:
            if "\nrun folder " in text:
                yield re.match(r"(.*), commit: (.*)", text).groups()

    def check_command(self):
        for command, _ in self.attempts():
            if command != self.command:
                expected = f"{self.label}: expected a run of `{self.command}`, got one of `{command}`"
                sys.exit(f"{expected} in {self.log}: use another --name or --folder")

    def start(self, num_threads):
        """Start the process, from its checkpoint where it has one."""
        _, script, *flags = shlex.split(self.command)
        if (run_dir := self.run_dir()) and (run_dir / "checkpoint.pt").exists():
            flags = ["--checkpoint", str(run_dir / "checkpoint.pt")]
        environment = {"OMP_NUM_THREADS": str(num_threads)} | os.environ  # what the user has set counts
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "a") as log:
            try:  # the process inherits the lock and holds it as long as it lives
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RuntimeError(f"{self.label}: another process is already running it ({self.log})") from error
            log.write(f"# command: {self.command}, commit: {current_commit()}\n")
            log.flush()
            options = {"cwd": self.folder, "env": environment, "stdout": log, "stderr": subprocess.STDOUT}
            # a process group of its own: the terminal's Ctrl-C is forwarded, once, as every other end is
            return subprocess.Popen([sys.executable, str(ROOT / script), *flags], start_new_session=True, **options)

    def collect(self):
        """Write the results file; a run that was resumed from another commit names both."""
        commits = dict.fromkeys(commit for _, commit in self.attempts())
        return collect(self.run_dir(), self.command, " then ".join(commits), self.label, self.results)


def all_runs(args):
    """The runs, seeds outermost, so that an interrupted benchmark has one seed of everything first."""
    for seed in args.seeds:
        for env_id in args.env_ids:
            for script in args.scripts:
                name = args.name or f"{script}_continuous"
                command = f"python {script}_continuous.py --env-id {env_id} --seed {seed}"
                command += f" --exp-name {args.name}" if args.name else ""
                command += f" {args.flags}" if args.flags else ""
                yield Run(name, script, env_id, seed, command, args.folder.resolve(), args.results)


def command_of(run, args):
    """The command of this module that does one run and collects its results, with OMP_NUM_THREADS where it is set."""
    threads = f"OMP_NUM_THREADS={shlex.quote(value)} " if (value := os.environ.get("OMP_NUM_THREADS")) else ""
    words = ["python", "-m", "benchmarks.run", "--scripts", run.script, "--env-ids", run.env_id]
    words += ["--seeds", str(run.seed), *(["--name", args.name] if args.name else [])]
    words += [f"--flags={args.flags}"] if args.flags else []
    words += ["--folder", str(args.folder)] if args.folder != Args.folder else []
    words += ["--results", str(args.results)] if args.results != Args.results else []
    return threads + shlex.join(words)


def still_to_do(runs):
    """Those without a results file; a finished run without one is collected here."""
    runs, left = list(runs), []
    if foreign := [line for run in runs for line in run.foreign_result()]:
        sys.exit("\n".join([*foreign, "use another --name, or move the files away"]))
    for run in runs:
        if run.output.exists():
            print(f"{run.label}: skipped, {run.output.name} exists")
            continue
        run.check_command()
        if run.run_dir() and is_finished(run.run_dir()):
            print(f"{run.label}: collected, {run.collect()}")
        else:
            left.append(run)
    return left


def run_all(waiting, jobs):
    """Returns the number of runs that failed. KeyboardInterrupt stops the running ones and goes on upwards."""
    num_threads = max(1, available_cores() // jobs)
    running, failures = {}, 0
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                try:
                    running[run] = (run.start(num_threads), time.time())
                except RuntimeError as error:  # the others go on
                    failures += 1
                    print(error, flush=True)
                    continue
                print(f"{run.label}: started, {len(waiting)} waiting", flush=True)
            for run, (process, since) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[run]
                if process.returncode == 0:
                    print(f"{run.label}: done after {(time.time() - since) / 60:.1f} min, {run.collect()}", flush=True)
                else:
                    failures += 1
                    print(f"{run.label}: failed with exit code {process.returncode}, see {run.log}", flush=True)
            time.sleep(0.2)
    finally:
        for process, _ in running.values():
            process.send_signal(signal.SIGINT)
        for process, _ in running.values():
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:  # one that was started with SIGINT ignored
                process.kill()
    return failures


def main():
    args = read_flags(Args)
    if args.name and len(args.scripts) > 1:
        envs.refuse("name", f"expected one script beside it, got {' '.join(args.scripts)}")
    if args.name is not None and (reason := wrong_name(args.name)):
        envs.refuse("name", reason)
    try:
        words = shlex.split(args.flags)
    except ValueError as error:
        envs.refuse("flags", f"expected flags as a shell reads them, got {args.flags!r} ({error})")
    if taken := [word for word in words if word.replace("_", "-").split("=")[0] in OWN_FLAGS]:
        envs.refuse("flags", f"expected flags other than {', '.join(OWN_FLAGS)}, got {taken[0]}")
    runs = dict.fromkeys(all_runs(args))
    if args.list:
        print(*(command_of(run, args) for run in runs), sep="\n")
        return
    args.results.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        failures = run_all(still_to_do(runs), args.jobs)
    except KeyboardInterrupt:
        print("stopped; the same command goes on")
        sys.exit(130)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
