#!/usr/bin/env bash
# A real deployment on this machine: a SuperLink and two SuperNodes over TLS, each node with a key and data of its own.
#
#     bash scripts/deploy_local.sh [KEY=VALUE ...]
#
# Each node runs the client app of this checkout, whatever code the run brings (`scripts/node.py`), under the policy of
# POLICY=file if given. With nginx installed the nodes reach nothing but the fleet API (`scripts/nginx.conf`).
#
# Runs 2 rounds of the demo, prints the final accuracy, and stops all that it started. The exit code is 0 only if the
# rounds were run. Settings are those of main.py. Everything is on 127.0.0.1 and in a temporary folder, which KEEP=folder
# keeps. DATA_1 and DATA_2 name other JSON-lines files than the demo's, NODE='dataset="hh" ...' adds to what
# --node-config says; TIMEOUT=600 seconds bound the run.
set -euo pipefail
for file in DATA_1 DATA_2 POLICY; do
    [ -z "${!file:-}" ] || [ -f "${!file}" ] || { echo "error: $file=${!file} is no file" >&2; exit 2; }
    [ -z "${!file:-}" ] || printf -v "$file" %s "$(realpath "${!file}")"
done
[ -z "${KEEP:-}" ] || KEEP=$(realpath -m "$KEEP")
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
command -v flower-superlink >/dev/null || { echo "error: there is no .venv; run make setup" >&2; exit 2; }

work=$(mktemp -d)
pids=()
stop() {
    code=$?
    trap - EXIT INT TERM
    python - "$work/flwr" "${pids[@]}" <<'PY' || true # Flower's programs, and what they started in turn, end by themselves or are ended
import contextlib, os, sys
import psutil
def is_ours(process): # it has inherited this folder, though its parent may be gone
    with contextlib.suppress(psutil.Error):
        return process.pid not in own and process.environ().get("FLWR_HOME") == sys.argv[1]
own = {os.getpid(), os.getppid()}
daemons = [psutil.Process(int(pid)) for pid in sys.argv[2:] if psutil.pid_exists(int(pid))]
started = [process for process in psutil.process_iter() if is_ours(process)]
for daemon in reversed(daemons):
    with contextlib.suppress(psutil.NoSuchProcess):
        daemon.terminate()
for process in psutil.wait_procs(started, timeout=10)[1]:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
PY
    if [ -n "${KEEP:-}" ]; then mkdir -p "$KEEP" && cp -r "$work/." "$KEEP"; fi
    rm -rf "$work"
    exit "$code"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
fail() {
    echo "error: $1" >&2
    grep "^error:" "$work"/*.log >&2 || tail -n 20 "$work"/*.log >&2 || true
    exit 1
}
starts() { # PID LOG WORDS: wait until the program says so
    for _ in $(seq 300); do
        grep -q "$3" "$2" 2>/dev/null && return
        kill -0 "$1" 2>/dev/null || fail "$(basename "$2" .log) did not start"
        sleep 0.2
    done
    fail "$(basename "$2" .log) did not start within 60 seconds"
}
answers() { # PID PORT: wait until the program listens
    for _ in $(seq 100); do
        (exec 3<>"/dev/tcp/127.0.0.1/$2") 2>/dev/null && return
        kill -0 "$1" 2>/dev/null || break
        sleep 0.1
    done
    fail "nginx did not start"
}

export FLWR_HOME="$work/flwr" HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
mkdir -p "$FLWR_HOME"
bash scripts/certificates.sh folder="$work/certs"
python scripts/demo_files.py "$work/node-1.jsonl" "$work/node-2.jsonl"
read -r port public port_1 port_2 < <(python - <<'PY'
import socket
found = [socket.socket() for _ in range(4)]
for s in found:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in found))
PY
)
cat >"$FLWR_HOME/config.toml" <<TOML
[superlink]
default = "here"

[superlink.here]
address = "127.0.0.1:$port"
root-certificates = "$work/certs/ca.pem"
TOML

certs=(--ssl-ca-certfile "$work/certs/ca.pem" --ssl-certfile "$work/certs/server.pem" --ssl-keyfile "$work/certs/server.key")
flower-superlink --host 127.0.0.1 --port "$port" "${certs[@]}" --enable-supernode-auth \
    --disable-runtime-dependency-installation >"$work/superlink.log" 2>&1 &
pids+=($!)
starts $! "$work/superlink.log" "Uvicorn running\|startup complete"
if nginx=$(PATH="$PATH:/usr/sbin" command -v nginx); then # nodes reach the fleet API only, and nobody else the control API
    sed "s#FOLDER#$work#; s#PUBLIC#$public#; s#SUPERLINK#$port#; s#OWNER#$(id -un)#" scripts/nginx.conf >"$work/nginx.conf"
    "$nginx" -c "$work/nginx.conf" -e "$work/nginx.log" >"$work/nginx.out" 2>&1 &
    pids+=($!)
    answers $! "$public"
else
    echo "there is no nginx: the nodes reach the SuperLink's own port, and with it the control API, which takes code"
    public=$port
fi
for node in 1 2; do
    flwr supernode register "$work/certs/node-$node.pub" here >"$work/register-$node.log" 2>&1 || fail "node-$node is not registered"
    own=port_$node data=DATA_$node
    python -m scripts.node --superlink "127.0.0.1:$public" --root-certificates "$work/certs/ca.pem" \
        --auth-supernode-private-key "$work/certs/node-$node.key" --host 127.0.0.1 --port "${!own}" \
        --node-config "data=\"${!data:-$work/node-$node.jsonl}\" partition-id=$((node - 1)) cache_dir=\"$work/node-$node-cache\" ${POLICY:+policy=\"$POLICY\"} ${NODE:-}" \
        >"$work/node-$node.log" 2>&1 &
    pids+=($!)
done

echo "SuperLink on 127.0.0.1:$port with TLS, 2 SuperNodes with keys and data of their own"
settings="partition=own accuracy_on=client client_num_in_total=2 comm_round=2 process_timeout=300"
places="output_dir=$work/runs cache_dir=$work/server-cache"
timeout "${TIMEOUT:-600}" flwr run . here --stream -c "settings=\"$settings $places $*\"" >"$work/run.log" 2>&1 &
run=$!
pids+=("$run")
while kill -0 "$run" 2>/dev/null; do # bash hears no signal while it waits for a program
    sleep 0.5
    if grep -q "^error:" "$work/node-1.log" && grep -q "^error:" "$work/node-2.log"; then fail "both nodes refuse"; fi
done
wait "$run" || fail "the run did not end well"
python - "$work/runs" <<'PY' || fail "the rounds were not run"
import json, pathlib, sys
found = list(pathlib.Path(sys.argv[1]).glob("*/*/summary.json"))
if not found:
    sys.exit("there is no summary")
summary, config = json.loads(found[0].read_text()), (found[0].parent / "config.yaml").read_text()
final = summary["final"]
rounds = int(next(line.split()[1] for line in config.splitlines() if line.startswith("comm_round:")))
lines = [json.loads(line) for line in (found[0].parent / "metrics.jsonl").read_text().splitlines()]
answered = {line["round"] for line in lines if line["split"] == "communication" and line["bytes_received"] > 0}
if missing := set(range(1, rounds + 1)) - answered:
    sys.exit(f"no client answered in round {min(missing)}")
if failed := [f"round {line['round']}, {line['who']}: {line['reason']}" for line in lines if line["split"] == "failure"]:
    sys.exit(f"clients failed: {'; '.join(failed)}")
split = next((split for split in ("test", "validation") if split in final), None)
accuracy = "the server has no pairs to test on" if split is None else f"final accuracy {final[split]['accuracy']:.3f} ({split})"
pairs = f"{summary['pairs']} pairs" if summary["pairs"] else "which do not tell their pairs"
print(f"{rounds} rounds, 2 clients, {pairs}; {accuracy}")
PY
