#!/bin/bash
# rclone, with the one thing that Debian's has not:
#
#   rclone serve s3 --addr :PORT --auth-key KEY,SECRET DIRECTORY
set -euo pipefail

if [[ "${1:-} ${2:-}" != 'serve s3' ]]; then exec /usr/bin/rclone "$@"; fi
shift 2
address='' keys=''
while (($# > 1)); do
    case $1 in
    --addr) address=$2 ;;
    --auth-key) keys=$2 ;;
    *)
        echo "store: unknown option \"$1\"" >&2
        exit 2
        ;;
    esac
    shift 2
done
mkdir -p "$1"
S3_ACCESS_KEY=${keys%%,*} S3_SECRET_KEY=${keys#*,} exec s3server "0.0.0.0$address" "$1"
