#!/usr/bin/env bash
# What the official image's program of this name promises in its documentation, for the stand-in:
#
#   docker-entrypoint.sh postgres [OPTION..]    makes a cluster if PGDATA holds none, then runs the server
#   docker-entrypoint.sh -OPTION..              the same
#   docker-entrypoint.sh COMMAND [ARG..]        runs the command
#
# POSTGRES_PASSWORD, POSTGRES_USER, POSTGRES_DB, POSTGRES_INITDB_ARGS (each or as *_FILE),
# POSTGRES_INITDB_WALDIR, POSTGRES_HOST_AUTH_METHOD, /docker-entrypoint-initdb.d/*.{sh,sql,sql.gz}
set -Eeuo pipefail

fail() {
    printf 'docker-entrypoint: %s\n' "$1" >&2
    exit 1
}

# secret NAME [DEFAULT]: NAME is what it is, or what the file says that NAME_FILE names.
secret() {
    local -r name=$1 file=$1_FILE
    local value=${!name:-}
    if [[ -n ${!file:-} ]]; then
        [[ -z $value ]] || fail "$name and $file exclude each other"
        value=$(<"${!file}")
    fi
    export "$name=${value:-${2:-}}"
    unset "$file"
}

prepare_directories() {
    local -a wanted=("$PGDATA")
    if [[ -n ${POSTGRES_INITDB_WALDIR:-} ]]; then wanted+=("$POSTGRES_INITDB_WALDIR"); fi
    mkdir -p "${wanted[@]}" /var/run/postgresql || true
    chmod 0700 "${wanted[@]}" || true
    chmod 3775 /var/run/postgresql || true
    if ((EUID == 0)); then
        find "${wanted[@]}" /var/run/postgresql ! -user postgres -exec chown postgres {} +
    fi
}

make_cluster() {
    if [[ -z $POSTGRES_PASSWORD && ${POSTGRES_HOST_AUTH_METHOD:-} != trust ]]; then
        fail 'the superuser has no password: set POSTGRES_PASSWORD, or POSTGRES_HOST_AUTH_METHOD=trust'
    fi
    local -a options=(--username="$POSTGRES_USER")
    if [[ -n ${POSTGRES_INITDB_WALDIR:-} ]]; then options+=(--waldir="$POSTGRES_INITDB_WALDIR"); fi
    # The options are words as a shell reads them.
    eval "options+=($POSTGRES_INITDB_ARGS)"
    initdb --pgdata="$PGDATA" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD") "${options[@]}"
    local method=${POSTGRES_HOST_AUTH_METHOD:-}
    if [[ -z $method ]]; then method=$(postgres -C password_encryption); fi
    printf '\nhost all all all %s\n' "$method" >>"$PGDATA/pg_hba.conf"
}

run_sql() {
    PGHOST='' PGHOSTADDR='' psql --set=ON_ERROR_STOP=1 --no-psqlrc --no-password \
        --username="$POSTGRES_USER" "$@"
}

run_init_files() {
    local file
    for file in /docker-entrypoint-initdb.d/*; do
        case $file in
        *.sh)
            if [[ -x $file ]]; then
                "$file"
            else
                # shellcheck source=/dev/null
                . "$file"
            fi
            ;;
        *.sql) run_sql --dbname="$POSTGRES_DB" --file="$file" ;;
        *.sql.gz) gunzip --stdout "$file" | run_sql --dbname="$POSTGRES_DB" ;;
        *) printf 'docker-entrypoint: ignoring %s\n' "$file" ;;
        esac
    done
}

# The server of the initialisation takes the caller's options, but no connection from outside.
fill_cluster() {
    local -r options=("${@:2}" -c listen_addresses=)
    local exists
    export PGPASSWORD=$POSTGRES_PASSWORD
    NOTIFY_SOCKET='' pg_ctl --pgdata="$PGDATA" --options="${options[*]@Q}" --wait start
    exists=$(run_sql --dbname=postgres --tuples-only --no-align --set=name="$POSTGRES_DB" \
        <<<"SELECT 1 FROM pg_database WHERE datname = :'name'")
    if [[ -z $exists ]]; then
        run_sql --dbname=postgres --set=name="$POSTGRES_DB" <<<'CREATE DATABASE :"name"'
    fi
    run_init_files
    pg_ctl --pgdata="$PGDATA" --mode=fast --wait stop
    unset PGPASSWORD
    printf '\nPostgreSQL init process complete; ready for start up.\n\n'
}

if [[ ${1:-} == -* ]]; then set -- postgres "$@"; fi
asked_to_serve=
if [[ ${1:-} == postgres ]]; then
    asked_to_serve=yes
    for argument; do
        case $argument in
        '-?' | --help | --describe-config | -V | --version) asked_to_serve= ;;
        esac
    done
fi
if [[ -n $asked_to_serve ]]; then
    prepare_directories
    if ((EUID == 0)); then exec gosu postgres "$0" "$@"; fi
    if [[ ! -s $PGDATA/PG_VERSION ]]; then
        secret POSTGRES_PASSWORD
        secret POSTGRES_USER postgres
        secret POSTGRES_DB "$POSTGRES_USER"
        secret POSTGRES_INITDB_ARGS
        make_cluster
        fill_cluster "$@"
    fi
fi
exec "$@"
