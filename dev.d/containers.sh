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

# Installs what containers need here, and says where all of theirs is.
#
#   NRT_CONTAINERS_DIR   where it is kept for the next run, with absolute path (default: it is
#                        removed; making it takes most of the time)
need_containers() {
    containers=${NRT_CONTAINERS_DIR:-$scratch/containers}
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
}

# Makes the images, on stand-ins for the official ones: no registry is asked.
make_images() {
    cargo fetch --quiet --locked
    NRT_CONTAINERS_NETWORK=host tests/containers/isolated "$1" tests/containers/images.sh "$1"
}

# The process that makes the images since before the tests began, if one does.
making_images=

# Makes the images, or waits for those that are being made.
have_images() {
    if [[ -z $making_images ]]; then
        make_images "$containers"
        return
    fi
    take_time_again "$making_images"
    while kill -0 "$making_images" 2>/dev/null; do sleep 0.5; done
    cat "$scratch/images.log"
    [[ -e $scratch/images-are-made ]] || die "the images could not be made"
}

# The image in containers.
part_containers() {
    local why
    need_containers
    if ! why=$(containers_run_here "$containers"); then
        cat <<END

****************************************************************************************************
NOT TESTED: the image. No container can run here:
$why
****************************************************************************************************

END
        echo "skipped: no container can run here"
        return
    fi
    local -a what=(-p nrt-tests --features containers --no-fail-fast)
    cargo test "${when_unwatched[@]}" --no-run "${what[@]}" --test containers --test readme
    what+=("${when_unwatched[@]}")
    have_images
    export PATH=$PATH:$tools
    # What the README says is done one after the other, in a world of its own: it has names and ports
    # of its own. Beside that the other tests, two at a time, whatever the machine has: all of them
    # wait more than they work.
    local readme status=0
    rm -rf --one-file-system "$containers/readme"
    NRT_CONTAINERS_IMAGES=$containers tests/containers/isolated "$containers/readme" \
        cargo test "${what[@]}" --test readme -- --test-threads=1 "$@" >"$scratch/readme" 2>&1 &
    readme=$!
    tests/containers/isolated "$containers" cargo test "${what[@]}" --test containers -- \
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
