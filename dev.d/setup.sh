# shellcheck shell=bash
# Finds what building and running needs, or installs it.

# Finds or installs everything that building and running needs.
set_up() {
    [[ -r /etc/debian_version ]] || die "this is not Debian" "README.md says what is needed."
    # It would put 45 lines into every error that the tests read.
    unset RUST_BACKTRACE
    target=${CARGO_TARGET_DIR:-$PWD/target}
    version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' Cargo.toml)
    script=sql/nrt_backup--$version.sql
    choose_postgres
    need cc gcc
    need /usr/include/stdlib.h libc6-dev
    need '/usr/lib/llvm-*/lib/libclang*.so*' libclang-dev
    need /etc/ssl/certs/ca-certificates.crt ca-certificates
    need pgbackrest pgbackrest
    need rclone rclone
    install_missing
    choose_rust
    features=(--no-default-features --features "pg$major")
    when_unwatched=()
    if [[ ! -t 2 ]]; then when_unwatched=(--quiet); fi
}

# Sets pg_config and major: from PG_CONFIG, else the newest that is installed, else Debian's own.
choose_postgres() {
    pg_config=${PG_CONFIG:-}
    if [[ -n $pg_config ]]; then
        [[ -x $pg_config ]] || die "PG_CONFIG: \"$pg_config\" is no program" \
            "It names the pg_config of a PostgreSQL, like /usr/lib/postgresql/15/bin/pg_config."
        major=$("$pg_config" --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')
        need "$("$pg_config" --bindir)/postgres" "postgresql-$major"
        need "$("$pg_config" --includedir-server)/postgres.h" "postgresql-server-dev-$major"
    else
        major=$(newest_postgres)
        if [[ -z $major ]]; then
            update_apt
            major=$(apt-cache depends postgresql | sed -n 's/.*Depends: postgresql-\([0-9]*\)$/\1/p')
        fi
        pg_config=/usr/lib/postgresql/$major/bin/pg_config
        need "/usr/lib/postgresql/$major/bin/postgres" "postgresql-$major"
        need "/usr/include/postgresql/$major/server/postgres.h" "postgresql-server-dev-$major"
    fi
    [[ " $supported_majors " == *" $major "* ]] ||
        die "PostgreSQL \"$major\" is not supported" "Supported are $supported_majors."
}

newest_postgres() {
    local program
    for program in /usr/lib/postgresql/*/bin/postgres; do
        if [[ -x $program ]]; then cut -d/ -f5 <<<"$program"; fi
    done | sort -n | tail -n 1
}

# Takes the Rust on the PATH or in the home directory if it is new enough, else Debian's newest.
choose_rust() {
    local -r at_home=${CARGO_HOME:-$HOME/.cargo}/bin
    if rust_will_do; then return; fi
    if PATH=$at_home:$PATH rust_will_do; then
        PATH=$at_home:$PATH
        return
    fi
    local codename
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    case $codename in
    # The compiler that Debian brings to its stable releases for the sake of the web browsers.
    bookworm) missing=(rustc-web cargo-web rustfmt-web rust-web-clippy) ;;
    trixie)
        add_backports trixie
        missing=(-t trixie-backports rustc cargo rustfmt rust-clippy)
        ;;
    *) missing=(rustc cargo rustfmt rust-clippy) ;;
    esac
    install_missing
    hash -r
    rust_will_do || die "there is no Rust $oldest_rust or newer with rustfmt" \
        "With rustup: rustup update stable && rustup component add rustfmt clippy"
}

# Is it new enough, and is rustfmt there, which pgrx wants for what it generates?
rust_will_do() {
    local found
    found=$(cargo --version 2>/dev/null | cut -d' ' -f2) || return 1
    command -v rustfmt >/dev/null && printf '%s\n' "$oldest_rust" "$found" | sort -C -V
}

# Backports are newer packages for a stable Debian; apt takes nothing from there unasked.
add_backports() {
    local -r suite=$1-backports list=/etc/apt/sources.list.d/$1-backports.list
    local mirror keyring
    update_apt
    # shellcheck disable=SC2016  # apt's own placeholders
    if apt-get indextargets --format '$(CODENAME)' | grep -qx "$suite"; then return; fi
    # shellcheck disable=SC2016
    IFS='|' read -r mirror keyring < <(apt-get indextargets --format '$(REPO_URI)|$(SIGNED_BY)' \
        'Created-By: Packages' "Codename: $1" 'Label: Debian')
    # Where there is none, apt leaves the placeholder as it is.
    if [[ $keyring == *SIGNED_BY* ]]; then keyring=; fi
    say "adding $suite to apt's sources ($list)"
    echo "deb ${keyring:+[signed-by=$keyring] }$mirror $suite main" | put 0644 /dev/stdin "$list"
    apt_is_fresh=
    if ! (update_apt); then
        # With a source that it does not understand, apt would do nothing at all any more.
        as_root rm -f "$list"
        die "apt cannot use $suite"
    fi
    apt_is_fresh=yes
}

# The process that builds cargo-pgrx since before the tests began, if one does.
building_cargo_pgrx=

need_cargo_pgrx() {
    local wanted
    wanted=$(sed -n 's/^pgrx = "=\(.*\)"$/\1/p' Cargo.toml)
    PATH=$target/tools/bin:$PATH
    mkdir -p "$target/tools"
    # ./dev test builds it beside other things, and may want it before it is there.
    if [[ -n $building_cargo_pgrx ]]; then take_time_again "$building_cargo_pgrx"; fi
    (
        flock 9
        if [[ $(cargo pgrx --version 2>/dev/null) == "cargo-pgrx $wanted" ]]; then exit; fi
        say "building cargo-pgrx $wanted (two to three minutes, once)"
        # It only reads a library here: it need not be fast, and without its default features,
        # which are for downloads, it needs no OpenSSL.
        CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --locked --debug --no-default-features \
            --root "$target/tools" --version "=$wanted" cargo-pgrx
    ) 9>"$target/tools/lock"
    # It would have the linker keep what rustc lets it drop, lest the description of the SQL surface
    # get lost, and so build all crates a second time. It does not get lost on this architecture.
    if [[ $(uname -m) == x86_64 ]]; then export CARGO_PGRX_DISABLE_GC_SECTIONS_WORKAROUND=1; fi
}

# Programs written in Python that Debian has not, or has too old, in a place of their own.
need_python_tools() {
    local -ra wanted=(check-jsonschema==0.39.0 podman-compose==1.6.0 zizmor==1.32.0)
    local -r place=$target/tools/python
    tools=$place/bin
    need /usr/bin/python3 python3
    need '/usr/lib/python3.*/ensurepip/__init__.py' python3-venv
    install_missing
    if [[ $(cat "$place/wanted" 2>/dev/null) == "${wanted[*]}" ]]; then return; fi
    say "installing ${wanted[*]}"
    rm -rf "$place"
    /usr/bin/python3 -m venv "$place"
    "$tools/pip" --quiet --disable-pip-version-check install "${wanted[@]}"
    echo "${wanted[*]}" >"$place/wanted"
}

need_linters() {
    need shellcheck shellcheck
    need_python_tools
    install_missing
    cargo clippy --version >/dev/null 2>&1 ||
        die "there is no cargo clippy" "With rustup: rustup component add clippy"
}

missing=()
apt_is_fresh=
# Whether Debian's package of a server may make a cluster and start it.
with_cluster=

# need PROGRAM-OR-FILE PACKAGE: the package goes on the list unless the thing is there.
need() {
    local -r thing=$1 package=$2
    if [[ $thing == /* ]]; then
        if compgen -G "$thing" >/dev/null; then return; fi
    elif command -v "$thing" >/dev/null; then
        return
    fi
    missing+=("$package")
}

install_missing() {
    if [[ ${#missing[@]} -eq 0 ]]; then return; fi
    update_apt
    say "installing ${missing[*]}, and what they need (a minute or two)"
    local -r none=/etc/postgresql-common/createcluster.d/nrt_backup.conf
    if [[ -z $with_cluster && ! -e /etc/postgresql-common/createcluster.conf ]]; then
        # Debian's package of the server would make a cluster, and start it.
        as_root mkdir -p "$(dirname "$none")"
        echo 'create_main_cluster = false' | put 0644 /dev/stdin "$none"
        apt_get install --yes --no-install-recommends "${missing[@]}"
        as_root rm -f "$none"
    else
        apt_get install --yes --no-install-recommends "${missing[@]}"
    fi
    missing=()
}

update_apt() {
    if [[ -n $apt_is_fresh ]]; then return; fi
    say "asking apt what there is"
    apt_get update
    apt_is_fresh=yes
}

# Without a locale PostgreSQL's packages cannot make a cluster.
apt_get() {
    local log
    log=$(mktemp)
    if ! as_root env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 \
        apt-get -o DPkg::Lock::Timeout=300 "$@" </dev/null >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        die "apt-get $* failed"
    fi
    rm -f "$log"
}

as_root() {
    if [[ $EUID -eq 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root and there is no sudo: $*"
    fi
}
