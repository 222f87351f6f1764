#!/usr/bin/env bash
# Runs the tests in the environment the launcher uses: scripts/test.sh [pytest options].
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment test
cd "$ROOT"
# One worker for each core; a file stays with one worker, since its tests may share a market or a server.
exec "$PYTHON" -m pytest -n auto --dist loadfile "$@"
