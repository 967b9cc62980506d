#!/usr/bin/env bash
# Benchmark-1M: every script on five tasks for one million steps, one thread on one core, so that wall clocks compare.
#
#     for seed in 1 2 3; do taskset -c 1 bash benchmarks/one_million.sh $seed; done
#     bash benchmarks/one_million.sh 1 --list          # one command per run, for other machines
#
# Nothing else may run on that core.  The same command after an interruption goes on.  Learning rates end with the budget;
# all other settings are each script's own for the task, but hopper has 128 environments for everybody.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
seed=$1
scripts="rpo shac sapo reppo ppo gippo sac ahac fasttd3"
results=benchmarks/results/1m

python -m benchmarks.run --scripts $scripts --env-ids hopper --seeds "$seed" --results $results --flags="--total-timesteps 1000000 --num-envs 128" "${@:2}"
python -m benchmarks.run --scripts $scripts --env-ids ant anymal humanoid hand_reorient --seeds "$seed" --results $results --flags="--total-timesteps 1000000" "${@:2}"
