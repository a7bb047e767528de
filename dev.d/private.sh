# shellcheck shell=bash
# Makes and removes the private PostgreSQL that demo, tests and benchmark run on.

# Makes a copy of PostgreSQL to install into, so that the system's stays as it is.
#
# PostgreSQL finds its files relative to its programs, so a copy with the same layout under another
# root is a whole installation. It is not in this directory because servers run as another user,
# who cannot look into root's home.
make_private_postgres() {
    local bin lib share include owner
    scratch=/var/tmp/nrt-backup-$major-$(printf '%s %s' "$EUID" "$PWD" | cksum | cut -d' ' -f1)
    if [[ -e $scratch ]]; then
        [[ -O $scratch ]] || die "\"$scratch\" belongs to somebody else"
        owner=$(cat "$scratch/owner" 2>/dev/null) || owner=
        if [[ -n $owner && -d /proc/$owner ]]; then
            die "process $owner runs tests from this directory already" "Wait until it has finished."
        fi
        remove_scratch
    fi
    mkdir -m 0755 "$scratch"
    echo $$ >"$scratch/owner"
    trap remove_scratch EXIT
    bin=$("$pg_config" --bindir)
    lib=$("$pg_config" --pkglibdir)
    share=$("$pg_config" --sharedir)
    include=$("$pg_config" --includedir-server)
    mkdir -p "$scratch$bin" "$scratch$lib" "$scratch$share" "$scratch$(dirname "$include")"
    cp -a "$bin/." "$scratch$bin"
    cp -a "$lib/." "$scratch$lib"
    cp -a "$share/." "$scratch$share"
    ln -s "$include" "$scratch$include"
    private_pg_config=$scratch$bin/pg_config
    # The end-to-end tests, the demo and the benchmark read these.
    export NRT_PG_BIN=$scratch$bin NRT_SCRATCH=$scratch
}

# Ends what this run started and what still runs from the private server, and removes it.
remove_scratch() {
    local mount process
    end_children_of $$
    if [[ -n ${NRT_TEST_KEEP:-} && $failed -gt 0 ]]; then
        say "kept $scratch"
        return
    fi
    for process in /proc/[0-9]*; do
        if [[ $(readlink "$process/exe") == "$scratch"/* ]] ||
            grep -qsaF "$scratch/" "$process/cmdline"; then
            kill -KILL "${process#/proc/}" || true
        fi
    done 2>/dev/null
    # What was killed may go on writing, and mounting, for a moment.
    for _ in {1..20}; do
        while read -r _ mount _; do
            if [[ $mount == "$scratch"/* ]]; then umount --lazy "$mount"; fi
        done </proc/mounts
        if rm -rf "$scratch" 2>/dev/null; then return; fi
        sleep 0.1
    done
    die "could not remove \"$scratch\""
}

# There are some only where this run was told to stop.
end_children_of() {
    local child
    for child in $(cat "/proc/$1/task/$1/children" 2>/dev/null); do
        end_children_of "$child"
        kill "$child" 2>/dev/null || true
    done
}

# Builds of the dev profile are for the private server, builds for release are for the real one:
# each profile keeps to one, because pgrx builds everything anew when it changes.
for_private_postgres() {
    PGRX_PG_CONFIG_PATH=$private_pg_config "$@"
}

as_server_user() {
    if [[ $EUID -eq 0 ]]; then
        setpriv --reuid=postgres --regid=postgres --init-groups "$@"
    else
        "$@"
    fi
}
