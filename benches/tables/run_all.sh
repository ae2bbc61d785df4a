#!/bin/sh
# Everything that is measured, one fit after another; what is there already is skipped, so interrupt it and start it again.
#
#     sh run_all.sh DATA RESULTS [PYTHON [RESFLOW]]
#
# TIME (60), THREADS (2), METHODS, MODELS and ONLY (tables, comma-separated) in the environment change what is run; without
# RESFLOW only the peers are run. Leave the machine alone meanwhile: the limit is in seconds, not in work.
set -eu
if [ $# -lt 2 ]; then
    sed -n '2,8p' "$0"
    exit 2
fi
data=$1 results=$2 python=${3:-python3} resflow=${4:-}
here=$(cd "$(dirname "$0")" && pwd)
time=${TIME:-60} threads=${THREADS:-2}
set -- --data "$data" --out "$results" --time "$time" --threads "$threads" ${ONLY:+--only "$ONLY"}
"$python" "$here/prepare.py" --out "$data"
# our program first: if time runs out, the peers can go on without it
if [ -n "$resflow" ]; then
    "$python" "$here/resflow.py" --resflow "$resflow" "$@" ${MODELS:+--models "$MODELS"}
fi
"$python" "$here/peers.py" "$@" ${METHODS:+--methods "$METHODS"}
"$python" "$here/report.py" --data "$data" --results "$results" > "$results/tables.md"
