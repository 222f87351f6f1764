# Sourced by start_vectorized_training.sh and scripts/test.sh. `prepare_environment [test]` finds or makes
# the Python environment with this project in it, and sets PYTHON to its interpreter.
#
# An activated virtual or conda environment is used as it is, and installed into only when the project does
# not import there. Otherwise .venv beside setup.cfg is made once, and brought up to date when setup.cfg,
# pyproject.toml or constraints.txt change.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"

fail() {
    echo "error: $*" >&2
    exit 2
}

# Whether interpreter $1 runs, is a supported version, and can make environments.
usable_python() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in python3.12 python3.11 python3; do
        # A version manager's shim may be on the PATH for an interpreter it will not run: so it is run.
        if usable_python "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or 3.12 with the venv module was found (tried python3.12, python3.11, python3);" \
        "install one (Debian and Ubuntu: apt install python3.11 python3.11-venv) or activate an environment"
}

# What an installation depends on: the three files, and the folder, since an editable install points at it.
fingerprint() {
    "$PYTHON" -I - "$ROOT" <<'PY'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
digest = hashlib.sha256(str(root).encode())
for name in ("setup.cfg", "pyproject.toml", "constraints.txt"):
    digest.update((root / name).read_bytes())
print(digest.hexdigest())
PY
}

# pip_install PYTHON CONSTRAINTS [EXTRA]. Quiet twice: errors are shown, and nothing else.
pip_install() {
    "$1" -m pip install -qq --disable-pip-version-check -c "$2" -e "$ROOT${3:+[$3]}" ||
        fail "the installation into $("$1" -c 'import sys; print(sys.prefix)') failed; pip's message is above"
}

prepare_own() {
    local extra="$1" venv="$ROOT/.venv" base wanted stamp
    PYTHON="$venv/bin/python"
    # Also false when the interpreter the environment was made from has been removed.
    if ! "$PYTHON" -c '' >/dev/null 2>&1; then
        base="$(find_python)" || exit
        echo "Making .venv with $("$base" --version)" >&2
        "$base" -m venv --clear "$venv" || fail "$base could not make the virtual environment $venv"
    fi
    wanted="$(fingerprint)"
    stamp="$venv/.installed-${extra:-base}"
    if [[ -f "$stamp" && "$(<"$stamp")" == "$wanted" ]]; then
        return
    fi
    # A start that was interrupted while it made the environment leaves one without pip.
    "$PYTHON" -m pip --version >/dev/null 2>&1 || "$PYTHON" -m ensurepip >/dev/null
    echo "Installing into .venv; the first time takes a few minutes" >&2
    pip_install "$PYTHON" "$ROOT/constraints.txt" "$extra"
    # Written last, so that an installation that was cut short is repeated.
    echo "$wanted" >"$venv/.installed-base"
    echo "$wanted" >"$stamp"
}

# Prints nothing when this environment has no working torch, its version when it satisfies setup.cfg; fails
# when it does not: replacing a CUDA or ROCm build with another one is not this script's to decide.
installed_torch() {
    "$PYTHON" -P - "$ROOT/setup.cfg" <<'PY'
import configparser, importlib.metadata, re, sys
try:
    import torch
except ImportError:
    sys.exit(0)
config = configparser.ConfigParser()
config.read(sys.argv[1])
wanted = re.search(r"^torch>=(\d+)\.(\d+),<(\d+)\.(\d+)$", config["options"]["install_requires"], re.M)
low, high = tuple(map(int, wanted.groups()[:2])), tuple(map(int, wanted.groups()[2:]))
installed = importlib.metadata.version("torch")
if not low <= tuple(map(int, re.match(r"(\d+)\.(\d+)", installed).groups())) < high:
    sys.exit(f"torch {installed} is installed in {sys.prefix}, and {wanted[0]} is needed: install "
             "the build you want of such a version there, or deactivate the environment")
print(installed)
PY
}

prepare_active() {
    local prefix="$1" extra="$2" modules="drl_agents, environments, torch, optuna" torch constraints
    PYTHON="$prefix/bin/python"
    "$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' >/dev/null 2>&1 ||
        fail "the active environment $prefix has no Python 3.11 or 3.12; activate another, or deactivate it"
    [[ "$extra" == test ]] && modules+=", pytest, pytest_benchmark, xdist, hypothesis, sklearn, stable_baselines3"
    # -P: the current folder does not count as installed. Another copy of the project does not either.
    if "$PYTHON" -P -c "import $modules, pathlib, sys
sys.exit(pathlib.Path(sys.argv[1]) not in pathlib.Path(drl_agents.__path__[0]).resolve().parents)" \
        "$ROOT" >/dev/null 2>&1; then
        return
    fi
    "$PYTHON" -m pip --version >/dev/null 2>&1 ||
        fail "the active environment $prefix has no pip: run '$PYTHON -m ensurepip' once, or deactivate it"
    torch="$(installed_torch)" || exit 2
    echo "Installing into the active environment $prefix${torch:+, keeping its torch $torch}" >&2
    if [[ -z "$torch" ]]; then
        pip_install "$PYTHON" "$ROOT/constraints.txt" "$extra"
        return
    fi
    constraints="$(mktemp)"
    { grep -v '^torch==' "$ROOT/constraints.txt"; echo "torch==$torch"; } >"$constraints"
    (pip_install "$PYTHON" "$constraints" "$extra") || { rm -f "$constraints"; exit 2; }
    rm -f "$constraints"
}

prepare_environment() {
    local active="${VIRTUAL_ENV:-${CONDA_PREFIX:-}}"
    if [[ -n "$active" ]]; then
        prepare_active "$active" "${1:-}"
    else
        prepare_own "${1:-}"
    fi
}
