#!/bin/bash
# Shows runw at work on two real bundles, one native and one wasm. Every command is printed as it runs.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${RUNW:?set RUNW to the binary, or call make demo}"

(( EUID == 0 )) || exec sudo --preserve-env=RUNW,HOME,PATH "$0" "$@"

dir=$(mktemp -d "${TMPDIR:-/tmp}/runw-demo.XXXXXX")
root=$dir/state
# Containers are named after this demo alone, so that a second one at the same time disturbs nobody.
native=demo-native-$$ wasm=demo-wasm-$$
finish() {
	for id in "$native" "$wasm"; do "$RUNW" --root "$root" delete --force "$id" >/dev/null 2>&1 || true; done
	rm -rf "$dir"
}
trap finish EXIT

bold=$(tput bold 2>/dev/null || true) plain=$(tput sgr0 2>/dev/null || true)
title() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
say_command() { printf '%s$ %s%s\n' "$bold" "${*//$RUNW/runw}" "$plain"; }
show() { say_command "$@"; "$@"; }
runw() { show "$RUNW" --root "$root" "$@"; }

# edit FILE EXPRESSION: the configuration stays what `spec` wrote but for the named changes.
edit() {
	printf '%s$ edit config.json: %s%s\n' "$bold" "$2" "$plain"
	python3 -c 'import json,sys
c = json.load(open(sys.argv[1])); p = c["process"]; p["terminal"] = False
exec(sys.argv[2]); json.dump(c, open(sys.argv[1], "w"), indent=1)' "$1/config.json" "$2"
}

# start_time BUNDLE: milliseconds of one whole `run` of a program that ends at once; the best of N, after M more.
start_time() {
	local bundle=$1 rounds=$2 best= i t0 t1 took
	for ((i = 0; i < rounds; i++)); do
		t0=$(date +%s%N)
		"$RUNW" --root "$root" run --bundle "$bundle" "demo-time-$$-$i" >/dev/null
		t1=$(date +%s%N)
		took=$(( (t1 - t0) / 1000 ))
		[[ -n $best ]] && (( best <= took )) || best=$took
	done
	printf '%d.%03d' $((best / 1000)) $((best % 1000))
}

title "Guests: built from tests/guests by zig cc, Go, Debian's rustc and QuickJS (the first time takes minutes)"
guests=$(tests/guests/build.py 2>"$dir/guests.log") || { cat "$dir/guests.log" >&2; exit 1; }
ls -s --block-size=K "$guests"/*.wasm | sed "s#$guests/##"

title "A busybox bundle"
show mkdir -p "$dir/busybox/rootfs/"{bin,tmp,proc,dev,sys,etc}
show cp /bin/busybox "$dir/busybox/rootfs/bin/"
for applet in sh sleep ps id echo true; do ln -s busybox "$dir/busybox/rootfs/bin/$applet"; done
runw spec --bundle "$dir/busybox"
edit "$dir/busybox" 'p["args"] = ["sh", "-c", "echo hello from busybox, pid $$; exec sleep 300"]'
say_command "$RUNW" --root "$root" create --bundle "$dir/busybox" "$native"
"$RUNW" --root "$root" create --bundle "$dir/busybox" "$native" >"$dir/native.out" 2>&1 || { cat "$dir/native.out"; exit 1; }
runw state "$native"; echo
runw start "$native"
sleep 0.3; cat "$dir/native.out"
runw exec "$native" sh -c 'id; ps'
runw list
runw kill "$native" KILL
until "$RUNW" --root "$root" state "$native" | grep -q '"stopped"'; do sleep 0.05; done
runw delete "$native"

title "A wasm bundle: the same steps, a module as the program"
show mkdir -p "$dir/wasm/rootfs/"{bin,tmp,proc,dev,sys} "$dir/wasm/data"
show cp "$guests/probe.wasm" "$dir/wasm/rootfs/app.wasm"
# A native shell beside the module shows that exec chooses anew.
cp /bin/busybox "$dir/wasm/rootfs/bin/"; ln -s busybox "$dir/wasm/rootfs/bin/sh"; ln -s busybox "$dir/wasm/rootfs/bin/id"
echo "a line of the host" >"$dir/wasm/data/in"
runw spec --bundle "$dir/wasm"
edit "$dir/wasm" 'p["args"] = ["/app.wasm", "say", "hello from wasm", "read", "/data/in", "write", "/data/out", "written by wasm", "open-rw", "/proc/self/mem", "sleep", "300"]; c["mounts"].append({"destination": "/data", "type": "bind", "source": "'"$dir"'/wasm/data", "options": ["rbind"]})'
say_command "$RUNW" --root "$root" create --bundle "$dir/wasm" "$wasm"
"$RUNW" --root "$root" create --bundle "$dir/wasm" "$wasm" >"$dir/wasm.out" 2>&1 || { cat "$dir/wasm.out"; exit 1; }
runw state "$wasm"; echo
runw start "$wasm"
sleep 0.5; cat "$dir/wasm.out"
show cat "$dir/wasm/data/out"; echo
runw exec "$wasm" sh -c 'echo a native shell in a wasm container; id'
runw exec "$wasm" /app.wasm say "another wasm process in it"
runw kill "$wasm" TERM
until "$RUNW" --root "$root" state "$wasm" | grep -q '"stopped"'; do sleep 0.05; done
runw delete "$wasm"

title "A real program: QuickJS (Debian's source package, compiled to wasm) counts the words of this README"
show mkdir -p "$dir/qjs/rootfs" "$dir/qjs/data"
cp "$guests/qjs.wasm" "$dir/qjs/rootfs/qjs.wasm"
cp "$guests/words.js" README.md "$dir/qjs/data/"
runw spec --bundle "$dir/qjs"
edit "$dir/qjs" 'p["args"] = ["/qjs.wasm", "/data/words.js", "/data/README.md", "/data/words.json"]; c["mounts"].append({"destination": "/data", "type": "bind", "source": "'"$dir"'/qjs/data", "options": ["rbind"]})'
runw run --bundle "$dir/qjs" "demo-qjs-$$"
show head -c 120 "$dir/qjs/data/words.json"; echo

title "How long a start takes (whole run of a program that ends at once)"
edit "$dir/busybox" 'p["args"] = ["true"]' >/dev/null
edit "$dir/wasm" 'p["args"] = ["/app.wasm"]' >/dev/null
# A module never seen before: one custom section with a new name makes its bytes new, so nothing is cached.
cold() { python3 -c 'import os,sys
name = os.urandom(8).hex().encode(); body = bytes([len(name)]) + name
open(sys.argv[2], "wb").write(open(sys.argv[1], "rb").read() + b"\0" + bytes([len(body)]) + body)' "$1" "$2"; }
table=$dir/table
row() { printf '%-34s %12s ms\n' "$1" "$2" >>"$table"; }
row "native: busybox true" "$(start_time "$dir/busybox" 10)"
cold "$guests/probe.wasm" "$dir/wasm/rootfs/app.wasm"
row "wasm, 39 KB module, cold" "$(start_time "$dir/wasm" 1)"
row "wasm, 39 KB module, warm" "$(start_time "$dir/wasm" 10)"
cold "$guests/go.wasm" "$dir/wasm/rootfs/app.wasm"
row "wasm, 2.9 MB Go module, cold" "$(start_time "$dir/wasm" 1)"
row "wasm, 2.9 MB Go module, warm" "$(start_time "$dir/wasm" 10)"
for peer in runc crun; do
	command -v $peer >/dev/null || continue
	saved=$RUNW; RUNW=$(command -v $peer)
	if "$RUNW" --root "$root-$peer" run --bundle "$dir/busybox" "demo-probe-$$" >/dev/null 2>&1; then
		root=$root-$peer row "$peer, the same native bundle" "$(start_time "$dir/busybox" 10)"
	fi
	RUNW=$saved
done
printf '\n%s%-34s %15s%s\n' "$bold" "what ran" "best start" "$plain"
cat "$table"
