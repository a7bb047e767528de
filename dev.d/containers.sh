# shellcheck shell=bash
# Builds the image, and tests it in containers.

# Builds for this machine, with what there is to build with.
build_image() {
    local -r wanted=$1
    local -a builder
    if docker version >/dev/null 2>&1; then
        builder=(docker build)
    elif command -v podman >/dev/null; then
        builder=(podman build --format docker)
    elif command -v buildah >/dev/null; then
        builder=(buildah bud --format docker)
    else
        die "there is neither docker nor podman nor buildah" "apt-get install buildah"
    fi
    "${builder[@]}" --build-arg "PG_MAJOR=$wanted" --build-arg "VERSION=$version" \
        --tag "nrt_backup:$wanted" .
}

# The image in containers, on stand-ins for the official images: no registry is asked.
#
#   NRT_CONTAINERS_DIR   where all of it is kept for the next run, with absolute path (default: it
#                        is removed; making it takes most of the time)
part_containers() {
    local place=${NRT_CONTAINERS_DIR:-$scratch/containers} why
    need buildah buildah
    need podman podman
    need runc runc
    need /usr/lib/podman/netavark netavark
    need fuse-overlayfs fuse-overlayfs
    need iptables iptables
    need ip iproute2
    need debootstrap debootstrap
    # Containers find each other by name.
    need /usr/lib/podman/aardvark-dns aardvark-dns
    install_missing
    need_python_tools
    if ! why=$(containers_run_here "$place"); then
        cat <<END

****************************************************************************************************
NOT TESTED: the image. No container can run here:
$why
****************************************************************************************************

END
        echo "skipped: no container can run here"
        return
    fi
    cargo fetch --quiet --locked
    NRT_CONTAINERS_NETWORK=host tests/containers/isolated "$place" \
        tests/containers/images.sh "$place"
    local -a what=(-p nrt-tests --features containers --no-fail-fast)
    cargo test "${when_unwatched[@]}" --no-run "${what[@]}" --test containers --test readme
    what+=("${when_unwatched[@]}")
    export PATH=$PATH:$tools
    # What the README says is done one after the other, in a world of its own: it has names and ports
    # of its own. Beside that the other tests, two at a time, whatever the machine has: all of them
    # wait more than they work.
    local readme status=0
    rm -rf --one-file-system "$place/readme"
    NRT_CONTAINERS_IMAGES=$place tests/containers/isolated "$place/readme" \
        cargo test "${what[@]}" --test readme -- --test-threads=1 "$@" >"$scratch/readme" 2>&1 &
    readme=$!
    tests/containers/isolated "$place" cargo test "${what[@]}" --test containers -- \
        --test-threads="${NRT_TEST_THREADS:-2}" "$@" || status=$?
    wait "$readme" || status=$?
    cat "$scratch/readme"
    return "$status"
}

# Runs a container on this machine's own files, and tells why that cannot be done.
containers_run_here() {
    if [[ $EUID -ne 0 ]]; then
        echo "This is not root."
        return 1
    fi
    mkdir -p "$1"
    tests/containers/isolated "$1" podman run --rm --network podman --rootfs /:O true 2>&1
}
