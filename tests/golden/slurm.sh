#!/bin/bash
#SBATCH --job-name=micu-video
#SBATCH --array=1-8
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --gres=gpu:1
#SBATCH --time=24:00:00
#SBATCH --partition=long
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=micu-video-%A_%a.log

# 8 parts of one extraction. Submit with: sbatch THIS_FILE
# A task that is stopped (time limit, preemption) publishes what is whole and goes back into the
# queue. To join the parts when all are through, or to see which are missing:
#   sbatch --dependency=afterany:ARRAY_JOB_ID --wrap 'micu-extract merge '"'"'/data/it'"'"'"'"'"'"'"'"'s'"'"''
# To run single parts again: sbatch --array=2,5 THIS_FILE

run=
signalled=0
pass_on() {
  signalled=1
  [ -z "$run" ] || kill -USR1 "$run" 2>/dev/null
}
trap pass_on USR1 TERM

# In the background: bash runs a trap only after a command in the foreground has ended.
srun --cpus-per-task=4 micu-extract video 'my list.csv' --backbone swinv2 --out '/data/it'"'"'s' --workers 4 --part "$SLURM_ARRAY_TASK_ID/8" &
run=$!

code=1
while :; do
  signalled=0
  wait "$run"
  ended=$?
  [ "$ended" = 127 ] || code=$ended  # 127: waited for already
  [ "$signalled" = 1 ] || break      # a signal cut the waiting short: wait again
done

# Slurm does not requeue a task that ends by itself. 75: stopped, and can go on; 138 and 143:
# the same signals (USR1, TERM), but before the extraction had begun.
case "$code" in
  75 | 138 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit "$code"
