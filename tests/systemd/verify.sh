#!/usr/bin/env bash
# Checks the shipped units: systemd-analyze verify says nothing, and the exposure of each daemon is at most 1.5.
set -euo pipefail
cd "$(dirname "$0")/../.."
exposure_max=1.5
scratch=$(mktemp -d); trap 'rm -rf "$scratch"' EXIT

# The units name programs and users of an installed package: let verify see them without an installation.
cp systemd/*.service systemd/*.mount "$scratch/"
sed -i -E 's|^ExecStart=/usr/bin/hearth-[a-z]+|ExecStart=/bin/true|; s#^(User|Group)=hearth#\1=daemon#' "$scratch"/*.service
failed=0
for unit in "$scratch"/*; do
  name=$(basename "$unit")
  case $name in *@.service) mv "$unit" "${unit/@./@example.}"; unit=${unit/@./@example.} ;; esac
  # Units of the machine itself are none of ours: only lines that name this unit count.
  if said=$(SYSTEMD_UNIT_PATH="$scratch:" systemd-analyze verify --man=no "$unit" 2>&1 | grep -E "hearth" ); then
    printf 'verify %s:\n%s\n' "$name" "$said"; failed=1
  else
    echo "verify   ok        $name"
  fi
done

for unit in systemd/*.service; do
  name=$(basename "$unit")
  copy=$scratch/security/${name/@./@example.}; mkdir -p "$scratch/security"; cp "$unit" "$copy"
  exposure=$(systemd-analyze security --offline=true --no-pager "$copy" 2>/dev/null |
    sed -nE 's/.*Overall exposure level for .*: ([0-9.]+) .*/\1/p')
  if [ -n "$exposure" ] && awk -v is="$exposure" -v max="$exposure_max" 'BEGIN { exit !(is <= max) }'; then
    echo "exposure ok   $exposure  $name (at most $exposure_max)"
  else
    echo "exposure FAIL ${exposure:-unknown}  $name (at most $exposure_max)"; failed=1
    systemd-analyze security --offline=true --no-pager "$copy" 2>/dev/null | grep '✗' || true
  fi
done
[ "$failed" = 0 ] || { echo "units: FAILED"; exit 1; }
echo "units: all checks passed"
