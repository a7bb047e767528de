# shellcheck shell=bash
# Builds the extension, installs it, and writes its install script.

build_extension() {
    PGRX_PG_CONFIG_PATH=$pg_config cargo build "${when_unwatched[@]}" --release \
        -p nrt_backup "${features[@]}"
    cargo build "${when_unwatched[@]}" --release -p nrt-cli
}

install_into() {
    local -r into=$1
    local libraries extensions file
    libraries=$("$into" --pkglibdir)
    extensions=$("$into" --sharedir)/extension
    [[ -e $script ]] || die "\"$script\" is missing" "Write it with ./dev schema."
    put 0644 "$target/release/libnrt_backup.so" "$libraries/nrt_backup.so"
    sed "s/@CARGO_VERSION@/$version/" nrt_backup.control |
        put 0644 /dev/stdin "$extensions/nrt_backup.control"
    for file in sql/nrt_backup--*.sql; do put 0644 "$file" "$extensions/$(basename "$file")"; done
    install_program "$into"
}

install_program() {
    put 0755 "$target/release/nrt-backup" "$("$1" --bindir)/nrt-backup"
}

# Debian has the programs of each PostgreSQL in a directory that is on nobody's PATH.
link_program() {
    local -r program=$1 link=$2
    local -a run=()
    if [[ -e $link && ! -L $link || -L $link && $(readlink "$link") != */nrt-backup ]]; then
        hint "\"$link\" is something else, and stays: call \"$program\" by its path."
        return
    fi
    if [[ ! -w $(dirname "$link") ]]; then run=(as_root); fi
    "${run[@]}" ln -sfn "$program" "$link"
}

# Replaces a file in one step: a server that has the old one mapped must keep it whole.
put() {
    local -r mode=$1 from=$2 to=$3
    local -a run=()
    if [[ ! -w $(dirname "$to") ]]; then run=(as_root); fi
    "${run[@]}" install -m "$mode" "$from" "$to.new"
    "${run[@]}" mv -f "$to.new" "$to"
}

# The install script as the library that was just built describes it, without the numbers of lines:
# they change with every edit.
generated_script() {
    PGRX_PG_CONFIG_PATH=$pg_config cargo pgrx schema -p nrt_backup --release --skip-build \
        "${features[@]}" "pg$major" --out /dev/stdout | sed '/^-- .*\.rs:[0-9][0-9]*$/d'
}

# The statements of an install script, one a line and sorted: pgrx promises no order.
statements() {
    awk '/^\/\* <begin connected objects> \*\/$/ { block = ""; next }
         /^\/\* <\/end connected objects> \*\/$/ { print block; next }
         { block = block "\\n" $0 }' | LC_ALL=C sort
}
