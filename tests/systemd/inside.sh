#!/bin/bash
# Runs inside the system that run.sh boots: packages, main job, watchdogs, stop, removal. Each step says what it proved.
set -euo pipefail
export LC_ALL=C.UTF-8 HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin
cd /test
step() { echo "systemd-test: ok: $*"; }
fail() { echo "systemd-test: FAILED: $*" >&2; exit 1; }
is() { [ "$1" = "$2" ] || fail "$3: expected '$2', got '$1'"; }
show() { systemctl show --property="$2" --value "$1"; }
# until_true SECONDS WHAT COMMAND...
until_true() {
  local seconds=$1 what=$2; shift 2
  for _ in $(seq $((seconds * 5))); do if "$@" >/dev/null 2>&1; then return 0; fi; sleep 0.2; done
  fail "not within $seconds s: $what"
}
# run LOG COMMAND...: runs a command, and shows what it said if it fails.
run() {
  local log=$1; shift
  "$@" >"$log" 2>&1 || { cat "$log"; fail "$*"; }
}

# --- packages -------------------------------------------------------------------------------------------------
run dpkg.log dpkg -i hearth-controller_*.deb hearth-agent_*.deb hearth_*.deb
is "$(systemctl is-enabled hearth-controller hearth-agent var-lib-hearth-images.mount | sort -u)" enabled "units"
is "$(systemctl is-active hearth-controller hearth-agent | sort -u)" inactive "units before anything is set up"
is "$(stat -c '%U:%G %a' /var/lib/hearth/cache)" "hearth:kvm 2750" "cache folder"
is "$(stat -c '%U:%G %a' /var/lib/hearth/controller)" "hearth:hearth 700" "controller's folder"
is "$(stat -c '%U:%G %a' /etc/hearth/agent.toml)" "root:hearth 640" "configuration"
step "packages installed, user and folders made, units enabled, nothing started"

# --- the controller -------------------------------------------------------------------------------------------
systemctl start hearth-controller || true
is "$(systemctl is-active hearth-controller)" inactive "a controller without init"
sed -i 's/^#public_names = .*/public_names = ["127.0.0.1", "localhost"]/' /etc/hearth/controller.toml
! hearth-controller init >init.log 2>&1 || fail "root set up a controller whose files the daemon cannot read"
grep -q 'sudo -u hearth' init.log || { cat init.log; fail "the refusal does not say as whom to run it"; }
run init.log runuser -u hearth -- hearth-controller init --config /etc/hearth/controller.toml
token=$(grep -oE 'hrt_[A-Za-z0-9_-]+' init.log | head -n 1)
fingerprint=$(grep -oE '\b[0-9a-f]{64}\b' init.log | head -n 1)
run start.log systemctl start hearth-controller
is "$(systemctl is-active hearth-controller)" active "controller"
is "$(ps -o user= -p "$(show hearth-controller MainPID)")" hearth "user of the controller"
run login.log hearth login https://127.0.0.1:7443 --token "$token" --fingerprint "$fingerprint"
step "controller initialised, started by systemd (Type=notify), logged in"

# --- the agent ------------------------------------------------------------------------------------------------
! systemctl start hearth-agent 2>/dev/null || fail "an agent that is not enrolled was started"
is "$(show hearth-agent ActiveState) $(show hearth-agent ExecMainStatus) $(show hearth-agent NRestarts)" "failed 78 0" \
  "an agent that is not enrolled, which is not started again and again"
run token.log hearth location token create -o json
join=$(grep -oE 'hj1_[A-Za-z0-9_.-]+' token.log | head -n 1)
! hearth-agent enrol --controller 127.0.0.1:7443 --token "$join" >enrol.log 2>&1 || fail "root enrolled the agent"
grep -q 'sudo -u hearth' enrol.log || { cat enrol.log; fail "the refusal does not say as whom to run it"; }
run enrol.log runuser -u hearth -- hearth-agent enrol --config /etc/hearth/agent.toml \
  --controller 127.0.0.1:7443 --token "$join"
run start.log systemctl start hearth-agent
is "$(systemctl is-active hearth-agent var-lib-hearth-images.mount | sort -u)" active "agent and mount"
is "$(ps -o user= -p "$(show hearth-agent MainPID)")" hearth "user of the agent"
step "agent enrolled and started, read-only mount is there"

# --- the main job ---------------------------------------------------------------------------------------------
run import.log hearth image import image.qcow2 --name debian
run prewarm.log hearth prewarm create debian --all --wait
run cache.csv hearth cache list --image debian -o csv
grep -q active cache.csv || { cat cache.csv; fail "no active entry"; }
file=$(find /var/lib/hearth/images -name '*.raw')
[ -f "$file" ] || fail "no image below /var/lib/hearth/images"
cmp "$file" expected.raw || fail "the cached file is not the image"
step "imported (qemu-img confined under the unit's own sandbox), prewarmed, the cached file equals qemu-img's own"

is "$(stat -c '%U:%G %a' "$file")" "hearth:kvm 440" "cached file"
! chown root "$file" 2>/dev/null || fail "root could change the owner through the read-only mount"
! touch "$file" 2>/dev/null || fail "root could write through the read-only mount"
useradd --system --groups kvm guest; useradd --system stranger
runuser -u guest -- head -c 512 "$file" >/dev/null || fail "a member of group kvm cannot read the image"
! runuser -u stranger -- head -c 512 "$file" >/dev/null 2>&1 || fail "a stranger can read the image"
is "$(hearth-agent path debian)" "$file" "the path that the agent gives"
{ read -r lease; read -r leased; } < <(hearth-agent lease debian vm-1)
is "$leased" "$file" "the leased path"
! hearth-agent evict debian >evict.log 2>&1 || fail "a leased image was evicted"
grep -q vm-1 evict.log || { cat evict.log; fail "the refusal does not name the consumer"; }
run release.log hearth-agent release "$lease"
! runuser -u guest -- hearth-agent evict debian >/dev/null 2>&1 || fail "a guest may evict"
step "paths and leases over the local socket; a leased image stays, and guests have no say"
step "group kvm reads the image, nobody changes it, strangers see nothing"

# --- a second agent for a second folder -----------------------------------------------------------------------
# As agent.toml says.
cp -p /etc/hearth/agent.toml /etc/hearth/agent-fast.toml
sed -i -e 's|^#data_dir = .*|data_dir = "/var/lib/hearth/agent-fast"|; s|^#cache_dir = .*|cache_dir = "/data/hearth"|' \
  -e 's|^#socket = .*|socket = "/run/hearth/agent-fast.sock"|; s|^#listen = .*|listen = "[::]:7454"|' \
  -e 's|^#name = .*|name = "host-1-fast"|' /etc/hearth/agent-fast.toml
install -d -o hearth -g hearth -m 700 /var/lib/hearth/agent-fast
install -d -o hearth -g kvm -m 2750 /data/hearth
mkdir /etc/systemd/system/hearth-agent@fast.service.d
printf '[Service]\nReadWritePaths=/data/hearth\n' >/etc/systemd/system/hearth-agent@fast.service.d/override.conf
systemctl daemon-reload
run token.log hearth location token create -o json
join=$(grep -oE 'hj1_[A-Za-z0-9_.-]+' token.log | head -n 1)
run enrol.log runuser -u hearth -- hearth-agent enrol --config /etc/hearth/agent-fast.toml \
  --controller 127.0.0.1:7443 --token "$join"
run start.log systemctl enable --now hearth-agent@fast
run prewarm.log hearth prewarm create debian --to host-1-fast --wait
fast=$(find /data/hearth/objects -name '*.raw')
cmp "$fast" expected.raw || fail "the second agent's file is not the image"
is "$(stat -c '%U:%G %a' "$fast")" "hearth:kvm 440" "the second agent's file"
is "$(hearth-agent path debian --config /etc/hearth/agent-fast.toml)" "$fast" "the path that the second agent gives"
step "a second agent (hearth-agent@fast) serves a second folder"

# --- watchdogs ------------------------------------------------------------------------------------------------
journalctl -u 'hearth-*' --no-pager -o cat >journal.log
! grep -E ' (WARN|ERROR) ' journal.log || fail "the daemons warn of something in an ordinary installation"
step "no warning in the journal so far"
units=(hearth-controller hearth-agent hearth-agent@fast)
active_at() { hearth cache list --image "$1" --status active -o csv >"$1.csv" && [ "$(tail -n +2 "$1.csv" | wc -l)" = "$2" ]; }
t0=$SECONDS
declare -A pid_before
for unit in "${units[@]}"; do
  pid_before[$unit]=$(show "$unit" MainPID)
  kill -STOP "${pid_before[$unit]}"
done
restarted() { [ "$(show "$1" NRestarts)" -ge 1 ] && [ "$(systemctl is-active "$1")" = active ]; }
for unit in "${units[@]}"; do
  until_true 90 "$unit is started again by its watchdog" restarted "$unit"
  [ "$(show "$unit" MainPID)" != "${pid_before[$unit]}" ] || fail "$unit has its old process"
  journalctl -u "$unit" --no-pager >journal.log
  grep -qi 'watchdog timeout' journal.log || fail "the journal of $unit says nothing of a watchdog"
done
back=$((SECONDS - t0))
until_true 60 "both copies are active again" active_at debian 2
head -c 33554432 /dev/urandom >second.raw
run import.log hearth image import second.raw --name second --format raw
run prewarm.log hearth prewarm create second --all --wait
active_at second 2 || { cat second.csv; fail "the new image is not active on both agents"; }
step "all daemons hung, were killed by their watchdogs and back after $back s, and do the main job again"

# --- stop, upgrade, removal -----------------------------------------------------------------------------------
for unit in "${units[@]}"; do pid_before[$unit]=$(show "$unit" MainPID); done
cp /etc/hearth/controller.toml controller.before
run upgrade.log dpkg --force-confold -i upgrade/*.deb
is "$(dpkg-query -W -f '${Version}\n' 'hearth*' | sort -u)" 9.9.9-1 "versions after the upgrade"
for unit in "${units[@]}"; do
  is "$(systemctl is-active "$unit")" active "$unit after an upgrade"
  [ "$(show "$unit" MainPID)" != "${pid_before[$unit]}" ] || fail "$unit still runs what was there before the upgrade"
done
cmp /etc/hearth/controller.toml controller.before || fail "an upgrade changed a configuration that somebody had edited"
grep -q 'A new remark' /etc/hearth/agent.toml || fail "an upgrade left an old configuration that nobody had edited"
is "$(stat -c '%U:%G %a' /etc/hearth/agent.toml)" "root:hearth 640" "configuration after an upgrade"
until_true 60 "the copies are active after the upgrade" active_at debian 2
is "$(hearth-agent path debian)" "$file" "the path after the upgrade"
run drain.log hearth location remove host-1-fast --yes
for unit in "${units[@]}"; do
  t0=$SECONDS; run stop.log systemctl stop "$unit"; took=$((SECONDS - t0))
  is "$(show "$unit" Result) $(show "$unit" ExecMainStatus)" "success 0" "how $unit ended"
  [ "$took" -le 20 ] || fail "$unit took $took s to stop"
done
! pgrep -u hearth >/dev/null || fail "processes of user hearth are left: $(pgrep -u hearth -a)"
step "an upgrade takes over, a stop drains and leaves nothing behind"
run purge.log dpkg -P hearth-controller hearth-agent hearth
[ -f "$(find /var/lib/hearth/cache/objects -name '*.raw' | head -n 1)" ] || fail "a purge took the images of VMs away"
cmp "$(find /data/hearth/objects -name '*.raw' -size +100M)" expected.raw || fail "a purge changed the images of VMs"
[ ! -e /etc/hearth/agent.toml ] && [ ! -e /etc/hearth/controller.toml ] || fail "a purge left the configuration"
[ -z "$(find /var/lib/hearth/agent* -name '*key*')" ] || fail "a purge left the agent's key"
[ -s /var/lib/hearth/controller/ca/ca.key ] || fail "a purge took the certificate authority away"
[ -z "$(find /etc/systemd/system -name '*hearth*.service' -o -name '*hearth*.mount')" ] || fail "a purge left links to units"
run install.log dpkg -i hearth-controller_*.deb hearth-agent_*.deb hearth_*.deb
run start.log systemctl start hearth-controller
run system.log hearth system
step "removed; images are left for the VMs that run on them, and a new installation finds the controller's state"
