#!/usr/bin/env bash
# Prepares the Python environment when needed and starts the vectorised training search.
set -euo pipefail

for argument in "$@"; do
    case "$argument" in
    -h | --help)
        cat <<'USAGE'
usage: ./start_vectorized_training.sh [--detach] [option ...]

Starts the search for trading agents over vectorised environments. With no options it trains on the bars
that come with the project: no account, database or download is needed. An earlier run that is still alive
is asked to finish its trial and save, and is waited for, before the new one begins.

  --detach               run in the background; prints the pid, the log and how to stop it
  --n-envs N             parallel environments (12)
  --data-source NAME     where bars come from (sample)
  --study-name NAME      the study that trials belong to (<source>_vectorized)

Every other option goes to the search; python scripts/optimize.py --help lists them all.
Ctrl-C once finishes the current trial and saves; twice stops at once.

Without an active virtual or conda environment, .venv is made here and the project installed into it.
USAGE
        exit 0
        ;;
    esac
done

source "$(dirname "${BASH_SOURCE[0]}")/scripts/environment.sh"
prepare_environment
exec "$PYTHON" "$ROOT/scripts/launch.py" "$@"
