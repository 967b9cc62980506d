#!/usr/bin/env bash
# Ablations of RPO on ant, one million steps; the unchanged algorithm is Benchmark-1M's.
#
#     for seed in 1 2 3; do taskset -c 1 bash benchmarks/ablations.sh $seed; done
#     bash benchmarks/ablations.sh 1 --list            # one command per run, for other machines
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
ablation() {
    python -m benchmarks.run --scripts rpo --env-ids ant --seeds "$seed" --results benchmarks/results/ablations --name "$1" --flags="--total-timesteps 1000000 $2" "${@:3}"
}
seed=$1

ablation rpo_no_kl "--kl-coef 0" "${@:2}"
ablation rpo_no_clip "--clip-low inf --clip-high inf" "${@:2}"
ablation rpo_one_epoch "--update-epochs 1" "${@:2}"
