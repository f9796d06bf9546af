#!/usr/bin/env bash
# run.sh AGENTS MINUTES: one release controller, AGENTS idle agents with real sessions.
# Prints memory per agent, CPU of the controller over MINUTES, and how long all take to come back after a restart.
set -euo pipefail
cd "$(dirname "$0")/../.."
agents=${1:-2000} minutes=${2:-5}
bin=target/release
work=$(mktemp -d)
cleanup() { kill $(jobs -p) 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"; }
trap cleanup EXIT
ulimit -n 65536 2>/dev/null || true

port=$(python3 -c 'import socket; s=socket.socket(); s.bind(("127.0.0.1",0)); print(s.getsockname()[1])')
mkdir -p "$work/state"
cat >"$work/controller.toml" <<T
state_dir = "$work/state"
listen_https = "127.0.0.1:$port"
listen_quic = "127.0.0.1:$port"
public_names = ["127.0.0.1", "localhost"]
T
"$bin/hearth-controller" init --config "$work/controller.toml" >"$work/init.txt"
export HEARTH_URL=https://127.0.0.1:$port
HEARTH_TOKEN=$(grep -oE 'hrt_[0-9a-f]{64}' "$work/init.txt" | head -n 1)
HEARTH_FINGERPRINT=$(grep -oE '\b[0-9a-f]{64}\b' "$work/init.txt" | head -n 1)
export HEARTH_TOKEN HEARTH_FINGERPRINT

controller=
start() {
    "$bin/hearth-controller" serve --config "$work/controller.toml" >>"$work/controller.log" 2>&1 &
    controller=$!
    for _ in $(seq 600); do
        "$bin/hearth" --quiet system >/dev/null 2>&1 && return
        sleep 0.05
    done
    tail -n 20 "$work/controller.log" >&2
    exit 1
}
rss() { awk '/^VmRSS:/ { print $2 }' "/proc/$controller/status"; }
cpu() { awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$controller/stat"; } # hundredths of a second
last() { grep "\"event\":\"$1\"" "$work/load.json" | tail -n 1; }
field() { sed -E "s/.*\"$1\":([0-9]+).*/\1/"; }

start
token=$("$bin/hearth" --quiet -o json location token create --uses "$agents" --ttl 1h | grep -oE 'hj1_[0-9a-f]{64}_[0-9a-f]{64}' | head -n 1)
empty=$(rss)
seconds=$((minutes * 60 + 300))
: >"$work/load.json"
"$bin/hearth-load" "127.0.0.1:$port" "$(find "$work/state" -name ca.crt)" "$token" "$agents" "$seconds" >"$work/load.json" 2>"$work/load.err" &
load=$!
for _ in $(seq 1200); do grep -q all_up "$work/load.json" && break; kill -0 $load || { cat "$work/load.err"; exit 1; }; sleep 0.1; done
grep -q all_up "$work/load.json" || { echo "not all agents came up: $(tail -n 1 "$work/load.json")"; tail -n 5 "$work/controller.log"; exit 1; }
sleep 20
full=$(rss)
echo "memory: $empty KiB without agents, $full KiB with $agents: $(( (full - empty) * 1024 / agents )) B per agent"

before=$(cpu)
sleep $((minutes * 60))
after=$(cpu)
awk -v used=$((after - before)) -v s=$((minutes * 60)) 'BEGIN { printf "cpu: %.2f s in %d s: %.2f %% of a core\n", used/100, s, used/s }'
echo "rss after $minutes min: $(rss) KiB; sessions lost so far: $(tail -n 1 "$work/load.json" | field lost)"

kill -9 "$controller"
wait "$controller" 2>/dev/null || true
start
ready=$(date +%s%3N)
for _ in $(seq 600); do
    line=$(tail -n 1 "$work/load.json")
    [ "$(echo "$line" | field welcomes)" -ge $((agents * 2)) ] && [ "$(echo "$line" | field up)" -eq "$agents" ] && break
    sleep 0.1
done
line=$(last all_up)
echo "restart: last Welcome acknowledged $(( $(echo "$line" | field last_welcome_unix_ms) - ready )) ms after the controller was ready again"
echo "the generator's own CPU: $(echo "$line" | field own_cpu_ms) ms in all; $(last enrolled)"
