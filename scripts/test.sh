#!/usr/bin/env bash
# Runs the tests in the environment the launcher uses: scripts/test.sh [pytest options].
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment test
cd "$ROOT"
exec "$PYTHON" -m pytest "$@"
