#!/usr/bin/env bash
# Runs `./dev test` on other Debian releases, each in a root of its own that is removed afterwards.
#
#   bash tests/matrix.sh [SUITE...]        suites: bookworm (15), trixie (17), sid (18)
#
# Without a suite: trixie and sid; Debian 12 is what `./dev test` itself runs on most of the time.
# Prints everything the tests print, then one line per suite. Fails if one of them failed.
#
#   NRT_MATRIX_DIR       where the roots are made (/var/tmp/nrt-matrix)
#   NRT_MATRIX_KEEP=1    keep the roots; the next run uses them again
#   NRT_MATRIX_COMMAND   what runs in the copied work tree (./dev test)
#   NRT_MATRIX_MIRROR    the Debian mirror (the one apt uses here)
#   NRT_MATRIX_RUST      host: the Rust of this machine (where rustup put it); debian: what ./dev
#                        installs in the root (the default if cargo here is Debian's own)
#
# NRT_TEST_* and CI are handed on to the tests.
#
# Every command that needs a mount runs in mount, process and IPC namespaces of its own: the mounts
# are never seen outside, and whatever the tests leave running dies with the namespace, also when
# this script is killed. That is why `rm -rf` of a root cannot reach the machine's own /dev.
set -euo pipefail

readonly base=${NRT_MATRIX_DIR:-/var/tmp/nrt-matrix}
readonly keep=${NRT_MATRIX_KEEP:-0}
readonly command=${NRT_MATRIX_COMMAND:-./dev test}
source_tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly source_tree
# shellcheck source=tests/mirror.sh
source "$source_tree/tests/mirror.sh"
# Inside a root. The registry is the host's, so crates are downloaded once for all suites.
readonly cargo_home=/root/.cargo
readonly rust_home=/opt/rust
readonly ca_bundle=/etc/ssl/nrt-matrix.crt

declare -A postgres_of=([bookworm]=15 [trixie]=17 [sid]=18)
child=
touched=()
summary=()
failed=0

say() { printf '\n== %s\n' "$*" >&2; }
die() {
    printf 'matrix: %s\n' "$1" >&2
    if [[ -n ${2:-} ]]; then printf 'HINT: %s\n' "$2" >&2; fi
    exit 2
}

# Runs a command and shows what it printed only if it fails, which ends the run.
quietly() {
    local log=$base/.log
    if ! "$@" >"$log" 2>&1; then
        cat "$log" >&2
        die "making a root failed: ${*:2}"
    fi
}

# Runs a command in fresh namespaces and waits for it.
#
# In the background, because bash runs a trap only between two commands: a TERM in the middle of a
# build must end the build. As a job (set -m), because bash lets other background commands ignore
# SIGINT, and they hand that on to everything they start. It dies with this shell, and everything
# in the namespaces with it.
isolated() {
    set -m
    setpriv --pdeathsig KILL -- \
        unshare --mount --propagation private --pid --fork --kill-child --mount-proc --ipc -- "$@" \
        3>&- 4>&- 9>&- </dev/null &
    child=$!
    set +m
    local status=0
    wait "$child" || status=$?
    child=
    return "$status"
}

# Runs a command inside a root, with a clean environment.
inside() {
    local root=$1
    shift
    local -a binds=("$registry:$cargo_home/registry:rw")
    if [[ -n $toolchain ]]; then binds+=("$toolchain:$rust_home:ro"); fi
    # shellcheck disable=SC2016  # expanded by the inner bash
    isolated bash -euc '
        root=$1 count=$2
        shift 2
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
        for ((; count > 0; count--)); do
            IFS=: read -r from to mode <<<"$1"
            shift
            mkdir -p "$root$to"
            mount --bind "$from" "$root$to"
            if [[ $mode == ro ]]; then mount -o remount,bind,ro "$root$to"; fi
        done
        # No exec: this shell stays as process 1 and reaps what the tests orphan.
        chroot "$root" "$@"
        exit $?' matrix "$root" "${#binds[@]}" "${binds[@]}" \
        /usr/bin/env -i \
        PATH="$rust_home/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
        HOME=/root CARGO_HOME="$cargo_home" TERM="${TERM:-dumb}" \
        SSL_CERT_FILE="$ca_bundle" CARGO_HTTP_CAINFO="$ca_bundle" CURL_CA_BUNDLE="$ca_bundle" \
        DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 \
        "$@"
}

clean_up() {
    local status=$?
    trap - EXIT
    trap '' INT TERM HUP PIPE
    # A trap runs in the middle of whatever it interrupts, redirections and all.
    exec >&3 2>&4
    local suite first
    if [[ -n $child ]]; then
        # The first process of a namespace takes all others with it, and unshare waits for them.
        read -r first _ 2>/dev/null <"/proc/$child/task/$child/children" || first=$child
        kill -KILL "$first" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
    fi
    for suite in "${touched[@]}"; do
        if [[ $keep != 1 || $(cat "$base/$suite.state") != ready ]]; then remove_root "$suite"; fi
    done
    if [[ $keep != 1 ]]; then
        rm -f "$base/.lock" "$base/.log"
        rmdir "$base" 2>/dev/null || true
    fi
    if ((${#summary[@]} > 0)); then
        say "matrix"
        printf '%s\n' "${summary[@]}"
    fi
    exit "$status"
}

# Removes a root that this script made. The state file says that it did.
remove_root() {
    local root=$base/$1
    if [[ ! -e $base/$1.state ]]; then return; fi
    if ! rm -rf --one-file-system "$root"; then
        printf 'matrix: could not remove "%s"\n' "$root" >&2
        return
    fi
    rm -f "$base/$1.state"
}

write_sources() {
    local suite=$1 root=$2
    {
        echo "deb $mirror $suite main"
        if [[ $suite != sid ]]; then
            echo "deb $mirror $suite-updates main"
            echo "deb $security $suite-security main"
        fi
    } >"$root/etc/apt/sources.list"
}

make_root() {
    local suite=$1 root=$base/$1 major=${postgres_of[$1]}
    local state=
    if [[ -e $base/$suite.state ]]; then state=$(cat "$base/$suite.state"); fi
    if [[ -z $state && -e $root ]]; then
        die "\"$root\" exists and is not a root that this script made" \
            "Move it away, or set NRT_MATRIX_DIR to another directory."
    fi
    if [[ $state != ready ]]; then
        remove_root "$suite"
        touched+=("$suite")
        echo making >"$base/$suite.state"
        say "$suite: making a root in $root"
        quietly isolated debootstrap --variant=minbase "$suite" "$root" "$mirror"
        configure_root "$suite" "$root"
        quietly inside "$root" apt-get update -q
        # What the summary names. The rest ./dev installs, as it does on any minimal Debian.
        quietly inside "$root" apt-get install -qy --no-install-recommends \
            git "postgresql-$major" pgbackrest
        quietly inside "$root" apt-get clean
        echo ready >"$base/$suite.state"
    else
        touched+=("$suite")
        say "$suite: using the root in $root again"
    fi
    # ca-certificates' own bundle lacks what the operator of this machine added.
    install -m 0644 "$host_ca" "$root$ca_bundle"
}

configure_root() {
    local suite=$1 root=$2
    write_sources "$suite" "$root"
    # sid's Release file is often older than its Valid-Until on a mirror; its signature still counts.
    echo 'Acquire::Check-Valid-Until "false";' >"$root/etc/apt/apt.conf.d/10-nrt-matrix"
    apt-config dump | grep -E '^Acquire::https?::Proxy ' >>"$root/etc/apt/apt.conf.d/10-nrt-matrix" ||
        true
    # A root that is thrown away need not survive a power cut.
    echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/nrt-matrix"
    # No service may start at installation, and no cluster be made: the tests make their own, and
    # PostgreSQL 18's installation fails in a root without a locale.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 0755 "$root/usr/sbin/policy-rc.d"
    mkdir -p "$root/etc/postgresql-common"
    echo 'create_main_cluster = false' >"$root/etc/postgresql-common/createcluster.conf"
    install -D -m 0644 "$host_ca" "$root$ca_bundle"
}

# Copies what git knows or would add, so that nothing built here is taken for something built there.
copy_work_tree() {
    local target=$1/src/nrt_backup
    rm -rf "$target"
    mkdir -p "$target"
    git -C "$source_tree" ls-files -z --cached --others --exclude-standard |
        while IFS= read -r -d '' file; do
            # A file removed but not yet committed is still listed.
            if [[ -e $source_tree/$file || -L $source_tree/$file ]]; then printf '%s\0' "$file"; fi
        done |
        tar -C "$source_tree" --null --verbatim-files-from -T - -c --owner=0 --group=0 |
        tar -C "$target" -x
}

# Only the tests themselves may fail without ending the run: a root that cannot be made says
# nothing about the project.
run_suite() {
    local suite=$1 root=$base/$1 pg_config=/usr/lib/postgresql/${postgres_of[$1]}/bin/pg_config
    summary+=("$suite: no root could be made")
    make_root "$suite"
    copy_work_tree "$root"
    local versions start=$SECONDS result=passed
    versions="$(inside "$root" "$pg_config" --version), $(inside "$root" pgbackrest version)"
    say "$suite: $versions: $command"
    summary[-1]="$suite: $versions: interrupted"
    inside "$root" "${handed_on[@]}" PG_CONFIG="$pg_config" \
        bash -c "cd /src/nrt_backup && $command" ||
        result="failed with status $?" failed=1
    summary[-1]="$suite: $versions: $result after $((SECONDS - start)) s"
}

if [[ $# -eq 0 ]]; then set -- trixie sid; fi
for suite in "$@"; do
    [[ -n ${postgres_of[$suite]:-} ]] ||
        die "unknown suite \"$suite\"" "The suites are bookworm, trixie and sid."
done
[[ $EUID -eq 0 ]] || die "must be run as root" "A root is made with debootstrap and entered with chroot."
[[ $base == /* && $base != / ]] || die "NRT_MATRIX_DIR is not an absolute path: \"$base\""
unshare --mount --pid --fork --ipc true 2>/dev/null ||
    die "this machine gives out no namespaces" "In a container, --privileged or CAP_SYS_ADMIN is needed."
if ! type -P debootstrap >/dev/null; then
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends debootstrap
fi

host_ca=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
[[ -r $host_ca ]] || die "no CA bundle at \"$host_ca\"" "Install ca-certificates or set SSL_CERT_FILE."
mirror=${NRT_MATRIX_MIRROR:-$(mirror_for Debian http://deb.debian.org/debian)}
security=$(mirror_for Debian-Security http://deb.debian.org/debian-security)

# A toolchain under /usr is Debian's own: of no use in another release.
toolchain=$(rustc --print sysroot 2>/dev/null) || toolchain=
case ${NRT_MATRIX_RUST:-host} in
host) if [[ $toolchain == /usr* && $toolchain != /usr/local/* ]]; then toolchain=; fi ;;
debian) toolchain= ;;
*) die "NRT_MATRIX_RUST is \"$NRT_MATRIX_RUST\"" "Set it to host or debian." ;;
esac
registry=${CARGO_HOME:-$HOME/.cargo}/registry
mkdir -p "$registry"
handed_on=()
while IFS= read -r -d '' variable; do
    if [[ $variable == NRT_TEST_* || $variable == CI=* ]]; then handed_on+=("$variable"); fi
done < <(env -0)

mkdir -p "$base"
exec 9>"$base/.lock"
flock -n 9 || die "another matrix runs in \"$base\"" "Wait for it, or set NRT_MATRIX_DIR to another directory."
exec 3>&1 4>&2
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 141' PIPE
trap 'exit 143' TERM

for suite in "$@"; do run_suite "$suite"; done
exit "$failed"
