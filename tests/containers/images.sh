#!/usr/bin/env bash
# Builds our images, on stand-ins for what they are built from:
#
#   tests/containers/isolated DIRECTORY tests/containers/images.sh DIRECTORY
#
#   localhost/nrt_backup:15, :17 and :18
#
# Crates come from cargo's registry on this machine, which has them all after a `cargo fetch`, and
# what cargo builds is shared between the images. It is optimized little: the end-to-end tests run what
# is optimized as in a release. A build by the Dockerfile alone takes longer.
set -euo pipefail

readonly directory=$1
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
readonly here

say() { printf '== %s\n' "$*" >&2; }

build() {
    local -r major=$1 base=$2 log=$directory/build-$1.log
    local begin=$SECONDS
    local -a arguments=(--build-arg "PG_MAJOR=$major")
    # Where the Dockerfile's own default is what we have, it is what gets tested.
    if [[ $base != "postgres:$major-trixie" ]]; then
        arguments+=(--build-arg "BASE_IMAGE=docker.io/library/$base")
    fi
    if ! buildah bud --format docker --layers --network host --tag "localhost/nrt_backup:$major" \
        --volume "$registry:/usr/local/cargo/registry" \
        --volume "$directory/cargo/config.toml:/usr/local/cargo/config.toml:ro" \
        --volume "$directory/target:/src/target" \
        "${arguments[@]}" "$here/../.." >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        exit 1
    fi
    say "PostgreSQL $major: $(size_of "localhost/nrt_backup:$major") MB, of which" \
        "$(size_of "docker.io/library/$base") MB are the base image;" \
        "built in $((SECONDS - begin)) s"
}

size_of() {
    local -r bytes=$(podman image inspect --format '{{.Size}}' "$1")
    echo $((bytes / 1000000))
}

registry=${CARGO_HOME:-$HOME/.cargo}/registry
mkdir -p "$directory"/{cargo,target}
cat >"$directory/cargo/config.toml" <<END
[net]
offline = true
[profile.release]
opt-level = 1
lto = "off"
codegen-units = 16
END

"$here/bases.sh" "$directory"
# The oldest Debian first: programs that build others, and were built there, run on the newer ones.
build 15 postgres:15-bookworm
build 17 postgres:17-trixie
build 18 postgres:18-sid
