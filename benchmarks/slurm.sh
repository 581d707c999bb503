#!/bin/bash
# The script that `micu-extract slurm` prints, on a real Slurm of one node.
#
# Needs Debian's slurmd, slurmctld, slurm-client and munge (installed where they are missing, as
# root), and starts them on ports of their own from a temporary folder, which is removed with them.
# An array of two parts extracts sentences; as soon as it is at work both tasks get USR1, as Slurm
# sends before a time limit. They must publish, go back into the queue, run again, and leave the
# bytes of one run that nobody disturbed. Prints `figure: slurm_restarts VALUE`.
#
# Run as root: bash benchmarks/slurm.sh [ROWS]
set -euo pipefail

rows=${1:-4000}
project=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d /tmp/micu-slurm.XXXXXX)
chmod 755 "$work"
daemons=()
finish() {
  for pid in "${daemons[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  [ -n "${KEEP:-}" ] || rm -rf "$work"
}
trap finish EXIT
trap "exit 1" INT TERM

if ! command -v slurmctld slurmd sbatch munged >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
    slurmd slurmctld slurm-client munge >/dev/null
fi

# --- a cluster of one node --------------------------------------------------------------------

mkdir -p "$work"/{munge,state,spool,log}
chmod 700 "$work/munge"
head -c 1024 /dev/urandom >"$work/munge/key"
chmod 400 "$work/munge/key"
munged --foreground --force --key-file "$work/munge/key" --socket "$work/munge.socket" \
  --pid-file "$work/munge/pid" --log-file "$work/munge/log" --seed-file "$work/munge/seed" \
  --num-threads 2 2>>"$work/log/munged" &
daemons+=($!)

host=$(hostname -s)
export SLURM_CONF=$work/slurm.conf
cat >"$SLURM_CONF" <<CONF
ClusterName=micu
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket
CryptoType=crypto/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/log/slurmctld
SlurmdLogFile=$work/log/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SlurmctldDebug=error
SlurmdDebug=error
MpiDefault=none
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
sleep 1
slurmctld -D -c 2>>"$work/log/slurmctld" &
daemons+=($!)
slurmd -D 2>>"$work/log/slurmd" &
daemons+=($!)
for _ in $(seq 60); do
  sinfo -h -o %T 2>/dev/null | grep -q idle && break
  sleep 0.5
done
sinfo

# --- what is extracted ------------------------------------------------------------------------

cd "$work"
export PYTHONPATH=$project OMP_NUM_THREADS=1
python=${PYTHON:-python}
mkdir -p bin
printf '#!/bin/bash\nexec %q -m micu_extract.cli "$@"\n' "$(command -v "$python")" >bin/micu-extract
chmod +x bin/micu-extract
export PATH=$work/bin:$PATH
{
  echo clip_id,text
  for i in $(seq "$rows"); do echo "clip$i,sentence number $i of a file"; done
} >'the clips.csv'
arguments=('the clips.csv' --backbone bert-demo --weights random --device cpu --shard-rows 64)
echo "one run, undisturbed"
micu-extract text "${arguments[@]}" --out whole 2>log/whole

# --- the array --------------------------------------------------------------------------------

micu-extract slurm text --parts 2 --cpus 1 --time 10 -- "${arguments[@]}" --out parts >job.sh
job=$(sbatch --parsable job.sh)
running() { squeue -h -j "$job" -t running -r | wc -l; }
shards() { find parts -name 'shard-*.h5' 2>/dev/null | wc -l; }
for _ in $(seq 240); do
  [ "$(shards)" -ge 4 ] && [ "$(running)" = 2 ] && break
  sleep 0.25
done
echo "$(running) tasks at work, $(shards) shards: USR1, as before a time limit"
scancel --batch --signal=USR1 "$job"
for _ in $(seq 120); do
  [ "$(running)" = 0 ] && break
  sleep 0.5
done
before=$(shards)
echo "stopped at $before shards:"
squeue -r -j "$job" -o '%i %T %r'
micu-extract merge parts && { echo "expected a merge that finds rows missing"; exit 1; } || [ $? = 3 ]

# Slurm lets a task that was requeued wait for two minutes.
scontrol update jobid="$job" StartTime=now 2>/dev/null || true
for task in 1 2; do scontrol update jobid="${job}_$task" StartTime=now 2>/dev/null || true; done
for _ in $(seq 600); do
  [ -z "$(squeue -h -j "$job" 2>/dev/null)" ] && break
  sleep 0.5
done
cat micu-text-"$job"_*.log
restarts=$(grep -l 'type the same command to go on' micu-text-"$job"_*.log | wc -l)
micu-extract merge parts
micu-extract verify parts --data

name='the clips/text-bert-demo'
total=0
for path in "whole/$name"/shard-*.h5 "whole/$name/failures.csv"; do
  cmp "$path" "parts/$name/$(basename "$path")"
  total=$((total + 1))
done
[ "$before" -lt $((total - 1)) ] || { echo "stopped too late: nothing was left; give more ROWS"; exit 1; }
[ "$restarts" = 2 ] || { echo "expected 2 restarts, got $restarts"; exit 1; }
echo "$total files are those of one run that nobody disturbed"
echo "figure: slurm_restarts $restarts"
