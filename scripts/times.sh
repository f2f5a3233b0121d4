# Times of the steps of a run, and of its parts: each cargo build, each test program, each start of a service.
# shellcheck shell=bash
# Sourced by test.sh and evidence.sh, which set `logs`. Times are printed and never asserted.

: "${logs:?is set by the script that sources this one}"

# Removes the times of an earlier run.
begin_times() {
    rm -f "$logs"/*.log "$logs/steps.tsv" "$logs/times.txt"
}

# Runs a function of the same name as the step, in a subshell. Prints and records its output and duration.
step() {
    local name=$1 began=$SECONDS
    echo "=== $name"
    printf '%s\t%s\n' "$name" failed >>"$logs/steps.tsv"
    "$name" 2>&1 | tee "$logs/$name.log"
    sed -i '$d' "$logs/steps.tsv"
    printf '%s\t%s\n' "$name" "$((SECONDS - began))" >>"$logs/steps.tsv"
    echo "=== $name: $((SECONDS - began)) s"
}

# Reads the output of a step, and prints a line for each part: seconds, tab, step and part.
parts() { # STEP LOG
    awk -v step="$1" '
        function seconds(text,   fields, count, i, sum) {
            count = split(text, fields, " ")
            for (i = 1; i <= count; i++) {
                if (fields[i] ~ /h$/) sum += 3600 * fields[i]
                else if (fields[i] ~ /m$/) sum += 60 * fields[i]
                else sum += fields[i] + 0
            }
            return sum
        }
        function part(time, name) { printf "%.2f\t%s: %s\n", time, step, name }
        /^--- .*: [0-9]+ s$/ {
            name = $0; sub(/^--- /, "", name); sub(/: [0-9]+ s$/, "", name)
            part($(NF - 1), name); next
        }
        /^--- / { command = substr($0, 5); next }
        /^ *Running / {
            program = $0; sub(/^ *Running (unittests )?/, "", program)
            # The crate of a unit test, the file of an integration test.
            if ($2 == "unittests") { sub(/.*\//, "", program); sub(/-[0-9a-f]*\)$/, "", program); program = "unit tests of " program }
            else sub(/ \(.*/, "", program)
            next
        }
        /^ *Doc-tests / { program = "doc tests of " $2; next }
        /finished in [0-9.]+s/ {
            time = $0; sub(/.*finished in /, "", time); sub(/s.*/, "", time)
            part(time, program); next
        }
        /^ *Finished .* in [0-9hms. ]+$/ {
            time = $0; sub(/.* in /, "", time)
            part(seconds(time), "compile: " command); next
        }
        /^Done [0-9]+ runs in [0-9]+ second/ { part($5, "fuzz " command) }
    ' "$2"
}

# Prints the duration and the share of each step, and the 15 slowest parts.
print_times() {
    local name
    {
        echo "commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), $(nproc) cores, $SECONDS s in total"
        awk -F '\t' -v total="$SECONDS" '
            $2 == "failed" { printf "%8s  %s\n", "failed", $1; next }
            { printf "%6d s  %3d %%  %s\n", $2, total ? 100 * $2 / total : 0, $1 }' "$logs/steps.tsv"
        echo "the 15 slowest parts:"
        while IFS=$'\t' read -r name _; do
            [[ ! -f $logs/$name.log ]] || parts "$name" "$logs/$name.log"
        done <"$logs/steps.tsv" | sort -rn | awk -F '\t' 'NR <= 15 { printf "%8.1f s  %s\n", $1, $2 }'
    } | tee "$logs/times.txt"
}
