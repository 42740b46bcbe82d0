# Sourced by quickstart.sh, test.sh, conformance.sh and bench_generate.sh: makes .venv once, from any Python >= 3.11, and
# reuses it afterwards.
#
#   prepare_environment core|EXTRA    sets VENV_PYTHON; on failure prints one line that says what to do and exits with 1
#
# PYTHON=/path/to/python picks the interpreter; JAXALIGN_VENV=/path puts the environment somewhere else than .venv.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# A script that wants an environment of its own sets these anew.
VENV_VARIABLE=JAXALIGN_VENV
VENV="${JAXALIGN_VENV:-$ROOT/.venv}"
NEEDED_MIB=1500 # an environment takes about 1000 MiB, and pip unpacks the largest wheel beside it
PYTHONS="python3.13 python3.12 python3.11 python3 python"

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# "3.11", or nothing where the command is absent, a broken shim, or not a Python 3.
python_version() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

new_enough() {
  [ "${1%%.*}" -gt 3 ] || { [ "${1%%.*}" -eq 3 ] && [ "${1#*.}" -ge 11 ]; }
}

# Sets PYTHON_FOUND to the first interpreter that runs, is new enough and can make environments.
find_python() {
  local candidates candidate version too_old="" no_venv=""
  if [ -n "${PYTHON:-}" ]; then
    candidates="$PYTHON"
    [ -n "$(python_version "$PYTHON")" ] || die "PYTHON=$PYTHON does not run; set PYTHON to a Python 3.11 or newer"
  else
    candidates="$PYTHONS"
  fi
  # Unquoted only where it is our own list: a PYTHON that holds a space is one command.
  local IFS=' '
  [ -n "${PYTHON:-}" ] && IFS=
  for candidate in $candidates; do
    version="$(python_version "$candidate")"
    case "$version" in '' | *[!0-9.]*) continue ;; esac
    if ! new_enough "$version"; then
      too_old="${too_old:-$candidate is Python $version}"
    elif ! "$candidate" -c 'import venv, ensurepip' >/dev/null 2>&1; then
      no_venv="${no_venv:-$version}"
    else
      PYTHON_FOUND="$candidate"
      return
    fi
  done
  [ -z "$no_venv" ] || die "Python $no_venv lacks the venv module; install it (Debian, Ubuntu: sudo apt install python$no_venv-venv) and run this again"
  [ -z "$too_old" ] || die "$too_old, jaxalign needs 3.11 or newer; install one and run this again, or name it: PYTHON=/path/to/python3.11"
  die "no Python found; install Python 3.11 or newer and run this again, or name it: PYTHON=/path/to/python3.11"
}

# What a finished install is stamped with: change the dependencies, the interpreter or the folder, and it is redone.
fingerprint() {
  printf '%s %s %s\n' "$(cksum <"$ROOT/pyproject.toml")" "$("$VENV_PYTHON" -c 'import sys; print(sys.version)' 2>/dev/null | tr '\n' ' ')" "$ROOT"
}

stamped() {
  [ "$(cat "$VENV/.jaxalign-$1" 2>/dev/null)" = "$(fingerprint)" ]
}

explain_pip_failure() {
  local log="$1"
  if grep -qiE 'No space left on device|Errno 28|Disk quota exceeded|Errno 122' "$log"; then
    die "the disk is full; free about $NEEDED_MIB MiB under $VENV and ${TMPDIR:-/tmp} and run this again"
  fi
  # With PIP_RETRIES=0 pip says only that there is not one version of what it asked for.
  if grep -qiE 'NewConnectionError|Failed to establish a new connection|Temporary failure in name resolution|Name or service not known|nodename nor servname|Network is unreachable|Connection refused|ConnectTimeout|connect timeout|ProxyError|Cannot connect to proxy|NameResolutionError' "$log" ||
    { grep -q '(from versions: none)' "$log" && ! grep -qi 'require a different python' "$log"; }; then
    die "the package index cannot be reached; connect to a network, or set pip's proxy or mirror (PIP_PROXY, PIP_INDEX_URL), and run this again"
  fi
  tail -n 25 "$log" >&2
  die "pip install failed; the reason stands above, the whole log in $log"
}

make_venv() {
  find_python
  if [ -e "$VENV" ] && [ ! -f "$VENV/pyvenv.cfg" ] && [ -n "$(ls -A "$VENV" 2>/dev/null)" ]; then
    die "$VENV is there and is not a virtual environment; move it away, or set $VENV_VARIABLE to another folder"
  fi
  check_space
  rm -rf "$VENV" 2>/dev/null
  local log
  log="$(mktemp "${TMPDIR:-/tmp}/jaxalign-venv.XXXXXX" 2>/dev/null)" || die "nothing can be written under ${TMPDIR:-/tmp}; free some space or set TMPDIR"
  if ! "$PYTHON_FOUND" -m venv "$VENV" >"$log" 2>&1; then
    rm -rf "$VENV"
    grep -qiE 'ensurepip|python3[0-9.]*-venv' "$log" &&
      die "$PYTHON_FOUND lacks the venv module; install it (Debian, Ubuntu: sudo apt install python$(python_version "$PYTHON_FOUND")-venv) and run this again"
    explain_pip_failure "$log"
  fi
  rm -f "$log"
}

check_space() {
  local folder="$VENV" free
  while [ ! -d "$folder" ]; do folder="$(dirname "$folder")"; done
  [ -w "$folder" ] || die "$folder cannot be written to; set $VENV_VARIABLE to a folder that can"
  free="$(df -Pk "$folder" 2>/dev/null | awk 'NR == 2 {print int($4 / 1024)}')"
  [ -z "$free" ] || [ "$free" -ge "$NEEDED_MIB" ] ||
    die "$free MiB are free under $folder and the install needs about $NEEDED_MIB; free some, or set $VENV_VARIABLE to a folder on another disk"
}

# An environment that somebody else made, such as uv's, which hold no pip.
check_found() {
  local version
  version="$(python_version "$VENV_PYTHON")"
  new_enough "$version" || die "$VENV holds Python $version, jaxalign needs 3.11 or newer; move it away, or set $VENV_VARIABLE to another folder"
  "$VENV_PYTHON" -c 'import pip' 2>/dev/null || "$VENV_PYTHON" -m ensurepip >/dev/null 2>&1 ||
    die "$VENV holds no pip; install it there, move the folder away, or set $VENV_VARIABLE to another one"
}

prepare_environment() {
  local want="$1" extra="" log started
  VENV_PYTHON="$VENV/bin/python"
  # An explicit PYTHON of another version than the environment's asks for a new environment.
  if [ -n "$(python_version "$VENV_PYTHON")" ] &&
    { [ -z "${PYTHON:-}" ] || [ "$(python_version "$PYTHON")" = "$(python_version "$VENV_PYTHON")" ]; }; then
    if stamped test || stamped "$want"; then return; fi
    check_found
  else
    make_venv
  fi
  [ "$want" = core ] || extra="[$want]"
  log="$VENV/install.log"
  started=$SECONDS
  printf 'Installing jaxalign%s into %s (once; a few minutes) ...\n' "$extra" "$VENV" >&2
  (cd "$ROOT" && "$VENV_PYTHON" -m pip install --disable-pip-version-check -e ".$extra") >"$log" 2>&1 || explain_pip_failure "$log"
  fingerprint >"$VENV/.jaxalign-$want" || die "$VENV cannot be written to; free some space and run this again"
  printf 'Installed in %d s; %s is %d MiB.\n' "$((SECONDS - started))" "$VENV" "$(du -sk "$VENV" | awk '{print int($1 / 1024)}')" >&2
}

# prepare_peers EXTRA VARIABLE    an environment of its own, .EXTRA-venv or where VARIABLE says: peers take several GiB
prepare_peers() {
  VENV_VARIABLE="$2" VENV="${!2:-$ROOT/.$1-venv}" NEEDED_MIB=4000
  PYTHONS="python3.11 python3.12 python3.13 python3 python" # the peers keep up with the newest Python last
  prepare_environment "$1"
}
