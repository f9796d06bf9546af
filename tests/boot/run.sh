#!/usr/bin/env bash
# run.sh IMAGES [PROGRAMS]: boots a VM from a cached image, by qemu and through libvirt, and tries to take the image away
# from under it. Needs root (bind mount, libvirtd). Everything is made in a temporary folder and in a mount namespace of
# its own; /etc is not touched.
#
# What must hold, and ends the script if it does not:
#   - the VM prints BOOT-MARKER from an overlay on the cached file, seen through the read-only bind mount;
#   - eviction is refused while it runs: with a lease the consumer is named, without one "open by a process without a lease";
#   - libvirt's dynamic_ownership=1 changes neither owner, group, mode nor bytes of the cached file.
set -euo pipefail
if [ -z "${HEARTH_BOOT_NAMESPACE:-}" ]; then
    HEARTH_BOOT_NAMESPACE=1 exec unshare --mount --propagation private "$0" "$@"
fi
images=$(realpath "${1:?usage: run.sh IMAGES [PROGRAMS]}")
bin=$(realpath "${2:-$(dirname "$0")/../../target/debug}")
work=$(mktemp -d)
chmod 0755 "$work"
pids=()
cleanup() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    pkill -F "$work/libvirtd.pid" 2>/dev/null || true
    pkill -F "$work/virtlogd.pid" 2>/dev/null || true
    wait 2>/dev/null || true
    umount -l "$work/images" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
say() { printf '== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; tail -n 15 "$work"/*.log >&2 || true; exit 1; }
free_port() { python3 -c 'import socket; s=socket.socket(); s.bind(("127.0.0.1",0)); print(s.getsockname()[1])'; }

# --- a controller and one agent, configured as packages configure them ---------------------------------------------
port=$(free_port)
mkdir -p "$work"/{state,agent,cache,images}
cat >"$work/controller.toml" <<T
state_dir = "$work/state"
listen_https = "127.0.0.1:$port"
listen_quic = "127.0.0.1:$port"
public_names = ["127.0.0.1", "localhost"]
T
cat >"$work/agent.toml" <<T
data_dir = "$work/agent"
cache_dir = "$work/cache"
consumer_dir = "$work/images"
socket = "$work/agent.sock"
group = "kvm"
budget = "50%"
floor = "1 GiB"
controllers = ["127.0.0.1:$port"]
listen = "127.0.0.1:$(free_port)"
[location]
name = "boot-host"
T
"$bin/hearth-controller" init --config "$work/controller.toml" >"$work/init.txt"
HEARTH_URL=https://127.0.0.1:$port
HEARTH_TOKEN=$(grep -oE 'hrt_[0-9a-f]{64}' "$work/init.txt" | head -n 1)
HEARTH_FINGERPRINT=$(grep -oE '\b[0-9a-f]{64}\b' "$work/init.txt" | head -n 1)
export HEARTH_URL HEARTH_TOKEN HEARTH_FINGERPRINT
hearth() { "$bin/hearth" --quiet "$@"; }
agent() { "$bin/hearth-agent" "$@" --config "$work/agent.toml"; }

"$bin/hearth-controller" serve --config "$work/controller.toml" >"$work/controller.log" 2>&1 & pids+=($!)
for _ in $(seq 200); do hearth system >/dev/null 2>&1 && break; sleep 0.1; done
token=$(hearth -o json location token create | grep -oE 'hj1_[0-9a-f]{64}_[0-9a-f]{64}' | head -n 1)
agent enrol --controller "127.0.0.1:$port" --token "$token" >"$work/enrol.log" 2>&1 || fail "enrolment"
# Not by the function: its shell would be stopped in place of the agent.
"$bin/hearth-agent" serve --config "$work/agent.toml" >"$work/agent.log" 2>&1 & pids+=($!)

say "import and prewarm"
hearth image import "$images/v1.qcow2" --name debian --wait
# A short hold: what protects the image below is its use, not a job.
hearth prewarm create debian --all --keep 1s --wait
mount --bind "$work/cache/objects" "$work/images"
mount -o remount,bind,ro "$work/images"
base=$(agent path debian)
content=$(basename "$base" .raw)
[ "${base#"$work/images/"}" != "$base" ] || fail "path $base is not under the read-only mount"
facts() { stat -c '%U:%G %a %s' "$base"; b3sum --no-names "$base"; }
before=$(facts)
say "cached file: $before"
( : >>"$base" ) 2>/dev/null && fail "root could write the base through the consumer's mount"

# --- boots ---------------------------------------------------------------------------------------------------------
wait_for_marker() { # LOG SECONDS
    for _ in $(seq "$2"); do grep -aqs 'BOOT-MARKER' "$1" && { grep -ao 'BOOT-MARKER.*' "$1" | head -n 1; return; }; sleep 1; done
    tail -n 5 "$1" >&2
    fail "no BOOT-MARKER within $2 s"
}
evict_is_refused() { # expected words
    if said=$(agent evict "$content" 2>&1); then fail "eviction was not refused: $said"; fi
    grep -q "$1" <<<"$said" || fail "eviction was refused with other words: $said"
    say "eviction refused: $said"
    [ -e "$base" ] || fail "the base is gone"
}
overlay() { qemu-img create -q -f qcow2 -F raw -b "$base" "$1"; }
boot_by_qemu() { # OVERLAY LOG
    qemu-system-x86_64 -m 1024 -accel tcg,thread=multi -smp 2 -cpu max -nodefaults -display none -no-reboot \
        -serial "file:$2" -drive "file=$1,format=qcow2,if=virtio" >"$work/qemu.log" 2>&1 & vm=$!
    pids+=($vm)
}

say "a VM by qemu, with a lease"
lease=$(agent lease "$content" vm-with-lease | head -n 1)
overlay "$work/leased.qcow2"
boot_by_qemu "$work/leased.qcow2" "$work/leased.serial"
wait_for_marker "$work/leased.serial" 240
evict_is_refused vm-with-lease
kill "$vm"; wait "$vm" 2>/dev/null || true
agent release "$lease"

say "a VM by qemu, started by hand without a lease"
overlay "$work/bare.qcow2"
boot_by_qemu "$work/bare.qcow2" "$work/bare.serial"
sleep 3
evict_is_refused 'open by a process without a lease'
wait_for_marker "$work/bare.serial" 240
kill "$vm"; wait "$vm" 2>/dev/null || true

say "a VM through libvirt with dynamic_ownership=1"
mkdir -p "$work/libvirt" "$work/etc"
cp -a /etc/libvirt/. "$work/etc/"
printf 'dynamic_ownership = 1\nsecurity_driver = "none"\nuser = "libvirt-qemu"\ngroup = "kvm"\ncgroup_controllers = []\nnamespaces = []\n' >"$work/etc/qemu.conf"
mount --bind "$work/etc" /etc/libvirt
printf 'listen_tls=0\nlisten_tcp=0\nunix_sock_dir="%s"\nauth_unix_ro="none"\nauth_unix_rw="none"\n' "$work/libvirt" >"$work/libvirtd.conf"
virtlogd -d -p "$work/virtlogd.pid" || true
libvirtd -f "$work/libvirtd.conf" -p "$work/libvirtd.pid" >"$work/libvirtd.log" 2>&1 & pids+=($!)
uri="qemu:///system?socket=$work/libvirt/libvirt-sock"
for _ in $(seq 100); do virsh -c "$uri" list >/dev/null 2>&1 && break; sleep 0.1; done
lease=$(agent lease "$content" vm-libvirt | head -n 1)
mkdir "$work/vm"; chmod 0777 "$work/vm"
overlay "$work/vm/disk.qcow2"
cat >"$work/domain.xml" <<X
<domain type='qemu'><name>hearth-boot-test</name><memory unit='MiB'>1024</memory><vcpu>2</vcpu>
<os><type arch='x86_64'>hvm</type></os><features><acpi/></features><cpu mode='maximum'/>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='$work/vm/disk.qcow2'/>
<target dev='vda' bus='virtio'/></disk>
<serial type='file'><source path='$work/vm/serial'/><target port='0'/></serial></devices></domain>
X
virsh -c "$uri" create "$work/domain.xml" || fail "libvirt did not start the VM"
wait_for_marker "$work/vm/serial" 240
say "overlay now owned by $(stat -c '%U:%G' "$work/vm/disk.qcow2") (libvirt took it)"
evict_is_refused vm-libvirt
virsh -c "$uri" destroy hearth-boot-test
agent release "$lease"

after=$(facts)
[ "$before" = "$after" ] || fail "the cached file changed: $before -> $after"
say "owner, mode and bytes of the cached file are unchanged: $after"
say "boot test passed"
