#!/bin/bash
# Fuzzes the plain-C core with libFuzzer and the sanitizers: the parser and both ends' state machines (tests/fuzz).
# The seed corpus is the frames that real senders and receivers exchange in a few runs of the simulator.
#
# Usage: [CC=clang] tools/fuzz.sh SECONDS [parser|receiver|sender …]    seconds for each; findings are in build/fuzz
#        RUNS=1000000 tools/fuzz.sh 0 receiver                         a number of executions instead
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:?usage: tools/fuzz.sh SECONDS [parser|receiver|sender ...]}
shift
[ $# -gt 0 ] || set -- parser receiver sender
root=$PWD build=${FUZZ_DIR:-$PWD/build/fuzz} cc=${CC:-clang}
sanitizers=address,undefined
flags=(-g -O2 -march=native -std=gnu11 -D_GNU_SOURCE -pthread -I "$root/include" -fno-sanitize-recover=undefined)

command -v "$cc" >/dev/null || { echo "aiflow: $cc is missing: apt-get install clang libclang-rt-dev" >&2; exit 1; }
mkdir -p "$build/seeds" "$build/findings"
"$cc" "${flags[@]}" -w "$root/tests/core/simulate.c" -o "$build/simulate"
rm -rf "$build"/seeds/*
for number in 1 2 3 4 5 6; do
    (cd "$build/seeds" && ../simulate capture=1 seed=$number slices=3 bytes=1000 ports=2 keep=$((number % 2)) \
        loss=$((number * 50)) cancel=$((number == 3 ? 2 : 0)) >/dev/null)
done
for number in 7 8; do # local peers
    (cd "$build/seeds" && ../simulate capture=1 seed=$number slices=3 bytes=1000 ports=2 nodes=3 named=1 hub=1 share=3 \
        small=$((number % 2)) loss=100 >/dev/null)
done
python3 - "$build/seeds" <<'SPLIT' # frames one by one, for the parser
import pathlib, sys
seeds = pathlib.Path(sys.argv[1])
for path in list(seeds.glob("receiver-*")) + list(seeds.glob("sender-*")):
    data, number = path.read_bytes()[path.name.startswith("receiver"):], 0
    while len(data) > 3:
        length = int.from_bytes(data[1:3], "big")
        frame, data, number = data[3:3 + length], data[3 + length:], number + 1
        (seeds / f"parser-{path.name}-{number}").write_bytes(frame)
for path in [seeds / "sender-7", seeds / "sender-8"]:  # what local receivers tell: feedback, at first
    data, told = path.read_bytes(), []
    while len(data) > 3:
        length = int.from_bytes(data[1:3], "big")
        if data[3 + 14] & 15 in (4, 5):
            told.append(data[:3 + length])
        data = data[3 + length:]
    path.write_bytes(b"".join(told[:20]))
SPLIT

for target in "$@"; do
    case $target in parser | receiver | sender) ;; *) echo "aiflow: no fuzzer '$target'" >&2; exit 1 ;; esac
    effort="$seconds s"
    [ -z "${RUNS:-}" ] || effort="$RUNS executions"
    echo "aiflow: fuzzing the $target for $effort"
    "$cc" "${flags[@]}" -fsanitize=fuzzer,$sanitizers "$root/tests/fuzz/$target.c" -o "$build/$target"
    mkdir -p "$build/corpus/$target" "$build/seeds/$target"
    find "$build/seeds" -maxdepth 1 -name "$target-*" -exec mv -t "$build/seeds/$target" {} +
    limit=(-max_total_time="$seconds")
    [ -z "${RUNS:-}" ] || limit=(-runs="$RUNS")
    length=8192
    [ "$target" != parser ] || length=1514
    # rss_limit and malloc_limit: a claim in a frame must never cost memory of its size
    "$build/$target" "${limit[@]}" -max_len=$length -rss_limit_mb=1024 -malloc_limit_mb=64 -timeout=5 \
        -print_final_stats=1 -artifact_prefix="$build/findings/$target-" \
        "$build/corpus/$target" "$build/seeds/$target" >"$build/$target.log" 2>&1 || {
        tail -40 "$build/$target.log" >&2
        echo "aiflow: a finding: run $build/$target on the file named above (tests/fuzz)" >&2
        exit 1
    }
    grep -E 'number_of_executed_units|average_exec_per_sec' "$build/$target.log" | sed "s/^stat::/$target /"
done
