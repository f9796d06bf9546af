#!/usr/bin/env bash
# Installs the Debian packages in a system that systemd has booted, and runs inside.sh there.
#
#   tests/systemd/run.sh [IMAGES]      IMAGES: the folder that `make images` filled (default: images)
#
# The system is the tree of test image v1 (v1.tar) in a container: systemd is PID 1, its sandboxing is the real one, only
# the kernel is this machine's. Needs root, target/debian/*.deb (`make packages`) and about 2 GB in TMPDIR.
set -euo pipefail
cd "$(dirname "$0")/../.."
images=$(cd "${1:-images}" && pwd)
die() { echo "systemd-test: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || die "needs root; run: sudo make systemd-test"
[ -s "$images/v1.tar" ] || die "$images/v1.tar is missing; run: make images"
newest() { ls -t target/debian/"$1"_*.deb 2>/dev/null | head -n 1; }
debs=("$(newest hearth-controller)" "$(newest hearth-agent)" "$(newest hearth)")
for deb in "${debs[@]}"; do [ -f "$deb" ] || die "a package is missing in target/debian; run: make packages"; done

scratch=$(mktemp -d); tree=$scratch/tree; console=$scratch/console
container= leader=
cleanup() {
  local pid
  for pid in $leader $container; do kill -KILL "$pid" 2>/dev/null || true; done
  [ -z "$container" ] || wait "$container" 2>/dev/null || true
  umount -q "$tree/proc" 2>/dev/null || true
  rm -rf --one-file-system "$scratch"
}
trap cleanup EXIT

# --- the tree, with what the packages depend on ---------------------------------------------------------------
mkdir "$tree"; tar -C "$tree" -xpf "$images/v1.tar" --numeric-owner
mkdir "$tree/test"; cp "${debs[@]}" tests/systemd/inside.sh "$tree/test/"
# The same programs as a later version, with a configuration file that its maintainer changed: what an upgrade is.
mkdir "$tree/test/upgrade"
for deb in "${debs[@]}"; do
  dpkg-deb -R "$deb" "$scratch/unpacked"
  sed -i 's/^Version: .*/Version: 9.9.9-1/' "$scratch/unpacked/DEBIAN/control"
  for conf in "$scratch"/unpacked/etc/hearth/*.toml; do [ ! -f "$conf" ] || echo '# A new remark.' >>"$conf"; done
  rm -f "$scratch/unpacked/DEBIAN/md5sums"
  dpkg-deb --root-owner-group -Zgzip -z1 -b "$scratch/unpacked" "$tree/test/upgrade/" >/dev/null
  rm -r "$scratch/unpacked"
done
cp --sparse=always "$images/v1.c.qcow2" "$tree/test/image.qcow2"
qemu-img convert -O raw "$images/v1.c.qcow2" "$tree/test/expected.raw"
cp --remove-destination /etc/resolv.conf "$tree/etc/resolv.conf"; cat /etc/hosts >>"$tree/etc/hosts"
for conf in /etc/apt/apt.conf /etc/apt/apt.conf.d/*proxy*; do
  [ ! -f "$conf" ] || cp "$conf" "$tree/etc/apt/apt.conf.d/"
done
mount -t proc proc "$tree/proc"
chroot "$tree" sh -ec 'export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends qemu-utils procps init-system-helpers sudo' >"$scratch/apt.log" 2>&1 ||
  { tail -n 20 "$scratch/apt.log"; die "the packages that ours depend on cannot be installed"; }
umount "$tree/proc"

# --- the system -----------------------------------------------------------------------------------------------
# nspawn hangs without a terminal; `script` gives it one. Its own filter does not know Landlock, which the controller
# needs to confine qemu-img.
script -qfc "systemd-nspawn -D $tree --register=no --keep-unit --private-network --link-journal=no \
  --system-call-filter='landlock_create_ruleset landlock_add_rule landlock_restrict_self' -b" "$console" \
  </dev/null >/dev/null 2>&1 &
container=$!
for _ in $(seq 600); do grep -aq 'BOOT-MARKER' "$console" 2>/dev/null && break; sleep 0.1; done
grep -aq 'BOOT-MARKER' "$console" || { tail -n 30 "$console"; die "the system did not boot"; }

# PID 1 of the container: the process named systemd below nspawn.
leader=$(pgrep -P "$container" | head -n 1)
while [ -n "$leader" ] && [ "$(cat "/proc/$leader/comm")" != systemd ]; do leader=$(pgrep -P "$leader" | head -n 1); done
[ -n "$leader" ] || die "the container has no PID 1"

status=0
nsenter -t "$leader" -m -u -i -n -p -r /bin/bash /test/inside.sh || status=$?
if [ "$status" != 0 ]; then
  echo "--- journal of the daemons ---"
  nsenter -t "$leader" -m -u -i -n -p -r journalctl --no-pager -o short-monotonic -n 80 \
    -u 'hearth-*' -u var-lib-hearth-images.mount || true
fi
kill -s RTMIN+4 "$leader"   # power off in order
for _ in $(seq 200); do kill -0 "$leader" 2>/dev/null || break; sleep 0.1; done
[ "$status" = 0 ] || die "failed (see above)"
echo "systemd-test: all steps passed"
