# shellcheck shell=bash
# Runs the parts of ./dev test, each to its end, and counts what came of them.

passed=0
failed=0
broken=()
skipped=()

# Runs all parts. The order is one of time: what the later parts need is built while the end-to-end
# tests wait, and the soak, which waits as well, runs beside the containers.
run_all_parts() {
    local part
    make_meanwhile
    for part in unit documents e2e server schema sql; do run_part "$part"; done
    begin_part soak
    run_part containers
    end_part
}

# Runs a part, shows and counts what it says, and goes on whatever comes of it.
run_part() {
    local part=$1 log status begin=$SECONDS
    shift
    declare -F "part_$part" >/dev/null || die "unknown part \"$part\"" \
        "The parts are unit, documents, server, schema, sql, e2e, soak and containers."
    say "$part"
    log=$(mktemp)
    # The part needs a shell of its own: on the left of || or in an if, set -e would be off in it.
    set +e
    (
        set -e
        "part_$part" "$@"
    ) </dev/null 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    set -e
    count "$log" "$status"
    rm -f "$log"
    say "$part took $((SECONDS - begin)) s"
}

# Starts a part beside the next one, which goes first where both want to work.
begin_part() {
    beside=$1
    beside_since=$SECONDS
    say "$beside, beside the next part"
    (
        set -e
        renice --priority 10 --pid "$BASHPID" >/dev/null
        "part_$beside"
    ) </dev/null >"$scratch/$beside.log" 2>&1 &
    beside_process=$!
}

# Waits for the part that was started beside others, shows and counts what it said.
end_part() {
    local part=$beside status=0
    wait "$beside_process" || status=$?
    say "$part"
    cat "$scratch/$part.log"
    count "$scratch/$part.log" "$status"
    say "$part took $((SECONDS - beside_since)) s"
}

# Builds what takes long and is needed late, in the time that the tests before it leave.
make_meanwhile() {
    (
        take_idle_time
        need_cargo_pgrx
    ) </dev/null >"$scratch/cargo-pgrx.log" 2>&1 &
    building_cargo_pgrx=$!
    # Where they cannot be installed, the part that needs them fails, and no other.
    if ! (need_containers); then return; fi
    need_containers
    # The tests of drills want a tenth of the disk free.
    local -r room=$((16 * 1024 * 1024))
    local size available
    read -r size available < <(df --output=size,avail "$scratch" | tail -n 1)
    if ((available - room < size / 10)) || ! containers_run_here "$containers" >/dev/null; then
        return
    fi
    (
        set -e
        take_idle_time
        make_images "$containers"
        touch "$scratch/images-are-made"
    ) </dev/null >"$scratch/images.log" 2>&1 &
    making_images=$!
}

# Ends that for a process and all that it has started: somebody waits for it now.
take_time_again() {
    local child
    chrt --other --pid 0 "$1" 2>/dev/null || return 0
    ionice --class best-effort --pid "$1" 2>/dev/null || true
    for child in $(cat "/proc/$1/task/$1/children" 2>/dev/null); do take_time_again "$child"; done
}

# Has this shell, and all that it starts, take only the time that nobody else wants.
take_idle_time() {
    chrt --idle --pid 0 "$BASHPID"
    ionice --class idle --pid "$BASHPID"
}

# Adds up the closing lines of cargo's tests, of pg_regress (up to 15 and from 16), and ours.
count() {
    local log=$1 status=$2 good bad
    read -r good bad < <(awk '
        /^test result: / { good += $4; bad += $6 }
        /^# *All [0-9]+ tests passed|^ *All [0-9]+ tests passed/ { sub(/^#/, ""); good += $2 }
        /^#? *[0-9]+ of [0-9]+ tests failed/ { sub(/^#/, ""); bad += $1; good += $3 - $1 }
        /^script: [0-9]+ passed, [0-9]+ failed$/ { good += $2; bad += $4 }
        END { print good + 0, bad + 0 }' "$log")
    if grep -q '^skipped: ' "$log"; then
        skipped+=("$part")
        return
    fi
    # It did not build, or was killed; or there was nothing to run, which proves nothing.
    if [[ $status -ne 0 && $bad -eq 0 || $((good + bad)) -eq 0 ]]; then bad=$((bad + 1)); fi
    passed=$((passed + good))
    failed=$((failed + bad))
    if [[ $bad -gt 0 ]]; then broken+=("$part"); fi
}

report() {
    if [[ $failed -gt 0 ]]; then say "failed: ${broken[*]}"; fi
    if [[ ${#skipped[@]} -gt 0 ]]; then say "NOT TESTED HERE: ${skipped[*]}"; fi
    printf '\n%s passed, %s failed\n' "$passed" "$failed"
    [[ $failed -eq 0 ]]
}

# Those of shipping wait for heartbeats nearly all of their time.
part_unit() {
    cargo_test -- --test-threads=$(($(nproc) * 3)) "$@"
}

# What is neither Rust nor SQL: the workflows and compose.yaml. The READMEs are among the e2e tests.
part_documents() {
    need_python_tools
    local good=0 bad=0
    local -r test=.github/workflows/test.yml broken=$scratch/broken.yml
    expect 0 check_workflows .github/workflows/*.yml
    expect 0 check_compose compose.yaml
    # And would they see it?
    sed 's/^    runs-on:/    run-on:/' "$test" >"$broken"
    expect 1 check_workflows "$broken"
    sed 's/@[0-9a-f]\{40\} .*/@v4/' "$test" >"$broken"
    expect 1 check_workflows "$broken"
    sed 's/^    image:/    imagine:/' compose.yaml >"$broken"
    expect 1 check_compose "$broken"
    echo "script: $good passed, $bad failed"
    [[ $bad -eq 0 ]]
}

# expect 0|1 COMMAND..: counts whether it succeeds, or fails, as it should; shows what it says if not.
expect() {
    local -r wanted=$1
    local found=0 said
    shift
    said=$("$@" 2>&1) || found=1
    if [[ $found -eq $wanted ]]; then
        good=$((good + 1))
    else
        bad=$((bad + 1))
        printf '%s\n%s: exit code %s\n' "$said" "$*" "$found"
    fi
}

# The extension's own tests, run inside a server: cargo-pgrx installs a build with the tests in it.
part_server() {
    need_cargo_pgrx
    build_extension
    # The worker of the server under test starts it.
    install_program "$private_pg_config"
    # The tests call `cargo pgrx install` without a package, and the workspace's default-members
    # leave the extension out.
    export PGRX_BUILD_FLAGS='-p nrt_backup'
    local -a who=(--pgdata "$scratch/pgrx")
    mkdir "$scratch/pgrx"
    if [[ $EUID -eq 0 ]]; then
        who+=(--runas postgres)
        chown postgres: "$scratch/pgrx"
        mkdir "$scratch/shim"
        sudo_for_root >"$scratch/shim/sudo"
        chmod 0755 "$scratch/shim/sudo"
        PATH=$scratch/shim:$PATH
    fi
    for_private_postgres env USER="${USER:-$(id -un)}" \
        cargo pgrx test -p nrt_backup "${who[@]}" "${features[@]}" "pg$major" "$@"
}

# What `cargo pgrx test --runas` asks of sudo, for a machine where root needs none and has none.
sudo_for_root() {
    cat <<'EOF'
#!/bin/sh
# sudo [-u USER] [NAME=VALUE..] COMMAND..
if [ "$1" = -u ]; then
    user=$2
    shift 2
    exec setpriv --reuid="$user" --regid="$user" --init-groups env "$@"
fi
exec env "$@"
EOF
}

# Is the script that gets installed what the code would generate?
part_schema() {
    need_cargo_pgrx
    build_extension
    statements <"$script" >"$scratch/frozen"
    generated_script | statements >"$scratch/generated"
    if diff --unified "$scratch/frozen" "$scratch/generated" >"$scratch/difference"; then
        echo "script: 1 passed, 0 failed"
    else
        sed 's/\\n/\n/g' "$scratch/difference"
        echo "script: 0 passed, 1 failed"
        die "\"$script\" is not what the code generates" \
            "Is the difference meant? Then write it with ./dev schema."
    fi
}

# The SQL surface against its golden files; with --accept, what is printed now becomes golden.
part_sql() {
    build_extension
    install_into "$private_pg_config"
    local work=$scratch/regress name status=0
    mkdir -p "$work/expected"
    cp -r pg_test/sql "$work"
    {
        echo "shared_preload_libraries = 'nrt_backup'"
        echo "nrt_backup.repository = '$work/repository'"
        echo "nrt_backup.lock_path = '$work/lock'"
        if [[ -e pg_test/postgresql.conf ]]; then cat pg_test/postgresql.conf; fi
    } >"$work/temp.conf"
    local -a names=()
    for name in pg_test/sql/*.sql; do
        name=$(basename "$name" .sql)
        names+=("$name")
        # A new test has no golden file yet; pg_regress would give up.
        cp "pg_test/expected/$name.out" "$work/expected" || touch "$work/expected/$name.out"
    done
    if [[ $EUID -eq 0 ]]; then chown -R postgres: "$work"; fi
    as_server_user env -C "$work" "$(dirname "$("$private_pg_config" --pgxs)")/../test/regress/pg_regress" \
        --bindir="$("$private_pg_config" --bindir)" --inputdir="$work" --outputdir="$work" \
        --temp-instance="$work/instance" --temp-config="$work/temp.conf" \
        --encoding=UTF8 --no-locale "${names[@]}" || status=$?
    if [[ ${1:-} == --accept ]]; then
        mkdir -p pg_test/expected
        cp "$work"/results/*.out pg_test/expected
    elif [[ -s $work/regression.diffs ]]; then
        cat "$work/regression.diffs"
        hint "Are the differences meant? Then take them over with ./dev test sql --accept."
    fi
    return "$status"
}

# Whole servers from a client's side.
part_e2e() {
    build_extension
    install_into "$private_pg_config"
    # They wait more than they work.
    cargo_test -p nrt-tests -- --test-threads="${NRT_TEST_THREADS:-$(($(nproc) * 3))}" "$@"
}

# The proof of the promises, short, and with given seeds, so that a failure can be repeated. The worlds
# wait more than they work: both runs go on at the same time.
part_soak() {
    local good=0 bad=0
    local -r machines=$scratch/soak-of-two-machines
    build_extension
    install_into "$private_pg_config"
    cargo build "${when_unwatched[@]}" -p nrt-tests --bin soak
    if [[ $EUID -eq 0 ]]; then
        soak --faults 5 --seed 5 --machines 2 --jobs 5 >"$machines" 2>&1 &
    else
        echo "not tested: only root can mount the disks of two machines"
    fi
    expect 0 soak --faults 60 --seed 1 --jobs 4
    if [[ $EUID -eq 0 ]]; then
        if wait $!; then
            good=$((good + 1))
        else
            bad=$((bad + 1))
            cat "$machines"
        fi
    fi
    echo "script: $good passed, $bad failed"
    [[ $bad -eq 0 ]]
}

# What ends with a finding keeps its files outside of the scratch directory.
soak() {
    cargo run "${when_unwatched[@]}" -p nrt-tests --bin soak -- "$@"
}

# Builds without a word, unless somebody looks on, then runs `cargo test CARGO'S.. -- THE TESTS'..`.
cargo_test() {
    local -a for_cargo=(--no-fail-fast)
    while [[ $1 != -- ]]; do
        for_cargo+=("$1")
        shift
    done
    cargo test "${when_unwatched[@]}" --no-run "${for_cargo[@]}"
    cargo test "${for_cargo[@]}" "$@"
}
