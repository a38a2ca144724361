#!/usr/bin/env bash
# Without Ray: each task of a job array measures one part of the cases. Submit with: sbatch slurm_array.sh SUITE
# Afterwards: attnbench merge runs/part-* --out runs/whole
#SBATCH --job-name=attnbench
#SBATCH --array=1-8
#SBATCH --nodes=1
#SBATCH --exclusive
#SBATCH --time=02:00:00
set -euo pipefail

suite=${1:-quick}
attnbench run "$suite" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" --budget 0 \
  --out "runs/part-$SLURM_ARRAY_TASK_ID"
