#!/usr/bin/env bash
# The RPO paper's lengths: RPO on five tasks, SHAC, SAPO and AHAC on ant and ANYmal, one thread on one core each.
#
#     taskset -c 1 bash benchmarks/full_length.sh 1             # the seed
#     bash benchmarks/full_length.sh 1 --list                   # one command per run, for other machines
#
# Lengths and settings are each script's own for the task; the paper states the length of ANYmal, the others are our
# estimates.  A run takes one to three and a half hours; the same command after an interruption goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
seed=$1
full="--results benchmarks/results/full --folder runs/full"

python -m benchmarks.run --scripts rpo --env-ids ant hopper humanoid anymal hand_reorient --seeds "$seed" $full "${@:2}"
python -m benchmarks.run --scripts shac sapo ahac --env-ids ant anymal --seeds "$seed" $full "${@:2}"
