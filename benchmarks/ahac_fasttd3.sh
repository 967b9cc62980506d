#!/usr/bin/env bash
# Arms of AHAC and FastTD3 beside Benchmark-1M (one_million.sh); AHAC at its full length: full_length.sh.
#
#     taskset -c 1 bash benchmarks/ahac_fasttd3.sh 1             # the seed
#     bash benchmarks/ahac_fasttd3.sh 1 --list                   # one command per run, for other machines
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
seed=$1
arms=benchmarks/results/arms

# SHAC with AHAC's critics, their minimum in the return and passes until they converge, at a fixed horizon: what they gain
# must not be credited to the horizon
python -m benchmarks.run --scripts ahac --env-ids hopper --seeds "$seed" --results $arms --name ahac_fixed_horizon --flags="--total-timesteps 1000000 --num-envs 128 --horizon-lr 0" "${@:2}"
python -m benchmarks.run --scripts ahac --env-ids ant anymal humanoid hand_reorient --seeds "$seed" --results $arms --name ahac_fixed_horizon --flags="--total-timesteps 1000000 --horizon-lr 0" "${@:2}"

# SAC with as many updates and samples per environment step as FastTD3
python -m benchmarks.run --scripts sac --env-ids hopper ant --seeds "$seed" --results $arms --name sac_many_updates --flags="--total-timesteps 1000000 --num-envs 128 --num-updates 256 --batch-size 256" "${@:2}"
