# shellcheck shell=bash
# Checks who may depend on whom, and what is not Rust.

check_arrows() {
    local -r server='pgrx|postgres|nrt_backup'
    depends_not nrt-core "$server|libc|rustix|signal-hook|tempfile|nrt-(process|remote|ship|restore|cli)"
    depends_not nrt-process "$server|nrt-(core|remote|ship|restore|cli)"
    depends_not nrt-remote "$server|nrt-(ship|restore|cli)"
    depends_not nrt-ship "$server|nrt-(restore|cli)"
    depends_not nrt-restore "$server|nrt-(ship|cli)"
    depends_not nrt-cli "$server"
    depends_not nrt-tests 'pgrx|nrt_backup'
}

depends_not() {
    local -r crate=$1 forbidden=$2
    local found
    found=$(cargo tree --quiet -p "$crate" --edges normal --prefix none |
        grep -E "^($forbidden) v" | sort -u) || return 0
    die "$crate depends on what it must not know:"$'\n'"$found" \
        "cargo tree -p $crate --invert NAME tells by which way."
}

# What GitHub would say of the workflows, and what an attacker would see in them.
check_workflows() {
    "$tools/check-jsonschema" --quiet --builtin-schema vendor.github-workflows "$@" &&
        "$tools/zizmor" --quiet --offline "$@"
}

check_compose() {
    "$tools/check-jsonschema" --quiet --builtin-schema vendor.compose-spec "$@"
}
