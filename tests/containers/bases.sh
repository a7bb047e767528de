#!/usr/bin/env bash
# Makes stand-ins for the images that ours is built from, where no registry can be asked:
#
#   tests/containers/isolated DIRECTORY tests/containers/bases.sh DIRECTORY
#
#   docker.io/library/postgres:15-bookworm   Debian 12
#   docker.io/library/postgres:17-trixie     Debian 13
#   docker.io/library/postgres:18-sid        Debian unstable
#   docker.io/library/rust:1.95-bookworm     Debian 12 with this machine's toolchain
#
# What did not change since they were made is not made again. DIRECTORY also gets the roots that are
# in the making.
set -euo pipefail

readonly directory=$1
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
readonly here
# shellcheck source=tests/mirror.sh
source "$here/../mirror.sh"

say() { printf '== %s\n' "$*" >&2; }
die() {
    printf 'bases: %s\n' "$1" >&2
    if [[ -n ${2:-} ]]; then printf 'HINT: %s\n' "$2" >&2; fi
    exit 1
}

# Runs a command and shows what it printed only if it fails.
quietly() {
    local log
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        die "this failed: $*"
    fi
    rm -f "$log"
}

make_debian() {
    local -r suite=$1 root=$directory/root-$1 image=docker.io/library/debian:$1
    if podman image exists "$image"; then return; fi
    say "making $image"
    rm -rf --one-file-system "$root"
    quietly debootstrap --variant=minbase "$suite" "$root" "$mirror"
    {
        echo "deb $mirror $suite main"
        if [[ $suite != sid ]]; then
            echo "deb $mirror $suite-updates main"
            echo "deb $security $suite-security main"
        fi
    } >"$root/etc/apt/sources.list"
    # sid's Release file is often older than its Valid-Until on a mirror; its signature still counts.
    {
        echo 'Acquire::Check-Valid-Until "false";'
        apt-config dump | grep -E '^Acquire::https?::Proxy ' || true
    } >"$root/etc/apt/apt.conf.d/10-stand-in"
    echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/stand-in"
    # What the official images of Debian leave out, too.
    printf 'path-exclude /usr/share/%s/*\n' doc man locale info >>"$root/etc/dpkg/dpkg.cfg.d/stand-in"
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 0755 "$root/usr/sbin/policy-rc.d"
    rm -rf "$root"/usr/share/{doc,man,locale,info}/* "$root"/var/cache/apt/* \
        "$root"/var/lib/apt/lists/*
    tar -C "$root" -c . | podman import --quiet - "$image" >/dev/null
    rm -rf --one-file-system "$root"
}

make_postgres() {
    local -r major=$1 suite=$2 image=docker.io/library/postgres:$1-$2
    local data=/var/lib/postgresql/data volume=/var/lib/postgresql/data
    if ((major >= 18)); then
        data=/var/lib/postgresql/$major/docker
        volume=/var/lib/postgresql
    fi
    make_debian "$suite"
    say "making $image"
    quietly buildah bud --format docker --layers --network host --tag "$image" \
        --build-arg "DEBIAN=$suite" --build-arg "PG_MAJOR=$major" \
        --build-arg "PGDATA=$data" --build-arg "VOLUME=$volume" \
        --file "$here/postgres.Containerfile" "$here"
}

make_rust() {
    local -r image=docker.io/library/rust:1.95-bookworm
    local toolchain
    toolchain=$(rustc --print sysroot)
    if [[ $toolchain == /usr && ! -e $toolchain/lib/rustlib/components ]]; then
        die "the Rust of this machine is Debian's own, and cannot be taken into an image" \
            "Install one with rustup."
    fi
    make_debian bookworm
    say "making $image"
    quietly buildah bud --format docker --layers --network host --tag "$image" \
        --volume "$toolchain:/mnt/toolchain:ro" --file "$here/rust.Containerfile" "$here"
}

mirror=$(mirror_for Debian http://deb.debian.org/debian)
security=$(mirror_for Debian-Security http://deb.debian.org/debian-security)

# Each is mostly a download, and the three have nothing to do with each other.
making=()
for suite in bookworm trixie sid; do
    make_debian "$suite" &
    making+=($!)
done
for one in "${making[@]}"; do wait "$one"; done
make_postgres 17 trixie
make_rust
make_postgres 15 bookworm
make_postgres 18 sid
