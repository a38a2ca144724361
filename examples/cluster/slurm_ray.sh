#!/usr/bin/env bash
# One Ray over the nodes of a Slurm job, and one run on all of them: sbatch slurm_ray.sh
#SBATCH --job-name=attnbench
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=02:00:00
set -euo pipefail

export RAY_USAGE_STATS_ENABLED=0
# One token for this job: who has none cannot run code on its nodes. srun passes both on.
RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE RAY_AUTH_TOKEN
suite=${1:-quick}
port=$((30000 + SLURM_JOB_ID % 10000))
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}')

srun --nodes=1 --ntasks=1 --overlap -w "$head" \
  ray start --head --node-ip-address "$address" --port "$port" --include-dashboard false --block &
sleep 15
if ((SLURM_JOB_NUM_NODES > 1)); then
  srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks-per-node=1 --overlap -x "$head" \
    ray start --address "$address:$port" --block &
fi

# The driver runs on the head. A job that is started again continues its run.
srun --nodes=1 --ntasks=1 --overlap -w "$head" \
  attnbench run "$suite" --engine ray --address "$address:$port" --budget 0 --out "runs/$SLURM_JOB_ID"
