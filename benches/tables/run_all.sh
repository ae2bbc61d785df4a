#!/bin/sh
# Everything that is measured, a table at a time; what is there already is skipped, so interrupt it and start it again.
#
#     sh run_all.sh DATA RESULTS [PYTHON [RESFLOW]]
#
# TIME (60), THREADS (2), METHODS (of peers), MODELS (of ours) and ONLY (tables), comma-separated, in the environment change what
# is run; without RESFLOW only the peers are. Leave the machine alone meanwhile: the limit is in seconds, not in work.
set -eu
if [ $# -lt 2 ]; then
    sed -n '2,7p' "$0"
    exit 2
fi
data=$1 results=$2 python=${3:-python3} resflow=${4:-}
here=$(cd "$(dirname "$0")" && pwd)
"$python" "$here/prepare.py" --out "$data"
tables=${ONLY:-$(cd "$here" && "$python" -c "import sys, tables; print(','.join(tables.names(sys.argv[1])))" "$(realpath "$data")")}
for table in $(echo "$tables" | tr , ' '); do
    set -- --data "$data" --out "$results" --time "${TIME:-60}" --threads "${THREADS:-2}" --only "$table"
    if [ -n "$resflow" ]; then
        "$python" "$here/resflow.py" --resflow "$resflow" "$@" ${MODELS:+--models "$MODELS"}
    fi
    "$python" "$here/peers.py" "$@" ${METHODS:+--methods "$METHODS"}
done
"$python" "$here/report.py" --data "$data" --results "$results" > "$results/tables.md"
