#!/usr/bin/env bash
# What is asked of AHAC and FastTD3, beside Benchmark-1M (one_million.sh): lines to pick from.
#
#     taskset -c 1 bash benchmarks/ahac_fasttd3.sh 1
#
# The argument is the seed.  The same command after an interruption goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
seed=$1
results=benchmarks/results/1m

# SHAC with AHAC's critics, their minimum in the return and passes until they converge, at a fixed horizon: what they gain
# must not be credited to the horizon
python -m benchmarks.run --scripts ahac --env-ids hopper --seeds "$seed" --results $results --name ahac_fixed_horizon --flags="--total-timesteps 1000000 --num-envs 128 --horizon-lr 0"
for env_id in ant anymal humanoid hand_reorient; do
    python -m benchmarks.run --scripts ahac --env-ids $env_id --seeds "$seed" --results $results --name ahac_fixed_horizon --flags="--total-timesteps 1000000 --horizon-lr 0"
done

# SAC with as many updates and samples per environment step as FastTD3
python -m benchmarks.run --scripts sac --env-ids hopper ant --seeds "$seed" --results $results --name sac_many_updates --flags="--total-timesteps 1000000 --num-envs 128 --num-updates 256"

# AHAC at its full length, beside SHAC and RPO
python -m benchmarks.run --scripts ahac shac rpo --env-ids ant anymal --seeds "$seed" --results benchmarks/results/10m --flags="--total-timesteps 10000000"
